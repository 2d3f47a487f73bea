"""Random bytes and mutated messages to every RPC that is served: each is answered or refused by name, none harms.

The list of RPCs comes from the descriptors, so a new one is fuzzed without being named here. What becomes of verdicts
is looked at more closely in test_verdict_fuzz.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from lbguard.api.availability_server import AvailabilityServer
from lbguard.api.control_server import ControlService
from lbguard.api.feeds import AvailabilityState, DecisionLog
from lbguard.api.gen.meridio.loadbalancer.v1 import loadbalancer_pb2
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.server import ApiServer
from lbguard.api.verdicts.policy import Policy
from lbguard.api.verdicts.server import VerdictIntake
from lbguard.core.model import Decision, TargetKey, TargetState
from lbguard.core.status import GuardStatus
from lbguard.service.live_settings import LiveSettings
from lbguard.settings.decisions import ControlSettings
from lbguard.settings.model import load
from lbguard.settings.verdicts import VerdictLimits
from lbguard.telemetry.metrics.config import ConfigMetrics
from lbguard.telemetry.metrics.families import MetricFamilies
from tests.effort import examples
from tests.unit.api.core_stand_in import Core, OperatorCore, settled
from tests.unit.examples import decision, guard_status, target

BOUND_S = 60.0
BODIES_MAX = 6

SERVED = (pb.DESCRIPTOR, loadbalancer_pb2.DESCRIPTOR)
RPCS: tuple[MethodDescriptor, ...] = tuple(
    method for file in SERVED for service in file.services_by_name.values() for method in service.methods
)
STATUS = pb.DESCRIPTOR.services_by_name["GuardService"].methods_by_name["GetStatus"]
WATCH = loadbalancer_pb2.DESCRIPTOR.services_by_name["StreamAvailabilityService"].methods_by_name["Watch"]

EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.CANCELLED,  # by us, once it has answered
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}

TEXTS = st.one_of(
    st.sampled_from(["1", "stream-a/1", "stream-a/7", "172.16.1.10", "fd00::1", "/", "a/", "/1", "\0", "²", "1/²"]),
    st.text(max_size=20),
    # Longer than Python makes a number of, and longer than a status may be.
    st.integers(4000, 6000).map("9".__mul__),
    st.integers(4000, 6000).map(lambda length: "stream-a/" + "9" * length),
    st.integers(1, 20_000).map("\N{GREEK SMALL LETTER ALPHA}".__mul__),
)

VALUES: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats() | st.floats(0, 300),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-2, 9),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 3) | st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 3) | st.integers(0, 2**64 - 1),
}


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=20) if field.type == FieldDescriptor.TYPE_BYTES else TEXTS
    return VALUES[field.cpp_type]


def messages(kind: Descriptor) -> st.SearchStrategy[Message]:
    """Return messages of a kind, each field set to anything that its type can hold, or not set."""
    fields = {
        field.name: st.lists(values(field), max_size=3) if field.is_repeated else values(field) for field in kind.fields
    }
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: message_factory.GetMessageClass(kind)(**given))


@st.composite
def mutated(draw: st.DrawFn, kind: Descriptor) -> bytes:
    """Return a message with some bytes changed, cut out or put in."""
    data = bytearray(draw(messages(kind)).SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


def bodies(rpc: MethodDescriptor) -> st.SearchStrategy[list[bytes]]:
    kind = rpc.input_type
    whole = messages(kind).map(lambda message: message.SerializeToString())
    return st.lists(st.binary(max_size=200) | mutated(kind) | whole, min_size=1, max_size=BODIES_MAX)


class View:
    """A service with one target, one that is gone, and a decision each."""

    def __init__(self) -> None:
        self.log = DecisionLog()
        self.log.add(decision(sequence=1, identifier=1), 1000.0)
        self.log.add(decision(sequence=2, identifier=7), 1001.0)

    async def status(self) -> GuardStatus:
        return guard_status(target(1, TargetState.HELD))

    def decisions(self, target: TargetKey | None, limit: int) -> Sequence[tuple[Decision, float]]:
        return self.log.last(target, limit)


@dataclass(frozen=True)
class Services:
    """Channels to both servers, and what has to happen for a stream that waits for news to say something."""

    by_file: dict[str, Any]
    view: View

    async def call(self, rpc: MethodDescriptor, request: bytes) -> grpc.StatusCode:
        """Send a request and return the status, once it is answered or refused."""
        channel, name = self._place_of(rpc)
        call = (channel.unary_stream if rpc.server_streaming else channel.unary_unary)(name)(request)
        news = asyncio.create_task(self._make_news())
        try:
            if rpc.server_streaming:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    if await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
                        call.cancel()
            return await named(call)
        finally:
            news.cancel()

    async def converse(self, rpc: MethodDescriptor, requests: list[bytes]) -> grpc.StatusCode:
        """Send requests over a stream and return the status; where each is answered, the next one comes after that."""
        channel, name = self._place_of(rpc)
        call = channel.stream_stream(name)()
        # A refusal ends the call, and a write that comes after it fails.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for request in requests:
                await call.write(request)
                if rpc.server_streaming and await call.read() is grpc.aio.EOF:  # type: ignore[attr-defined]
                    break
            await call.done_writing()
            if not rpc.server_streaming:
                await call.read()
        return await named(call)

    def _place_of(self, rpc: MethodDescriptor) -> tuple[Any, str]:
        assert rpc.containing_service is not None
        service = rpc.containing_service
        return self.by_file[service.file.name], f"/{service.full_name}/{rpc.name}"

    async def _make_news(self) -> None:
        for sequence in itertools.count(3):
            self.view.log.add(decision(sequence=sequence), 1000.0 + sequence)
            await asyncio.sleep(0.001)


async def named(call: Any) -> grpc.StatusCode:
    """Return the status of a call that has ended, which must be one that we give, and say why."""
    code: grpc.StatusCode = await call.code()
    text: str = await call.details()
    assert code in EXPECTED, (code, text)
    assert text or code is grpc.StatusCode.OK
    return code


@contextlib.asynccontextmanager
async def served(directory: Path) -> AsyncIterator[Services]:
    view, core, state = View(), Core(), AvailabilityState()
    intake = VerdictIntake(core.submit, Policy([]), VerdictLimits(rate=1e6, burst=10**6))
    metrics = ConfigMetrics(MetricFamilies(CollectorRegistry()))
    settings = LiveSettings(load(), lambda before, after: None, metrics)
    control = ControlService(view.status, OperatorCore(), ControlSettings())
    api = ApiServer(directory / "a", view, view.log, verdicts=intake, control=control, settings=settings)
    availability = AvailabilityServer(directory / "b", "lb-0", state)
    state.set("stream-a", True)
    await api.start()
    await availability.start()
    try:
        async with (
            asyncio.timeout(BOUND_S),
            grpc.aio.insecure_channel(f"unix:{directory}/a") as first,
            grpc.aio.insecure_channel(f"unix:{directory}/b") as second,
        ):
            yield Services({pb.DESCRIPTOR.name: first, loadbalancer_pb2.DESCRIPTOR.name: second}, view)
    finally:
        await api.stop(0)
        await availability.stop(grace_s=0)
        await settled()


@pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.full_name)
@examples(40, [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_anything_sent_to_an_rpc_is_answered_or_refused_by_name(
    tmp_path: Path, rpc: MethodDescriptor, data: st.DataObject
) -> None:
    lists = data.draw(st.lists(bodies(rpc), min_size=1, max_size=8))

    async def run() -> None:
        async with served(tmp_path) as services:
            for requests in [*lists, [b"\xff"], [b"\x0a\x02\xff\xfe"]]:
                if rpc.client_streaming:
                    await services.converse(rpc, requests)
                else:
                    for request in requests:
                        await services.call(rpc, request)
            assert await services.call(STATUS, b"") is grpc.StatusCode.OK
            assert await services.call(WATCH, b"") is grpc.StatusCode.CANCELLED

    asyncio.run(run())
