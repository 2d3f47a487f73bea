"""The live view: what it shows of a state recorded from a running service, and how it behaves on a real terminal."""

import asyncio
import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import json_format
from rich.console import Console

from lbguard.api.client import Watched
from lbguard.api.convert.status import status_from_proto
from lbguard.api.feeds import DecisionLog
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.server import ApiServer
from lbguard.cli.top import view
from lbguard.cli.top_browse import Browse, by_trouble
from lbguard.cli.top_feed import Snapshot
from lbguard.core.config import EngineConfig
from lbguard.core.engine import Engine
from lbguard.core.model import Action, Condition, Decision, Evidence, ManualAction, Override, TargetKey, TargetState
from lbguard.core.status import (
    AffinityStatus,
    GuardStatus,
    ParkingStatus,
    Prediction,
    SettingsFileStatus,
    WaitingSetting,
)
from tests.pages import blocks
from tests.unit.examples import affinity, decision, guard_status, parking, path, target
from tests.unit.shell import Shell

HEARD_AT = 1000.0
DOWN_1 = Evidence(ip=bytes([172, 16, 0, 10]), condition=Condition.LINK_DOWN, ifname="nsm0")
DOWN_2 = Evidence(ip=bytes([172, 16, 0, 11]), condition=Condition.LINK_DOWN, ifname="nsm0")
WAIT_S = 90.0


def recorded() -> GuardStatus:
    """Return the state of a service with five targets, two of them held since their link went down."""
    text = Path(__file__).with_name("recorded_status.json").read_text()
    return status_from_proto(json_format.Parse(text, pb.Status()))


def snapshot(status: GuardStatus | None = None, *, trouble: str = "") -> Snapshot:
    taken = [
        decision(Action.ADOPT, sequence=5, identifier=5, cause="found_in_distributor", evidence=()),
        *(
            decision(sequence=5 + number, identifier=number, cause="link_down", deadline=120.0, evidence=(down,))
            for number, down in ((1, DOWN_1), (2, DOWN_2))
        ),
    ]
    decisions = tuple(
        Watched(decision=item, wall_time=1_700_000_000.0 + number / 8, lost=0) for number, item in enumerate(taken)
    )
    return Snapshot(status=status or recorded(), decisions=decisions, received_at=HEARD_AT, trouble=trouble)


def screen(
    shown: Snapshot, *, later_s: float = 0.0, width: int = 120, height: int = 30, browse: Browse | None = None
) -> list[str]:
    console = Console(width=width, height=height, highlight=False, markup=False, color_system=None)
    with console.capture() as captured:
        console.print(view(shown, now=HEARD_AT + later_s, width=width, height=height, browse=browse or Browse()))
    return captured.get().rstrip("\n").split("\n")


def row(lines: Sequence[str], name: str) -> str:
    (found,) = [line for line in lines if line.startswith(name + " ")]
    return found


def countdown_s(lines: Sequence[str], name: str) -> float:
    match = re.search(r"in (\d+\.\d) s", row(lines, name))
    assert match
    return float(match[1])


def test_the_recorded_state() -> None:
    lines = screen(snapshot())
    assert lines[0].rstrip() == "enforcing · kernel in sync · source ok · affinity in force, 0 flows remembered"
    assert row(lines, "stream-a").split() == ["stream-a", "yes", "0", "0", "2", "0", "0", "3"]
    order = [line.split()[0] for line in lines if line.startswith("stream-a/")]
    assert order == [f"stream-a/{identifier}" for identifier in (1, 2, 3, 4, 5)]
    assert "172.16.0.10 link_down nsm0" in row(lines, "stream-a/1")
    assert "withdrawn" in row(lines, "stream-a/1")
    assert row(lines, "nsm0").split()[2:4] == ["unusable", "down"]
    newest, older = lines[lines.index(next(line for line in lines if line.startswith("LAST DECISIONS"))) + 1 :][:2]
    assert "hold stream-a/2: link_down (172.16.0.11 via nsm0), the grace window ends in 20.0 s" in newest
    assert "hold stream-a/1: link_down" in older


def test_the_page_shows_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    shown = [line.rstrip() for line in screen(snapshot(), width=100, height=17)]
    monkeypatch.undo()
    time.tzset()
    assert "".join(line + "\n" for line in shown) in blocks("docs/monitoring.md", "text")


def test_flow_affinity_and_where_new_flows_go() -> None:
    held = target(
        2,
        TargetState.HELD,
        cause="no_link",
        deadline=102.0,
        paths=(path(), path("fd00:1::10", "no_link", "", withdrawn=True, steered=True)),
        prediction=Prediction(action=Action.HOLD),
    )
    leaving = target(
        3,
        TargetState.DRAINING,
        deadline=112.0,
        paths=(path(steered=True),),
        prediction=Prediction(action=Action.REMOVE, at=112.0),
    )
    status = guard_status(target(1), held, leaving, affinity=affinity())
    lines = screen(Snapshot(status=status, received_at=HEARD_AT), width=160)
    assert lines[0].rstrip().endswith("affinity in force, 15 flows remembered")
    assert "-/elsewhere" in row(lines, "stream-a/2").split()
    assert "fd00:1::10 no_link, withdrawn" in row(lines, "stream-a/2")
    assert "in 12.0 s  removed" in row(lines, "stream-a/3")
    assert "elsewhere" in row(lines, "stream-a/3").split()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (affinity(in_force=False, problem="nft: refused"), "AFFINITY NOT IN FORCE (nft: refused)"),
        (affinity(in_force=False), "affinity starting"),
        (affinity(tcp4=95), "98 flows remembered, MAP ALMOST FULL (tcp IPv4)"),
    ],
)
def test_flow_affinity_that_is_not_well(status: AffinityStatus, words: str) -> None:
    shown = Snapshot(status=guard_status(target(1), affinity=status), received_at=HEARD_AT)
    assert words in screen(shown, width=160)[0]


def test_parking_and_how_many_packets_are_kept() -> None:
    held = target(
        2, TargetState.HELD, cause="no_link", paths=(path(condition="no_link", ifname=""), path("fd00:1::10"))
    )
    status = guard_status(target(1), held, parking=parking())
    lines = screen(Snapshot(status=status, received_at=HEARD_AT), width=160)
    assert lines[0].rstrip().endswith("parking in force, 12 packets kept")
    assert "12/-" in row(lines, "stream-a/2").split()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (parking(in_force=False, problem="no device", packets=0), "PARKING NOT IN FORCE (no device)"),
        (parking(in_force=False, packets=0), "parking starting"),
        (parking(packets=95), "95 packets kept, ALMOST FULL"),
    ],
)
def test_parking_that_is_not_well(status: ParkingStatus, words: str) -> None:
    shown = Snapshot(status=guard_status(target(1), parking=status), received_at=HEARD_AT)
    assert words in screen(shown, width=160)[0]


def test_a_settings_file_that_is_refused_is_in_the_heading() -> None:
    file = SettingsFileStatus(path="a.yaml", problem="a.yaml: grace.window = 40s", refused_since=recorded().now - 5)
    lines = screen(snapshot(replace(recorded(), settings_file=file)))
    assert "SETTINGS FILE REFUSED for 5.0 s (a.yaml: grace.window = 40s), the settings in force stay" in " ".join(
        line.strip() for line in lines[:3]
    )
    waiting = (WaitingSetting(name="kernel.inbox_limit", running="65536", wanted="70000"),)
    lines = screen(snapshot(replace(recorded(), settings_file=SettingsFileStatus(path="a.yaml", waiting=waiting))))
    assert "1 setting waits for a restart" in " ".join(lines[:2])


def test_deadlines_count_down_between_answers() -> None:
    shown = snapshot()
    first = countdown_s(screen(shown), "stream-a/1")
    assert countdown_s(screen(shown, later_s=2.0), "stream-a/1") == pytest.approx(first - 2.0, abs=0.11)
    assert " now " in row(screen(shown, later_s=60.0), "stream-a/1")


def test_nothing_counts_down_while_the_service_is_away() -> None:
    shown = snapshot(trouble="not running, waiting")
    lines = screen(shown, later_s=5.0)
    assert lines[0].startswith("not running, waiting (last answer 5.0 s ago)")
    assert countdown_s(lines, "stream-a/1") == countdown_s(screen(shown), "stream-a/1")


def test_before_the_first_answer() -> None:
    assert screen(Snapshot()) == ["asking the service ..."]
    assert screen(Snapshot(trouble="not running, waiting")) == ["not running, waiting"]


def test_trouble_comes_first_and_the_nearest_deadline_before_the_others() -> None:
    targets = [
        target(1),
        target(2, TargetState.HELD, deadline=105.0),
        target(3, TargetState.PENDING),
        target(4, TargetState.HELD, deadline=101.0),
        target(5, TargetState.WITHDRAWN),
        target(6, TargetState.FROZEN, deadline=160.0),
    ]
    assert [item.identifier for item in sorted(targets, key=by_trouble)] == [5, 6, 4, 2, 3, 1]


def test_what_is_wrong_with_streams_and_service_is_said() -> None:
    status = guard_status(target(1), available=False)
    status = replace(
        status,
        in_sync=False,
        sync_reason="overrun",
        streams=(replace(status.streams[0], mass_failure=True, table_committed=False),),
    )
    lines = screen(snapshot(status), width=160)
    assert "KERNEL OUT OF SYNC (overrun)" in lines[0]
    stream = row(lines, "stream-a")
    assert stream.split()[1] == "NO"
    assert stream.rstrip().endswith("no usable path; mass failure: targets are frozen, not withdrawn; table changing")


def test_a_change_of_the_list_that_waits_is_noted_with_its_end() -> None:
    status = guard_status(target(1), target(2, commit_at=103.2), affinity=affinity())
    status = replace(status, streams=(replace(status.streams[0], table_committed=False, commit_at=103.2),))
    lines = screen(Snapshot(status=status, received_at=HEARD_AT), width=160)
    assert row(lines, "stream-a").rstrip().endswith("list change in 3.2 s (affinity.learn)")
    assert "in 3.2 s in the table" in " ".join(row(lines, "stream-a/2").split())
    assert "in the table" not in row(lines, "stream-a/1")


def test_a_local_vip_is_noted() -> None:
    status = guard_status(target(1))
    status = replace(status, streams=(replace(status.streams[0], local_vips=("20.0.0.1/32",)),))
    assert "VIP 20.0.0.1/32 is an address of this machine" in row(screen(snapshot(status), width=160), "stream-a")


def test_what_never_came_is_not_said_to_stay() -> None:
    status = guard_status(target(1))
    lost = replace(status, source_ok=False, source_reason="/nope.yaml: cannot be read")
    assert "SOURCE LOST (/nope.yaml: cannot be read), the last list stays" in screen(snapshot(lost), width=160)[0]
    first = screen(snapshot(replace(lost, streams=())), width=160)[0]
    assert "NO TARGETS (/nope.yaml: cannot be read), waiting for a list" in first


def test_what_was_not_read_yet_is_not_called_lost() -> None:
    # What an engine says of itself before anything was told.
    lines = screen(snapshot(Engine(EngineConfig()).status(0.0)), width=160)
    assert "kernel not read yet · source not read yet" in lines[0]
    assert "LOST" not in lines[0]
    assert "OUT OF SYNC" not in lines[0]


@pytest.mark.parametrize(
    ("width", "height", "targets"),
    [
        # Each form of the view at the widths where it begins and ends, low and high, with too many targets.
        (20, 2, 300),
        (59, 11, 300),
        (60, 12, 300),
        (99, 24, 300),
        (100, 13, 300),
        (200, 60, 300),
        (20, 3, 1),
        (80, 24, 0),
    ],
)
def test_it_fits_every_terminal(width: int, height: int, targets: int) -> None:
    states = list(TargetState)
    many = (target(number + 1, states[number % len(states)], cause="no_link") for number in range(targets))
    lines = screen(snapshot(guard_status(*many)), width=width, height=height)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)


def test_what_does_not_fit_is_counted() -> None:
    status = guard_status(*(target(number + 1) for number in range(300)))
    lines = screen(snapshot(status), width=80, height=24)
    shown = sum(line.startswith("stream-a/") for line in lines)
    assert shown >= 8
    assert any(line.startswith(f"... targets 1 to {shown} of 300") for line in lines)


def test_a_narrow_terminal_keeps_what_decides() -> None:
    lines = screen(snapshot(), width=50)
    assert countdown_s(lines, "stream-a/1") > 0
    assert "held" in row(lines, "stream-a/1")
    lines = screen(snapshot(), width=40)
    assert row(lines, "stream-a").split() == ["stream-a", "yes", "2", "held", "3", "active"]


@pytest.mark.parametrize("width", [80, 60, 40])
def test_the_heading_stays_whole_on_a_narrow_terminal(width: int) -> None:
    status = guard_status(*(target(number + 1) for number in range(300)), affinity=affinity(tcp4=95))
    status = replace(status, in_sync=False, sync_reason="overrun")
    lines = screen(snapshot(status), width=width, height=30)
    heading = lines[: next(number for number, line in enumerate(lines) if line.startswith("STREAM"))]
    whole = " ".join(line.strip() for line in heading)
    assert "KERNEL OUT OF SYNC (overrun), nothing is withdrawn" in whole
    assert "source ok" in whole
    assert whole.endswith("98 flows remembered, MAP ALMOST FULL (tcp IPv4)")


def test_a_filter_shows_its_targets_and_their_streams() -> None:
    held = target(77, TargetState.HELD, cause="no_link")
    status = guard_status(*(target(number + 1) for number in range(70)), held)
    other = replace(status.streams[0], name="stream-b")
    shown = snapshot(replace(status, streams=(*status.streams, other)))
    lines = screen(shown, browse=Browse(words="held"))
    assert "filter: held  1 of 71 targets" in lines[1]
    assert [line.split()[0] for line in lines if line.startswith("stream-")] == ["stream-a", "stream-a/77"]
    assert "0 of 71 targets" in screen(shown, browse=Browse(words="nothing"))[1]


def test_what_an_operator_ordered_is_shown() -> None:
    given = Override(action=ManualAction.HOLD, since=90.0, until=200.0, who="anna")
    held = target(1, TargetState.HELD, cause="no_link")
    status = guard_status(replace(held, override=given), replace(target(2), override=given))
    lines = screen(snapshot(status))
    assert "BY HAND" in " ".join(lines)
    assert re.search(r"no_link +hold for 1m40s more by anna", row(lines, "stream-a/1"))
    assert "hold for 1m40s more by anna" in row(lines, "stream-a/2")
    narrow = screen(snapshot(status), width=80)
    assert "no_link, hold by hand" in row(narrow, "stream-a/1")
    assert "BY HAND" not in " ".join(screen(snapshot()))


def test_a_wide_terminal_shows_the_time_of_a_deadline() -> None:
    status = replace(recorded(), wall_time=1_700_000_000.0)
    zone = time.strftime("%Z", time.localtime(1_700_000_000))
    assert re.search(rf"in \d+\.\d s +\d\d:\d\d:\d\d {zone} +withdrawn", row(screen(snapshot(status)), "stream-a/1"))
    assert zone not in row(screen(snapshot(status), width=110), "stream-a/1")
    assert zone not in row(screen(snapshot()), "stream-a/1")


def test_help_fits_80_columns() -> None:
    lines = screen(snapshot(), width=80, height=24, browse=Browse(help=True))
    assert lines[0].startswith("KEYS")
    assert not [line for line in lines if "…" in line]
    assert lines[-1].startswith("What happens to one target")


# On a terminal


class Guard:
    """A service with one held target, whose window never seems to end, and some active ones."""

    def __init__(self, others: int = 0) -> None:
        self.others = others
        self.log = DecisionLog()
        self.log.add(decision(Action.HOLD, sequence=1), 1_700_000_000.0)

    async def status(self) -> GuardStatus:
        held = target(1, TargetState.HELD, cause="no_link", deadline=130.0)
        others = (target(number + 2) for number in range(self.others))
        return guard_status(held, *others, affinity=affinity() if self.others else None)

    def decisions(self, target: TargetKey | None, limit: int) -> Sequence[tuple[Decision, float]]:
        return self.log.last(target, limit)


class Terminal:
    """A process on a pseudo-terminal of its own, and everything that it wrote there."""

    def __init__(self, *argv: str) -> None:
        self._ours, self._its = pty.openpty()
        os.set_blocking(self._ours, False)
        termios.tcsetwinsize(self._its, (30, 110))
        self.settings_before = self.settings()
        environment = {**os.environ, "TERM": "xterm"} | dict.fromkeys(("COLUMNS", "LINES"), "")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lbguard", *argv],
            stdin=self._its,
            stdout=self._its,
            stderr=self._its,
            env={name: value for name, value in environment.items() if value},
            start_new_session=True,
        )
        self.text = ""

    def settings(self) -> tuple[int, ...]:
        """Return the modes of the terminal: input, output, control, local."""
        return tuple(termios.tcgetattr(self._its)[:4])

    def read(self) -> str:
        """Take what was written; return all of it so far, without colours."""
        with contextlib.suppress(BlockingIOError):
            self.text += os.read(self._ours, 1 << 20).decode(errors="replace")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text)

    async def until(self, holds: Callable[[str], bool]) -> str:
        """Wait until what was written satisfies a condition, forget it and return it."""
        until = time.monotonic() + WAIT_S
        while not holds(self.read()):
            assert time.monotonic() < until, self.text
            assert self.process.poll() is None, self.text
            await asyncio.sleep(0.02)
        text, self.text = self.read(), ""
        return text

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._ours, keys)

    async def ended(self) -> int:
        """Wait for the end of the process; return its exit status."""
        until = time.monotonic() + WAIT_S
        while self.process.poll() is None:
            assert time.monotonic() < until, "it does not end"
            self.read()  # a full terminal would block it
            await asyncio.sleep(0.02)
        assert self.process.returncode is not None
        return self.process.returncode

    def close(self) -> None:
        """End what is left."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._its)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    running = Terminal("top", "--interval", "100ms", "--socket", str(tmp_path / "lbguard.sock"))
    yield running
    running.close()


@contextlib.asynccontextmanager
async def serving(tmp_path: Path, others: int = 0) -> AsyncIterator[None]:
    guard = Guard(others)
    server = ApiServer(tmp_path / "lbguard.sock", guard, guard.log)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


async def test_it_waits_for_the_service_and_survives_its_restart(terminal: Terminal, tmp_path: Path) -> None:
    await terminal.until(lambda text: "not running, waiting" in text)
    for _ in range(2):
        async with serving(tmp_path):
            # What was last seen stays on the screen meanwhile; only a new answer has this line.
            text = await terminal.until(lambda text: "enforcing" in text and "LAST DECISIONS" in text)
        assert "stream-a/1" in text
        text = await terminal.until(lambda text: "not running, waiting (last answer" in text)
        assert "goaway" not in text.lower(), "nobody else writes over the view"
    terminal.press(b"q")
    assert await terminal.ended() == 0
    assert terminal.settings() == terminal.settings_before


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + 15), (signal.SIGHUP, 128 + 1)]
)
async def test_the_terminal_is_given_back(terminal: Terminal, number: signal.Signals, status: int) -> None:
    await terminal.until(lambda text: "not running, waiting" in text)
    assert terminal.settings() != terminal.settings_before, "keys are read one by one"
    os.kill(terminal.process.pid, number)
    assert await terminal.ended() == status
    terminal.read()
    assert terminal.settings() == terminal.settings_before
    assert "\x1b[?1049l" in terminal.text, "the screen before is shown again"
    assert "Traceback" not in terminal.text


async def test_a_window_of_another_size(terminal: Terminal, tmp_path: Path) -> None:
    async with serving(tmp_path):
        await terminal.until(lambda text: "PATHS" in text)
        termios.tcsetwinsize(terminal._its, (20, 50))
        await terminal.until(lambda text: "stream-a/1" in text and "UNTIL" in text and "PATHS" not in text)


async def test_scroll_filter_and_help_by_keys(terminal: Terminal, tmp_path: Path) -> None:
    termios.tcsetwinsize(terminal._its, (24, 80))
    async with serving(tmp_path, others=299):
        text = await terminal.until(lambda text: "of 300" in text and "?: help" in text)
        assert "affinity in force, 15 flows remembered" in text, "the heading is whole at 80 columns"
        assert "stream-a/300 " not in text
        terminal.press(b"\x1b[F")
        await terminal.until(lambda text: "stream-a/300 " in text and "to 300 of 300" in text)
        terminal.press(b"\x1b[5")
        await asyncio.sleep(0.5)
        terminal.press(b"~")  # a sequence in two pieces is one key
        await terminal.until(lambda text: re.search(r"targets 2\d\d to 2\d\d of 300", text) is not None)
        terminal.press(b"/active /29q")
        terminal.press(b"\x7f")
        await terminal.until(lambda text: "filter: active /29_" in text and "11 of 300 targets" in text)
        terminal.press(b"\r")
        text = await terminal.until(lambda text: "11 of 300 targets; Esc: clear" in text and "stream-a/299 " in text)
        terminal.press(b"?")
        await terminal.until(lambda text: "KEYS" in text and "What happens to one target" in text)
        terminal.press(b"x\x1b")
        await terminal.until(lambda text: "targets 1 to " in text)
        terminal.press(b"q")
        assert await terminal.ended() == 0


async def test_without_a_terminal_it_is_printed_once(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "lbguard", "top", "--socket", str(tmp_path / "lbguard.sock")]
    async with serving(tmp_path):
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        out, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 0
    assert b"\x1b" not in out
    lines = out.decode().splitlines()
    assert "held" in row(lines, "stream-a/1")
    assert sum(line.startswith("STREAM") for line in lines) == 1


def test_once_fails_where_nothing_runs(shell: Shell, tmp_path: Path) -> None:
    outcome = shell("top", "--once", "--socket", str(tmp_path / "none"))
    assert outcome.status == 1
    assert "start it with `lbguard run`" in outcome.err


@pytest.mark.parametrize("interval", ["soon", "99ms", "61s"])
def test_a_wrong_interval_is_refused(shell: Shell, interval: str) -> None:
    outcome = shell("top", "--interval", interval)
    assert outcome.status == 2
    assert "--interval" in outcome.err
