"""Recordings weighed with flow affinity: the model's engine decides, and the costs follow."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from lbguard.core import events as ev
from lbguard.core.config import GraceConfig
from lbguard.core.model import StreamSpec, TargetSpec
from lbguard.recording.reader import find_files
from lbguard.recording.recorder import RecordedEngine
from lbguard.recording.replay import replay
from lbguard.recording.writer import RecordingWriter
from lbguard.tuning import page, show
from lbguard.tuning.cost import Cost
from lbguard.tuning.tune import TuneReport, tune
from tests.fakes.direct_tape import DirectTape
from tests.unit.core.harness import STREAM, Guard, ipv4_of, ipv6_of
from tests.unit.tuning.incidents import CONFIG, Outage, record

AFFINITY = dataclasses.replace(CONFIG, affinity=True)
LATE = [Outage(1 + number % 4, 5.0) for number in range(10)]
"""Ten links that come back two seconds after the window."""


def costs(report: TuneReport) -> dict[str, Cost]:
    return {result.variant.label: result.cost for result in report.results}


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return record(tmp_path_factory.mktemp("late"), LATE)


@pytest.fixture(scope="module")
def late_with_affinity(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return record(tmp_path_factory.mktemp("late-affinity"), LATE, AFFINITY)


def test_with_affinity_a_window_that_is_too_short_breaks_each_connection_once(late_with_affinity: list[Path]) -> None:
    found = costs(tune(late_with_affinity, {"grace.window": ["3s", "6.3s"]}))
    short, long = found["3s"], found["6.3s"]
    assert short.moved == pytest.approx(10 * 250, abs=10 * 15)
    assert short.stalled_s == pytest.approx(10 * 250 * 3.0, rel=0.01)
    assert (short.too_soon, long.too_soon, long.moved) == (10, 0, 0)
    assert long.stalled_s == pytest.approx(10 * 250 * 5.0, rel=0.01)
    assert short.new_waited_s == long.new_waited_s == 0.0


def test_the_model_comes_to_what_was_recorded_with_affinity(late_with_affinity: list[Path]) -> None:
    report = tune(late_with_affinity, {})
    assert not any("take the numbers with care" in warning for warning in show.warnings_of(report))
    assert report.with_affinity is None
    assert replay(late_with_affinity).difference is None


def test_modes_of_affinity_are_tried_side_by_side(late: list[Path]) -> None:
    report = tune(late, {"affinity.mode": ["off", "incident", "all"]})
    found = costs(report)
    assert list(found) == ["off", "incident", "all"]
    assert found["off"].moved == pytest.approx(2 * found["incident"].moved)
    assert found["all"].moved == found["incident"].moved
    assert report.with_affinity is None
    assert report.recommended is not None
    assert report.results[report.recommended].variant.label == "incident"
    assert "affinity:\n    mode: incident" in show.helm_values(report.results[report.recommended])


def test_among_equals_affinity_is_better_on_as_new_connections_wait_without_it(late: list[Path]) -> None:
    report = tune(late, {"affinity.mode": ["off", "incident"], "grace.window": ["6.3s"]})
    assert report.recommended is not None
    assert report.results[report.recommended].variant.label == "affinity.mode=incident grace.window=6.3s"
    waits = {result.variant.label: round(result.cost.new_waited_s, 1) for result in report.results}
    # A quarter of what comes in 50 s.
    assert waits["affinity.mode=off grace.window=6.3s"] == 12.5
    assert waits["affinity.mode=incident grace.window=6.3s"] == 0.0
    assert "NEW WAIT" in show.columns_of(report)
    assert "NEW WAIT" not in show.columns_of(tune(late, {}))


def test_a_recording_without_affinity_tells_what_it_would_have_saved(late: list[Path]) -> None:
    report = tune(late, {"grace.window": ["1s"]})
    assert report.with_affinity is not None
    recorded = next(result.cost for result in report.results if result.variant.recorded)
    saved = recorded.moved - report.with_affinity.moved
    # Every connection of ten withdrawn targets, a quarter each, is moved once more by their re-admission; and the
    # targets were held for 3 s each.
    assert saved == pytest.approx(2500, abs=150)
    [remark] = report.remarks
    assert remark == (
        f"With affinity.mode=incident and the recorded settings: {saved:.0f} connections of each 1000 not moved, the"
        " new connections that a stream gets in 7.5 s not held up."
    )
    assert remark in page.render(report)
    assert show.report_json(report)["remarks"] == [remark]


def test_where_affinity_saves_nothing_nothing_is_said(tmp_path: Path) -> None:
    assert tune(record(tmp_path, []), {}).remarks == ()


def test_with_affinity_a_longer_window_costs_waiting_alone(tmp_path: Path) -> None:
    """One target is gone for good: what a longer window adds is the wait of its connections."""
    files = record(tmp_path, [Outage(1, None)], AFFINITY)
    found = costs(tune(files, {"grace.window": ["3s", "10s"]}))
    assert found["10s"].moved == found["3s"].moved
    assert found["10s"].total_s - found["3s"].total_s == pytest.approx(250 * 7.0, rel=0.01)


# Families, drains and changes of the list


def dual_stack(directory: Path, window_s: float, steps: Sequence[tuple[str, float]]) -> list[Path]:
    """Record four targets whose IPv6 has a link of its own, and what happens to them; then a minute."""
    config = dataclasses.replace(AFFINITY, grace=GraceConfig(window_s=window_s), drain_window_s=30.0)
    guard = Guard(config, start=False)
    writer = RecordingWriter(directory, config, wall_offset=lambda: 1e9)
    guard.engine = RecordedEngine(config, DirectTape(writer))
    guard.tell(ev.KernelSnapshot())
    targets = []
    for number in (1, 2, 3, 4):
        guard.link(number, proxy=number)
        guard.tell(guard.link_seen(10 + number), guard.address(10 + number, f"fd00:{number}::ff/64"))
        targets.append(TargetSpec(identifier=number, ips=(ipv4_of(number, number), ipv6_of(number, number))))
    guard.source(StreamSpec(name=STREAM, max_targets=4, targets=tuple(targets)))
    guard.wait(60.0)
    for what, seconds in steps:
        match what:
            case "lose IPv6":
                guard.unlink(11)
            case "IPv6 is back":
                guard.tell(guard.link_seen(11), guard.address(11, "fd00:1::ff/64"))
            case "unlist":
                guard.source(StreamSpec(name=STREAM, max_targets=4, targets=tuple(targets[:3])))
            case "idle":
                guard.tell(ev.TargetsIdle(marks=(5004,)))
        guard.wait(seconds)
    guard.wait(60.0)
    writer.close()
    return find_files([directory])


def test_a_family_that_is_back_late_is_counted_by_itself(tmp_path: Path) -> None:
    files = dual_stack(tmp_path, 3.0, [("lose IPv6", 8.0), ("IPv6 is back", 0.0)])
    report = tune(files, {"grace.window": ["1s", "10s"]})
    assert report.heals_s == pytest.approx((8.0,), abs=0.01)
    found = costs(report)
    for window, held_s in (("1s", 1.0), ("3s", 3.0)):
        cost = found[window]
        assert (cost.families, cost.families_too_soon, cost.withdrawn) == (1, 1, 0)
        assert cost.moved == 125
        assert cost.stalled_s == pytest.approx(125 * held_s, rel=0.01)
    assert (found["10s"].families, found["10s"].in_time, found["10s"].moved) == (0, 1, 0)
    assert found["10s"].stalled_s == pytest.approx(125 * 8.0, rel=0.01)
    assert not any("take the numbers with care" in warning for warning in show.warnings_of(report))
    assert "FAMILIES" in show.columns_of(report)
    assert "families" in page.render(report)


def test_a_drain_is_counted_and_another_window_can_be_tried(tmp_path: Path) -> None:
    files = dual_stack(tmp_path, 3.0, [("unlist", 10.0), ("idle", 0.0)])
    report = tune(files, {"drain.window": ["0s", "5s"]})
    found = costs(report)
    assert [(found[name].drains, found[name].drained) for name in ("0s", "5s", "30s")] == [(0, 0), (1, 0), (1, 1)]
    assert found["0s"].moved_by_list == pytest.approx(250, abs=15)
    assert found["5s"].moved_by_list == found["30s"].moved_by_list == 0
    assert all(cost.total_s == 0 for cost in found.values())
    assert report.remarks == ("1 target drained, 1 of them until no packet came any more.",)


def test_what_a_change_of_the_list_moves_without_affinity_is_told(tmp_path: Path) -> None:
    files = dual_stack(tmp_path, 3.0, [("unlist", 1.0)])
    report = tune(files, {"affinity.mode": ["off", "incident"]})
    assert costs(report)["off"].moved_by_list == pytest.approx(250, abs=100)
    assert costs(report)["off"].moved_by_list > 250 - 15
    assert costs(report)["incident"].moved_by_list == 0
