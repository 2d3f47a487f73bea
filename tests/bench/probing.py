"""What the monitor costs: processor time for 1,000 and 5,000 address pairs, a round of 4 pings each second.

Both ends are on this machine, so the figure holds what the kernel of the other end does with each ping, too: on veth it
answers in the context of the sender.
"""

import asyncio
import contextlib
import resource
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from lbguard.core.model import Verdict, VerdictState
from lbguard.probe.judge import JudgeSettings
from lbguard.probe.monitor import Monitor
from tests.bench.detectors import connections_of, joined_ends
from tests.bench.results import Row, Say, Scale

NAME = "probing"
_CPU_AIM_OF_5000 = 50.0
_SIZES = {
    Scale.FULL: ((1000, 5000), 5.0, 20.0),
    Scale.QUICK: ((1000, 5000), 3.0, 6.0),
    Scale.SMOKE: ((20,), 0.5, 1.0),
}


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Monitor so many pairs, all of which answer: half as many dual-stack connections, then one connection a pair."""
    del directory
    sizes, settle_s, watch_s = _SIZES[scale]
    rows = []
    for pairs in sizes:
        for dual_stack in (True, False):
            kind = f"{pairs // 2} dual-stack" if dual_stack else f"{pairs} IPv4"
            say(f"{kind} connections, {watch_s:.0f} s after {settle_s:.0f} s to settle")
            rows.append(_row(pairs, kind, *asyncio.run(_watch(pairs, dual_stack, settle_s, watch_s))))
    return rows


def _row(pairs: int, kind: str, percent: float, details: dict[str, float]) -> Row:
    return Row(
        benchmark=NAME,
        what=f"monitor, {pairs} pairs ({kind} connections), 4 pings/s each",
        unit="% of a core",
        measured=percent,
        aim=_CPU_AIM_OF_5000 if pairs == 5000 else None,
        details=details,
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
            monitor = Monitor(JudgeSettings(interval_s=1.0), take)
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
