"""The load balancer of Meridio-2 on flat networks, with its stand-in: its steps, and scenarios with lbguard."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lbguard.lab import meridio, nfqlb
from lbguard.lab.controller import Column, Distribution, Topology
from lbguard.lab.flat_network import FlatNetwork
from lbguard.lab.meridio_scenarios import MERIDIO_2
from lbguard.lab.network import MAIN_TABLE
from lbguard.lab.nfqlb import NfqlbKind
from lbguard.lab.play import Run, Setup, play
from lbguard.lab.scenario_model import Scenario

MISSING = meridio.missing()
NO_REAL = nfqlb.missing()
BY_NAME = {scenario.name: scenario for scenario in MERIDIO_2}

played = pytest.mark.skipif(bool(MISSING), reason=MISSING)


async def _play(scenario: Scenario, column: Column, work_dir: Path, kind: NfqlbKind = NfqlbKind.STAND_IN) -> Run:
    setup = Setup(connections=24, flows=40, topology=Topology.MERIDIO_2, nfqlb=kind, work_dir=work_dir)
    run = await play(scenario, column, Distribution.NFQLB, setup, lambda _phase, _left_s: None)
    assert run.error == ""
    assert run.nfqlb is kind
    return run


@pytest.fixture
def flat(sandbox: None) -> Iterator[FlatNetwork]:
    with FlatNetwork(2, 1) as network:
        yield network


def test_balancer_and_targets_are_on_one_segment(flat: FlatNetwork) -> None:
    for place in flat.places:
        target, lb = flat.target(place.identifier), f"172.16.{place.proxy}.2"
        route = target.route_to("10.0.0.2")
        assert route is not None
        assert route.gateway == lb
        # Nothing forwards between them.
        assert flat.proxy(place.proxy).routes(MAIN_TABLE, ipv4=True) == []


def test_a_link_made_again_has_another_mac_and_the_same_addresses(flat: FlatNetwork) -> None:
    def addresses() -> set[str]:
        return {address.ip for address in flat.lb.addresses(flat.lb_links[1]) if not address.ip.startswith("fe80")}

    before, mac = addresses(), flat.lb.link(flat.lb_links[1]).mac
    flat.delete_lb_link(1)
    flat.create_lb_link(1)
    assert addresses() == before
    assert flat.lb.link(flat.lb_links[1]).mac != mac


def test_a_target_moves_to_other_addresses_and_back(flat: FlatNetwork) -> None:
    def addresses() -> set[str]:
        return {address.ip for address in flat.target(1).addresses() if address.ip.startswith(("172", "fd00"))}

    before = addresses()
    flat.move_target(1)
    assert addresses() == {flat.place(1).ipv4, flat.place(1).ipv6}
    assert not addresses() & before
    flat.move_target(1)
    assert addresses() == before


@played
async def test_nobody_puts_the_routes_back_without_lbguard(sandbox: None, tmp_path: Path) -> None:
    run = await _play(replace(BY_NAME["lb-link"], observe_s=5.0), Column.WITHDRAW, tmp_path)
    assert run.measured.broken == run.measured.disturbed > 0


@played
@pytest.mark.parametrize("name", ["lb-link", "lb-restart", "address-change"])
async def test_connections_live_on(sandbox: None, tmp_path: Path, name: str) -> None:
    scenario = BY_NAME[name]
    run = await _play(replace(scenario, observe_s=min(scenario.observe_s, 14.0)), Column.LBGUARD, tmp_path)
    assert run.lb is not None
    assert (run.measured.opened, run.measured.broken, run.lb.refused) == (24, 0, 0)
    assert run.measured.disturbed > 0
    assert {record["identifier"] for record in run.records if record.get("action") == "admit"} == {1, 2, 3, 4}


@played
@pytest.mark.nfqlb
@pytest.mark.skipif(bool(NO_REAL), reason=NO_REAL)
async def test_a_pod_that_is_not_ready_keeps_its_connections(sandbox: None, tmp_path: Path) -> None:
    run = await _play(BY_NAME["pod-not-ready"], Column.LBGUARD, tmp_path, NfqlbKind.REAL)
    assert run.misses == []
    assert [r["action"] for r in run.records if r.get("identifier") == 1 and "action" in r][-2:] == ["drain", "resume"]
