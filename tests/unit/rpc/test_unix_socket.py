# ruff: noqa: ASYNC240 (the files here are made for a moment: they do not block)
"""A served socket whose path others tamper with: real sockets, real calls."""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from lbguard.rpc.unix_socket import PATH_BYTES_MAX, ServedSocket, SocketError

BOUND_S = 90.0
MODE = 0o640
SERVING = health_pb2.HealthCheckResponse.SERVING


def make_server() -> grpc.aio.Server:
    service = health.aio.HealthServicer()  # type: ignore[attr-defined]
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    return server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "a.sock"


@pytest.fixture
async def served(path: Path) -> AsyncIterator[ServedSocket]:
    made = ServedSocket(path, "socket", MODE, make_server)
    await made.serve()
    yield made
    await made.stop(0)


async def answers(path: Path) -> bool:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=BOUND_S)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == SERVING)


def leave_dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def remove_directory(path: Path) -> None:
    path.parent.rmdir()


@pytest.mark.parametrize("then", [lambda path: None, leave_dead_socket, remove_directory])
async def test_a_socket_that_is_removed_comes_back(
    served: ServedSocket, path: Path, then: Callable[[Path], None]
) -> None:
    for _ in range(3):
        path.unlink()
        then(path)
        await served.keep()
        assert served.problem == ""
        assert stat.S_IMODE(path.lstat().st_mode) == MODE
        assert [each.name for each in path.parent.iterdir()] == ["a.sock"]
        assert await answers(path)
    await served.stop(0)
    assert list(path.parent.iterdir()) == []


def put_file(path: Path) -> None:
    path.write_text("somebody's file")


def put_link(path: Path) -> None:
    path.with_name("elsewhere").write_text("somebody's file")
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("put", [put_file, put_link, Path.mkdir])
async def test_what_stands_in_the_way_is_named_and_stays(
    served: ServedSocket, path: Path, put: Callable[[Path], None]
) -> None:
    path.unlink()
    put(path)
    before = path.lstat()
    for _ in range(3):
        await served.keep()
        assert f"socket = {path}" in served.problem
        assert os.path.samestat(path.lstat(), before)
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    await served.keep()
    assert served.problem == ""
    assert await answers(path)


async def test_the_socket_of_another_process_stays(served: ServedSocket, path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        await served.keep()
        assert "another process listens there" in served.problem
        await served.stop(0)
        assert path.exists(), "gRPC removes what stands at the path it bound to"


async def test_calls_that_are_open_go_on(served: ServedSocket, path: Path) -> None:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        async with asyncio.timeout(BOUND_S):
            assert (await watch.read()).status == SERVING
        path.unlink()
        await served.keep()
        assert await answers(path)
        reading = asyncio.ensure_future(watch.read())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(reading), 0.3)
        await served.stop(0)
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await reading


async def test_nothing_is_written_through_a_link_beside(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("not ours")
    mode = victim.stat().st_mode
    path.parent.mkdir()
    path.with_name(".a.sock.new").symlink_to(victim)
    served = ServedSocket(path, "socket", MODE, make_server)
    await served.serve()
    try:
        assert (victim.read_text(), victim.stat().st_mode) == ("not ours", mode)
        assert await answers(path)
    finally:
        await served.stop(0)


async def test_directories_at_the_names_beside_are_no_obstacle(path: Path) -> None:
    for name in (".a.sock.new", ".n"):
        path.with_name(name).mkdir(parents=True)
    served = ServedSocket(path, "socket", MODE, make_server)
    await served.serve()
    try:
        assert await answers(path)
    finally:
        await served.stop(0)
    assert {each.name for each in path.parent.iterdir()} == {".a.sock.new", ".n"}


async def test_a_path_as_long_as_it_may_be_is_served(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    name = "s" * (PATH_BYTES_MAX - len(os.fsencode(directory)) - 1)
    served = ServedSocket(directory / name, "socket", MODE, make_server)
    await served.serve()
    try:
        assert await answers(directory / name)
    finally:
        await served.stop(0)
    assert list(directory.iterdir()) == []
    with pytest.raises(SocketError, match="longer than"):
        await ServedSocket(directory / f"{name}s", "socket", MODE, make_server).serve()
