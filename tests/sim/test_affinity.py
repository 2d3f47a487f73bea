"""Runs with clients, the same every time. `python -m tests.sim --affinity` plays as many more as wanted."""

from collections import Counter
from dataclasses import replace

import pytest

from lbguard.core.model import Action, Decision
from tests.sim.affinity import AffinityWorld
from tests.sim.campaign import play, report
from tests.sim.flows import Entry, Flow, SimAffinity
from tests.sim.world import World

RUNS, CHUNK = 120, 40


@pytest.mark.parametrize("first", range(1, RUNS + 1, CHUNK))
def test_no_decision_breaks_a_connection(first: int) -> None:
    for seed in range(first, first + CHUNK):
        failure = report(seed, AffinityWorld)
        assert not failure, failure


def test_runs_see_all_that_can_happen_to_flows() -> None:
    seen: Counter[str] = Counter()
    for seed in range(1, 25):
        world = AffinityWorld(seed)
        play(world)
        table = world.affinity
        seen.update(born=world.born, moved=world.moved, steered=table.steered, orphaned=table.orphaned)
        seen.update(refused=table.refused, udp=sum(flow.udp for flow in world.flows))
    assert min(seen[what] for what in ("born", "moved", "steered", "orphaned", "refused", "udp")) > 0, seen


@pytest.mark.parametrize("seed", [3, 7, 11])
def test_a_run_is_the_same_with_clients_and_without(seed: int) -> None:
    """All that is random about flows is drawn apart, so the seeds of the other campaign mean what they meant."""
    kind = replace(AffinityWorld(seed).kind, learn_s=0.0, drain_window_s=0.0, drains=False)
    plain, with_clients = World(seed), AffinityWorld(seed, kind)
    for world in (plain, with_clients):
        play(world)

    def happened(world: World) -> list[tuple[float, object]]:
        """What happened; of the decisions, those that affinity leaves as they are: it ends the loss of one family."""
        found: list[tuple[float, object]] = []
        for at, what in world.history:
            if not isinstance(what, Decision):
                if "nftables" not in str(what) and "flushes" not in str(what):
                    found.append((at, what))
            elif what.action not in (Action.WITHDRAW_FAMILY, Action.REVISE):
                found.append((at, (what.target, what.action, what.state_to)))
        return found

    assert happened(plain)[-20:] == happened(with_clients)[-20:]
    assert plain.kernel.ours() == with_clients.kernel.ours()
    assert plain.distributor.state() == with_clients.distributor.state()


class Forgetful(SimAffinity):
    """A kernel that remembers another target than the one that answered."""

    def _remember(self, flow: Flow, mark: int, now: float) -> bool:
        self.entries.setdefault(flow, Entry(mark % 5000 % 2 + 5001, now + self.idle_s))
        return True


class Careless(SimAffinity):
    """A kernel that steers no new flow away from a target that is cut off or avoided."""

    def _begin(self, flow: Flow, mark: int, now: float) -> int:
        self._remember(flow, mark, now)
        return mark


@pytest.mark.parametrize("broken", [Forgetful, Careless])
def test_the_checks_can_fail(broken: type[SimAffinity]) -> None:
    def make(seed: int) -> World:
        world = AffinityWorld(seed)
        made = world.affinity
        world.affinity = broken(
            made.kernel, made.distributor, made.max_flows, made.idle_s, made.every_flow, made.streams
        )
        return world

    assert any(report(seed, make) for seed in range(1, 41))
