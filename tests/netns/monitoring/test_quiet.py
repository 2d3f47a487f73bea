"""What a healthy service and its probe serve alerts nobody, over an hour, with a restart and with a missed scrape.

The series are those of real processes, so what an alert looks at is here with the labels that it has.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.rules import evaluate, promtool_or_skip
from tests.netns.monitoring.cycle import PODS, Cycle
from tests.netns.service.conftest import guarded
from tests.netns.service.guarded import Guarded

__all__ = ["guarded"]
pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(900)]

SAMPLES = 120
"""An hour of them, one each 30 seconds."""

RESTART, MISSED = 40, 80
"""The samples at which the processes begin anew, and at which a scrape fails."""

FIRING = 'ALERTS{alertname=~"Lbguard.*",alertstate="firing"}'


def test_a_healthy_service_alerts_nobody(guarded: Guarded, tmp_path: Path) -> None:
    promtool = promtool_or_skip()
    with Cycle.running(guarded) as cycle:
        cycle.wait_for_targets("active", 4)
        pages = {
            pod: guarded.lb.run("python3", "-c", GET, f"http://{address}/metrics") for pod, address in PODS.items()
        }
    given = [row for pod, page in pages.items() for row in series(pod, page)]
    assert {"lbguard_kernel_in_sync", "lbguard_probe_source_ok"} <= {row["series"].partition("{")[0] for row in given}
    quiet = [{"expr": FIRING, "eval_time": f"{sample * 30}s", "exp_samples": []} for sample in range(1, SAMPLES)]
    test = {"interval": "30s", "input_series": given, "promql_expr_test": quiet}
    said = evaluate(promtool, [test], tmp_path)
    assert not said, said
    # The same question has an answer where something is wrong.
    broken = [
        row | {"values": f"0x{SAMPLES}"} if row["series"].startswith("lbguard_source_ok") else row for row in given
    ]
    assert "LbguardSourceLost" in evaluate(promtool, [test | {"input_series": broken}], tmp_path)


GET = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"


def series(pod: str, page: str) -> Iterator[dict[str, str]]:
    """Yield what a page serves as series that stand, but for a restart and a scrape that fails."""
    scraped = {"namespace": "trench-a", "pod": pod, "instance": f"{pod}:9464", "job": "lbguard"}
    yield {"series": f"up{labels(scraped)}", "values": f"1x{MISSED - 1} 0 1x{SAMPLES - MISSED}"}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            name, anew = sample.name, 0.0 if family.type in ("counter", "histogram") else sample.value
            before, after = f"{sample.value:g}x{RESTART - 1}", f"{anew:g}x{SAMPLES - MISSED}"
            values = f"{before} {anew:g}x{MISSED - RESTART - 1} stale {after}"
            if name == "lbguard_heartbeat_timestamp_seconds":
                values = f"0+30x{SAMPLES}"
            elif name == "process_start_time_seconds":
                values = f"0x{RESTART - 1} {30 * RESTART}x{SAMPLES - RESTART}"
            yield {"series": name + labels(sample.labels | scraped), "values": values}


def labels(of: dict[str, Any]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in of.items()) + "}"
