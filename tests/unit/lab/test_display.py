import io

import pytest

from lbguard.lab.controller import Column, Distribution
from lbguard.lab.display import NEW_WIDTH, WIDE, Display, Slot
from lbguard.lab.measure import Measurement
from lbguard.lab.meridio import LbFacts
from lbguard.lab.play import Run
from lbguard.telemetry.console import TextConsole
from tests.unit.hostile import HOSTILE, SHOWN, assert_harmless

TODAY = Slot("link-gone", Column.WITHDRAW, Distribution.NFTABLES)
GUARDED = Slot("link-gone", Column.LBGUARD, Distribution.NFTABLES)


def _run(slot: Slot, **fields: object) -> Run:
    run = Run(scenario=slot.scenario, column=slot.column, distribution=slot.distribution)
    run.measured = Measurement(
        opened=200, disturbed=91, broken=3, lost_connections=97, lost_broken=96, median_gap_s=0.68, longest_gap_s=1.25
    )
    for name, value in fields.items():
        setattr(run, name, value)
    return run


def _console(width: int) -> tuple[TextConsole, io.StringIO]:
    console, written = TextConsole(width=width), io.StringIO()
    console.file = written
    return console, written


def _table(width: int, runs: dict[Slot, Run]) -> str:
    console, written = _console(width)
    display = Display([TODAY, GUARDED], console)
    display.phase(GUARDED, "watching", 7.0)
    for slot, run in runs.items():
        display.finished(slot, run)
    written.truncate(0)
    console.print(display.table())
    return written.getvalue()


@pytest.mark.parametrize("width", [80, WIDE, 200])
def test_what_decides_is_shown_at_every_width(width: int) -> None:
    text = _table(width, {TODAY: _run(TODAY), GUARDED: _run(GUARDED)})
    for word in ("link-gone", "withdraw", "lbguard", "3 +96 lost", "0.68 s", "1.25 s", "promise", "none", "kept"):
        assert word in text
    assert ("disturbed" in text) == (width >= WIDE)


def test_new_connections_are_shown_where_some_are_opened() -> None:
    slots = [Slot("readmit", column, Distribution.NFTABLES) for column in Column]
    for width in (80, WIDE, WIDE + NEW_WIDTH):
        console, written = _console(width)
        display = Display(slots, console)
        for slot, (waited, broken) in zip(slots, ((71, 113), (0, 2)), strict=True):
            measured = Measurement(
                opened=200, new_opened=477, new_waited=waited, new_broken=broken, new_longest_connect_s=5.46
            )
            display.finished(slot, _run(slot, measured=measured))
        assert "; 477 new ones, 71 waited (longest connect 5.46 s), 113 broken" in " ".join(written.getvalue().split())
        written.truncate(0)
        console.print(display.table())
        text = written.getvalue()
        for word in ("71", "113", "kept"):
            assert word in text
        assert ("5.46 s" in text) == (width > WIDE)
    assert "new" not in _table(WIDE, {})


def test_a_run_under_way_shows_its_phase_and_countdown() -> None:
    assert "watching (" in _table(WIDE, {TODAY: _run(TODAY)})


def test_missed_and_failed_runs_stand_out() -> None:
    assert "MISSED" in _table(WIDE, {GUARDED: _run(GUARDED, misses=["3 connections broken"])})
    assert "FAILED" in _table(WIDE, {GUARDED: _run(GUARDED, error="no")})


def test_without_a_terminal_each_phase_is_a_plain_line() -> None:
    console, written = _console(150)
    with Display([GUARDED], console) as display:
        display.phase(GUARDED, "playing", 9.4)
        display.finished(GUARDED, _run(GUARDED))
    lines = written.getvalue().splitlines()
    assert lines[0].endswith("link-gone, lbguard: playing, 9 s left")
    assert "200 connections, 3 +96 lost broken" in lines[1]


def test_what_a_process_said_has_no_effect() -> None:
    console, written = _console(WIDE)
    with Display([GUARDED], console) as display:
        display.finished(GUARDED, _run(GUARDED, error=f"ended; it said:\n  {SHOWN}"))
        display.finished(GUARDED, _run(GUARDED, error=HOSTILE.replace("\n", "")))
    assert_harmless(written.getvalue())
    assert "[bold]c[/bold]:warning:" in written.getvalue()


def test_how_fast_removed_targets_left_is_shown_where_some_are_removed() -> None:
    slot = Slot("deliberate-removal", Column.LBGUARD, Distribution.NFQLB)
    console, written = _console(WIDE)
    display = Display([slot], console)
    display.finished(slot, _run(slot, lb=LbFacts(removals_s=(0.0312, 0.0123, 0.5))))
    written.truncate(0)
    console.print(display.table())
    assert "removed in" in written.getvalue()
    assert "31.2 ms" in written.getvalue()
    assert "removed in" not in _table(WIDE, {})
