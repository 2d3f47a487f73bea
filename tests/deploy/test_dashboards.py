"""The dashboards: generated, importable, and about metrics and labels that exist."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.charts import ROOT
from tests.deploy.dashboards import DASHBOARDS, SCRAPED, SPECS, VARIABLES, Query, panels, queries, spec_of

QUERIES = list(queries())
EXPECTED = ["fleet", "load-balancer", "target", "verdicts"]


def test_the_committed_files_are_what_the_data_says(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts/generate-dashboards"), "--out", str(tmp_path)], check=True)
    generated = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert sorted(DASHBOARDS) == EXPECTED
    assert generated == DASHBOARDS, "run scripts/generate-dashboards"


@pytest.mark.parametrize("name", EXPECTED)
def test_it_can_be_imported_anywhere(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert "id" not in dashboard, "an id belongs to one Grafana"
    assert dashboard["uid"].startswith("lbguard-")
    variables = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert variables == [name for name in VARIABLES if name in variables]
    assert variables[0] == "datasource"
    text = json.dumps(dashboard)
    assert set(re.findall(r'"type": "prometheus", "uid": "([^"]*)"', text)) == {"${datasource}"}
    used = {name for name in re.findall(r"\$\{?(\w+)", text) if not name.startswith("__")}
    assert used == set(variables), "a variable is used that is not there, or is there for nothing"


@pytest.mark.parametrize("name", EXPECTED)
def test_every_panel_says_what_it_shows(name: str) -> None:
    shown = panels(name)
    assert len({panel["title"] for panel in shown}) == len(shown)
    ids = [panel["id"] for panel in DASHBOARDS[name]["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in shown:
        assert panel["description"].endswith("."), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"], panel["title"]
        steps = defaults["thresholds"]["steps"]
        values = [step["value"] for step in steps]
        assert values[0] is None
        assert values[1:] == sorted(values[1:]), panel["title"]
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends), panel["title"]
        assert panel["type"] == "stat" or all(legends), panel["title"]
        if panel["type"] == "state-timeline":
            assert defaults["mappings"], panel["title"]


@pytest.mark.parametrize("name", EXPECTED)
def test_panels_fill_the_grid_and_do_not_overlap(name: str) -> None:
    places = [panel["gridPos"] for panel in DASHBOARDS[name]["panels"]]
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or apart, (one, other)
    for _, row in itertools.groupby(sorted(places, key=lambda place: place["y"]), key=lambda place: place["y"]):
        assert sum(place["w"] for place in row) == 24


def test_every_expression_is_promql(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    rules = [
        {"record": f"panel:{number}", "expr": query.filled(rate_interval="1m", whole="1h")}
        for number, query in enumerate(QUERIES)
    ]
    for name, dashboard in DASHBOARDS.items():
        for annotation in dashboard["annotations"]["list"]:
            query = Query(name, annotation["name"], annotation["expr"], "", instant=False)
            rules.append({"record": f"annotation:{len(rules)}", "expr": query.filled(rate_interval="1m", whole="1h")})
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def names(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.dashboard}: {query.panel}: {query.legend}")
def test_metrics_and_labels_exist(query: Query) -> None:
    metrics = query.metrics()
    assert metrics
    labels = {label for metric in metrics for label in spec_of(metric).labels} | SCRAPED | {"le"}
    grouped = set().union(*(names(text) for text in re.findall(r"\b(?:by|on) \(([^)]*)\)", query.expr)))
    assert grouped <= labels
    for metric, matchers in re.findall(r"(\w+)\{([^}]*)\}", query.expr):
        assert set(re.findall(r"(\w+)=~?\"", matchers)) <= {*spec_of(metric).labels, *SCRAPED}, metric
    shown = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
    assert shown <= grouped, "the legend shows a label that the query takes away"


def test_counters_are_asked_for_their_growth_and_gauges_for_their_value() -> None:
    for query in QUERIES:
        for metric, window in re.findall(r"((?:lbguard|process)_\w+)\{[^}]*\}(\[)?", query.expr):
            counts = spec_of(metric).kind != "gauge" or metric.endswith("_total")
            # The presence of a link is read from a counter's mere existence.
            special = {"Links that face targets"} | (
                {"Timeline of targets"} if "max_over_time(" in query.expr else set()
            )
            assert bool(window) == counts or query.panel in special, (query.panel, metric)


@pytest.mark.parametrize("page", ["runbook.md", "troubleshooting.md"])
def test_panels_that_pages_name_exist(page: str) -> None:
    text = re.sub(r"(?ms)^```.*?^```$", "", (ROOT / "docs" / page).read_text()).replace("\n  ", " ")
    shown = {panel["title"] for name in EXPECTED for panel in panels(name)} | {query.legend for query in QUERIES}
    named = set(re.findall(r'"([^"]+)"', text))
    assert named
    assert named - shown == set()
    for name in EXPECTED:
        titles = {panel["title"] for panel in panels(name)}
        # What follows the name of a dashboard is on that one.
        assert set(re.findall(rf'\*{name}\*, "([^"]+)"', text)) <= titles, name
    assert set(re.findall(r"[^*]\*([a-z -]+)\*, \"", text)) <= set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_event_is_not_counted_in_one_step_after_another(name: str) -> None:
    for panel in panels(name):
        grows = any("increase(" in target["expr"] for target in panel["targets"])
        assert panel.get("interval") == ("1m" if grows and panel["type"] != "stat" else None), panel["title"]


def test_panels_lead_to_headings_of_the_runbook() -> None:
    headings = re.findall(r"(?m)^#+ (.*)$", (ROOT / "docs/runbook.md").read_text())
    anchors = {"-".join(heading.lower().split()) for heading in headings}
    titles = set()
    for name in EXPECTED:
        for panel in panels(name):
            for link in panel["links"]:
                base, _, anchor = link["url"].partition("#")
                assert (base, anchor in anchors) == ("${runbook}", True), (panel["title"], link)
                titles.add(panel["title"])
    assert len(titles) > 50


def test_panels_about_targets_lead_to_the_page_of_one() -> None:
    page = DASHBOARDS["target"]
    chosen = {variable["name"] for variable in page["templating"]["list"] if not variable.get("multi")}
    assert {"stream", "identifier"} <= chosen
    leading = 0
    for name in EXPECTED:
        for panel in panels(name):
            links = panel["fieldConfig"]["defaults"]["links"]
            by_target = any("{{identifier}}" in target["legendFormat"] for target in panel["targets"])
            assert bool(links) == by_target, panel["title"]
            for link in links:
                leading += 1
                assert link["url"].startswith(f"/d/{page['uid']}?")
                assert "var-stream=${__field.labels.stream}&var-identifier=${__field.labels.identifier}" in link["url"]
    assert leading >= 4


def test_panels_by_target_are_bounded() -> None:
    for query in QUERIES:
        if "{{identifier}}" in query.legend:
            assert "topk(" in query.expr, query.panel


def test_nothing_is_well_while_nothing_is_scraped() -> None:
    for query in QUERIES:
        assert "vector(" not in query.expr, f"{query.panel}: a number that is there without any pod"


@pytest.mark.parametrize("name", EXPECTED)
def test_one_pod_does_not_hide_another_of_its_name(name: str) -> None:
    for panel in panels(name):
        for target in panel["targets"] if panel["type"] == "state-timeline" else ():
            how, grouped = re.findall(r"\b(min|max) by \(([^)]*)\)", target["expr"])[0]
            assert "pod" not in names(grouped) or "namespace" in names(grouped), panel["title"]
            mapped = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
            worst_is_least = mapped.get("0", {}).get("color") == "red"
            assert not worst_is_least or how == "min", f"{panel['title']}: one that is well hides one that is not"


def test_no_metric_is_left_out_without_saying_so() -> None:
    used = {spec_of(metric).name for query in QUERIES for metric in query.metrics()}
    assert set(SPECS) - used == NOT_SHOWN


NOT_SHOWN = {
    "lbguard_recording_entries_total",  # bytes do
    "lbguard_override_commands_total",  # the log has each command, and events what followed
}
