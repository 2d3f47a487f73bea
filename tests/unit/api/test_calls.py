"""Calls over real connections: nobody takes up the room of others, whether it may report, sends something, or not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lbguard.api import calls
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.api.verdicts.policy import Policy
from lbguard.api.verdicts.server import IDLE, VerdictIntake
from lbguard.rpc.channels import REPORTER_KEY
from lbguard.settings.verdicts import VerdictLimits
from tests.unit.api.core_stand_in import Core, verdict
from tests.unit.api.verdicts import test_listener as tcp
from tests.unit.api.verdicts import test_server as unix
from tests.unit.api.verdicts.test_server import end_of, until

PER_CONNECTION = 15
STRANGER = "spiffe://example.org/ns/blue/stranger"
HEALTH = "/grpc.health.v1.Health/"


async def check(channel: grpc.aio.Channel) -> int:
    response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    return int(response.status)


def opened(channel: Any, method: str) -> Any:
    """Open a call and send nothing."""
    return channel.stream_stream(method)()


@asynccontextmanager
async def strangers(service: tcp.Served, connections: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Connect a peer that no rule is for, several times."""
    async with AsyncExitStack() as stack:
        issued = service.authority.issue(uris=(STRANGER,))
        yield [await stack.enter_async_context(service.channel(issued)) for _ in range(connections)]


async def test_who_may_not_report_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    async with tcp.served(tmp_path, tcp.RULE) as service, strangers(service, 1) as (channel,):
        for method in ("Report", "ReportOnce"):
            call = opened(channel, f"/lbguard.v1.VerdictService/{method}")
            code, text = await end_of(call)  # nothing was sent
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert STRANGER in text
        assert service.intake.reporters == 0


async def test_watchers_of_health_leave_room_for_each_other_and_for_reports(tmp_path: Path) -> None:
    async with tcp.served(tmp_path, tcp.RULE) as service, strangers(service, 5) as channels:
        watches = []
        for channel in channels:
            watch: Any = health_pb2_grpc.HealthStub(channel).Watch
            watches += [watch(health_pb2.HealthCheckRequest()) for _ in range(PER_CONNECTION)]
        refused = [end for end in await asyncio.gather(*(first_of(watch) for watch in watches)) if end]
        assert len(refused) == len(watches) - calls.CALLS_AT_ONCE * 4 // 5
        assert set(refused) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert await check(channels[0]) == health_pb2.HealthCheckResponse.SERVING
        proxy = service.authority.issue(uris=(tcp.PROXY,))
        async with service.channel(proxy) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch
            assert await first_of(watch(health_pb2.HealthCheckRequest())) is None
        assert (await service.once(proxy, verdict())).accepted == 1
        for call in watches:
            call.cancel()


async def first_of(call: Any) -> grpc.StatusCode | None:
    """Return None when a stream says something, or with what it ends."""
    try:
        return None if await call.read() is not grpc.aio.EOF else await call.code()  # type: ignore[attr-defined]
    except grpc.aio.AioRpcError as error:
        return error.code()


async def test_calls_without_a_request_take_up_no_room(tmp_path: Path) -> None:
    async with tcp.served(tmp_path, tcp.RULE) as service, strangers(service, 6) as channels:
        silent: list[Any] = []
        for channel in channels:
            silent += [opened(channel, f"{HEALTH}Check") for _ in range(PER_CONNECTION)]
        # The oldest give way to the newer ones, at once.
        ended = [asyncio.ensure_future(end_of(call)) for call in silent]
        await until(lambda: sum(end.done() for end in ended) >= len(silent) - 64)
        assert {end.result()[0] for end in ended if end.done()} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        async with service.channel(service.authority.issue(dns=("k",))) as channel:
            assert await check(channel) == health_pb2.HealthCheckResponse.SERVING
        for call in silent:
            call.cancel()
        await asyncio.gather(*ended, return_exceptions=True)


async def test_a_request_has_to_come_in_time() -> None:
    class Silent:
        async def read(self) -> None:
            await asyncio.Event().wait()

    context: Any = Silent()
    with pytest.raises(calls.RequestMissing, match=r"none came within 0\.01 s"):
        await calls.Requests(within_s=0.01).read(context)


async def test_a_report_in_one_call_has_to_come(tmp_path: Path) -> None:
    async with unix.served(tmp_path / "s") as service:
        call = opened(service.channel, "/lbguard.v1.VerdictService/ReportOnce")
        await call.done_writing()
        code, text = await end_of(call)
        assert (code, text) == (grpc.StatusCode.DEADLINE_EXCEEDED, "no request: the call ended without one")


async def test_watchers_of_decisions_leave_room_for_health_and_reports(tmp_path: Path) -> None:
    async with unix.served(tmp_path / "s") as service:
        watch: Any = pb_grpc.GuardServiceStub(service.channel).WatchDecisions
        watches = [watch(pb.WatchDecisionsRequest(follow=True)) for _ in range(90)]
        room = calls.CALLS_AT_ONCE * 4 // 5
        ended = [asyncio.ensure_future(end_of(call)) for call in watches]
        await until(lambda: sum(end.done() for end in ended) >= len(watches) - room)
        assert await check(service.channel) == health_pb2.HealthCheckResponse.SERVING
        assert (await service.once(verdict())).accepted == 1
        for call in watches:
            call.cancel()
        await asyncio.gather(*ended, return_exceptions=True)


async def test_a_silent_stream_gives_its_place_back(tmp_path: Path) -> None:
    core = Core()
    intake = VerdictIntake(core.submit, Policy([]), VerdictLimits(), idle_max_s=0.2)
    async with unix.served(tmp_path / "s", intake=intake) as service:
        silent = service.stream("silent")
        await silent.write(pb.ReportRequest(ticket=1, verdicts=[verdict()]))
        assert await end_of(silent) == (grpc.StatusCode.ABORTED, IDLE)
        assert service.intake.streams == 0
        assert (await service.once(verdict(), name="silent")).accepted == 1


async def test_one_identity_takes_no_place_of_another(tmp_path: Path) -> None:
    rules = (tcp.RULE, f"{STRANGER}=172.16.9.9/32")
    limits = VerdictLimits(reporters_max=20)
    async with tcp.served(tmp_path, *rules, limits=limits) as service, strangers(service, 2) as channels:
        streams: list[Any] = []
        for number in range(30):
            report: Any = pb_grpc.VerdictServiceStub(channels[number % 2]).Report
            streams.append(report(metadata=((REPORTER_KEY, f"n-{number}"),)))
        ends = [asyncio.ensure_future(end_of(stream)) for stream in streams]
        await until(lambda: service.intake.streams == 16 and sum(end.done() for end in ends) == 14)
        assert {end.result()[0] for end in ends if end.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert (await service.once(service.authority.issue(uris=(tcp.PROXY,)), verdict())).accepted == 1
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
