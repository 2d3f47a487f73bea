"""What comes from outside is shown, by every command, without any effect of its own."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lbguard.api.server import ApiServer
from lbguard.core.model import Action, Evidence, TargetState, VerdictState
from lbguard.core.status import VerdictStatus
from tests.unit.cli.served_guard import ServedGuard
from tests.unit.examples import IPV4, decision, guard_status, path, target
from tests.unit.hostile import HOSTILE, SHOWN, assert_harmless, in_every_text
from tests.unit.shell import Shell
from tests.unit.tuning.incidents import Outage, record


class Guard(ServedGuard):
    """A service all of whose texts are hostile."""

    def __init__(self) -> None:
        said = VerdictStatus(reporter="", subject="", state=VerdictState.DOWN, weight="", at=99.0, expires_at=105.0)
        broken = in_every_text(path())
        hostile = in_every_text(target(1, TargetState.HELD, paths=(broken,), deadline=103.0))
        several = type(broken)(**{name: getattr(broken, name) for name in broken.__slots__} | {"verdicts": (said,)})
        super().__init__(in_every_text(guard_status(hostile, target(2, paths=(several,)), available=False)))
        evidence = Evidence(ip=IPV4, condition=decision().evidence[0].condition)
        for sequence, action in enumerate(Action):
            self.log.add(in_every_text(decision(action, sequence=sequence, evidence=(evidence,))), 1_700_000_000.0)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[str]:
    async with Guard().serving(tmp_path) as socket:
        yield socket


@pytest.mark.parametrize(
    "command",
    [["status"], ["status", "--all"], ["events"], ["explain", "1"], ["explain", "none\x1b[1m"], ["top", "--once"]],
)
async def test_what_the_service_tells(shell: Shell, service: str, command: list[str]) -> None:
    outcome = await asyncio.to_thread(shell, *command, "--socket", service)
    assert_harmless(outcome.out + outcome.err)
    assert "\\x1b[" in outcome.out + outcome.err


@pytest.mark.parametrize("command", [["status"], ["explain", "1"], ["events", "--last", "1"]])
async def test_json_holds_the_very_texts_in_escapes(shell: Shell, service: str, command: list[str]) -> None:
    outcome = await asyncio.to_thread(shell, *command, "--json", "--socket", service)
    assert outcome.out.isascii()
    assert_harmless(outcome.out)
    values = json.loads(outcome.out)
    assert HOSTILE in (values.get("stream"), values.get("sync_reason"))


async def test_addresses_are_not_taken_for_emoji(shell: Shell, tmp_path: Path) -> None:
    guard = Guard()
    guard.state = guard_status(target(1, paths=(path("fd00:a:b:100::1", "no_link", ""),)))
    server = ApiServer(tmp_path / "lbguard.sock", guard, guard.log)
    await server.start()
    outcome = await asyncio.to_thread(shell, "explain", "fd00:a:b:100::1", "--socket", str(tmp_path / "lbguard.sock"))
    await server.stop(0)
    assert "The path to fd00:a:b:100::1 is broken" in outcome.out


def test_what_is_said_of_a_socket(shell: Shell, tmp_path: Path) -> None:
    for command in (["status"], ["events"], ["top", "--once"], ["health"]):
        outcome = shell(*command, "--socket", str(tmp_path / HOSTILE.replace("/", "")))
        assert outcome.status == 1
        assert outcome.err.count("\n") == 1
        assert_harmless(outcome.err)


def test_what_check_config_shows_of_settings_and_files(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LBGUARD_{HOSTILE}", "1")
    file = tmp_path / "targets.yaml"
    file.write_text(json.dumps({"streams": [{"name": HOSTILE, "vips": [HOSTILE], HOSTILE: 1}]}))
    settings = {"targets_file": str(file), "links.exclude": HOSTILE, "nsp.trench": HOSTILE, "socket": f"/tmp/{HOSTILE}"}
    flags = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    outcome = shell("check-config", "--host", *flags)
    assert_harmless(outcome.out + outcome.err)
    assert SHOWN.rstrip("\\t") in "".join(line[30:].split(" flag")[0].strip() for line in outcome.out.splitlines())
    assert "warning environment" in outcome.out
    assert_harmless(shell("check-config", "--json", *flags).out)


def test_what_is_refused_is_quoted_on_a_line_of_its_own(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        json.dumps({HOSTILE: 1, "grace.window": HOSTILE, "log": {HOSTILE: HOSTILE}, "verdicts.policy": [HOSTILE]})
    )
    outcome = shell("check-config", "--config", str(file), "--set", f"{HOSTILE}=1", "--mode", HOSTILE)
    assert outcome.status == 2
    assert all(line.startswith("lbguard: ") for line in outcome.err.splitlines())
    assert outcome.err.count("\n") == 6
    assert_harmless(outcome.err)
    for argv in (["replay", str(tmp_path / HOSTILE.replace("/", ""))], ["check-config", "--config", HOSTILE]):
        outcome = shell(*argv)
        assert (outcome.status, outcome.err.count("\n")) == (2, 1)
        assert_harmless(outcome.err)


def test_what_the_probe_found(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "connections.yaml"
    entries = [
        {"id": HOSTILE, "local": ["127.0.0.1"], "remote": ["127.0.0.1"]},
        {"id": "b", "local": [HOSTILE], "remote": ["127.0.0.1"]},
    ]
    for connections in (entries, entries[:1]):
        file.write_text(json.dumps({"connections": connections}))
        for options in ([], ["--json"]):
            outcome = shell(
                "probe", "--once", "--connections-file", str(file), "--set", "probe.interval=50ms", *options
            )
            assert_harmless(outcome.out + outcome.err)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording of a stream of that name, on a host of that name, whose first hold was tampered with."""
    directory = tmp_path_factory.mktemp("recording")
    outages = [Outage(1 + number % 4, 0.5 + number / 10) for number in range(10)]
    (file,) = record(directory, outages, host=HOSTILE)
    lines = gzip.decompress(file.read_bytes()).decode().replace('"stream-a"', json.dumps(HOSTILE)).splitlines()
    hold = next(number for number, line in enumerate(lines) if line.startswith('["="') and '"hold"' in line)
    row = json.loads(lines[hold])
    row[1][8] += 0.25
    lines[hold] = json.dumps(row)
    file.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return file


def test_what_a_recording_holds(shell: Shell, recording: Path, tmp_path: Path) -> None:
    for argv in (["replay"], ["replay", "--json"], ["replay", "--at", "+90s"], ["replay", "--at", "+90s", "--json"]):
        outcome = shell(*argv, str(recording))
        assert outcome.err == ""
        assert_harmless(outcome.out)
        assert "--json" in argv or SHOWN[:10] in outcome.out
    page = tmp_path / "page.html"
    for argv in (["tune", "--report", str(page)], ["tune", "--json"], ["tune", "--set", f"links.exclude=lo,{HOSTILE}"]):
        outcome = shell(*argv, str(recording))
        assert outcome.status == 0, outcome.err
        assert_harmless(outcome.out)
    assert_harmless(page.read_text())
    outcome = shell("tune", "--report", str(tmp_path / HOSTILE.replace("/", "") / "page.html"), str(recording))
    assert outcome.status == 2
    assert_harmless(outcome.err)
