"""Recording and alerting rules: promtool evaluates them over made-up series."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.alert_cases import CASES, STREAM, Case, Series
from tests.deploy.charts import ROOT
from tests.deploy.dashboards import SCRAPED, spec_of
from tests.deploy.rules import RULE_FILES, evaluate, promtool_or_skip

POD = {"namespace": "trench-a", "pod": "lb-0", "instance": "lb-0:9464", "job": "lbguard"}
GROUPS = [group for file in RULE_FILES for group in yaml.safe_load(file.read_text())["groups"]]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"]: rule for group in GROUPS for rule in group["rules"] if "record" in rule}


@pytest.fixture(scope="session")
def promtool() -> str:
    return promtool_or_skip()


def labels_text(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in labels.items())


def series(name: str) -> str:
    """Return a series with the labels of a pod, of which it may have others."""
    metric, _, own = name.partition("{")
    labels = POD | dict(re.findall(r'(\w+)="([^"]*)"', own))
    return f"{metric}{{{labels_text(labels)}}}"


def unit_test(alert: str, case: Case, given: Series, *, fires: bool) -> dict[str, Any]:
    labels = {"alertname": alert, "alertstate": "firing", "severity": case.severity}
    labels |= (POD if case.pod else {}) | case.labels
    sample = {"labels": f"ALERTS{{{labels_text(labels)}}}", "value": 1}
    return {
        "interval": "30s",
        "input_series": [{"series": series(name), "values": values} for name, values in given.items()],
        "promql_expr_test": [
            {
                "expr": f'ALERTS{{alertname="{alert}",alertstate="firing"}}',
                "eval_time": f"{case.at_min}m",
                "exp_samples": [sample] if fires else [],
            }
        ],
    }


def test_the_rules_are_well_formed(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "check", "rules", "--lint=all", "--lint-fatal", *RULE_FILES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_a_case_for_every_alert() -> None:
    assert CASES.keys() == ALERTS.keys()


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_should_and_only_then(alert: str, promtool: str, tmp_path: Path) -> None:
    case = CASES[alert]
    assert case.quiet
    given = [(case.fires, True), *((made_up, False) for made_up in case.quiet)]
    tests = [unit_test(alert, case, made_up, fires=fires) for made_up, fires in given]
    if evaluate(promtool, tests, tmp_path):
        # One at a time, for promtool does not say which of them it was.
        for (made_up, fires), test in zip(given, tests, strict=True):
            said = evaluate(promtool, [test], tmp_path)
            assert not said, f"{'it does not fire' if fires else 'it fires'} with {made_up}: {said}"


def test_a_wrong_expectation_is_noticed(promtool: str, tmp_path: Path) -> None:
    case = CASES["LbguardMassFailure"]
    assert evaluate(promtool, [unit_test("LbguardMassFailure", case, case.quiet[0], fires=True)], tmp_path)
    assert evaluate(promtool, [unit_test("LbguardMassFailure", case, case.fires, fires=False)], tmp_path)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_whom_and_where_to_read_on(alert: str) -> None:
    rule, case = ALERTS[alert], CASES[alert]
    assert rule["labels"] == {"severity": case.severity}
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    labels = (POD if case.pod else {}) | case.labels
    for text in annotations.values():
        # A label that the alert does not have shows as nothing.
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels.keys()
    assert annotations["description"].endswith(".")
    assert not annotations["summary"].endswith(".")
    runbook, _, anchor = annotations["runbook_url"].partition("#")
    assert anchor == alert.lower()
    assert f"\n### {alert}\n" in (ROOT / runbook).read_text()


@pytest.mark.parametrize("alert", ALERTS)
def test_the_runbook_says_what_it_means_and_what_to_do(alert: str) -> None:
    entry = re.split(r"(?m)^##", (ROOT / "docs/runbook.md").read_text().partition(f"\n### {alert}\n")[2])[0]
    about, look, do, harmless = re.split(r"\n- (?=Look: |Do: |Harmless: )", entry)
    assert about.strip().endswith(".")
    for words, what in zip((look, do, harmless), ("Look: ", "Do: ", "Harmless: "), strict=True):
        assert words.startswith(what)
    assert re.search(r"`|\*\w|log|label", look), "a command, a panel, the log or a label to look at"


@pytest.mark.parametrize("rule", [*ALERTS.values(), *RECORDED.values()], ids=[*ALERTS, *RECORDED])
def test_a_rule_is_about_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    expr = rule["expr"]
    exported = re.findall(r"(?<![\w:])((?:lbguard|process)_\w+)(?![\w:])", expr)
    recorded = re.findall(r"\w+:\w+:\w+", expr)
    assert exported or recorded
    assert set(recorded) <= RECORDED.keys()
    labels = {label for metric in exported for label in spec_of(metric).labels}
    matched = set(re.findall(r"(\w+)=~?\"", expr))
    assert matched <= labels


@pytest.mark.parametrize("alert", CASES)
def test_made_up_series_are_like_real_ones(alert: str) -> None:
    for given in (CASES[alert].fires, *CASES[alert].quiet):
        for name in given:
            metric, _, text = name.partition("{")
            labels = set(re.findall(r"(\w+)=\"", text)) - SCRAPED - {"le"}
            # Of the two labels of this one the rules ask for one.
            assert metric == "up" or labels == set(spec_of(metric).labels) - {"python"}, name


def test_every_recorded_value_is_used_or_is_for_the_long_run() -> None:
    used = {name for rule in ALERTS.values() for name in RECORDED if name in rule["expr"]}
    assert RECORDED.keys() - used == {"instance_stream:lbguard_holds:increase1h"}


def test_what_is_recorded(promtool: str, tmp_path: Path) -> None:
    given = {
        'lbguard_target_states{stream="s",state="active"}': "4x20",
        'lbguard_target_states{stream="s",state="held"}': "3x20",
        'lbguard_stream_available{stream="s"}': "1x20",
        'lbguard_stream_available{stream="s",pod="lb-1"}': "0x20",
        'lbguard_stream_packets_total{stream="s"}': "0+40x20",
        'lbguard_stream_held_packets_total{stream="s"}': "0+10x20",
        'lbguard_probe_rounds_total{outcome="untested"}': "0+1x20",
        'lbguard_probe_rounds_total{outcome="good"}': "0+4x20",
        'lbguard_probe_pings_total{family="ipv4"}': "0+10x20",
        'lbguard_probe_replies_total{family="ipv4"}': "0+9x20",
    }
    expected = (
        ("instance_stream:lbguard_targets:sum", POD | STREAM, 7),
        ("namespace_stream:lbguard_stream_available:sum", {"namespace": "trench-a"} | STREAM, 1),
        ("instance_stream:lbguard_held_packets:ratio_rate5m", POD | STREAM, 0.25),
        ("instance:lbguard_probe_untested:ratio_rate5m", POD, 0.2),
        ("instance_family:lbguard_probe_loss:ratio_rate5m", POD | {"family": "ipv4"}, 0.1),
    )
    tests = {
        "interval": "30s",
        "input_series": [{"series": series(name), "values": values} for name, values in given.items()],
        "promql_expr_test": [
            {
                "expr": f"round({name}, 0.001)",
                "eval_time": "10m",
                "exp_samples": [{"labels": f"{{{labels_text(labels)}}}", "value": value}],
            }
            for name, labels, value in expected
        ],
    }
    said = evaluate(promtool, [tests], tmp_path)
    assert not said, said
