// Checks objects of the Prometheus operator's kinds, a JSON list on standard input. Ends with 1 and says what is wrong.
import { readFileSync } from "node:fs";
import * as kinds from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    new kinds[object.kind](object).validate();
  } catch (error) {
    console.error(`${object.kind} ${object.metadata.name}: ${error.message}`);
    process.exitCode = 1;
  }
}
