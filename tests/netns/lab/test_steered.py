"""Work on a node, with real connections: its targets are drained by command, over a kill, and released."""

from dataclasses import replace
from pathlib import Path

import pytest

from lbguard.lab.controller import Column, Distribution
from lbguard.lab.measure import newcomers
from lbguard.lab.play import Setup, play
from lbguard.lab.promise import Promise
from lbguard.lab.scenario_model import Do, Scenario, Step

DRAINED_S = 5.0
SETTLED_S = 1.0
"""The kernel's rules follow a decision within this time on a busy machine."""


def _steps(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [
        Step(0.0, Do.DRAIN_LINK, 1),
        Step(1.5, Do.KILL_CONTROLLER),
        Step(2.0, Do.START_CONTROLLER),
        Step(DRAINED_S, Do.RELEASE_ALL),
    ]


NODE_WORK = Scenario(
    name="node-work",
    sentence="The targets behind one link are drained by command while new connections are opened, and released.",
    promise=Promise(new_waited_max=0, new_broken_max=0),
    steps=_steps,
    observe_s=3.0,
    newcomers=True,
    settings={"LBGUARD_AFFINITY__MODE": "incident"},
)


@pytest.mark.netns
async def test_a_drained_link_gets_no_new_connection_and_breaks_none(sandbox: None, tmp_path: Path) -> None:
    setup = replace(Setup(connections=48, flows=4), work_dir=tmp_path)
    run = await play(NODE_WORK, Column.LBGUARD, Distribution.NFTABLES, setup, lambda _phase, _left_s: None)
    assert run.error == ""
    assert run.misses == []
    assert run.measured.opened == 48
    assert (run.measured.broken, run.measured.new_broken, run.measured.new_waited) == (0, 0, 0)
    moments = {
        action: [r for r in run.records if r.get("action") == action] for action in ("drain", "release", "resume")
    }
    drained = {record["identifier"] for record in moments["drain"]}
    assert len(drained) == 2
    assert {record["identifier"] for record in moments["resume"]} == drained
    assert run.traffic is not None
    begin, end = moments["drain"][0]["ts"] + SETTLED_S, moments["release"][0]["ts"]
    meanwhile = [channel for channel in newcomers(run.traffic, begin) if channel.opened_at < end]
    assert len(meanwhile) > 50
    assert not [channel for channel in meanwhile if channel.target in drained]
    connected = {channel.target for channel in run.traffic.connections}
    assert drained <= connected, "some connections belong to the drained targets"
