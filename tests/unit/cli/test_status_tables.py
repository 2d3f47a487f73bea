"""`lbguard status` at the widths of real terminals."""

import re
import time
from collections.abc import Iterator

import pytest

from lbguard.cli.status_tables import show_status
from lbguard.core.model import Action, ManualAction, Override, TargetState
from lbguard.core.status import GuardStatus, Prediction
from lbguard.telemetry.console import TextConsole
from tests.unit.examples import affinity, guard_status, path, target

MAC = "02:00:00:00:00:01"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def state(*, override: Override | None = None, wall_time: float | None = None) -> GuardStatus:
    held = target(
        2,
        TargetState.HELD,
        cause="no_link",
        deadline=102.5,
        paths=(path("172.16.1.11", "no_link", ""), path("fd00:1::11")),
        prediction=Prediction(action=Action.WITHDRAW, at=102.5),
        override=override,
    )
    return guard_status(target(1), held, affinity=affinity(), wall_time=wall_time)


def lines(capsys: pytest.CaptureFixture[str], status: GuardStatus, width: int) -> list[str]:
    show_status(status, show_all=False, console=TextConsole(width=width))
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("width", [80, 120, 160])
def test_no_word_is_cut(capsys: pytest.CaptureFixture[str], width: int) -> None:
    shown = lines(capsys, state(), width)
    assert max(map(len, shown)) <= width
    for word in ("stream-a/2", "withdrawn", "no_link", "172.16.1.11", "fd00:1::11", f"reachable {MAC}", "NEIGHBOUR"):
        assert any(word in line for line in shown), word
    rows = [line for line in shown if line.startswith("stream-a/2")]
    assert len(rows) == (1 if width == 160 else 2), "narrow: a table of states, and one of paths"
    assert "in 2.5 s" in rows[0]
    [stream] = [line for line in shown if line.startswith("stream-a ")]
    assert re.search(r"1 held, 1 active" if width == 80 else r"yes +0 +0 +1 +0 +0 +1", stream)


@pytest.mark.parametrize("width", [80, 160])
def test_the_time_of_a_deadline_is_shown(capsys: pytest.CaptureFixture[str], width: int) -> None:
    shown = lines(capsys, state(wall_time=1_700_000_000.0), width)
    row = next(line for line in shown if line.startswith("stream-a/2"))
    assert "22:13:22 UTC" in row, "2.5 s after the time of the status"
    assert " AT " not in " ".join(lines(capsys, state(), width)), "it is not known"


@pytest.mark.parametrize("width", [80, 160])
def test_an_override_says_until_when(capsys: pytest.CaptureFixture[str], width: int) -> None:
    order = Override(action=ManualAction.HOLD, since=90.0, until=700.0, who="anna", reason="rack 7")
    shown = lines(capsys, state(override=order, wall_time=1_700_000_000.0), width)
    assert "hold until 22:23:20 UTC by anna (rack 7)" in " ".join(" ".join(shown).split())
    shown = lines(capsys, state(override=order), 160)
    assert any("hold for 10m more by anna (rack 7)" in line for line in shown)
