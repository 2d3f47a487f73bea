"""New flows avoid a target that does not answer, long before its path counts as broken."""

from lbguard.core import events as ev
from lbguard.core.model import Condition, FamilySteering, NeighborState, TargetState
from tests.unit.core.harness import ipv4_of, ipv6_of
from tests.unit.core.test_affinity import ALL, two_links

WELL = FamilySteering(healthy=ALL, served=ALL)
WITHOUT_FIRST = FamilySteering(healthy=(5002, 5003), avoid=(5001,), served=ALL)
SECOND_ANNOUNCEMENT_S, SETTLED_S, LONG_S = 0.1, 0.5, 60.0


def test_one_failed_resolution_steers_new_flows_and_is_no_reason_to_hold() -> None:
    guard = two_links(ipv6=True)
    guard.fail_neighbor(ipv6_of(1), 1)
    steering = guard.now_steered()
    assert (steering.ipv4, steering.ipv6) == (WELL, WITHOUT_FIRST)
    assert not steering.learning
    assert guard.state(1) is TargetState.ACTIVE
    assert guard.target(1).paths[ipv6_of(1)].condition is Condition.OK
    # The kernel's next attempt is no answer yet.
    guard.neighbor(ipv6_of(1), NeighborState.INCOMPLETE)
    assert guard.now_steered().ipv6 == WITHOUT_FIRST
    guard.neighbor(ipv6_of(1), NeighborState.REACHABLE)
    assert guard.now_steered().ipv6 == WELL


def test_a_target_on_a_new_link_gets_new_flows_when_it_answers_there() -> None:
    guard = two_links()
    guard.unlink(1)
    guard.link(5)
    assert guard.state(1) is TargetState.ACTIVE
    assert guard.now_steered().ipv4 == WITHOUT_FIRST
    guard.neighbor(ipv4_of(2, 1), NeighborState.REACHABLE, link=2)
    assert guard.now_steered().ipv4 == WITHOUT_FIRST, "another target answered"
    guard.wait(SETTLED_S)
    assert guard.now_steered().ipv4 == WITHOUT_FIRST
    guard.neighbor(ipv4_of(1), NeighborState.STALE, link=5)
    assert guard.now_steered().ipv4 == WELL


def test_an_answer_is_too_early_while_the_other_end_may_not_know_our_new_address() -> None:
    guard = two_links()
    guard.unlink(1)
    guard.link(5)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, link=5)
    guard.wait(SECOND_ANNOUNCEMENT_S)
    assert guard.now_steered().ipv4 == WITHOUT_FIRST
    guard.wait(SETTLED_S)
    assert guard.now_steered().ipv4 == WELL


def test_a_link_that_was_down_is_awaited_as_a_new_one() -> None:
    guard = two_links()
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE)
    guard.tell(guard.link_seen(1, up=False, admin_up=False))
    guard.tell(guard.link_seen(1))
    assert guard.state(1) is TargetState.ACTIVE
    assert guard.now_steered().ipv4 == WITHOUT_FIRST
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE)
    guard.wait(SETTLED_S)
    assert guard.now_steered().ipv4 == WELL


def test_a_link_without_neighbour_entries_gets_new_flows_after_some_seconds() -> None:
    guard = two_links()
    guard.unlink(1)
    guard.link(5)
    guard.wait(LONG_S)
    assert guard.now_steered().ipv4 == WELL


def test_another_programs_entry_needs_no_answer() -> None:
    guard = two_links()
    guard.unlink(1)
    seen = ev.NeighborSeen(ifindex=5, ip=ipv4_of(1), state=NeighborState.FAILED, foreign=True)
    guard.tell(guard.link_seen(5), guard.address(5, "172.16.0.5/24"), seen)
    guard.wait(SETTLED_S)
    assert guard.now_steered().ipv4 == WELL


def test_where_nobody_answers_the_choice_of_the_table_stays() -> None:
    guard = two_links()
    for identifier, proxy, link in ((1, 0, 1), (2, 1, 2), (3, 1, 2)):
        guard.tell(ev.NeighborSeen(ifindex=link, ip=ipv4_of(identifier, proxy), state=NeighborState.FAILED))
    assert guard.now_steered().ipv4 == WELL


def test_a_target_that_may_not_answer_is_better_than_one_that_is_cut_off() -> None:
    guard = two_links()
    for identifier in (2, 3):
        guard.tell(ev.NeighborSeen(ifindex=2, ip=ipv4_of(identifier, 1), state=NeighborState.FAILED))
    guard.unlink(1)
    assert guard.now_steered().ipv4 == WITHOUT_FIRST
