"""Random and mutated messages to both calls for verdicts: nothing crashes, all is answered or refused by name."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from lbguard.api.feeds import DecisionLog
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.server import ApiServer
from lbguard.api.verdicts.policy import Policy
from lbguard.api.verdicts.server import VerdictIntake
from lbguard.rpc.channels import REPORTER_KEY
from lbguard.settings.verdicts import VerdictLimits
from tests.effort import examples
from tests.unit.api.core_stand_in import Core, settled, verdict
from tests.unit.api.verdicts.test_convert import VERDICTS
from tests.unit.api.verdicts.test_server import View, end_of

EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.PERMISSION_DENIED,
}

SOUND = st.builds(verdict, st.integers(1, 2000), sequence=st.integers(0, 2**64 - 1), lease_s=st.floats(0.1, 300))
REQUESTS = st.builds(
    pb.ReportRequest,
    ticket=st.integers(0, 2**64 - 1),
    verdicts=st.lists(SOUND, max_size=4) | st.lists(VERDICTS | SOUND, max_size=4),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a message with some bytes changed, cut out or put in."""
    data = bytearray(draw(REQUESTS).SerializeToString())
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


BODIES = st.one_of(st.binary(max_size=400), mutated(), REQUESTS.map(lambda request: request.SerializeToString()))
NAMES = st.sampled_from(["", "a", "b"])


def drive(path: Path, scenario: Callable[[grpc.aio.Channel, Core], Awaitable[None]]) -> None:
    """Serve, let a scenario talk to the service, and see that it is still there after that."""

    async def run() -> None:
        core, view, log = Core(), View(), DecisionLog()
        limits = VerdictLimits(rate=1e6, burst=10**6, message_bytes_max=4096, subjects_total_max=1500)
        intake = VerdictIntake(core.submit, Policy([]), limits)
        server = ApiServer(path, view, log, verdicts=intake)
        await server.start()
        try:
            async with asyncio.timeout(60), grpc.aio.insecure_channel(f"unix:{path}") as channel:
                await scenario(channel, core)
                call: Any = channel
                once = call.unary_unary("/lbguard.v1.VerdictService/ReportOnce")
                answer = await once(pb.ReportOnceRequest(verdicts=[]).SerializeToString())
                assert pb.ReportOnceResponse.FromString(answer).accepted == 0
        finally:
            await server.stop(0)
            await settled()
        assert intake.streams == 0

    asyncio.run(run())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


FUZZ = examples(40, [HealthCheck.function_scoped_fixture])


@FUZZ
@given(bodies=st.lists(BODIES, min_size=1, max_size=30))
@example(bodies=[b""])
def test_any_batch_is_answered_or_refused(path: Path, bodies: list[bytes]) -> None:
    async def scenario(channel: Any, core: Core) -> None:
        once = channel.unary_unary("/lbguard.v1.VerdictService/ReportOnce")
        accepted = 0
        for body in bodies:
            try:
                accepted += pb.ReportOnceResponse.FromString(await once(body)).accepted
            except grpc.aio.AioRpcError as error:
                if error.code() not in EXPECTED:
                    raise
        assert len(core.taken) == accepted

    drive(path, scenario)


@FUZZ
@given(streams=st.lists(st.tuples(NAMES, st.lists(BODIES, max_size=8)), min_size=1, max_size=6))
@example(streams=[("a", [b"\xff"])])
def test_any_stream_is_answered_in_order_or_refused(path: Path, streams: list[tuple[str, list[bytes]]]) -> None:
    async def scenario(channel: Any, core: Core) -> None:
        report = channel.stream_stream("/lbguard.v1.VerdictService/Report")
        accepted = 0
        for name, bodies in streams:
            call = report(metadata=((REPORTER_KEY, name),) if name else None)
            # A refusal ends the call, and a write that comes after it fails.
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                for answered, body in enumerate(bodies):
                    await call.write(body)
                    answer = await call.read()
                    if answer is grpc.aio.EOF:  # type: ignore[attr-defined]
                        break
                    response = pb.ReportResponse.FromString(answer)
                    assert response.ticket == pb.ReportRequest.FromString(body).ticket, answered
                    accepted += response.accepted
                await call.done_writing()
            code, text = await end_of(call)
            assert code in EXPECTED, text
            assert text or code is grpc.StatusCode.OK
        assert len(core.taken) == accepted

    drive(path, scenario)
