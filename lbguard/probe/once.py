"""One round for `lbguard probe --once`: what answers now, for a person or a script."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lbguard.core.addr import format_ip
from lbguard.core.model import Subject, Verdict, VerdictState
from lbguard.kernel.mirror import MirrorError
from lbguard.probe.build import ProbeError, judge_settings, make_kernel_view, make_monitor, make_source
from lbguard.probe.connections import Connection, ConnectionList, ConnectionsLost
from lbguard.probe.failure_detector import Detector
from lbguard.probe.service import resolve_links
from lbguard.settings.model import Settings

LIST_TIMEOUT_S = 5.0
"""Time limit for the source to list the connections."""

_SLACK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OnceResult:
    """Result for one connection. `verdict` is None when the round is inconclusive, as without CPU."""

    connection: Connection
    verdict: Verdict | None

    @property
    def state(self) -> str:
        """Return the state in one word."""
        return "unknown" if self.verdict is None else str(self.verdict.state)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnceReport:
    """Result of one round. `left_out` names connections that cannot be monitored, and why."""

    results: tuple[OnceResult, ...]
    left_out: tuple[str, ...]

    @property
    def all_up(self) -> bool:
        """Return whether there are connections and every one answers in every family."""
        return bool(self.results) and all(result.state == VerdictState.UP for result in self.results)


async def probe_once(settings: Settings) -> OnceReport:
    """Ping every connection for a whole round and judge it by that round alone. No report is sent.

    Raises:
        ProbeError: the connections cannot be listed, or this process may not ping.
    """
    listed = await _list_connections(settings)
    limit = settings.probe.max_connections
    connections = listed.connections[:limit]
    verdicts = await _round(settings, connections) if connections else {}
    return OnceReport(
        results=tuple(
            OnceResult(connection=connection, verdict=verdicts.get(connection.subject)) for connection in connections
        ),
        left_out=listed.left_out,
    )


async def _list_connections(settings: Settings) -> ConnectionList:
    """Return the first list of the source, with the link of each connection."""
    view = make_kernel_view(settings)
    first: asyncio.Future[ConnectionList] = asyncio.get_running_loop().create_future()
    lost = ""

    def on_list(listed: ConnectionList | ConnectionsLost) -> None:
        nonlocal lost
        if isinstance(listed, ConnectionsLost):
            lost = listed.reason
        elif view.complete and not first.done():
            first.set_result(listed)

    source = make_source(settings.probe, view, on_list)
    try:
        await view.start()
    except OSError as error:
        raise ProbeError(f"the kernel's links cannot be read: {error.strerror}") from None
    view.when_changed(source.reload)
    running = asyncio.create_task(source.run())
    try:
        async with asyncio.timeout(LIST_TIMEOUT_S):
            listed = await first
    except TimeoutError:
        raise ProbeError(lost or f"no connections were listed within {LIST_TIMEOUT_S:g} s") from None
    except MirrorError as error:
        raise ProbeError(str(error)) from None
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await view.stop()
    return replace(listed, connections=resolve_links(listed.connections, view))


async def _round(settings: Settings, connections: Sequence[Connection]) -> dict[Subject, Verdict]:
    probe = settings.probe
    verdicts: dict[Subject, Verdict] = {}
    wanted = {connection.subject for connection in connections}
    whole: set[Subject] = set()
    complete = asyncio.Event()

    def take(verdict: Verdict) -> None:
        # HEALING is emitted before any ping, without evidence of its own.
        if any(family.sent for family in verdict.evidence):
            verdicts[verdict.subject] = verdict
        if is_whole(verdict):
            whole.add(verdict.subject)
            if whole >= wanted:
                complete.set()

    def is_whole(verdict: Verdict) -> bool:
        """Return whether every ping was sent: the first round ends with the first reply, the next is complete."""
        return bool(verdict.evidence) and all(family.sent >= probe.count for family in verdict.evidence)

    judge = replace(
        judge_settings(probe),
        interval_s=probe.timeout_in_force,
        down_rounds=1,
        window_rounds=1,
        up_rounds=1,
        detector=Detector.ROUNDS,
    )
    monitor = make_monitor(judge, take)
    running = asyncio.create_task(monitor.run())
    try:
        monitor.set_connections(connections)
        with contextlib.suppress(TimeoutError):
            # Rounds begin spread over one interval, and two may be needed.
            await asyncio.wait_for(complete.wait(), 3 * probe.timeout_in_force + _SLACK_S)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    return verdicts


def results_json(report: OnceReport) -> dict[str, object]:
    """Return a report as plain values; times in seconds."""
    return {
        "connections": [_result_json(result) for result in report.results],
        "left_out": list(report.left_out),
    }


def _result_json(result: OnceResult) -> dict[str, object]:
    connection = result.connection
    return {
        "id": connection.id,
        "state": result.state,
        "interface": connection.ifname,
        "pairs": [
            {"source": format_ip(pair.source), "destination": format_ip(pair.destination)} for pair in connection.pairs
        ],
        "families": [
            {
                "family": "ipv4" if family.ipv4 else "ipv6",
                "sent": family.sent,
                "received": family.received,
                "rtt_min_s": family.rtt_min_s,
                "rtt_median_s": family.rtt_median_s,
                "rtt_max_s": family.rtt_max_s,
            }
            for family in (result.verdict.evidence if result.verdict is not None else ())
        ],
    }
