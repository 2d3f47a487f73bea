import dataclasses
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from lbguard.core.config import FreezeConfig, GraceConfig
from lbguard.recording.reader import find_files
from lbguard.recording.replay import replay
from lbguard.settings.model import load
from lbguard.settings.notation import parse_duration
from lbguard.tuning import page, show
from lbguard.tuning.recommendation import Result, recommend
from lbguard.tuning.tune import TuneReport, tune
from tests.unit.tuning.incidents import CONFIG, PACKETS_PER_S, WALL, Outage, record

HEALS = [0.4, 0.7, 0.9, 1.3, 0.5, 1.1, 0.8, 1.25, 0.6, 0.95, 0.3]
"""Times that links were away, seconds; the longest is what a good window has to cover."""


def by_window(report: TuneReport) -> dict[float, Result]:
    return {parse_duration(dict(result.variant.values)["grace.window"]): result for result in report.results}


def recommended(report: TuneReport) -> float:
    assert report.recommended is not None
    return parse_duration(dict(report.results[report.recommended].variant.values)["grace.window"])


@pytest.fixture(scope="module")
def healing(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    outages = [Outage(1 + number % 4, away_s) for number, away_s in enumerate(HEALS)]
    return record(tmp_path_factory.mktemp("healing"), outages)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Short outages, and a link that is gone for good."""
    outages = [Outage(1 + number % 3, away_s) for number, away_s in enumerate(HEALS)]
    return record(tmp_path_factory.mktemp("mixed"), [*outages, Outage(4, None)])


def test_a_window_with_a_margin_above_the_longest_heal_is_recommended(healing: list[Path]) -> None:
    report = tune(healing, {})
    assert report.heals_s == pytest.approx(sorted(HEALS))
    # A quarter of 1.3 s is less than half a second.
    assert recommended(report) == 1.8
    assert report.results[report.recommended or 0].cost.too_soon == 0


def test_a_link_that_never_comes_back_does_not_change_that_but_makes_long_windows_dear(mixed: list[Path]) -> None:
    report = tune(mixed, {"grace.window": ["0s", "1s", "2s", "10s", "30s"]})
    results = by_window(report)
    assert recommended(report) == 2.0
    assert results[10.0].cost.total_s > results[2.0].cost.total_s
    assert (results[2.0].cost.in_vain, results[2.0].cost.too_soon, results[2.0].cost.in_time) == (1, 0, len(HEALS))
    assert results[2.0].cost.vain_s == pytest.approx(2.0)
    assert results[30.0].cost.vain_s == pytest.approx(30.0)
    late = sum(heal > 1.0 for heal in HEALS)
    assert (results[1.0].cost.too_soon, results[1.0].cost.in_time) == (late, len(HEALS) - late)
    assert results[0.0].cost.too_soon == len(HEALS)
    assert report.lost == 1


def test_when_broken_connections_cost_nothing_nothing_is_held(mixed: list[Path]) -> None:
    assert recommended(tune(mixed, {}, broken_cost_s=0.0)) == 0.0


def test_packets_and_moves_follow_from_counters_and_slots(mixed: list[Path]) -> None:
    results = by_window(tune(mixed, {"grace.window": ["0s", "2s"]}))
    held_s = sum(HEALS) + 2.0
    # A route is back a moment after its link.
    assert results[2.0].cost.held_s == pytest.approx(held_s, abs=0.03)
    assert results[2.0].cost.fallback == pytest.approx(PACKETS_PER_S * held_s, rel=0.01)
    # Each of four targets has a quarter of the slots; what is withdrawn moves, and moves back when it is re-admitted.
    assert results[2.0].cost.moved == pytest.approx(250, abs=15)
    assert results[0.0].cost.moved == pytest.approx(250 * (2 * len(HEALS) + 1), rel=0.05)
    assert results[0.0].cost.fallback == 0
    assert results[2.0].cost.stalled_s == pytest.approx(1000 * held_s / 4, rel=0.02)


def test_the_model_comes_to_what_was_recorded_under_the_recorded_settings(mixed: list[Path]) -> None:
    report = tune(mixed, {})
    (modelled,) = [result.cost for result in report.results if result.variant.recorded]
    for name in ("losses", "in_time", "withdrawn", "in_vain", "too_soon", "frozen"):
        assert getattr(modelled, name) == getattr(report.real, name), name
    assert modelled.vain_s == pytest.approx(report.real.vain_s, abs=0.05)
    assert replay(mixed).difference is None


def test_other_settings_are_weighed_as_well(tmp_path: Path) -> None:
    # Three of four go for longer than the window: frozen where half is too many, withdrawn where nine tenths are.
    config = dataclasses.replace(CONFIG, grace=GraceConfig(window_s=1.0), freeze=FreezeConfig(threshold=0.5))
    files = record(tmp_path, [Outage(1, None), Outage(2, None), Outage(3, 5.0)], config)
    report = tune(files, {"freeze.threshold": ["0.5", "0.99"], "grace.window": ["1s", "8s"]})
    assert len(report.results) == 4
    labels = {result.variant.label for result in report.results}
    assert "freeze.threshold=0.99 grace.window=8s" in labels


def test_without_losses_nothing_is_recommended(tmp_path: Path) -> None:
    report = tune(record(tmp_path, []), {})
    assert report.recommended is None
    assert "nothing to choose by" in report.reasons[0]
    assert "<svg" in page.render(report)


def test_where_the_window_decides_nothing_none_is_recommended(tmp_path: Path) -> None:
    """A mass failure keeps every target in, whatever the window: no reason to do without one."""
    config = dataclasses.replace(CONFIG, freeze=FreezeConfig(threshold=0.0))
    outages = [Outage(1, 5.0, others=(2,)), Outage(3, 5.0, others=(4,))]
    report = tune(record(tmp_path, outages, config), {"grace.window": ["1s", "3s", "6s"]})
    assert len({result.cost.total_s for result in report.results}) == 1
    assert report.recommended is None
    assert "freeze.threshold" in report.reasons[1]
    assert "keep what is in force" in report.reasons[1]
    assert show.report_json(report)["helm_values"] is None


def test_no_window_at_all_has_to_be_cheaper_than_every_other(mixed: list[Path]) -> None:
    results = by_window(tune(mixed, {"grace.window": ["0s", "1.5s", "30s"]}))
    none, short, long = results[0.0], results[1.5], results[30.0]
    assert recommend([dataclasses.replace(none, cost=short.cost), short, long], by_window=True) == 1
    assert recommend([short, none, long], by_window=True) == 0


def test_where_nothing_healed_nothing_is_recommended(tmp_path: Path) -> None:
    report = tune(record(tmp_path, [Outage(1, None)]), {})
    assert report.recommended is None
    assert report.results[0].cost.in_vain == 1
    assert report.reasons[0].startswith("1 loss, which did not heal")
    assert show.report_json(report)["helm_values"] is None
    assert "<svg" in page.render(report)


def test_no_target_is_said_never_to_come_back_that_did(tmp_path: Path) -> None:
    # The window of 1 s is too short for the longest loss, and 3 s are too.
    report = tune(record(tmp_path, [Outage(1, 0.4)] * 9 + [Outage(1, 20.0)]), {"grace.window": ["1s"]})
    text = " ".join(report.reasons)
    assert "10 losses: 10 healed" in text
    assert "never" not in text
    assert "targets that are withdrawn all the same would be held 2.0 s longer" in text


def test_a_heal_beyond_the_longest_window_is_named(tmp_path: Path) -> None:
    report = tune(record(tmp_path, [Outage(1, 0.5)] * 9 + [Outage(2, 45.0)]), {})
    assert "1 healed only after grace.max (30s): no window reaches them." in report.reasons
    assert recommended(report) == 1.0


@pytest.mark.parametrize("outages", [[Outage(1, 0.5)] * 9, [Outage(1, 0.5)] * 9 + [Outage(2, None)]])
def test_nothing_is_recommended_from_fewer_than_ten_heals(tmp_path: Path, outages: list[Outage]) -> None:
    files = record(tmp_path, outages)
    for choices in ({}, {"grace.window": ["0s", "1s"]}, {"damping.step": ["1s", "30s"], "grace.window": ["0s", "1s"]}):
        report = tune(files, choices)
        assert report.recommended is None
        assert "record at least 10 losses that heal" in report.reasons[-1]


def test_a_window_without_a_margin_is_not_recommended_though_it_is_cheapest(mixed: list[Path]) -> None:
    report = tune(mixed, {"grace.window": ["1s", "1.5s"]})
    assert min(report.results, key=lambda result: result.cost.total_s).variant.label == "1.5s"
    assert recommended(report) == 3.0
    cost = {window: f"{result.cost.total_s:.0f}" for window, result in by_window(report).items()}
    assert f"grace.window=1.5s costs {cost[1.5]}, but leaves no margin above the longest heal that it covers." in (
        report.reasons
    )


def test_where_no_window_has_a_margin_the_one_that_would_is_named(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, grace=GraceConfig(window_s=1.4, max_s=2.0))
    for heal_s, words in ((1.2, "longer window that was tried: try 1.7s"), (1.8, "2.3s would, beyond grace.max")):
        files = record(tmp_path / str(heal_s), [Outage(1, heal_s)] * 10, config)
        report = tune(files, {"grace.window": ["0.1s", "1.9s"] if heal_s > 1.4 else ["0.1s", "1.4s"]})
        assert report.recommended is None
        assert words in report.reasons[-1]
        assert show.report_json(report)["helm_values"] is None


def test_values_are_shown_as_settings_write_them(mixed: list[Path]) -> None:
    report = tune(mixed, {"grace.window": ["1", "1500ms", "1.5"], "grace.adaptive": ["no"]})
    assert [result.variant.named for result in report.results] == [
        "grace.window=3s grace.adaptive=false",
        "grace.window=1s grace.adaptive=false",
        "grace.window=1.5s grace.adaptive=false",
    ]


def test_what_another_host_recorded_begins_in_a_world_of_its_own(tmp_path: Path) -> None:
    # The first host's routes, tables and packet counts are not those of the second.
    alone = tune(record(tmp_path / "b", [Outage(2, 1.0)], host="lb-1", began=WALL + 5000), {"grace.window": ["2s"]})
    record(tmp_path / "a", [Outage(1, None)], host="lb-0")
    both = tune(find_files([tmp_path / "a", tmp_path / "b"]), {"grace.window": ["2s"]})
    first = tune(find_files([tmp_path / "a"]), {"grace.window": ["2s"]})
    for name in ("losses", "in_time", "withdrawn", "slots_moved", "fallback"):
        of = [getattr(by_window(report)[2.0].cost, name) for report in (first, alone, both)]
        assert of[0] + of[1] == of[2], name
    assert (both.real.losses, both.real.withdrawn) == (2, 1)


def test_settings_that_changed_are_told(tmp_path: Path) -> None:
    record(tmp_path, [Outage(1, 0.5)])
    changed = dataclasses.replace(CONFIG, grace=GraceConfig(window_s=1.0))
    record(tmp_path, [Outage(1, 0.5)], changed, began=WALL + 5000)
    report = tune(find_files([tmp_path]), {})
    assert any("settings changed" in warning for warning in show.warnings_of(report))
    assert "settings changed" in page.render(report)


@pytest.mark.parametrize("columns", [40, 60, 76, 80, 90, 100, 120, 200])
def test_the_table_fits_the_terminal(mixed: list[Path], columns: int) -> None:
    console = Console(width=columns, file=io.StringIO(), force_terminal=False)
    report = tune(mixed, {"grace.window": ["1s", "2s"]})
    console.print(show.results_table(report, columns))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "…" not in console.file.getvalue()
    assert len(lines) == 1 + 3
    assert any(line.startswith("2s (recommended)") for line in lines)
    assert "COST" in lines[0]
    for line, result in zip(lines[1:], report.results, strict=True):
        assert f" {result.cost.total_s:.0f}" in line


def test_the_reasons_name_the_neighbours(mixed: list[Path]) -> None:
    report = tune(mixed, {"grace.window": ["1s", "2s", "10s"]})
    text = " ".join(report.reasons)
    assert "12 losses: 11 healed, after 0.30 s to 1.30 s" in text
    assert "1 did not while it was recorded" in text
    # The costs are those of the table, and 3 s were in force.
    cost = {window: f"{result.cost.total_s:.0f}" for window, result in by_window(report).items()}
    assert f"With grace.window=1s, 3 more would be withdrawn too soon: the cost would be {cost[1.0]}" in text
    assert f"It costs {cost[2.0]}; grace.window=3s, which was in force, {cost[3.0]}." in text
    assert "8.0 s longer" not in text  # the recorded 3 s stand between 2 s and 10 s
    assert "1.0 s longer" in text


def test_the_values_fragment_is_what_the_chart_and_the_settings_take(mixed: list[Path], tmp_path: Path) -> None:
    report = tune(mixed, {"grace.window": ["1.5s"], "freeze.threshold": ["0.75"], "grace.adaptive": ["true", "false"]})
    values = yaml.safe_load(show.helm_values(report.results[-1]))["settings"]
    assert values == {"grace": {"window": "1.5s", "adaptive": False}, "freeze": {"threshold": 0.75}}
    file = tmp_path / "lbguard.yaml"
    file.write_text(yaml.safe_dump(values))
    settings = load(config=file).settings
    assert (settings.grace.window, settings.freeze.threshold) == (1.5, 0.75)


@pytest.mark.parametrize("choices", [{}, {"grace.window": ["1s", "2s"], "damping.step": ["1s", "4s"]}])
def test_the_picture_is_one_page_that_needs_nothing(mixed: list[Path], choices: dict[str, list[str]]) -> None:
    report = tune(mixed, choices)
    html = page.render(report)
    assert not re.search(r"(src|href)=|url\(|@import|<script", html)
    (svg,) = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    root = ElementTree.fromstring(svg)
    assert "recommended" in html
    words = [element.text or "" for element in root.iter("text")]
    assert "cost of 1000 connections (s)" in words
    assert any(re.fullmatch(r"[\d.e+]+ s", word) for word in words), "a scale with its unit"
    if not choices:
        assert "grace.window (duration)" in words
        places = [float(line.attrib["x1"]) for line in root.iter("line") if line.attrib.get("class") == "heal"]
        (best,) = [float(line.attrib["x1"]) for line in root.iter("line") if line.attrib.get("class") == "best"]
        assert len(places) == len(HEALS)
        assert max(places) < best


def test_files_from_the_middle_of_a_run_can_be_tuned_from(tmp_path: Path) -> None:
    outages = [Outage(1 + number % 4, away_s) for number, away_s in enumerate(HEALS)]
    (file,) = record(tmp_path / "whole", outages)
    whole = tune([file], {"grace.window": ["1s"]})
    assert by_window(whole)[1.0].cost.losses == len(HEALS)


def test_json_says_all_of_it(mixed: list[Path]) -> None:
    report = tune(mixed, {})
    values = show.report_json(report)
    assert parse_duration(values["recommended"]["grace.window"]) == recommended(report)
    assert {result["values"]["grace.window"] for result in values["results"]} >= {"0s", "3s"}
    assert len(values["approximate"]) == len(show.APPROXIMATE)
