"""The cost model, with values computed by hand: four targets with a quarter of the connections each."""

import pytest

from lbguard.core.addr import parse_ip
from lbguard.core.model import Action, Condition, Decision, Evidence, StreamSpec, StreamTable, TargetKey
from lbguard.distributor.maglev import TableKind
from lbguard.tuning.cost import Cost, CostAccount, Remembered
from lbguard.tuning.slots import Slots

STREAM = "stream-a"
ALL = frozenset({1, 2, 3, 4})
BROKEN_S = 10.0
"""The cost of a broken connection."""
OK, LOST = Condition.OK, Condition.NO_LINK
NEARLY = 15
"""A target has a quarter of the slots within so many of 1000."""


class Incident:
    """Decisions and commits of a stream with four dual-stack targets, as an engine makes them."""

    def __init__(
        self, remembered: Remembered, *, learns: bool = True, kind: TableKind = TableKind.ANCHORED, healthy: bool = True
    ) -> None:
        self.healthy = healthy
        self.account = CostAccount(
            Slots(kind),
            lambda key: 100.0,
            lambda key: 0.25,
            remembered=remembered,
            learns=learns,
            has_healthy=lambda stream: self.healthy,
        )
        self._table = (ALL, ALL)

    def decide(
        self,
        at: float,
        action: Action,
        target: int = 1,
        *,
        ipv4: Condition = OK,
        ipv6: Condition = OK,
        withdrawn: bool = False,
        cause: str = "no_link",
        deadline: float | None = None,
    ) -> None:
        evidence = (
            Evidence(ip=parse_ip("172.16.0.11"), condition=ipv4),
            Evidence(ip=parse_ip("fd00::11"), condition=ipv6, withdrawn=withdrawn),
        )
        self.account.decided(
            Decision(
                sequence=1,
                at=at,
                target=TargetKey(STREAM, target),
                action=action,
                state_from=None,
                state_to=None,
                cause=cause,
                deadline=deadline,
                evidence=evidence,
            )
        )

    def commit(self, registered: frozenset[int], active: frozenset[int]) -> None:
        table = StreamTable(stream=StreamSpec(name=STREAM, max_targets=100), registered=registered, active=active)
        self.account.committed(table, *self._table, 0.0)
        self._table = (registered, active)

    def cost(self, at: float = 100.0) -> Cost:
        self.account.interrupted(at)
        return self.account.cost(BROKEN_S)


def held_for_4_s(incident: Incident) -> Cost:
    incident.decide(10.0, Action.HOLD, ipv4=LOST, ipv6=LOST)
    incident.decide(14.0, Action.RECOVER)
    return incident.cost()


@pytest.mark.parametrize("remembered", Remembered)
def test_a_hold_costs_the_wait_of_the_held_targets_own_connections(remembered: Remembered) -> None:
    cost = held_for_4_s(Incident(remembered))
    assert cost.stalled_s == 250 * 4.0
    assert cost.moved == 0
    assert cost.total_s == 1000.0
    assert cost.fallback == 100 * 4


def test_new_connections_wait_for_a_held_target_unless_they_are_steered() -> None:
    # A quarter of those that come in 4 s.
    assert held_for_4_s(Incident(Remembered.NONE)).new_waited_s == 1.0
    assert held_for_4_s(Incident(Remembered.INCIDENTS)).new_waited_s == 0.0


def test_new_connections_wait_while_no_target_of_the_stream_is_well() -> None:
    incident = Incident(Remembered.INCIDENTS)
    incident.decide(10.0, Action.HOLD, 1, ipv4=LOST, ipv6=LOST)
    incident.healthy = False
    for target in (2, 3, 4):
        incident.decide(12.0, Action.HOLD, target, ipv4=LOST, ipv6=LOST)
    incident.healthy = True
    for target in ALL:
        incident.decide(15.0, Action.RECOVER, target)
    # All four quarters of the new connections, for 3 s.
    assert incident.cost().new_waited_s == pytest.approx(3.0)


def withdrawn_and_back(incident: Incident) -> Cost:
    """A target is held for 3 s, withdrawn, and re-admitted."""
    incident.decide(10.0, Action.HOLD, ipv4=LOST, ipv6=LOST)
    incident.decide(13.0, Action.WITHDRAW, ipv4=LOST, ipv6=LOST)
    incident.commit(ALL, ALL - {1})
    incident.decide(15.0, Action.READMIT)
    incident.commit(ALL, ALL)
    return incident.cost()


def test_a_withdrawal_moves_the_targets_connections_and_a_readmission_those_that_began_meanwhile() -> None:
    without = withdrawn_and_back(Incident(Remembered.NONE))
    assert without.moved == pytest.approx(500, abs=2 * NEARLY)
    with_affinity = withdrawn_and_back(Incident(Remembered.INCIDENTS))
    assert with_affinity.moved == pytest.approx(250, abs=NEARLY)
    assert with_affinity.moved == without.moved / 2
    for cost in (without, with_affinity):
        assert (cost.too_soon, cost.in_vain) == (1, 0)
        assert cost.stalled_s == 250 * 3.0
        assert cost.total_s == pytest.approx(250 * 3.0 + cost.moved * BROKEN_S)


def test_a_table_that_moves_slots_of_others_breaks_only_connections_that_are_not_remembered() -> None:
    by_mode = {mode: withdrawn_and_back(Incident(mode, kind=TableKind.MAGLEV)) for mode in Remembered}
    moved = {mode: cost.moved for mode, cost in by_mode.items()}
    # A quarter is the target's own; some of the others' slots change too, on the way out and on the way back.
    assert moved[Remembered.ALL] == pytest.approx(250, abs=1)
    assert moved[Remembered.ALL] < moved[Remembered.INCIDENTS]
    assert moved[Remembered.NONE] == pytest.approx(2 * moved[Remembered.INCIDENTS])


def test_a_family_is_counted_by_itself() -> None:
    incident = Incident(Remembered.INCIDENTS)
    incident.decide(10.0, Action.HOLD, ipv6=LOST)
    incident.decide(13.0, Action.WITHDRAW_FAMILY, ipv6=LOST, withdrawn=True)
    incident.decide(70.0, Action.RECOVER)
    cost = incident.cost()
    # Half of a quarter of 1000 connections waits for 3 s, and is broken then.
    assert cost.stalled_s == 125 * 3.0
    assert cost.moved == 125
    assert cost.total_s == 125 * 3.0 + 125 * BROKEN_S
    assert cost.fallback == 100 * 3 / 2
    assert (cost.families, cost.families_too_soon, cost.withdrawn, cost.in_time) == (1, 1, 0, 0)
    assert cost.vain_s == 3.0
    [loss] = incident.account.losses
    assert loss.healed_s == 60.0


def test_a_family_that_is_back_in_time_is_a_hold_that_recovered() -> None:
    incident = Incident(Remembered.INCIDENTS)
    incident.decide(10.0, Action.HOLD, ipv6=LOST)
    incident.decide(12.0, Action.RECOVER)
    cost = incident.cost()
    assert (cost.families, cost.in_time, cost.moved) == (0, 1, 0)
    assert cost.total_s == 125 * 2.0


def test_a_target_that_loses_its_other_family_later_loses_the_rest_of_its_connections() -> None:
    incident = Incident(Remembered.INCIDENTS)
    incident.decide(10.0, Action.HOLD, ipv6=LOST)
    incident.decide(13.0, Action.WITHDRAW_FAMILY, ipv6=LOST, withdrawn=True)
    incident.decide(50.0, Action.REVISE, ipv4=LOST, ipv6=LOST, withdrawn=True)
    incident.decide(53.0, Action.WITHDRAW, ipv4=LOST, ipv6=LOST, withdrawn=True)
    incident.commit(ALL, ALL - {1})
    cost = incident.cost()
    assert cost.stalled_s == 125 * 3.0 + 125 * 3.0
    # The family that fell before does not move again.
    assert cost.moved == pytest.approx(125 + 125, abs=NEARLY)
    assert (cost.losses, cost.families, cost.withdrawn, cost.in_vain) == (2, 1, 1, 1)


def test_without_affinity_a_target_is_one_whole() -> None:
    incident = Incident(Remembered.NONE)
    incident.decide(10.0, Action.HOLD, ipv6=LOST)
    incident.decide(14.0, Action.RECOVER)
    assert incident.cost().stalled_s == 250 * 4.0


def removed(incident: Incident, *, after_drain: str = "") -> Cost:
    if after_drain:
        incident.decide(10.0, Action.DRAIN, 4, cause="source", deadline=40.0)
    incident.decide(30.0, Action.REMOVE, 4, cause=after_drain or "source")
    if incident.account._learns and incident.account._remembered is not Remembered.NONE:
        # The target gets no packets at once, the others' slots change when their flows were seen.
        incident.commit(ALL, ALL - {4})
    incident.commit(ALL - {4}, ALL - {4})
    return incident.cost()


def test_a_target_taken_off_the_list_breaks_its_own_connections_unless_it_drains() -> None:
    without, at_once = removed(Incident(Remembered.NONE)), removed(Incident(Remembered.INCIDENTS))
    assert at_once.moved_by_list == pytest.approx(250, abs=NEARLY)
    assert without.moved_by_list > at_once.moved_by_list, "slots of others change too"
    drained = removed(Incident(Remembered.INCIDENTS), after_drain="drain_idle")
    ended = removed(Incident(Remembered.INCIDENTS), after_drain="drain_window")
    assert drained.moved_by_list == ended.moved_by_list == 0
    assert [(cost.drains, cost.drained) for cost in (at_once, drained, ended)] == [(0, 0), (1, 1), (1, 0)]
    for cost in (without, at_once, drained, ended):
        assert cost.total_s == cost.moved == cost.losses == 0


def added(incident: Incident) -> Cost:
    incident.decide(10.0, Action.ADMIT, 5, cause="path_ok")
    incident.commit(ALL | {5}, ALL | {5})
    return incident.cost()


def test_an_added_target_takes_slots_of_others_and_no_flow_that_is_remembered() -> None:
    assert 200 - NEARLY <= added(Incident(Remembered.NONE)).moved_by_list <= 300
    assert added(Incident(Remembered.INCIDENTS)).moved_by_list == 0
    assert added(Incident(Remembered.INCIDENTS, learns=False)).moved_by_list > 150
    assert added(Incident(Remembered.ALL, learns=False)).moved_by_list == 0


def test_a_withdrawal_beside_a_removal_is_told_apart() -> None:
    incident = Incident(Remembered.INCIDENTS)
    incident.decide(10.0, Action.HOLD, 1, ipv4=LOST, ipv6=LOST)
    incident.decide(13.0, Action.WITHDRAW, 1, ipv4=LOST, ipv6=LOST)
    incident.decide(13.0, Action.REMOVE, 4, cause="source")
    incident.commit(ALL, frozenset({2, 3}))
    cost = incident.cost()
    assert cost.moved == pytest.approx(250, abs=NEARLY)
    # Some connections of the withdrawn target went to the removed one.
    assert 250 - NEARLY <= cost.moved_by_list <= 250 + 250 / 3 + 2 * NEARLY


def test_a_target_that_is_listed_again_counts_anew() -> None:
    incident = Incident(Remembered.INCIDENTS)
    removed(incident, after_drain="drain_idle")
    incident.decide(50.0, Action.ADMIT, 4, cause="path_ok")
    incident.commit(ALL, ALL)
    incident.decide(60.0, Action.HOLD, 4, ipv4=LOST, ipv6=LOST)
    incident.decide(63.0, Action.WITHDRAW, 4, ipv4=LOST, ipv6=LOST)
    incident.commit(ALL, ALL - {4})
    assert incident.cost().moved == pytest.approx(250, abs=NEARLY)
