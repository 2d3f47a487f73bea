"""`python -m tests.bench.series`: number of series and size of a scrape, for each value of metrics.per_target.

It makes the metrics of many streams and targets without a service: each target is admitted, gets packets, and one of a
hundred loses its path.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest

from lbguard.core.model import Action, TargetKey, TargetState
from lbguard.core.status import StreamStatus
from lbguard.telemetry.metrics.guard import Metrics
from lbguard.telemetry.metrics.targets import PerTarget
from tests.unit.examples import decision


def made(per_target: PerTarget, streams: int, targets: int) -> Metrics:
    """Return the metrics of so many streams, of so many targets each."""
    metrics = Metrics(CollectorRegistry(), {}, per_target)
    names = [f"stream-{number}" for number in range(streams)]
    keys = [TargetKey(name, identifier) for name in names for identifier in range(1, targets + 1)]
    metrics.streams.record_states([_status(name, targets) for name in names])
    for key in keys:
        admitted = dataclasses.replace(decision(Action.ADMIT), target=key, state_to=TargetState.ACTIVE)
        metrics.streams.record_decision(admitted)
    for key in keys[::100]:
        metrics.streams.record_decision(dataclasses.replace(decision(Action.HOLD), target=key))
    metrics.packets.record(dict.fromkeys(keys, (5, 500)), {})
    return metrics


def _status(name: str, targets: int) -> StreamStatus:
    return StreamStatus(
        name=name,
        max_targets=targets,
        identifier_offset=5000,
        available=True,
        availability_reason="",
        mass_failure=False,
        counts={TargetState.ACTIVE: targets},
        table_committed=True,
    )


def scraped(metrics: Metrics) -> tuple[int, int, float]:
    """Return the number of series, the bytes of a page, and the processor time (seconds) that it took."""
    begun = time.thread_time()
    page: bytes = generate_latest(metrics.registry)
    took_s = time.thread_time() - begun
    return sum(not line.startswith(b"#") for line in page.splitlines()), len(page), took_s


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.series", description=__doc__)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--targets", type=int, default=100, help="targets of each stream")
    chosen = parser.parse_args(argv)
    sys.stdout.write("per_target  series     bytes  processor time\n")
    for per_target in reversed(get_args(PerTarget)):
        count, size, took_s = scraped(made(per_target, chosen.streams, chosen.targets))
        sys.stdout.write(f"{per_target:<10}  {count:>6}  {size:>8}  {took_s * 1000:.0f} ms\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
