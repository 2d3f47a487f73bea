import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lbguard.api.client import ClientError, GuardClient, ServiceNotRunning
from lbguard.api.feeds import DecisionLog
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.api.server import ApiError, ApiServer
from lbguard.api.targets import TargetUnclear, find_target
from lbguard.core.model import Action, Decision, TargetKey, TargetState
from lbguard.core.status import GuardStatus
from tests.unit.examples import decision, guard_status, path, target


class Guard:
    """A service that knows one status and a decision log."""

    def __init__(self) -> None:
        self.log = DecisionLog()
        held = target(2, TargetState.HELD, cause="no_link", deadline=103.0, paths=(path("172.16.1.11", "no_link", ""),))
        self.state = guard_status(target(1), held)

    async def status(self) -> GuardStatus:
        return self.state

    def decisions(self, target: TargetKey | None, limit: int) -> Sequence[tuple[Decision, float]]:
        return self.log.last(target, limit)


def mode_of(path: Path) -> int | None:
    """Return the permission bits of a file, or None when there is none."""
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else None


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "lbguard.sock"


@pytest.fixture
def guard() -> Guard:
    return Guard()


@pytest.fixture
async def server(socket_path: Path, guard: Guard) -> AsyncIterator[ApiServer]:
    served = ApiServer(socket_path, guard, guard.log)
    await served.start()
    yield served
    await served.stop(0)


async def test_the_status_arrives_whole(server: ApiServer, guard: Guard, socket_path: Path) -> None:
    def ask() -> GuardStatus:
        with GuardClient(socket_path) as client:
            return client.status()

    assert await asyncio.to_thread(ask) == guard.state


async def test_a_status_of_ten_thousand_targets_fits(server: ApiServer, guard: Guard, socket_path: Path) -> None:
    paths = (path("172.16.1.10"), path("fd00:0000:0000:0001::10"))
    guard.state = guard_status(*(target(number, paths=paths) for number in range(1, 10_001)))

    def ask() -> GuardStatus:
        with GuardClient(socket_path, timeout_s=60) as client:
            return client.status()

    assert len((await asyncio.to_thread(ask)).targets) == 10_000


async def test_a_target_is_explained(server: ApiServer, guard: Guard, socket_path: Path) -> None:
    for sequence in range(3):
        guard.log.add(decision(sequence=sequence, identifier=2), 1000.0 + sequence)
    guard.log.add(decision(sequence=9, identifier=1), 2000.0)

    def ask() -> None:
        with GuardClient(socket_path) as client:
            for name in ("stream-a/2", "2", "172.16.1.11"):
                explained = client.explain(name, history=2)
                assert explained.key == TargetKey("stream-a", 2)
                assert explained.target == guard.state.targets[1]
                assert [item.sequence for item, _ in explained.decisions] == [1, 2]
                assert explained.decisions[0][1] == 1001.0
                assert "held for 10.0 s because of no_link" in explained.story

    await asyncio.to_thread(ask)


async def test_what_no_target_is_called_is_refused_in_words(server: ApiServer, socket_path: Path) -> None:
    def ask(name: str) -> str:
        with GuardClient(socket_path) as client, pytest.raises(ClientError) as caught:
            client.explain(name)
        return str(caught.value)

    assert "no target '7'" in await asyncio.to_thread(ask, "7")
    assert "write stream/identifier" in await asyncio.to_thread(ask, "nonsense")


async def test_a_forgotten_target_can_still_be_explained(server: ApiServer, guard: Guard, socket_path: Path) -> None:
    guard.log.add(decision(Action.REMOVE, identifier=50), 1000.0)

    def ask() -> None:
        with GuardClient(socket_path) as client:
            for name in ("stream-a/50", "50"):
                explained = client.explain(name)
                assert explained.key == TargetKey("stream-a", 50)
                assert explained.target is None
                assert [item.action for item, _ in explained.decisions] == [Action.REMOVE]
                assert "no longer listed" in explained.story

    await asyncio.to_thread(ask)


async def test_an_identifier_means_the_target_that_is_there_before_those_that_are_gone(
    server: ApiServer, guard: Guard, socket_path: Path
) -> None:
    for stream, identifier in (("stream-b", 2), ("stream-b", 50), ("stream-c", 50)):
        gone = replace(decision(Action.REMOVE), target=TargetKey(stream, identifier))
        guard.log.add(gone, 1000.0)

    def ask() -> None:
        with GuardClient(socket_path) as client:
            assert client.explain("2").key == TargetKey("stream-a", 2)
            with pytest.raises(ClientError, match=r"'50' is the name of 2 targets: stream-b/50, stream-c/50"):
                client.explain("50")

    await asyncio.to_thread(ask)


async def test_history_ends_by_itself(server: ApiServer, guard: Guard, socket_path: Path) -> None:
    for sequence in range(5):
        guard.log.add(decision(sequence=sequence), float(sequence))

    def ask() -> list[int]:
        with GuardClient(socket_path) as client:
            return [item.decision.sequence for item in client.watch(3, follow=False)]

    assert await asyncio.to_thread(ask) == [2, 3, 4]


async def test_following_goes_on_from_history_without_a_gap(server: ApiServer, guard: Guard, socket_path: Path) -> None:
    guard.log.add(decision(sequence=1), 1.0)
    async with grpc.aio.insecure_channel(f"unix:{socket_path}") as channel, asyncio.timeout(60):
        calls = pb_grpc.GuardServiceStub(channel)
        stream = calls.WatchDecisions(pb.WatchDecisionsRequest(history=10, follow=True))
        responses = aiter(stream)
        assert (await anext(responses)).decision.sequence == 1
        guard.log.add(decision(sequence=2), 2.0)
        assert (await anext(responses)).decision.sequence == 2
        stream.cancel()


async def test_a_reader_that_stops_reading_is_told_what_it_lost(
    server: ApiServer, guard: Guard, socket_path: Path
) -> None:
    async with grpc.aio.insecure_channel(f"unix:{socket_path}") as channel, asyncio.timeout(100):
        calls = pb_grpc.GuardServiceStub(channel)
        responses = aiter(calls.WatchDecisions(pb.WatchDecisionsRequest(history=1, follow=True)))
        first = asyncio.ensure_future(anext(responses))
        while not guard.log._subscriptions:  # noqa: ASYNC110 (the server does not tell when a reader arrives)
            await asyncio.sleep(0.01)
        # All in one turn of the loop: the reader cannot keep up, however fast the machine is.
        for sequence in range(1, 5001):
            guard.log.add(decision(sequence=sequence), 0.0)
        got = [await first]
        while got[-1].decision.sequence < 5000:
            got.append(await anext(responses))
        assert len(got) + sum(item.lost for item in got) == 5000
        assert sum(item.lost for item in got) > 0


async def test_the_socket_is_for_owner_and_group(server: ApiServer, socket_path: Path) -> None:
    assert mode_of(socket_path) == 0o660


async def test_the_socket_of_a_dead_process_is_replaced(socket_path: Path, guard: Guard) -> None:
    socket_path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path))
    served = ApiServer(socket_path, guard, guard.log)
    await served.start()

    def ask() -> GuardStatus:
        with GuardClient(socket_path) as client:
            return client.status()

    try:
        assert await asyncio.to_thread(ask) == guard.state
    finally:
        await served.stop(0)
    assert mode_of(socket_path) is None


async def test_a_served_socket_is_refused(server: ApiServer, socket_path: Path, guard: Guard) -> None:
    second = ApiServer(socket_path, guard, guard.log)
    with pytest.raises(ApiError, match="another process listens there"):
        await second.start()
    await second.stop()
    assert mode_of(socket_path) is not None


async def test_other_obstacles_are_named(tmp_path: Path, guard: Guard) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    for where, words in (
        (taken, "not a socket"),
        (taken / "x.sock", "let this user write to it"),
        (tmp_path / ("x" * 120), "longer than 107"),
    ):
        with pytest.raises(ApiError, match=words):
            await ApiServer(where, guard, guard.log).start()


async def test_stopping_ends_followers(socket_path: Path, guard: Guard) -> None:
    served = ApiServer(socket_path, guard, guard.log)
    await served.start()
    guard.log.add(decision(), 1.0)
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def follow() -> None:
        with GuardClient(socket_path) as client:
            for _ in client.watch(1, follow=True):
                loop.call_soon_threadsafe(started.set)

    following = asyncio.create_task(asyncio.to_thread(follow))
    async with asyncio.timeout(60):
        await started.wait()
        await served.stop(0)
        with pytest.raises(ClientError):
            await following
        while guard.log._subscriptions:  # noqa: ASYNC110 (gRPC does not wait for a call that it has cut off)
            await asyncio.sleep(0.01)


async def test_the_health_service_follows(server: ApiServer, socket_path: Path) -> None:
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with grpc.aio.insecure_channel(f"unix:{socket_path}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def ask(name: str) -> int:
            return int((await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)).status)

        assert [await ask(name) for name in ("", "Liveness", "Readiness")] == [serving, serving, not_serving]
        await server.set_ready(True)
        assert await ask("Readiness") == serving


def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ServiceNotRunning, match="start it with `lbguard run`"), GuardClient(tmp_path / "none.sock"):
        pass


def test_a_file_is_no_service(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    with pytest.raises(ClientError), GuardClient(plain):
        pass


@pytest.mark.parametrize(
    ("name", "found"),
    [("stream-a/1", 1), ("1", 1), ("172.16.1.10/32", 1), ("fd00::0:1", 2)],
)
def test_a_target_is_found_by_name_identifier_or_address(name: str, found: int) -> None:
    targets = (target(1, paths=(path("172.16.1.10"),)), target(2, paths=(path("fd00::1"),)))
    assert find_target(name, targets) == TargetKey("stream-a", found)


@pytest.mark.parametrize(("name", "found"), [("3", 0), ("10.0.0.1", 0), ("stream-b/1", 0), ("", 0), ("172.16.1.10", 2)])
def test_what_means_none_or_several_is_refused(name: str, found: int) -> None:
    with pytest.raises(TargetUnclear) as caught:
        find_target(name, (target(1), target(2)))
    assert caught.value.found == found
