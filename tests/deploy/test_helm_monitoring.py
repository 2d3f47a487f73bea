"""What the chart gives to Prometheus and Grafana: dashboards, switches of alerts, relabelings of monitors."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.deploy.charts import CHART, ROOT, Helm, Object, case, find, validate

PAGE = "https://docs.example/runbook/"


def dashboards(objects: list[Object]) -> list[Object]:
    return [item for item in objects if "-dashboard-" in item["metadata"]["name"]]


def test_dashboards_are_config_maps_for_the_sidecar_of_grafana(helm: Helm, tmp_path: Path) -> None:
    assert dashboards(helm.objects()) == []
    found = dashboards(helm.objects("dashboards.enabled=true"))
    assert len(found) == len(list((ROOT / "deploy/grafana").glob("*.json")))
    for item in found:
        assert item["kind"] == "ConfigMap"
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert item["metadata"]["namespace"] == "trench-a"
        assert "annotations" not in item["metadata"]
        ((file, text),) = item["data"].items()
        source = ROOT / "deploy/grafana" / file.removeprefix("lbguard-")
        assert json.loads(text) == json.loads(source.read_text())
        assert len(text) < 900_000, "a ConfigMap has room for a MiB"
    validate(found, tmp_path)


def test_label_folder_and_namespace_of_dashboards_are_chosen(helm: Helm, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    values = {
        "enabled": True,
        "labels": {"grafana_dashboard": None, "our_dashboard": "yes"},
        "annotations": {"grafana_folder": "lbguard"},
        "namespace": "monitoring",
    }
    file.write_text(yaml.safe_dump({"dashboards": values}))
    for item in dashboards(helm.objects(file)):
        metadata = item["metadata"]
        assert metadata["labels"]["our_dashboard"] == "yes"
        assert "grafana_dashboard" not in metadata["labels"]
        assert metadata["annotations"] == {"grafana_folder": "lbguard"}
        assert metadata["namespace"] == "monitoring"


@pytest.mark.parametrize("setting", ["dashboards.runbookUrl", "prometheusRule.runbookUrl"])
def test_panels_lead_to_where_the_runbook_is_published(helm: Helm, setting: str) -> None:
    for item in dashboards(helm.objects("dashboards.enabled=true", f"{setting}={PAGE}")):
        (text,) = item["data"].values()
        assert "docs/runbook.md" not in text
        variable = next(each for each in json.loads(text)["templating"]["list"] if each["name"] == "runbook")
        assert (variable["query"], variable["current"]["value"]) == (PAGE, PAGE)


def rules(helm: Helm, *values: str | Path) -> dict[str, Object]:
    found = find(helm.objects("prometheusRule.enabled=true", *values), "PrometheusRule")
    return {rule.get("alert") or rule["record"]: rule for group in found["spec"]["groups"] for rule in group["rules"]}


def test_an_alert_is_switched_off_alone(helm: Helm) -> None:
    usual = rules(helm)
    changed = rules(helm, "prometheusRule.alerts.LbguardHeldInVain.enabled=false")
    assert usual.keys() - changed.keys() == {"LbguardHeldInVain"}
    assert all(changed[name] == usual[name] for name in changed)


def test_a_group_without_rules_is_left_out(helm: Helm) -> None:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"]
    least = min(groups, key=lambda group: len(group["rules"]))
    off = [f"prometheusRule.alerts.{rule['alert']}.enabled=false" for rule in least["rules"]]
    found = find(helm.objects("prometheusRule.enabled=true", *off), "PrometheusRule")
    names = [group["name"] for group in found["spec"]["groups"]]
    assert least["name"] not in names
    assert len(names) >= len(groups)
    assert all(group["rules"] for group in found["spec"]["groups"])


def test_labels_and_delay_of_alerts_are_changed(helm: Helm, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    alerts = {"LbguardFlapping": {"for": "30m", "labels": {"severity": "info", "team": "own"}}}
    file.write_text(yaml.safe_dump({"prometheusRule": {"alertLabels": {"team": "network"}, "alerts": alerts}}))
    usual, changed = rules(helm), rules(helm, file)
    for name, rule in changed.items():
        if name == "LbguardFlapping":
            assert (rule["for"], rule["labels"]) == ("30m", {"severity": "info", "team": "own"})
        elif "alert" in rule:
            assert rule == usual[name] | {"labels": usual[name]["labels"] | {"team": "network"}}
        else:
            assert rule == usual[name], "what is recorded keeps its labels"


def test_the_schema_knows_every_alert() -> None:
    known = json.loads((CHART / "values.schema.json").read_text())["properties"]["prometheusRule"]["properties"]
    text = (ROOT / "deploy/prometheus/alerts.yaml").read_text()
    assert list(known["alerts"]["properties"]) == re.findall(r"alert: (\w+)", text)


@pytest.mark.parametrize(("monitor", "key"), [("PodMonitor", "podMetricsEndpoints"), ("ServiceMonitor", "endpoints")])
def test_monitors_relabel_series(helm: Helm, tmp_path: Path, monitor: str, key: str) -> None:
    drop = {"sourceLabels": ["__name__"], "regex": "lbguard_.*_bytes_total", "action": "drop"}
    node = {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}
    name = monitor[0].lower() + monitor[1:]
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({name: {"enabled": True, "metricRelabelings": [drop], "relabelings": [node]}}))
    (endpoint,) = find(helm.objects(case("monitors"), file), monitor, "-guard")["spec"][key]
    assert endpoint["metricRelabelings"] == [drop]
    assert endpoint["relabelings"] == [node]
    (plain,) = find(helm.objects(case("monitors")), monitor, "-guard")["spec"][key]
    assert not {"metricRelabelings", "relabelings"} & plain.keys()
