"""The commands drain, hold, withdraw and release, against a served stand-in."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lbguard.api.control_server import ControlService
from lbguard.api.server import ApiServer
from lbguard.core.model import ManualAction, TargetKey
from lbguard.settings.decisions import ControlSettings
from tests.unit.api.core_stand_in import OperatorCore
from tests.unit.api.test_control_server import STATUS
from tests.unit.cli.served_guard import ServedGuard
from tests.unit.shell import Outcome, Shell


class Cli:
    """Commands to a service, and what reached its core."""

    def __init__(self, shell: Shell, socket: Path) -> None:
        self.core = OperatorCore()
        self._shell = shell
        self._socket = socket

    async def __call__(self, *argv: str) -> Outcome:
        return await asyncio.to_thread(self._shell, *argv, "--socket", str(self._socket))


@pytest.fixture
async def cli(shell: Shell, tmp_path: Path) -> AsyncIterator[Cli]:
    made = Cli(shell, tmp_path / "lbguard.sock")
    guard = ServedGuard(STATUS)
    control = ControlService(guard.status, made.core, ControlSettings(duration=600.0, max_duration=3600.0))
    server = ApiServer(tmp_path / "lbguard.sock", guard, guard.log, control=control)
    await server.start()
    yield made
    await server.stop(0)


async def test_a_drain_is_given_and_said(cli: Cli) -> None:
    outcome = await cli("drain", "1", "172.16.1.11", "--for", "30m", "--reason", "kernel", "--by", "anna")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines()[:2] == [
        "stream-a/1 gets no new connections for 30m (state now: active)",
        "stream-a/2 gets no new connections for 30m (state now: active)",
    ]
    [event] = cli.core.taken
    assert (event.action, event.duration_s, event.reason, event.who) == (ManualAction.DRAIN, 1800.0, "kernel", "anna")
    assert event.targets == (TargetKey("stream-a", 1), TargetKey("stream-a", 2))


@pytest.mark.parametrize("sudo", ["anna", ""])
async def test_the_user_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch, sudo: str) -> None:
    monkeypatch.setenv("SUDO_USER", sudo)
    await cli("hold", "1")
    who = cli.core.taken[0].who
    assert who == "anna" if sudo else who


async def test_a_refusal_is_an_error_with_status_1(cli: Cli) -> None:
    cli.core.refused = "would_empty_stream"
    outcome = await cli("withdraw", "--stream", "stream-a")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.count("\n") == 1
    assert "repeat the command with --force" in outcome.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["drain"], "name a TARGET, --link NAME or --stream NAME"),
        (["release"], "or --all"),
        (["hold", "1", "--for", "soon"], "--for"),
        (["hold", "1", "--for", "10ms"], "at least 1s"),
        (["hold", "1", "--force"], "--force"),
    ],
)
async def test_wrong_usage_is_refused_with_status_2(cli: Cli, argv: list[str], said: str) -> None:
    outcome = await cli(*argv)
    assert (outcome.status, outcome.out) == (2, "")
    assert said in outcome.err
    assert cli.core.taken == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["drain", "1", "--for", "48h"], "--for 48h: at most 1h (control.max_duration)"),
        (["hold", "1", "--reason", "x" * 201], "--reason: at most 200 characters"),
        (["hold", "1", "--by", "x" * 65], "--by: at most 64 characters"),
        (["release", *["1"] * 257], "TARGET (257 are named): at most 256; name streams or links instead"),
    ],
)
async def test_a_refused_field_is_named_by_its_flag(cli: Cli, argv: list[str], said: str) -> None:
    outcome = await cli(*argv)
    assert (outcome.status, outcome.out) == (1, "")
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert cli.core.taken == []


async def test_json_has_all_of_it(cli: Cli) -> None:
    outcome = await cli("withdraw", "3", "--for", "1h", "--by", "anna", "--json", "--force")
    assert json.loads(outcome.out) == {
        "action": "withdraw",
        "duration_s": 3600.0,
        "who": "anna",
        "reason": "",
        "targets": [{"stream": "stream-a", "identifier": 3, "state": "active", "changed": True}],
        "not_remembered": "",
    }
    assert cli.core.taken[0].force


async def test_a_release_says_what_it_ended(cli: Cli) -> None:
    outcome = await cli("release", "--all")
    assert outcome.out == "stream-a/3 is released (state now: active)\n"


async def test_what_a_restart_forgets_is_a_warning(cli: Cli) -> None:
    cli.core.not_remembered = "/run is read-only"
    assert "warning: a restart of lbguard forgets this command: /run is read-only" in (await cli("hold", "1")).out
