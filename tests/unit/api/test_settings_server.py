"""Settings over the API: a file is compared with those in force, and refused by name."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from lbguard.api.client import ClientError, FileRefused, GuardClient
from lbguard.api.server import ApiServer
from lbguard.settings.changes import differences
from lbguard.settings.difference import Difference
from lbguard.settings.model import Settings, load
from lbguard.settings.sources import MAX_BYTES
from tests.unit.cli.served_guard import ServedGuard
from tests.unit.examples import guard_status
from tests.unit.shell import Shell


class View:
    """Settings at their defaults, whose sources are the defaults and the file."""

    async def compare(self, content: bytes, path: Path) -> Sequence[Difference]:
        return differences(Settings(), load(config=path, content=content).settings)


@pytest.fixture
async def socket(tmp_path: Path) -> AsyncIterator[Path]:
    guard = ServedGuard(guard_status())
    server = ApiServer(tmp_path / "lbguard.sock", guard, guard.log, settings=View())
    await server.start()
    yield tmp_path / "lbguard.sock"
    await server.stop(0)


async def compare(socket: Path, content: bytes) -> tuple[Difference, ...]:
    def call() -> tuple[Difference, ...]:
        with GuardClient(socket) as client:
            return client.compare_settings(content, "new.yaml")

    return await asyncio.to_thread(call)


async def test_the_differences_of_a_file(socket: Path) -> None:
    assert await compare(socket, b"") == ()
    assert await compare(socket, b"grace: {window: 5s}\nmode: observe\n") == (
        Difference(name="mode", running="enforce", wanted="observe", live=False),
        Difference(name="grace.window", running="3s", wanted="5s", live=True),
    )


async def test_a_file_of_many_messages(socket: Path) -> None:
    padding = b"# no setting\n" * 10_000
    assert [each.name for each in await compare(socket, padding + b"grace: {window: 5s}\n")] == ["grace.window"]


async def test_a_file_that_would_be_refused(socket: Path) -> None:
    with pytest.raises(FileRefused) as caught:
        await compare(socket, b"grace: {window: 50s}\nfreeze: {limt: 1s}")
    assert [line.partition(" ")[0] for line in caught.value.lines] == ["freeze.limt", "grace.window"]
    assert "(file new.yaml)" in caught.value.lines[1]


async def test_a_file_that_is_too_large(socket: Path) -> None:
    with pytest.raises(ClientError, match="larger than 1 MiB"):
        await compare(socket, b"#" * (MAX_BYTES + 1))


@pytest.mark.parametrize(("text", "status"), [("", 0), ("mode: observe", 1), ("mode: other", 2)])
async def test_the_exit_status_is_that_of_diff(
    socket: Path, shell: Shell, tmp_path: Path, text: str, status: int
) -> None:
    path = tmp_path / "new.yaml"
    path.write_text(text)
    argv = ("check-config", "--diff", "--config", str(path), "--socket", str(socket))
    outcome = await asyncio.to_thread(shell, *argv)
    assert outcome.status == status
    assert (outcome.out == "") is (status == 2)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--config", "none.yaml"), "none.yaml"),
        (("--config", "/dev/null", "--set", "mode=observe"), "allowed only with --config"),
        ((), "give --config"),
    ],
)
def test_what_cannot_be_compared(shell: Shell, tmp_path: Path, more: tuple[str, ...], reason: str) -> None:
    outcome = shell("check-config", "--diff", "--socket", str(tmp_path / "none.sock"), *more)
    assert outcome.status == 2
    assert reason in " ".join(outcome.err.split())


def test_a_service_that_does_not_run_cannot_be_compared(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    path.write_text("")
    outcome = shell("check-config", "--diff", "--config", str(path), "--socket", str(tmp_path / "none.sock"))
    assert outcome.status == 2
    assert "lbguard is not running" in outcome.err
