"""A real Prometheus scrapes the running service: each query of the dashboards has data while things happen.

What cannot have data in that cycle is named here, query by query, with the reason.
"""

import re
import shutil
import subprocess
import time

import pytest

from tests.deploy.dashboards import DASHBOARDS, VARIABLES, queries
from tests.netns.monitoring.cycle import PODS, Cycle
from tests.netns.service.conftest import guarded
from tests.netns.service.guarded import Guarded

__all__ = ["guarded"]
pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(900)]

Key = tuple[str, str, str]

_HEALTHY = "nothing of this kind goes wrong in the cycle"
_REFUSED = "the kernel refuses nothing, or for a moment only"
_OTHER_SOURCE = "the targets come from a file"
_NO_FILE = "the settings come from variables"
_TOO_FAST = "it keeps up, so only a slow machine shows something"

_NO_NEW_FLOWS = "no client opens a TCP connection here"

ZERO: dict[Key, str] = {
    ("load-balancer", "Connections given to another target", "steered"): _NO_NEW_FLOWS,
    ("load-balancer", "Flows remembered by reason", "steered"): _NO_NEW_FLOWS,
    ("load-balancer", "Flows remembered by reason", "{{reason}}"): _NO_NEW_FLOWS,
    ("load-balancer", "Flows that fell back", "fell back"): _NO_NEW_FLOWS,
    ("load-balancer", "Remembered flows", "{{protocol}} {{family}}"): _NO_NEW_FLOWS,
    ("load-balancer", "Map fill", "{{protocol}} {{family}}"): _NO_NEW_FLOWS,
    ("load-balancer", "Flows not remembered", "no room"): _NO_NEW_FLOWS,
    ("load-balancer", "Corrections and refusals", "corrected"): _HEALTHY,
    ("load-balancer", "Corrections and refusals", "refused"): _HEALTHY,
    ("load-balancer", "Holds and withdrawals by cause", "lost one family: {{cause}}"): _HEALTHY,
    ("fleet", "Connections given to other targets", "{{pod}}"): _NO_NEW_FLOWS,
    ("fleet", "Connections that fell back", "{{pod}}"): _NO_NEW_FLOWS,
    ("fleet", "Fullest map of flows", "{{pod}}"): _NO_NEW_FLOWS,
    ("load-balancer", "Packets kept and given back", "ICMP errors to targets"): _NO_NEW_FLOWS,
    ("load-balancer", "Settings file", "{{outcome}}"): _NO_FILE,
    ("load-balancer", "Settings file", "refused now"): _NO_FILE,
    ("load-balancer", "Settings file", "need a restart"): _NO_FILE,
    ("load-balancer", "Targets under a command", "{{action}}"): "no operator gives a command",
    ("fleet", "Not ready", ""): "it is ready before Prometheus sees it",
    ("fleet", "Operations refused by kernel or distributor", "commits"): _HEALTHY,
    ("load-balancer", "Slots and commits", "commits failed"): _HEALTHY,
    ("load-balancer", "Errors and drops by link", "errors {{interface_name}}"): _HEALTHY,
    ("load-balancer", "Errors and drops by link", "dropped {{interface_name}}"): _HEALTHY,
    ("load-balancer", "Event lag", "stalled"): _TOO_FAST,
    ("load-balancer", "Inbox", "waiting"): _TOO_FAST,
    ("load-balancer", "Inbox", "dropped"): _TOO_FAST,
    ("load-balancer", "Full reads of the kernel", "overruns"): _TOO_FAST,
    ("load-balancer", "Full reads of the kernel", "{{reason}}"): _TOO_FAST,
    ("load-balancer", "Gaps in the recording", "{{reason}}"): _HEALTHY,
    ("load-balancer", "Registry", "began to answer"): _OTHER_SOURCE,
    ("load-balancer", "Registry", "lost"): _OTHER_SOURCE,
    ("load-balancer", "Registry", "removals waiting"): _OTHER_SOURCE,
    ("verdicts", "Cannot be monitored", ""): "every connection of the probe's file can be monitored",
    ("verdicts", "Unanswered reports", ""): _HEALTHY,
    ("verdicts", "Subjects by load balancer", "replaced {{pod}}"): "the probe keeps its one stream",
    ("verdicts", "Reports that failed", "streams"): _HEALTHY,
    ("verdicts", "Reports that failed", "refused"): _HEALTHY,
    ("verdicts", "Reports that failed", "dropped"): _HEALTHY,
    ("verdicts", "Reports that changed nothing", "{{reason}}"): "what the probe reports is always news",
    ("verdicts", "Replies that did not count", "late"): _TOO_FAST,
    ("verdicts", "Replies that did not count", "stray"): _TOO_FAST,
    ("verdicts", "Replies that did not count", "unread"): _TOO_FAST,
}
"""Queries that have data, but need not have any other value than 0."""

EMPTY: dict[Key, str] = {
    ("fleet", "Operations refused by kernel or distributor", "routes"): _REFUSED,
    ("fleet", "Operations refused by kernel or distributor", "neighbours"): _REFUSED,
    ("fleet", "Operations refused by kernel or distributor", "announcements"): _REFUSED,
    ("load-balancer", "Refused neighbour operations", "{{error}}"): _REFUSED,
    ("load-balancer", "Refused routes and rules", "{{error}}"): _REFUSED,
    ("load-balancer", "Announcements refused", "{{error}}"): _REFUSED,
    ("load-balancer", "Entries that cannot be used", "{{reason}}"): _OTHER_SOURCE,
    ("load-balancer", "Calls of nfqlb", "{{command}}: {{outcome}}"): _OTHER_SOURCE,
    ("load-balancer", "Registry", "lost for, seconds"): _OTHER_SOURCE,
    ("load-balancer", "Settings file", "hours since right"): _NO_FILE,
}
"""Queries that may have no series, because theirs begin with the first event of a kind."""


def test_every_query_has_data_while_targets_are_held_withdrawn_and_recovered(guarded: Guarded) -> None:
    with Cycle.running(guarded) as cycle:
        start = time.time()
        cycle.play()
        end = time.time()
        data = {
            (query.dashboard, query.panel, query.legend): cycle.prometheus.values(
                query.filled(rate_interval="5s", whole="100s"), start, end
            )
            for query in queries()
        }
        rules_are_in_order(cycle)
        variables_have_values(cycle)
        metrics_are_in_order(guarded)
    assert ZERO.keys() | EMPTY.keys() <= data.keys(), "a query is excused that is not there"
    without = {key for key, values in data.items() if not values}
    assert without - EMPTY.keys() == set()
    still = {key for key, values in data.items() if not any(values)}
    assert still - ZERO.keys() - EMPTY.keys() == set()


def rules_are_in_order(cycle: Cycle) -> None:
    """Every rule can be evaluated, and what fired in the cycle says it in whole sentences."""
    groups = cycle.prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"} == {}
    firing = [alert for alert in cycle.prometheus.get("alerts")["alerts"] if alert["state"] == "firing"]
    said = {alert["labels"]["alertname"]: alert["annotations"]["summary"] for alert in firing}
    assert said["LbguardTargetsFrozen"] == "Targets of stream stream-a were frozen on lb-0"
    assert said["LbguardEvidenceDisbelieved"] == "lb-0 ignores soft evidence beyond its budget"
    assert said["LbguardVerdictsLimited"] == "lb-0 refuses verdicts because of a limit: verdicts.max_per_request"
    for alert in firing:
        for text in alert["annotations"].values():
            assert not re.search(r"<no value>|<error|\{\{", text), text


def variables_have_values(cycle: Cycle) -> None:
    """What can be chosen in the dashboards is what there is."""
    expected = {"namespace": {"trench-a"}, "pod": {"lb-0"}, "stream": {"stream-a"}, "identifier": {"1", "2", "3", "4"}}
    for name, dashboard in DASHBOARDS.items():
        for variable in dashboard["templating"]["list"][1:]:
            if variable["type"] == "textbox":
                continue
            query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert query is not None
            series = query[1]
            for other in VARIABLES:
                series = series.replace(f'"${other}"', '".*"')
            values = set(cycle.prometheus.get(f"label/{query[2]}/values", **{"match[]": series}))
            probes = {"px-0"} if name == "verdicts" and variable["name"] == "pod" else set()
            assert values == expected[variable["name"]] | probes, (name, variable["name"])


def metrics_are_in_order(guarded: Guarded) -> None:
    """What is served keeps to the conventions, as promtool knows them."""
    promtool = shutil.which("promtool")
    assert promtool is not None, "it comes with Prometheus"
    for address in PODS.values():
        page = guarded.lb.run(
            "python3",
            "-c",
            "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())",
            f"http://{address}/metrics",
        )
        assert "lbguard_build_info" in page
        done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False)
        complaints = (done.stdout + done.stderr).strip()
        assert done.returncode == 0, complaints
        assert complaints == ""
