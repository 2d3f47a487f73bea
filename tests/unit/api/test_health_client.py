import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from lbguard.api.feeds import DecisionLog
from lbguard.api.health_client import unhealthy_reason
from lbguard.api.server import ApiServer
from lbguard.cli.main import main
from lbguard.core.model import Decision, TargetKey
from lbguard.core.status import GuardStatus
from tests.unit.examples import guard_status


class Guard:
    """A service with nothing to tell."""

    async def status(self) -> GuardStatus:
        return guard_status()

    def decisions(self, target: TargetKey | None, limit: int) -> Sequence[tuple[Decision, float]]:
        return ()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lbguard.sock"


@pytest.fixture
async def server(path: Path) -> AsyncIterator[ApiServer]:
    server = ApiServer(path, Guard(), DecisionLog())
    await server.start()
    yield server
    await server.stop(0)


def exit_status(*argv: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert isinstance(end.value.code, int)
    return end.value.code


async def test_a_service_is_alive_before_it_is_ready(server: ApiServer, path: Path) -> None:
    assert await asyncio.to_thread(unhealthy_reason, path, "Liveness") == ""
    assert "Readiness is NOT_SERVING" in await asyncio.to_thread(unhealthy_reason, path, "Readiness")
    await server.set_ready(True)
    assert await asyncio.to_thread(unhealthy_reason, path, "Readiness") == ""


@pytest.mark.parametrize("name", ["a%41", "a#b", "a?b", "a b", "ä", os.fsdecode(b"a\xff")])
async def test_a_socket_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    server = ApiServer(path, Guard(), DecisionLog())
    await server.start()
    try:
        assert await asyncio.to_thread(unhealthy_reason, path, "Liveness", timeout_s=60) == ""
        assert await asyncio.to_thread(exit_status, "status", "--socket", str(path)) == 0
    finally:
        await server.stop(0)


async def test_the_command_ends_with_what_the_service_says(
    server: ApiServer, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(exit_status, "health", "--live", "--socket", str(path)) == 0
    assert await asyncio.to_thread(exit_status, "health", "--ready", "--socket", str(path)) == 1
    assert "lbguard status" in capsys.readouterr().err
    await server.set_ready(True)
    assert await asyncio.to_thread(exit_status, "health", "--socket", str(path)) == 0


def test_nobody_there_is_unhealthy(path: Path) -> None:
    assert unhealthy_reason(path, "Liveness") == f"lbguard is not running (no socket at {path})"


def test_a_hung_service_is_unhealthy(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hung:
        hung.bind(str(path))
        hung.listen()
        reason = unhealthy_reason(path, "Liveness", timeout_s=0.2)
    assert "did not answer within 0.2 s" in reason


async def test_an_unknown_service_is_unhealthy(server: ApiServer, path: Path) -> None:
    assert "NOT_FOUND" in await asyncio.to_thread(unhealthy_reason, path, "liveness")
