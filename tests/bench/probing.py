"""What the monitor costs: processor time for 1,000 and 5,000 address pairs, a round of 4 pings each second.

Both ends are on this machine, so the figure holds what the kernel of the other end does with each ping, too: on veth it
answers in the context of the sender.
"""

import asyncio
import contextlib
import resource
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lbguard.core.model import Verdict, VerdictState
from lbguard.probe.failure_detector import DetectorSettings
from lbguard.probe.monitor import Monitor
from tests.bench import bfd, fping
from tests.bench.detectors import Situation, connections_of, joined_ends, simulate
from tests.bench.nsm_rule import Judge
from tests.bench.results import Row, Say, Scale

NAME = "probing"
_CPU_AIM_OF_5000 = 50.0
_DETECTION_AIM_S = 3.0
_SIZES = {
    Scale.FULL: ((1000, 5000), 3.0, 8.0),
    Scale.QUICK: ((1000, 5000), 2.0, 4.0),
    Scale.SMOKE: ((20,), 0.5, 1.0),
}


def run(scale: Scale, say: Say, directory: Path) -> Iterator[Row]:
    """Monitor so many pairs, all of which answer: half as many dual-stack connections, then one connection a pair."""
    del directory
    sizes, settle_s, watch_s = _SIZES[scale]
    if fping.missing():
        say(f"{fping.missing()}: nothing is told of it")
    beside_bfd = _beside_bfd(say, settle_s, watch_s)
    for pairs in sizes:
        reference: dict[str, Any] = {}
        if not fping.missing():
            say(f"fping, {pairs} addresses")
            percent, rate = fping.measure(pairs, settle_s, watch_s)
            processes = -(-pairs // fping.PER_PROCESS)
            what = f"{processes} x fping" if processes > 1 else "fping"
            reference = {"reference": percent, "reference_what": f"{what}, {rate:.0f} pings/s, judges nothing"}
        for dual_stack in (True, False):
            kind = f"{pairs // 2} dual-stack" if dual_stack else f"{pairs} IPv4"
            say(f"{kind} connections, {watch_s:.0f} s after {settle_s:.0f} s to settle")
            percent, details = asyncio.run(_watch(pairs, dual_stack, settle_s, watch_s))
            yield Row(
                benchmark=NAME,
                what=f"monitor, {pairs} pairs ({kind} connections), 4 pings/s each",
                unit="% of a core",
                measured=percent,
                aim=_CPU_AIM_OF_5000 if pairs == 5000 else None,
                details=details,
                **({} if dual_stack else reference),
            )
        yield Row(
            benchmark=NAME,
            what=f"monitor, {pairs} pairs: a ping and its reply",
            unit="us",
            measured=details["cpu_us_per_ping"],
            aim=beside_bfd.get("reference"),
            **beside_bfd,
        )
    yield from _judges(scale, say)


def _beside_bfd(say: Say, settle_s: float, watch_s: float) -> dict[str, Any]:
    """Measure what a BFD daemon takes for a packet that it sends and one that it receives."""
    if bfd.missing():
        say(f"{bfd.missing()}: nothing is told of it")
        return {}
    say(f"bfdd, {bfd.SESSIONS} sessions")
    return {"reference": bfd.measure(settle_s, watch_s), "reference_what": f"bfdd, {bfd.SESSIONS} sessions, a packet"}


def _judges(scale: Scale, say: Say) -> Iterator[Row]:
    """Compare our judge with the mesh's own rule at 5 % loss each way, in time that is told; see `detectors.py`."""
    connections, cuts = (2, 2) if scale is Scale.SMOKE else (20, 40)
    say(f"half an hour of {connections} connections at 5 % loss, and {cuts} cuts, in simulated time")
    lossy = Situation(loss=0.05)
    ours, theirs = (simulate(detector, lossy, connections, cuts) for detector in (Judge.ROUNDS, Judge.NSM))
    yield Row(
        benchmark=NAME,
        what=f"5 % loss each way, {ours.connection_hours:g} connection hours (simulated): false DOWN",
        unit="",
        measured=ours.false_downs,
        aim=0,
        reference=theirs.false_downs,
        reference_what="by the mesh's own rule",
    )
    interval_s = DetectorSettings().interval_s
    yield Row.of(
        NAME,
        "the same: cut to DOWN, at the defaults",
        "s",
        [intervals * interval_s for intervals in ours.detection],
        aim=_DETECTION_AIM_S,
        reference=interval_s * statistics.median(theirs.detection),
        reference_what="by the mesh's own rule",
    )


async def _watch(pairs: int, dual_stack: bool, settle_s: float, watch_s: float) -> tuple[float, dict[str, float]]:
    """Return processor time in percent of a core, and what was done for it."""
    connections = connections_of(pairs // 2 if dual_stack else pairs, "eth0")
    if not dual_stack:
        connections = [replace(connection, pairs=connection.pairs[:1]) for connection in connections]
    states: Counter[VerdictState] = Counter()

    def take(verdict: Verdict) -> None:
        states[verdict.state] += 1

    with joined_ends() as (near, _):
        with near.entered():
            monitor = Monitor(DetectorSettings(interval_s=1.0), take)
        monitor.set_connections(connections)
        task = asyncio.create_task(monitor.run())
        await asyncio.sleep(settle_s)
        counters = monitor.counters
        pings, replies = counters.pings.total(), counters.replies.total()
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        await asyncio.sleep(watch_s)
        after, took_s = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    sent = counters.pings.total() - pings
    return 100 * (user + system) / took_s, {
        "user_percent": 100 * user / took_s,
        "system_percent": 100 * system / took_s,
        "pings_per_s": sent / took_s,
        "replies_in_time_per_s": (counters.replies.total() - replies) / took_s,
        "cpu_us_per_ping": 1e6 * (user + system) / max(1, sent),
        "verdicts_down": float(states[VerdictState.DOWN]),
        "lag_mean_ms": 1000 * counters.lag.sum_s / max(1, counters.pings.total()),
    }
