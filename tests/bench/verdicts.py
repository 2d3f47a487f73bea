"""From a verdict to its decision, and whether a flood of verdicts delays what the kernel says.

The clock starts right before the reporter writes to its stream (or the netlink request is sent), and stops at the time
stamp of the decision, on the same monotonic clock: the start of the round in which it was taken. The time until a
watcher of decisions has read it, over the same socket, is told beside it.

At last what a peer can make lbguard carry: very many opinions on the one address that all targets are behind, and very
many subjects that have ended.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.core.addr import format_ip
from lbguard.lab.netns import Namespace
from lbguard.rpc.channels import REPORTER_KEY
from tests.bench.results import Row, Say, Scale
from tests.bench.service import Service
from tests.bench.world import OUR_IP4, LinkSwitch, pair, target_ips, targets_yaml

NAME = "verdicts"
_LATENCY_AIM_MS = 2.0
_FLOOD_AIM_PER_S = 10_000
_FLOOD_PACE_PER_S = 11_000  # a little more, so that the pace is not what falls short of the aim
_REPORTERS = 100
_LIMIT_S = 60.0
_LEASE_S = 300.0
_LEASE_ENDED_S = 0.01
_PER_REQUEST = 200
_HOUR = {"LBGUARD_GRACE__WINDOW": "1h", "LBGUARD_GRACE__MAX": "1h", "LBGUARD_EVIDENCE__VETO_WINDOW": "0"}
_PAUSE_S = 0.2

_SIZES = {Scale.FULL: (100, 200, 20), Scale.QUICK: (100, 100, 8), Scale.SMOKE: (4, 6, 2)}
_CARRIED = {Scale.FULL: (20_000, 100_000), Scale.QUICK: (20_000, 100_000), Scale.SMOKE: (500, 500)}
_OPINIONS_RATIO_AIM = 2.0
_ENDED_AIM_MIB = 60.0
_NAMES = 10
_SETTLE_S = 3.0


@dataclass(slots=True)
class _Latency:
    """How long it took, in ms: until the decision was stamped, and until a watcher read it."""

    decided: list[float] = field(default_factory=list)
    watched: list[float] = field(default_factory=list)


def run(scale: Scale, say: Say, directory: Path) -> Iterator[Row]:
    """Measure verdicts one at a time, then link events without and with a flood."""
    targets, verdicts, cuts = _SIZES[scale]
    reporters, pace = (4, 200) if scale is Scale.SMOKE else (_REPORTERS, _FLOOD_PACE_PER_S)
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        built = stack.enter_context(pair("verdicts", targets))
        settings = {**_HOUR, "LBGUARD_NEIGHBORS__PROBE_INTERVAL": "0"}
        service = Service(built.lb, directory, targets_yaml(targets), settings=settings, cpus={cores[0]})
        stack.enter_context(service)
        stack.enter_context(_on(set(cores[1:]) or set(cores)))
        service.wait_until_admitted(targets)
        socket = directory / f"{built.lb.name}.sock"
        say(f"{verdicts} verdicts, one after the other")
        told = asyncio.run(_say_down_and_up(socket, verdicts))
        say(f"{cuts} times link down, {targets} targets, nothing else to do")
        calm = asyncio.run(_cut(socket, built.lb, targets, cuts))
        say(f"the same under {pace} verdicts/s from {reporters} reporters")
        with _flood(socket, reporters, pace, targets) as flood:
            cpu_s, began = service.cpu_s(), time.monotonic()
            flooded = asyncio.run(_cut(socket, built.lb, targets, cuts))
            cpu_percent = 100 * (service.cpu_s() - cpu_s) / (time.monotonic() - began)
        opinions, ended = _CARRIED[scale]
        say(f"{ended} subjects that ended, with 32 addresses each")
        before_mib = service.resident_mib()
        asyncio.run(_say(socket, ended, pb.VERDICT_STATE_ENDED, _LEASE_ENDED_S, 16))
        time.sleep(_SETTLE_S)
        ended_mib = service.resident_mib() - before_mib
        say(f"link down under {opinions} opinions on the link's address")
        asyncio.run(_say(socket, opinions, pb.VERDICT_STATE_UP, _LEASE_S, 1))
        carried = asyncio.run(_cut(socket, built.lb, targets, cuts))
    yield _row("verdict (both families DOWN, or UP) to decision", told, aim=_LATENCY_AIM_MS)
    yield _row(f"link down to hold, {targets} targets, no verdicts", calm)
    yield _row(
        f"link down to hold, {targets} targets, under the flood",
        flooded,
        reference=_row("", calm).measured,
        reference_what="without the flood",
    )
    yield Row(
        benchmark=NAME,
        what=f"verdicts taken meanwhile, {reporters} reporters, service on one core",
        unit="verdicts/s",
        measured=round(flood["per_s"]),
        aim=None if scale is Scale.SMOKE else _FLOOD_AIM_PER_S,
        at_least=True,
        details={"ignored": flood["ignored"], "service_cpu_percent": cpu_percent},
    )
    calm_ms = _row("", calm).measured
    yield _row(
        f"link down to hold, {targets} targets, {opinions} opinions on its address",
        carried,
        reference=calm_ms,
        reference_what="without any",
        aim=None if scale is Scale.SMOKE else _OPINIONS_RATIO_AIM * calm_ms,
    )
    yield Row(
        benchmark=NAME,
        what=f"memory after {ended} ended verdicts",
        unit="MiB",
        measured=round(max(0.0, ended_mib), 1),
        aim=None if scale is Scale.SMOKE else _ENDED_AIM_MIB,
    )


def _row(what: str, latency: _Latency, **more: Any) -> Row:
    watched = Row.of(NAME, what, "ms", latency.watched)
    details = {"to_watcher_ms": watched.measured, "to_watcher_p95_ms": watched.p95}
    return Row.of(NAME, what, "ms", latency.decided, details=details, **more)


@contextmanager
def _on(cpus: set[int]) -> Iterator[None]:
    """Confine this process, and what it starts, to some processors."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Watcher:
    """Reads decisions as they are told."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        guard: pb_grpc.GuardServiceAsyncStub = pb_grpc.GuardServiceStub(channel)
        self._stream = guard.WatchDecisions(pb.WatchDecisionsRequest(history=1, follow=True))

    async def begin(self) -> None:
        """Read the last decision that there was: what comes after it is news."""
        await self._stream.read()

    async def until(self, action: str, count: int = 1) -> tuple[float, float]:
        """Wait for so many decisions of a kind; return when the first was taken, and when it was read."""
        first: tuple[float, float] | None = None
        async with asyncio.timeout(_LIMIT_S):
            while count:
                response = await self._stream.read()
                assert isinstance(response, pb.WatchDecisionsResponse), "the service ended the stream"
                if response.decision.action == action:
                    first = first or (response.decision.at_s, time.monotonic())
                    count -= 1
        assert first is not None
        return first


async def _say_down_and_up(socket: Path, count: int) -> _Latency:
    """Have one reporter say DOWN and UP of one target in turns."""
    latency = _Latency()
    ips = [format_ip(ip) for ip in target_ips(0)]
    subject = pb.Subject(connection=pb.ConnectionSubject(id="bench", peer_ips=ips))
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        watcher = _Watcher(channel)
        await watcher.begin()
        stub: pb_grpc.VerdictServiceAsyncStub = pb_grpc.VerdictServiceStub(channel)
        stream = stub.Report(metadata=((REPORTER_KEY, "bench"),))  # type: ignore[call-arg]  # it is written to
        for number in range(count):
            down = number % 2 == 0
            verdict = pb.Verdict(
                subject=subject,
                state=pb.VERDICT_STATE_DOWN if down else pb.VERDICT_STATE_UP,
                generation=1,
                sequence=number + 1,
                lease_s=_LEASE_S,
            )
            request = pb.ReportRequest(ticket=number + 1, verdicts=[verdict])
            sent = time.monotonic()
            await stream.write(request)
            at, read_at = await watcher.until("hold" if down else "recover")
            latency.decided.append(1000 * (at - sent))
            latency.watched.append(1000 * (read_at - sent))
            await stream.read()
            await asyncio.sleep(0.005)
        await stream.done_writing()
    return latency


async def _cut(socket: Path, lb: Namespace, targets: int, count: int) -> _Latency:
    """Set the link down and up again and again."""
    latency = _Latency()
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        watcher = _Watcher(channel)
        await watcher.begin()
        with LinkSwitch(lb) as link:
            for _ in range(count):
                sent = time.monotonic()
                link.set(up=False)
                at, read_at = await watcher.until("hold", targets)
                latency.decided.append(1000 * (at - sent))
                latency.watched.append(1000 * (read_at - sent))
                link.set(up=True)
                await watcher.until("recover", targets)
                await asyncio.sleep(_PAUSE_S)
    return latency


async def _say(socket: Path, count: int, state: "pb.VerdictState.ValueType", lease_s: float, addresses: int) -> None:
    """Speak once of so many connections, in the name of several reporters; the link's address is among theirs."""
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        stub: pb_grpc.VerdictServiceAsyncStub = pb_grpc.VerdictServiceStub(channel)
        for first in range(0, count, _PER_REQUEST):
            verdicts = [
                pb.Verdict(
                    subject=pb.Subject(connection=_connection(number, addresses)),
                    state=state,
                    generation=1,
                    sequence=1,
                    lease_s=lease_s,
                )
                for number in range(first, min(count, first + _PER_REQUEST))
            ]
            name = f"carried-{state}-{first // _PER_REQUEST % _NAMES}"
            while not await _accepted(stub, verdicts, name):  # noqa: ASYNC110 (a limit tells nothing by itself)
                await asyncio.sleep(0.05)


def _connection(number: int, addresses: int) -> pb.ConnectionSubject:
    far = [f"172.17.{number % 250}.{place + 1}" for place in range(addresses)]
    return pb.ConnectionSubject(id=f"{number}-" + "x" * 240, lb_ips=[OUR_IP4, *far[1:]], peer_ips=far[1:])


async def _accepted(stub: "pb_grpc.VerdictServiceAsyncStub", verdicts: list[pb.Verdict], name: str) -> bool:
    """Report a batch; tell whether there was room for it."""
    metadata = ((REPORTER_KEY, name),)
    try:
        await stub.ReportOnce(pb.ReportOnceRequest(verdicts=verdicts), metadata=metadata, timeout=_LIMIT_S)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return False
        raise
    return True


@contextmanager
def _flood(socket: Path, reporters: int, pace: int, targets: int) -> Iterator[dict[str, Any]]:
    """Let verdicts come from a process of its own; what it counted stands in the dictionary afterwards."""
    command = [sys.executable, "-m", "tests.bench.verdict_flood", str(socket), *map(str, (reporters, pace, targets))]
    found: dict[str, Any] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if json.loads(process.stdout.readline() or "{}").get("event") != "steady":
                raise RuntimeError("the flood did not begin")
            yield found
            process.stdin.close()
            found.update(json.loads(process.stdout.readline()))
        except BaseException:
            process.kill()
            raise
