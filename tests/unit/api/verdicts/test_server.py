import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from lbguard.api.client import GuardClient
from lbguard.api.feeds import DecisionLog
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.api.server import ApiServer
from lbguard.api.verdicts.policy import Policy
from lbguard.api.verdicts.server import REPLACED, VerdictIntake
from lbguard.core.model import VerdictState
from lbguard.rpc.channels import REPORTER_KEY
from lbguard.settings.peers import parse_rule
from lbguard.settings.verdicts import VerdictLimits
from tests.unit.api.core_stand_in import Core, settled, subject, target, verdict
from tests.unit.examples import guard_status

LIMIT_S = 60.0


class View:
    def __init__(self) -> None:
        self.log = DecisionLog()

    async def status(self) -> Any:
        return guard_status()

    def decisions(self, target: Any, limit: int) -> Any:
        return self.log.last(target, limit)


class Served:
    """The service on a socket, its stand-in for the core, and a client."""

    def __init__(self, core: Core, intake: VerdictIntake, path: Path, channel: grpc.aio.Channel) -> None:
        self.core = core
        self.intake = intake
        self.path = path
        self.channel = channel
        self.stub: pb_grpc.VerdictServiceAsyncStub = pb_grpc.VerdictServiceStub(channel)

    def stream(self, name: str = "") -> Any:
        """Open a stream of a reporter."""
        report: Any = self.stub.Report
        return report(metadata=((REPORTER_KEY, name),) if name else None)

    async def once(self, *verdicts: pb.Verdict, name: str = "") -> pb.ReportOnceResponse:
        """Report a batch."""
        metadata = ((REPORTER_KEY, name),) if name else None
        return await self.stub.ReportOnce(pb.ReportOnceRequest(verdicts=verdicts), metadata=metadata, timeout=LIMIT_S)

    async def refusal(self, *verdicts: pb.Verdict, name: str = "") -> tuple[grpc.StatusCode, str]:
        """Report a batch that is refused."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.once(*verdicts, name=name)
        return caught.value.code(), caught.value.details() or ""


@asynccontextmanager
async def served(
    path: Path,
    limits: VerdictLimits | None = None,
    rules: tuple[str, ...] = (),
    intake: VerdictIntake | None = None,
) -> AsyncIterator[Served]:
    core = Core()
    view = View()
    policy = Policy([parse_rule(rule) for rule in rules])
    intake = intake or VerdictIntake(core.submit, policy, limits or VerdictLimits())
    server = ApiServer(path, view, view.log, verdicts=intake)
    await server.start()
    try:
        async with asyncio.timeout(LIMIT_S), grpc.aio.insecure_channel(f"unix:{path}") as channel:
            yield Served(core, intake, path, channel)
    finally:
        await server.stop(0)
        await settled()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path / "lbguard.sock") as service:
        yield service


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something that is not announced has happened."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what gRPC logged."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("grpc")]


async def end_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """Read a stream to its end."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
            pass
    return await call.code(), await call.details()


async def test_a_batch_reaches_the_core_and_is_answered_by_name(service: Served) -> None:
    service.core.reasons[subject(2)] = "late"
    response = await service.once(verdict(1), verdict(2), verdict(3))
    assert response.accepted == 2
    assert [(item.index, item.reason, item.generation) for item in response.ignored] == [(1, "late", 77)]
    assert [item.subject for _, item in service.core.taken] == [subject(1), subject(2), subject(3)]
    assert service.core.taken[0][1].state is VerdictState.DOWN
    assert service.core.reporters == ["unix"] * 3
    assert service.intake.counters.received == {"down": 3}
    assert service.intake.counters.ignored == {"late": 1}


async def test_a_stream_is_answered_in_order(service: Served) -> None:
    call = service.stream("proxy-1")
    for ticket in range(1, 51):
        await call.write(pb.ReportRequest(ticket=ticket, verdicts=[verdict(1, sequence=ticket), verdict(2)]))
    await call.done_writing()
    answers = [answer async for answer in call]
    assert [(answer.ticket, answer.accepted) for answer in answers] == [(ticket, 2) for ticket in range(1, 51)]
    assert await call.code() is grpc.StatusCode.OK
    assert [item.sequence for _, item in service.core.taken[::2]] == list(range(1, 51))
    assert set(service.core.reporters) == {"unix#proxy-1"}
    assert service.intake.streams == 0


async def test_answers_wait_for_the_core_and_nothing_overtakes_them(service: Served) -> None:
    service.core.held = True
    call = service.stream()
    for ticket in (1, 2):
        await call.write(pb.ReportRequest(ticket=ticket, verdicts=[verdict(1), verdict(2)]))
    await until(lambda: len(service.core.taken) == 2)
    reading = asyncio.create_task(call.read())
    await asyncio.sleep(0.05)
    assert not reading.done()
    assert len(service.core.taken) == 2  # the second request waits for the first one's answer
    service.core.release()
    assert (await reading).ticket == 1
    assert (await call.read()).ticket == 2
    call.cancel()


async def test_an_empty_request_is_answered(service: Served) -> None:
    call = service.stream()
    await call.write(pb.ReportRequest(ticket=7))
    answer = await call.read()
    assert (answer.ticket, answer.accepted, len(answer.ignored)) == (7, 0, 0)
    call.cancel()


async def test_a_newer_stream_replaces_the_older(service: Served) -> None:
    old, other = service.stream("a"), service.stream("b")
    await old.write(pb.ReportRequest(ticket=1))
    assert (await old.read()).ticket == 1
    await other.write(pb.ReportRequest(ticket=1))
    assert (await other.read()).ticket == 1
    new = service.stream("a")
    await new.write(pb.ReportRequest(ticket=2))
    assert (await new.read()).ticket == 2
    assert await end_of(old) == (grpc.StatusCode.ABORTED, REPLACED)
    await other.write(pb.ReportRequest(ticket=3))
    assert (await other.read()).ticket == 3
    await new.write(pb.ReportRequest(ticket=4))
    assert (await new.read()).ticket == 4
    assert service.intake.streams == 2
    assert service.intake.counters.replaced == 1
    other.cancel()
    new.cancel()
    await until(lambda: service.intake.streams == 0)


async def test_a_stream_that_waits_for_the_core_can_be_replaced(service: Served) -> None:
    service.core.held = True
    old = service.stream("a")
    await old.write(pb.ReportRequest(ticket=1, verdicts=[verdict(1), verdict(2)]))
    await until(lambda: len(service.core.taken) == 2)
    new = service.stream("a")
    await new.write(pb.ReportRequest(ticket=2))
    assert (await new.read()).ticket == 2
    assert await end_of(old) == (grpc.StatusCode.ABORTED, REPLACED)
    service.core.release()
    new.cancel()


async def test_many_replacements_leave_one_stream(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tmp_path / "s", VerdictLimits(calls_max=50)) as service:
        calls = [service.stream("a") for _ in range(50)]
        await until(lambda: service.intake.streams == 1 and service.intake.counters.replaced == 49)
        ends = [asyncio.create_task(end_of(call)) for call in calls]
        await until(lambda: sum(end.done() for end in ends) == 49)
        assert [end.result() for end in ends if end.done()] == [(grpc.StatusCode.ABORTED, REPLACED)] * 49
        for call in calls:
            call.cancel()
        await until(lambda: service.intake.streams == 0)
        await asyncio.gather(*ends, return_exceptions=True)
    assert complaints(caplog) == []


async def _fill(service: Served, call: Any) -> "asyncio.Task[None]":
    """Write to a stream and read nothing, until no more can be written; returns the writer that is stuck."""
    service.core.reasons = {subject(number): "unknown_subject" * 3 for number in range(100)}
    full = pb.ReportRequest(ticket=1, verdicts=[verdict(number) for number in range(1, 100)])
    written, most = 0, 20_000

    async def write() -> None:
        nonlocal written
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while written < most:
                await call.write(full)
                written += 1

    async def stood_still(second: float = 1.0) -> bool:
        before = written
        await asyncio.sleep(second)
        return written == before

    writing = asyncio.create_task(write())
    while not await stood_still():  # until both windows are full
        pass
    assert not writing.done()
    assert 0 < len(service.core.taken) // 99 <= written < most
    return writing


@pytest.mark.slow
async def test_a_reader_that_never_reads_is_no_longer_read(tmp_path: Path) -> None:
    limits = VerdictLimits(rate=1e9, burst=10**9)
    async with served(tmp_path / "s", limits) as service:
        await _leave_a_reporter_deaf(service)


@pytest.mark.slow
async def test_a_deaf_reporter_that_vanishes_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = VerdictLimits(rate=1e9, burst=10**9)
    async with served(tmp_path / "s", limits) as service:
        async with grpc.aio.insecure_channel(f"unix:{service.path}") as channel:
            report: Any = pb_grpc.VerdictServiceStub(channel).Report
            writing = await _fill(service, report(metadata=((REPORTER_KEY, "gone"),)))
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        await until(lambda: service.intake.streams == 0)
        assert (await service.once(verdict(200), name="other")).accepted == 1
    assert complaints(caplog) == []


async def _leave_a_reporter_deaf(service: Served) -> None:
    call = service.stream("deaf")
    writing = await _fill(service, call)
    # Others are served meanwhile, and the deaf reporter itself may come again.
    assert len((await service.once(verdict(), name="other")).ignored) == 1
    newer = service.stream("deaf")
    await newer.write(pb.ReportRequest(ticket=2))
    assert (await newer.read()).ticket == 2
    await until(lambda: service.intake.counters.replaced == 1)
    # It lingers until it reads what was written for it, and then the status; or its own library tells of the write that
    # failed first.
    code, _ = await end_of(call)
    assert code in {grpc.StatusCode.ABORTED, grpc.StatusCode.INTERNAL}
    await writing
    newer.cancel()
    await until(lambda: service.intake.streams == 0)


async def test_a_client_that_vanishes_leaves_nothing(service: Served) -> None:
    service.core.held = True
    async with grpc.aio.insecure_channel(f"unix:{service.path}") as channel:
        report: Any = pb_grpc.VerdictServiceStub(channel).Report
        call = report(metadata=((REPORTER_KEY, "gone"),))
        await call.write(pb.ReportRequest(ticket=1, verdicts=[verdict()]))
        await until(lambda: len(service.core.taken) == 1)
    await until(lambda: service.intake.streams == 0)
    service.core.release()
    assert service.intake.counters.replaced == 0


async def test_a_wrong_field_refuses_the_whole_request_by_its_path(service: Served) -> None:
    wrong = verdict(2)
    wrong.lease_s = float("nan")
    code, text = await service.refusal(verdict(1), wrong)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text == "verdicts[1].lease_s = nan; allowed: above 0, at most 300 (seconds)"
    call = service.stream()
    await call.write(pb.ReportRequest(ticket=9, verdicts=[wrong]))
    code, text = await end_of(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith("ticket 9: verdicts[0].lease_s = nan")
    assert service.core.taken == []
    assert service.intake.counters.invalid == 2


@pytest.mark.parametrize("name", ["a b", "#", "-x", "x" * 64, "a/b"])
async def test_a_reporter_has_a_plain_name(service: Served, name: str) -> None:
    code, text = await service.refusal(name=name)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"metadata {REPORTER_KEY}" in text
    assert service.intake.reporters == 0


async def test_answers_sent_before_a_refusal_arrive(service: Served) -> None:
    call = service.stream()
    await call.write(pb.ReportRequest(ticket=1, verdicts=[verdict()]))
    await call.write(pb.ReportRequest(ticket=2, verdicts=[pb.Verdict()]))
    assert (await call.read()).ticket == 1
    code, text = await end_of(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith("ticket 2: ")


async def test_the_policy_holds_on_the_socket_too(tmp_path: Path) -> None:
    async with served(tmp_path / "s", rules=("unix=172.16.0.0/29",)) as service:
        assert (await service.once(verdict(1), verdict(7))).accepted == 2
        code, text = await service.refusal(verdict(1), verdict(8))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert text.startswith(f"verdicts[1].subject: verdicts.policy does not let this peer report on {target(8)}")
        assert len(service.core.taken) == 2
        assert service.intake.counters.denied == {"subnet_not_allowed": 1}
    async with served(tmp_path / "s", rules=("unix=",)) as service:
        code, text = await service.refusal()
        assert (code, text) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "no rule of verdicts.policy lets unix report on anything",
        )
        assert service.intake.reporters == 0


async def test_each_limit_is_named(tmp_path: Path) -> None:
    limits = VerdictLimits(
        message_bytes_max=2000,
        per_request_max=10,
        rate=0.001,
        burst=40,
        reporters_max=3,
        subjects_max=5,
        subjects_total_max=10,
    )
    async with served(tmp_path / "s", limits) as service:

        async def limited(*verdicts: pb.Verdict, name: str = "a") -> str:
            code, text = await service.refusal(*verdicts, name=name)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            return text

        huge = verdict()
        huge.subject.connection.id = "x" * 2000
        assert (await limited(huge)).startswith("verdicts.max_message: ")
        huge.subject.connection.id = "x" * 5000
        assert "larger than max" in await limited(huge)
        assert (await limited(*[verdict()] * 11)).startswith("verdicts.max_per_request: 11 verdicts")
        await service.once(*map(verdict, range(1, 6)), name="a")
        assert (await limited(verdict(6))).startswith("verdicts.max_subjects: at most 5")
        await service.once(*map(verdict, range(1, 4)), name="b")
        assert (await limited(verdict(4), name="b")).startswith("verdicts.max_subjects_total: at most 10")
        assert (await limited(name="c")).startswith("verdicts.max_reporters: 2 of 3 reporters")
        for _ in range(3):
            await service.once(*map(verdict, [1] * 10), name="a")
        assert "verdicts.rate: 0.001 verdicts a second, 40 at once; try again" in await limited(*[verdict()] * 10)
        assert service.intake.counters.limited == {
            "max_message": 1,
            "max_per_request": 1,
            "max_subjects": 1,
            "max_subjects_total": 1,
            "max_reporters": 1,
            "rate": 1,
        }
        assert len(service.core.taken) == 5 + 3 + 30


async def test_the_rate_ends_a_stream_by_name(tmp_path: Path) -> None:
    async with served(tmp_path / "s", VerdictLimits(rate=0.001, burst=3, per_request_max=3)) as service:
        call = service.stream()
        for ticket in range(1, 6):
            await call.write(pb.ReportRequest(ticket=ticket, verdicts=[verdict()]))
        assert [(await call.read()).ticket for _ in range(3)] == [1, 2, 3]
        code, text = await end_of(call)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert text.startswith("ticket 4: verdicts.rate: ")
        assert len(service.core.taken) == 3


async def test_what_is_no_message_is_refused_without_a_trace(service: Served, caplog: pytest.LogCaptureFixture) -> None:
    channel: Any = service.channel
    for method, kind in (("ReportOnce", "ReportOnceRequest"), ("Report", "ReportRequest")):
        call = channel.stream_stream(f"/lbguard.v1.VerdictService/{method}")()
        await call.write(b"\xff\xff")
        await call.done_writing()
        code, text = await end_of(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"a lbguard.v1.{kind}" in text
    assert complaints(caplog) == []


async def test_a_long_request_lets_others_have_the_loop(tmp_path: Path) -> None:
    async with served(tmp_path / "s", VerdictLimits(per_request_max=2000)) as service:
        turns = 0
        reached: list[int] = []

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        class Context:
            def invocation_metadata(self) -> tuple[()]:
                return ()

            def peer(self) -> str:
                return "unix:"

        context: Any = Context()
        counting = asyncio.create_task(count())
        await asyncio.sleep(0)
        peer = service.intake.admit(("unix",), context)
        before = turns
        with service.intake.call(peer):
            request = pb.ReportOnceRequest(verdicts=[verdict(number) for number in range(1, 1921)])
            await service.intake.take(peer, request)
            reached.append(turns - before)
        counting.cancel()
        assert reached[0] >= 1920 // 32


async def test_the_state_of_the_service_is_served_beside(service: Served) -> None:
    def ask() -> Any:
        with GuardClient(service.path) as client:
            return client.status()

    assert await asyncio.to_thread(ask) == guard_status()
