import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import typer.main

from lbguard.api.server import ApiServer
from lbguard.cli import app, main
from lbguard.core.model import Action, Decision, TargetKey, TargetState
from lbguard.core.status import GuardStatus
from lbguard.decisions import DecisionLog
from tests.unit.examples import decision, guard_status, path, target


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("LBGUARD_")]:
        monkeypatch.delenv(variable)


class Outcome:
    """How a command ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


class Shell:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str) -> Outcome:
        try:
            main(argv)
        except SystemExit as end:
            status = end.code
        assert isinstance(status, int)
        captured = self._capsys.readouterr()
        return Outcome(status, captured.out, captured.err)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def targets_file(tmp_path: Path) -> Path:
    file = tmp_path / "targets.yaml"
    file.write_text("streams:\n  - {name: stream-a, targets: [{identifier: 1, ips: [172.16.1.10]}]}\n")
    return file


def test_version(shell: Shell) -> None:
    assert shell("version").out == "lbguard 0.1.0\n"


COMMANDS = list(typer.main.get_group(app).commands)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_teaches_by_examples_and_exit_statuses(shell: Shell, command: list[str]) -> None:
    outcome = shell(*command, "--help")
    assert outcome.status == 0
    assert re.search(rf"(?m)^    (?:\w+=\S+ )*lbguard {' '.join(command)}", outcome.out), "an example on its own line"
    assert re.search(r"(?m)^  Exit status: 0[ .]", outcome.out)
    assert "\\b" not in outcome.out
    assert all(len(line) <= 100 for line in outcome.out.splitlines())


def test_the_list_of_commands_says_whole_sentences(shell: Shell) -> None:
    listed = shell("--help").out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == COMMANDS
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_usage_ends_with_2_and_points_at_the_help(shell: Shell, command: str) -> None:
    outcome = shell(command, "--no-such-option")
    assert outcome.status == 2
    assert f"lbguard {command} -h" in outcome.err
    assert "Traceback" not in outcome.err


def test_check_config_explains_every_value(shell: Shell, targets_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBGUARD_GRACE__MAX", "20s")
    outcome = shell("check-config", "--set", "grace.window=5s", "--targets-file", str(targets_file))
    assert outcome.status == 0
    rows = {line.split()[0]: line.split() for line in outcome.out.splitlines() if "." in line.split(" ")[0]}
    assert rows["grace.window"][1:3] == ["5s", "flag"]
    assert rows["grace.max"][1:4] == ["20s", "environment", "LBGUARD_GRACE__MAX"]
    assert rows["freeze.threshold"][1:3] == ["0.5", "default"]
    assert "Nothing to warn of." in outcome.out


def test_check_config_in_json(shell: Shell, targets_file: Path) -> None:
    outcome = shell("check-config", "--json", "--mode", "observe", "--targets-file", str(targets_file))
    settings = {row["name"]: row for row in json.loads(outcome.out)["settings"]}
    assert settings["mode"]["value"] == "observe"
    assert settings["mode"]["origin"] == "flag"
    assert settings["grace.window"]["variable"] == "LBGUARD_GRACE__WINDOW"


def test_warnings_fail_only_when_strict(shell: Shell, targets_file: Path) -> None:
    argv = ("check-config", "--targets-file", str(targets_file), "--set", "freeze.threshold=1")
    assert "warning freeze-off" in shell(*argv).out
    assert shell(*argv).status == 0
    assert shell(*argv, "--strict").status == 1


def test_problems_of_the_targets_file_are_warnings(shell: Shell, tmp_path: Path) -> None:
    outcome = shell("check-config", "--targets-file", str(tmp_path / "none.yaml"), "--strict")
    assert outcome.status == 1
    assert "warning targets-file" in outcome.out


def test_refused_settings_are_one_line_each(shell: Shell) -> None:
    outcome = shell("check-config", "--set", "grace.window=soon", "--set", "grace.windw=1s", "--mode", "off")
    assert outcome.status == 2
    lines = outcome.err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("lbguard: ") for line in lines)
    assert "Traceback" not in outcome.err


def test_a_flag_without_a_value_is_a_usage_error(shell: Shell) -> None:
    outcome = shell("run", "--set", "grace.window")
    assert outcome.status == 2
    assert "NAME=VALUE" in outcome.err


def test_the_service_does_not_start_where_it_could_not_work(shell: Shell, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    outcome = shell("run", "--mode", "observe", "--set", f"socket={blocked}/x.sock", "--set", "freeze.threshold=1")
    assert outcome.status == 1
    records = {record["id"]: record for record in map(json.loads, outcome.err.splitlines())}
    assert records["freeze-off"]["level"] == "warning"
    assert records["socket_directory"]["level"] == "error"
    assert str(blocked) in records["socket_directory"]["what"]
    assert records["socket_directory"]["remedy"]


@pytest.mark.parametrize("command", [["status"], ["events"], ["explain", "1"]])
def test_a_service_that_does_not_run_is_said_with_a_remedy(shell: Shell, tmp_path: Path, command: list[str]) -> None:
    outcome = shell(*command, "--socket", str(tmp_path / "none.sock"))
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert "start it with `lbguard run`" in outcome.err


def test_a_wrong_outage_is_refused(shell: Shell) -> None:
    outcome = shell("demo", "--outage", "soon")
    assert outcome.status == 2
    assert "500ms, 3s, 2m" in outcome.err


def test_the_scenarios_are_listed(shell: Shell) -> None:
    outcome = shell("demo", "--list")
    assert outcome.status == 0
    assert "lb-link " in outcome.out


class Guard:
    """A service with two targets and a short history."""

    def __init__(self) -> None:
        self.log = DecisionLog()
        broken = target(
            2, TargetState.HELD, cause="no_link", deadline=102.5, paths=(path("172.16.1.11", "no_link", ""),)
        )
        self.state = guard_status(target(1), broken)
        self.log.add(decision(Action.ADMIT, sequence=1, identifier=2), 1_700_000_000.0)
        self.log.add(decision(Action.HOLD, sequence=2, identifier=2, deadline=103.0), 1_700_000_001.5)

    def status(self) -> GuardStatus:
        return self.state

    def decisions(self, target: TargetKey | None, limit: int) -> Sequence[tuple[Decision, float]]:
        return self.log.last(target, limit)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[str]:
    guard = Guard()
    server = ApiServer(tmp_path / "lbguard.sock", guard, guard.log)
    await server.start()
    yield str(tmp_path / "lbguard.sock")
    await server.stop(0)


async def test_status_shows_trouble_first(shell: Shell, service: str) -> None:
    outcome = await asyncio.to_thread(shell, "status", "--socket", service)
    assert outcome.status == 0
    assert "enforcing · kernel in sync · source ok" in outcome.out
    rows = [line for line in outcome.out.splitlines() if line.startswith("stream-a/")]
    assert [row.split()[0] for row in rows] == ["stream-a/2", "stream-a/1"]
    assert "in 2.5 s" in rows[0]
    assert "no_link" in rows[0]
    assert "lb-a (7#2)" in outcome.out


async def test_status_in_json_tells_ages(shell: Shell, service: str) -> None:
    outcome = await asyncio.to_thread(shell, "status", "--json", "--socket", service)
    state = json.loads(outcome.out)
    assert state["targets"][1]["state"] == "held"
    assert (state["targets"][1]["age_s"], state["targets"][1]["deadline_in_s"]) == (10.0, 2.5)
    assert state["streams"][0]["counts"]["held"] == 1
    assert "now" not in state


async def test_events_are_lines_or_json(shell: Shell, service: str) -> None:
    outcome = await asyncio.to_thread(shell, "events", "--socket", service)
    assert [line.split()[2] for line in outcome.out.splitlines()] == ["admit", "hold"]
    outcome = await asyncio.to_thread(shell, "events", "--last", "1", "--json", "--socket", service)
    (line,) = outcome.out.splitlines()
    assert json.loads(line)["action"] == "hold"
    assert json.loads(line)["time"] == "2023-11-14T22:13:21.500000+00:00"


async def test_explain_tells_the_story(shell: Shell, service: str) -> None:
    outcome = await asyncio.to_thread(shell, "explain", "172.16.1.11", "--socket", service)
    assert outcome.status == 0
    assert "stream-a/2 has been held for 10.0 s because of no_link." in outcome.out
    assert "hold stream-a/2: no_link" in outcome.out
    outcome = await asyncio.to_thread(shell, "explain", "2", "--json", "--socket", service)
    explained = json.loads(outcome.out)
    assert [item["sequence"] for item in explained["decisions"]] == [1, 2]
    assert explained["target"]["deadline_in_s"] == 2.5


async def test_explain_of_nothing_fails_in_one_line(shell: Shell, service: str) -> None:
    outcome = await asyncio.to_thread(shell, "explain", "stream-b/9", "--socket", service)
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert "stream-b/9" in outcome.err


def test_asking_for_the_status_loads_no_service(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from lbguard.cli import app, main\n"
        "try:\n"
        f"    main(['status', '--socket', {str(tmp_path / 'none')!r}])\n"
        "except SystemExit:\n"
        "    print('\\n'.join(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "lbguard.api.client" in loaded
    assert not loaded & {"lbguard.settings", "lbguard.daemon", "lbguard.metrics", "nftables", "yaml"}


def test_output_into_a_closed_pipe_is_no_traceback(targets_file: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m lbguard check-config --targets-file {targets_file} | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
