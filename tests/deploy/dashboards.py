"""Reading the dashboards: their panels, and the expressions as Prometheus gets them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lbguard.probe.metrics import list_probe_metrics
from lbguard.telemetry.metrics.families import MetricSpec
from lbguard.telemetry.metrics.guard import list_metrics
from tests.deploy.charts import ROOT

GRAFANA = ROOT / "deploy/grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(GRAFANA.glob("*.json"))}

_PROCESS = {
    name: MetricSpec(name=name, kind="gauge", labels=(), help="")
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds")
}
SPECS = {spec.name: spec for spec in (*list_metrics(), *list_probe_metrics())} | _PROCESS
SCRAPED = {"namespace", "pod", "instance", "job"}
"""Labels that a scrape adds."""

VARIABLES = ("datasource", "namespace", "pod", "stream", "identifier", "runbook")


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel."""

    dashboard: str
    panel: str
    expr: str
    legend: str
    instant: bool

    def filled(self, *, rate_interval: str, whole: str) -> str:
        """Return the expression with its variables filled in: everything is chosen."""
        text = self.expr.replace("$__rate_interval", rate_interval).replace("$__range", whole)
        for name in VARIABLES:
            text = text.replace(f'"${name}"', '".*"')
        assert "$" not in text, text
        return text

    def metrics(self) -> set[str]:
        """Return the names of the metrics in it, as they are exported."""
        return set(re.findall(r"\b((?:lbguard|process)_\w+)", self.expr))


def spec_of(name: str) -> MetricSpec:
    """Return what the code says of an exported name; those of a histogram have a suffix."""
    for suffix in ("", "_bucket", "_sum", "_count"):
        spec = SPECS.get(name.removesuffix(suffix))
        if spec is not None and (not suffix or (spec.kind == "histogram" and name.endswith(suffix))):
            return spec
    raise KeyError(name)


def panels(dashboard: str) -> list[dict[str, Any]]:
    """Return the panels of a dashboard that show something."""
    return [panel for panel in DASHBOARDS[dashboard]["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    """Yield the queries of all dashboards."""
    for name in DASHBOARDS:
        for panel in panels(name):
            for target in panel["targets"]:
                yield Query(name, panel["title"], target["expr"], target["legendFormat"], target["instant"])
