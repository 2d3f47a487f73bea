"""The load balancer that is not modified, on nfqlb or its stand-in, our program before it and lbguard beside it."""

from dataclasses import replace
from pathlib import Path

import pytest

from lbguard.lab import meridio, nfqlb
from lbguard.lab.controller import Column, Distribution, Topology
from lbguard.lab.meridio import LbFacts
from lbguard.lab.meridio_scenarios import BY_NAME, MERIDIO, AgainstToday
from lbguard.lab.nfqlb import NfqlbKind
from lbguard.lab.play import Run, Setup, play
from lbguard.lab.scenario_model import Do, Scenario, Step

MISSING = meridio.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
NO_REAL = nfqlb.missing()
GRACE = [scenario.name for scenario in MERIDIO if not isinstance(scenario.promise, AgainstToday)]


async def _play(
    scenario: Scenario, column: Column, work_dir: Path, kind: NfqlbKind = NfqlbKind.STAND_IN
) -> tuple[Run, LbFacts]:
    setup = Setup(connections=24, flows=40, topology=Topology.MERIDIO, nfqlb=kind, work_dir=work_dir)
    run = await play(scenario, column, Distribution.NFQLB, setup, lambda _phase, _left_s: None)
    assert run.error == ""
    assert run.nfqlb is kind
    assert run.lb is not None
    return run, run.lb


def _shortened(name: str, steps: list[Step]) -> Scenario:
    return replace(BY_NAME[name], steps=lambda _outage_s, _proxies: steps, observe_s=3.0)


async def _remove_and_add(column: Column, kind: NfqlbKind, work_dir: Path) -> None:
    steps = [Step(0.0, Do.REMOVE_TARGET, 1), Step(1.0, Do.ADD_TARGET, 1)]
    run, facts = await _play(_shortened("deliberate-removal", steps), column, work_dir, kind)
    assert (len(facts.removals_s), facts.stayed, facts.refused, facts.withdrawals) == (1, 0, 0, 0)
    changes = [
        record["state_to"] == "active"
        for record in run.records
        if record.get("event") == "decision" and record["identifier"] == 1
    ]
    assert changes == [True, False, True]
    # All the traffic for the target went to others meanwhile, so it shows that nfqlb followed.
    assert run.measured.broken > 0


@pytest.mark.parametrize("column", Column)
async def test_a_removed_target_leaves_the_table_with_and_without_lbguard(
    sandbox: None, tmp_path: Path, column: Column
) -> None:
    await _remove_and_add(column, NfqlbKind.STAND_IN, tmp_path)


@pytest.mark.nfqlb
@pytest.mark.skipif(bool(NO_REAL), reason=NO_REAL)
async def test_a_removed_target_leaves_the_table_of_the_real_nfqlb(sandbox: None, tmp_path: Path) -> None:
    await _remove_and_add(Column.LBGUARD, NfqlbKind.REAL, tmp_path)


@pytest.mark.parametrize("name", GRACE)
async def test_connections_live_through_what_comes_back_within_grace(sandbox: None, tmp_path: Path, name: str) -> None:
    run, facts = await _play(replace(BY_NAME[name], observe_s=5.0), Column.LBGUARD, tmp_path)
    measured = run.measured
    assert (measured.opened, measured.broken, measured.moved, facts.refused) == (24, 0, 0, 0)
    assert measured.disturbed > 0


async def test_the_load_balancer_goes_on_when_lbguard_is_killed(sandbox: None, tmp_path: Path) -> None:
    steps = [Step(0.0, Do.KILL_CONTROLLER), Step(0.5, Do.REMOVE_TARGET, 1), Step(1.5, Do.ADD_TARGET, 1)]
    run, facts = await _play(_shortened("guard-dies", steps), Column.LBGUARD, tmp_path)
    assert (len(facts.removals_s), facts.stayed, facts.refused) == (1, 0, 0)
    assert [record["identifier"] for record in run.records if record.get("action") == "remove"] == [1]
    missed = (tmp_path / "meridio" / "shared" / "missed").read_text().splitlines()
    assert [line.split()[1:3] for line in missed] == [["deactivate", "--index=0"], ["activate", "--index=0"]]
