import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from lbguard.core.model import Action, TargetState
from lbguard.core.status import Prediction, SettingsFileStatus, WaitingSetting
from tests.unit.cli.served_guard import ServedGuard
from tests.unit.examples import affinity, decision, guard_status, path, target
from tests.unit.shell import Shell


@pytest.mark.parametrize("command", [["status"], ["events"], ["explain", "1"]])
def test_a_service_that_does_not_run_is_said_with_a_remedy(shell: Shell, tmp_path: Path, command: list[str]) -> None:
    outcome = shell(*command, "--socket", str(tmp_path / "none.sock"))
    assert outcome.status == 1
    assert outcome.err.count("\n") == 1
    assert "start it with `lbguard run`" in outcome.err


class Guard(ServedGuard):
    """A service with two targets and a short history."""

    def __init__(self) -> None:
        broken = target(
            2,
            TargetState.HELD,
            cause="no_link",
            deadline=102.5,
            paths=(path("172.16.1.11", "no_link", ""),),
            prediction=Prediction(action=Action.FREEZE, at=102.5, until=162.5, why="2 of 2 targets are broken"),
        )
        super().__init__(guard_status(target(1), broken))
        self.log.add(decision(Action.ADMIT, sequence=1, identifier=2), 1_700_000_000.0)
        self.log.add(decision(Action.HOLD, sequence=2, identifier=2, deadline=103.0), 1_700_000_001.5)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[str]:
    async with Guard().serving(tmp_path) as socket:
        yield socket


async def test_status_shows_trouble_first(shell: Shell, service: str) -> None:
    outcome = await asyncio.to_thread(shell, "status", "--socket", service)
    assert outcome.status == 0
    assert "enforcing · kernel in sync · source ok" in outcome.out
    rows = [line for line in outcome.out.splitlines() if line.startswith("stream-a/")]
    assert [row.split()[0] for row in rows] == ["stream-a/2", "stream-a/1"]
    assert "in 2.5 s" in rows[0]
    assert "frozen" in rows[0]
    assert "no_link" in rows[0]
    assert "lb-a (7#2)" in outcome.out


async def test_status_shows_where_new_flows_go(shell: Shell, tmp_path: Path) -> None:
    held = target(
        2,
        TargetState.HELD,
        cause="no_link",
        paths=(path(), path("fd00:1::10", "no_link", "", steered=True)),
        prediction=Prediction(action=Action.WITHDRAW_FAMILY, at=102.5),
    )
    state = guard_status(target(1), held, affinity=affinity())
    async with ServedGuard(state).serving(tmp_path) as socket:
        outcome = await asyncio.to_thread(shell, "status", "--socket", socket)
        plain = await asyncio.to_thread(shell, "status", "--json", "--socket", socket)
        explained = await asyncio.to_thread(shell, "explain", "2", "--socket", socket)
    assert "affinity in force, 15 flows remembered" in outcome.out
    lines = outcome.out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("stream-a/2"))
    assert "in 2.5 s  IPv6 withdrawn" in lines[place]
    assert lines[place + 1].split()[:3] == ["fd00:1::10", "no_link", "elsewhere"]
    assert json.loads(plain.out)["affinity"]["in_force"] is True
    assert "New IPv6 connections are given to another target at once." in explained.out


async def test_status_says_when_a_change_of_the_list_is_committed(shell: Shell, tmp_path: Path) -> None:
    state = guard_status(target(1), target(2, commit_at=103.2), affinity=affinity())
    state = replace(state, streams=(replace(state.streams[0], table_committed=False, commit_at=103.2),))
    async with ServedGuard(state).serving(tmp_path) as socket:
        outcome = await asyncio.to_thread(shell, "status", "--socket", socket)
        plain = await asyncio.to_thread(shell, "status", "--json", "--socket", socket)
    lines = {line.split()[0]: line for line in outcome.out.splitlines() if line}
    assert "list change in 3.2 s (affinity.learn)" in lines["stream-a"]
    assert "in 3.2 s  in the table" in lines["stream-a/2"]
    values = json.loads(plain.out)
    assert (values["streams"][0]["commit_in_s"], values["targets"][1]["commit_in_s"]) == (3.2, 3.2)
    assert values["targets"][0]["commit_in_s"] is None


REFUSED = SettingsFileStatus(
    path="/etc/lbguard/lbguard.yaml",
    problem="/etc/lbguard/lbguard.yaml: grace.window = 40s (file /etc/lbguard/lbguard.yaml): more than grace.max",
    refused_since=40.0,
    waiting=(WaitingSetting(name="kernel.inbox_limit", running="65536", wanted="70000"),),
)


async def test_status_shows_a_settings_file_that_is_refused_or_waits(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    async with ServedGuard(guard_status(target(1), settings_file=REFUSED, wall_time=1_700_000_000.0)).serving(
        tmp_path
    ) as socket:
        outcome = await asyncio.to_thread(shell, "status", "--socket", socket)
        plain = await asyncio.to_thread(shell, "status", "--json", "--socket", socket)
    monkeypatch.undo()
    time.tzset()
    heading, *notes = outcome.out.splitlines()[:4]
    assert "SETTINGS FILE REFUSED for 60.0 s, the settings in force stay" in heading
    assert notes[0].startswith("The settings file is refused since 22:12:20 UTC: /etc/lbguard/lbguard.yaml: grace.win")
    assert notes[1] == "The settings in force stay. A restart of lbguard would fail with this file."
    assert notes[2] == "With the next restart: kernel.inbox_limit 65536 -> 70000"
    values = json.loads(plain.out)["settings_file"]
    assert (values["refused_for_s"], values["problem"]) == (60.0, REFUSED.problem)
    assert values["waiting"] == [{"name": "kernel.inbox_limit", "running": "65536", "wanted": "70000"}]


async def test_status_without_affinity_has_no_column_for_it(shell: Shell, service: str) -> None:
    outcome = await asyncio.to_thread(shell, "status", "--socket", service)
    assert "NEW FLOWS" not in outcome.out
    assert "affinity" not in outcome.out


async def test_status_in_json_tells_ages(shell: Shell, service: str) -> None:
    outcome = await asyncio.to_thread(shell, "status", "--json", "--socket", service)
    state = json.loads(outcome.out)
    assert state["targets"][1]["state"] == "held"
    assert (state["targets"][1]["age_s"], state["targets"][1]["deadline_in_s"]) == (10.0, 2.5)
    assert state["targets"][1]["prediction"] == {
        "action": "freeze",
        "in_s": 2.5,
        "until_in_s": 62.5,
        "wait_s": 0.0,
        "why": "2 of 2 targets are broken",
    }
    assert state["targets"][0]["prediction"] is None
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
    assert "In 2.5 s it is frozen, not withdrawn, for at most 60.0 s" in outcome.out
    lines = outcome.out.splitlines()
    assert "New IPv4 connections wait for the path." in lines
    assert [
        line for line in lines if line.startswith("Open IPv4 connections wait") and "in 62.5 s at the latest" in line
    ]
    assert "With affinity.mode incident or all, new connections would not wait for it." in lines
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
