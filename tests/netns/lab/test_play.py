"""Runs with few connections and a short watch: what is checked is the lab itself, not how fast anything is."""

from dataclasses import replace
from pathlib import Path

import pytest

from lbguard.lab.controller import Column, Distribution
from lbguard.lab.play import Run, Setup, play
from lbguard.lab.scenario_model import Do
from lbguard.lab.scenarios import BY_NAME, LATE_REPORTS
from lbguard.lab.timeline import draw
from lbguard.recording.reader import find_files
from lbguard.recording.replay import replay
from lbguard.tuning.candidates import round_up, with_margin
from lbguard.tuning.tune import tune

FEW = Setup(connections=24, flows=4)


async def _play(name: str, setup: Setup) -> tuple[Run, list[str]]:
    phases: list[str] = []
    scenario = replace(BY_NAME[name], observe_s=4.0)
    run = await play(
        scenario, Column.WITHDRAW, Distribution.NFTABLES, setup, lambda phase, _left_s: phases.append(phase)
    )
    return run, phases


@pytest.fixture
def setup(sandbox: None, tmp_path: Path) -> Setup:
    return replace(FEW, work_dir=tmp_path)


async def test_todays_behaviour_breaks_the_connections_behind_a_replaced_link(setup: Setup) -> None:
    run, phases = await _play("lb-link", setup)
    assert run.error == ""
    assert phases[0] == "building the chain"
    assert phases[-1] == "watching"
    assert [step.do for _, step in run.steps] == [Do.DELETE_LB_LINK, Do.CREATE_LB_LINK]
    measured = run.measured
    assert measured.opened == 24
    assert measured.disturbed > 0
    assert measured.broken >= measured.disturbed / 2
    # The client's view of resets is confirmed by what the targets' kernels say they sent.
    assert sum(run.resets_sent.values()) >= measured.reset
    withdrawn = {record["identifier"] for record in run.records if record.get("state_to") == "withdrawn"}
    assert withdrawn == {1, 2}


async def test_connections_of_the_targets_that_stay_survive_a_lost_link(setup: Setup) -> None:
    run, _ = await _play("link-gone", setup)
    assert run.error == ""
    measured = run.measured
    assert measured.opened == 24
    assert measured.lost_broken == measured.lost_connections > 0
    assert measured.lost_connections < 24


async def test_the_reason_why_lbguard_does_not_start_is_told(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBGUARD_GRACE__WINDOW", "50s")
    run = await _guarded("lb-link", setup, 1.0)
    assert run.error.startswith("lbguard ended with status 2; it said:\n  lbguard: grace.window = 50s")


async def _guarded(name: str, setup: Setup, observe_s: float) -> Run:
    scenario = replace(BY_NAME[name], observe_s=observe_s)
    return await play(scenario, Column.LBGUARD, Distribution.NFTABLES, setup, lambda _phase, _left_s: None)


async def test_monitors_see_a_datapath_that_is_cut_and_lbguard_hears_of_it(setup: Setup) -> None:
    run = await _guarded("datapath-cut", setup, 20.0)
    assert run.error == ""
    assert run.decided.lost_after_s is not None
    assert run.decided.withdrawals == 0
    causes = {r["cause"] for r in run.records if r.get("action") == "withdraw"}
    assert causes == {"verdict_down"}
    assert run.measured.lost_broken == run.measured.lost_connections > 0


async def test_late_verdicts_reach_lbguard_and_are_dropped_by_name(setup: Setup) -> None:
    run = await _guarded("late-verdict", setup, 1.0)
    assert run.error == ""
    assert run.decided.dropped == LATE_REPORTS
    assert (run.decided.holds, run.decided.withdrawals) == (0, 0)


async def test_monitors_that_are_starved_run_on_and_end_with_the_run(setup: Setup) -> None:
    run = await _guarded("starved", setup, 1.0)
    assert run.error == ""
    assert run.decided.withdrawals == 0
    logs = [path.read_text() for path in sorted(setup.work_dir.glob("monitor-*.log"))]
    assert len(logs) == 2
    assert all("stopped" in log and "Traceback" not in log for log in logs)


async def test_what_the_lab_cannot_do_is_an_error_of_the_run(setup: Setup) -> None:
    # A directory stands where the list of targets should be written.
    (setup.work_dir / "targets.yaml").mkdir(parents=True)
    run, _ = await _play("lb-link", setup)
    assert "targets.yaml" in run.error
    assert not run.kept


async def test_what_a_scenario_recorded_recommends_a_window_just_above_its_heals(setup: Setup) -> None:
    setup = replace(setup, outage_s=1.2, recording=setup.work_dir / "recordings")
    run = await _guarded("lb-link", setup, 3.0)
    assert run.error == ""
    heals = [record["duration_s"] for record in run.records if record.get("action") == "recover"]
    assert len(heals) == 2
    assert min(heals) >= 1.2
    files = find_files([setup.work_dir / "recordings/lb-link-nftables"])
    report = replay(files)
    assert report.difference is None
    decided = [record for record in run.records if record.get("event") == "decision"]
    assert report.decisions >= len(decided)
    tuning = tune(files, {})
    assert tuning.recommended is None, "two losses are too few for that"
    tried = [result.variant.config.grace.window_s for result in tuning.results]
    assert round_up(with_margin(max(heals))) in tried


async def _with_newcomers(name: str, setup: Setup, column: Column, affinity: str) -> Run:
    scenario = replace(BY_NAME[name], observe_s=4.0)
    scenario = replace(scenario, settings={**scenario.settings, "LBGUARD_AFFINITY__MODE": affinity})
    run = await play(scenario, column, Distribution.NFTABLES, setup, lambda _phase, _left_s: None)
    assert run.error == ""
    return run


async def test_new_connections_wait_for_a_held_target_without_affinity_and_not_with_it(setup: Setup) -> None:
    without, steered = [await _with_newcomers("newcomers", setup, Column.LBGUARD, mode) for mode in ("off", "incident")]
    assert without.measured.new_opened > 50
    assert without.measured.new_waited > 10
    assert without.measured.new_longest_connect_s > 1.0
    # A machine that is too busy may delay one or the other.
    assert steered.measured.new_waited < without.measured.new_waited / 4
    for run in (without, steered):
        assert (run.measured.broken, run.measured.new_broken) == (0, 0)
        assert "New connections" in draw(run)


async def test_connections_born_while_targets_are_withdrawn_are_broken_by_todays_readmission(setup: Setup) -> None:
    today = await _with_newcomers("readmit", setup, Column.WITHDRAW, "off")
    assert today.measured.broken == 0
    assert today.measured.lost_broken == today.measured.lost_connections > 0
    assert today.measured.new_broken > 10


async def test_a_controller_that_stands_still_goes_on(setup: Setup) -> None:
    run = await _with_newcomers("guard-stopped", setup, Column.LBGUARD, "incident")
    assert run.traffic is not None
    assert len(run.traffic.tcp_bins) == 6, "it has three proxies"
    stalls = [record for record in run.records if str(record.get("event", "")).startswith("stalled")]
    assert len(stalls) == 1
    assert run.measured.broken == 0


async def test_one_link_loses_its_ipv6_and_keeps_its_ipv4(setup: Setup) -> None:
    run = await _with_newcomers("one-family-gone", setup, Column.LBGUARD, "incident")
    assert run.measured.broken == 0
    assert run.traffic is not None
    lost = [channel for channel in run.traffic.connections if channel.target in (1, 2) and channel.family == 6]
    assert len(lost) == run.measured.lost_connections == run.measured.lost_broken > 0


SHORT = {"LBGUARD_DRAIN__WINDOW": "2s", "LBGUARD_AFFINITY__LEARN": "2s"}


async def _with_another_list(name: str, setup: Setup, column: Column, kind: Distribution) -> Run:
    scenario = replace(BY_NAME[name], observe_s=8.0)
    drain_s = 2.0 if scenario.drain_s else 0.0
    scenario = replace(scenario, settings={**scenario.settings, **SHORT}, drain_s=drain_s)
    run = await play(scenario, column, kind, setup, lambda _phase, _left_s: None)
    assert run.error == ""
    return run


@pytest.mark.parametrize("kind", Distribution)
async def test_a_removed_target_keeps_its_connections_for_the_drain_and_gets_no_new_ones(
    setup: Setup, kind: Distribution
) -> None:
    run = await _with_another_list("removed", setup, Column.LBGUARD, kind)
    states = [r["state_to"] for r in run.records if r.get("event") == "decision" and r["identifier"] == 1]
    assert states[-2:] == ["draining", None]
    measured = run.measured
    assert (measured.broken, measured.moved, measured.new_broken, measured.new_on_relisted) == (0, 0, 0, 0)
    assert measured.lost_broken == measured.lost_connections > 0
    assert measured.lost_silent == 0


@pytest.mark.parametrize("kind", Distribution)
async def test_a_target_that_joins_the_list_moves_no_connection_and_gets_new_ones(
    setup: Setup, kind: Distribution
) -> None:
    run = await _with_another_list("added", setup, Column.LBGUARD, kind)
    measured = run.measured
    assert (measured.disturbed, measured.broken, measured.moved, measured.new_broken) == (0, 0, 0, 0)
    assert measured.new_on_relisted > 0
    assert "registration of target 4" in draw(run)


@pytest.mark.parametrize("name", ["removed", "added"])
async def test_today_a_change_of_the_list_breaks_connections(setup: Setup, name: str) -> None:
    run = await _with_another_list(name, setup, Column.WITHDRAW, Distribution.NFTABLES)
    assert run.measured.broken > 0
    assert run.measured.lost_connections == 0


async def test_a_target_that_is_silent_for_long_is_held_and_new_connections_go_elsewhere_before(setup: Setup) -> None:
    """Packets keep coming for it, so the kernel notifies its second failed resolution as one under way."""
    scenario = replace(
        BY_NAME["target-link"],
        newcomers=True,
        settings={"LBGUARD_AFFINITY__MODE": "incident", "LBGUARD_GRACE__WINDOW": "20s"},
    )
    long = replace(setup, connections=60, outage_s=12.0)
    run = await play(scenario, Column.LBGUARD, Distribution.NFTABLES, long, lambda _phase, _left_s: None)
    assert run.error == ""
    held = [r for r in run.records if r.get("action") == "hold" and r["ts"] >= run.started]
    assert [(r["identifier"], r["cause"]) for r in held] == [(1, "neighbor_failed")]
    assert run.traffic is not None
    # The hold needs a second failure, some three seconds after the first.
    before = held[0]["ts"] - 0.5
    late = [c for c in run.traffic.newcomers if before - 1.5 < c.opened_at < before]
    assert len(late) > 20
    assert all(c.connect_s is not None and c.connect_s < 0.9 and c.target != 1 for c in late)
