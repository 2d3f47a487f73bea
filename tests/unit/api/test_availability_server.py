import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import empty_pb2

from lbguard.api.availability_server import AvailabilityServer
from lbguard.api.feeds import AvailabilityState
from lbguard.api.gen.meridio.loadbalancer.v1 import loadbalancer_pb2 as pb
from lbguard.api.gen.meridio.loadbalancer.v1 import loadbalancer_pb2_grpc as pb_grpc
from lbguard.rpc.unix_socket import SocketError
from tests.unit.api.certificates import Authority

BOUND_S = 90.0
HOST = "lb-0"
AVAILABLE = pb.Response(targets=[pb.Target(context={"identifier": HOST})])
UNAVAILABLE = pb.Response(targets=[pb.Target()])


class Frontend:
    """Watches as Meridio's frontend does."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = pb_grpc.StreamAvailabilityServiceStub(channel).Watch(empty_pb2.Empty())

    async def next(self) -> pb.Response:
        async with asyncio.timeout(BOUND_S):
            response = await self.call.read()
        assert isinstance(response, pb.Response)
        return response

    async def hears_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            # A read that is cancelled would end the call, so it goes on behind.
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(self.call.read())), 0.2)


@pytest.fixture
def state() -> AvailabilityState:
    return AvailabilityState()


@pytest.fixture
async def server(state: AvailabilityState, tmp_path: Path) -> AsyncIterator[AvailabilityServer]:
    server = AvailabilityServer(tmp_path / "meridio" / "lb.sock", HOST, state)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def frontend(server: AvailabilityServer, tmp_path: Path) -> AsyncIterator[Frontend]:
    async with grpc.aio.insecure_channel(f"unix://{tmp_path}/meridio/lb.sock") as channel:
        yield Frontend(channel)


async def test_the_wire_is_meridios() -> None:
    # field 1 of Response, length 20: field 1 of Target, length 18: the entry identifier = lb-0
    assert AVAILABLE.SerializeToString() == b"\x0a\x14\x0a\x12\x0a\x0aidentifier\x12\x04lb-0"
    assert UNAVAILABLE.SerializeToString() == b"\x0a\x00"


async def test_a_watch_is_answered_at_once_and_at_each_change(state: AvailabilityState, frontend: Frontend) -> None:
    state.set("a", True)
    assert await frontend.next() == AVAILABLE
    state.set("a", False)
    state.retain(["a"])
    assert await frontend.next() == UNAVAILABLE
    state.set("a", True)
    assert await frontend.next() == AVAILABLE


async def test_the_load_balancer_is_available_while_any_stream_is(state: AvailabilityState, frontend: Frontend) -> None:
    state.retain(["a", "b"])
    state.set("a", True)
    state.set("b", True)
    assert await frontend.next() == AVAILABLE
    state.set("a", False)
    state.set("b", True)
    state.set("b", False)
    assert await frontend.next() == UNAVAILABLE


async def test_what_stays_the_same_is_not_told_twice(state: AvailabilityState, frontend: Frontend) -> None:
    state.retain(["a", "b"])
    state.set("a", True)
    assert await frontend.next() == AVAILABLE
    state.set("b", True)
    state.retain(["a", "b"])
    state.set("a", False)
    state.set("a", True)
    await frontend.hears_nothing()


async def test_what_is_not_known_is_not_told(state: AvailabilityState, frontend: Frontend) -> None:
    state.set("a", False)
    await frontend.hears_nothing()
    assert state.value is None


async def test_a_stream_that_is_gone_counts_no_longer(state: AvailabilityState, frontend: Frontend) -> None:
    state.set("a", True)
    assert await frontend.next() == AVAILABLE
    state.retain([])
    assert await frontend.next() == UNAVAILABLE


async def test_who_comes_later_gets_the_state_of_the_moment(
    server: AvailabilityServer, state: AvailabilityState, tmp_path: Path
) -> None:
    state.retain(["a"])
    state.set("a", True)
    state.set("a", False)
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/meridio/lb.sock") as channel:
        assert await Frontend(channel).next() == UNAVAILABLE
        assert await Frontend(channel).next() == UNAVAILABLE


async def test_a_watcher_that_does_not_read_holds_up_nobody(
    state: AvailabilityState, frontend: Frontend, tmp_path: Path
) -> None:
    state.retain(["a"])
    for _ in range(500):
        state.set("a", True)
        await asyncio.sleep(0)
        state.set("a", False)
        await asyncio.sleep(0)
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/meridio/lb.sock") as channel:
        assert await Frontend(channel).next() == UNAVAILABLE
    state.set("a", True)
    read = await frontend.next()
    async with asyncio.timeout(BOUND_S):
        while read != AVAILABLE:
            read = await frontend.next()


async def test_at_the_end_the_frontend_keeps_what_it_has_or_is_told(
    server: AvailabilityServer, state: AvailabilityState, frontend: Frontend, tmp_path: Path
) -> None:
    state.set("a", True)
    assert await frontend.next() == AVAILABLE
    await server.stop(unavailable=True)
    assert await frontend.next() == UNAVAILABLE
    assert not (tmp_path / "meridio/lb.sock").exists()
    await server.stop()


async def test_without_being_told_so_the_end_says_nothing(
    server: AvailabilityServer, state: AvailabilityState, frontend: Frontend
) -> None:
    state.set("a", True)
    assert await frontend.next() == AVAILABLE
    await server.stop()
    with pytest.raises(grpc.aio.AioRpcError):
        await frontend.next()


async def test_the_socket_is_open_to_the_frontends_user(server: AvailabilityServer, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "meridio/lb.sock").stat().st_mode) == 0o666


async def test_a_socket_that_is_served_already_is_left_alone(server: AvailabilityServer, tmp_path: Path) -> None:
    second = AvailabilityServer(tmp_path / "meridio/lb.sock", HOST, AvailabilityState())
    with pytest.raises(SocketError, match=r"availability\.socket = .*another process listens there"):
        await second.start()


async def test_the_socket_of_a_dead_process_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lb.sock"
    path.write_text("")
    server = AvailabilityServer(path, HOST, AvailabilityState())
    with pytest.raises(SocketError, match="not a socket"):
        await server.start()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    await server.start()
    await server.stop()


async def test_with_certificates_both_sides_show_theirs(state: AvailabilityState, tmp_path: Path) -> None:
    authority = Authority()
    ours, theirs = authority.issue(dns=("lb",)), authority.issue(dns=("fe",))
    credentials = grpc.ssl_server_credentials([(ours.key, ours.chain)], authority.root, True)
    server = AvailabilityServer(tmp_path / "lb.sock", HOST, state, credentials=credentials)
    await server.start()
    try:
        state.set("a", True)
        options = [("grpc.ssl_target_name_override", "lb")]
        address = f"unix:{tmp_path}/lb.sock"
        known = grpc.ssl_channel_credentials(authority.root, theirs.key, theirs.chain)
        async with grpc.aio.secure_channel(address, known, options=options) as channel:
            assert await Frontend(channel).next() == AVAILABLE
        async with grpc.aio.secure_channel(
            address, grpc.ssl_channel_credentials(authority.root), options=options
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await Frontend(channel).next()
    finally:
        await server.stop()


async def test_a_new_stream_whose_state_is_not_known_takes_nothing_back() -> None:
    state = AvailabilityState()
    state.retain(["a"])
    state.set("a", False)
    assert state.value is False
    state.retain(["a", "new"])
    assert state.value is False
    state.set("a", True)
    state.set("a", False)
    assert state.value is True  # `new` may be available: its first state decides
    state.set("new", False)
    assert state.value is False
