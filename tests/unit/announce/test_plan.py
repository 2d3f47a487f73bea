"""The pacing of announcements, with the time as an argument."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.announce.plan import Announcement, Entry, Plan
from lbguard.core.model import LinkKey

A = LinkKey(3, 1)
B = LinkKey(4, 1)


def entry(link: LinkKey, number: int, at: float, mac: int = 1) -> Entry:
    announcement = Announcement(link=link, mac=bytes([2, 0, 0, 0, 0, mac]), asked_at=at)
    return Entry(announcement=announcement, ip=bytes([10, 0, 0, number]))


def make_plan(*offsets: float, limit: int = 1000) -> Plan:
    return Plan(repeats_s=offsets, max_waiting=limit)


def serve(plan: Plan, now: float, limit: int = 1000) -> list[int]:
    """Send what is due and return the last bytes of the addresses, in order."""
    served: list[int] = []
    while len(served) < limit and (due := plan.take_due(now)) is not None:
        served.append(due.ip[-1])
        plan.sent(due, now)
    return served


def test_an_address_is_due_at_once_and_then_at_each_offset() -> None:
    plan = make_plan(0, 0.5, 2)
    plan.add(entry(A, 1, 100))
    assert plan.next_due() == 100
    assert serve(plan, 100) == [1]
    assert plan.next_due() == 100.5
    assert serve(plan, 100.4375) == []
    assert serve(plan, 100.5) == [1]
    assert plan.next_due() == 102
    assert serve(plan, 102) == [1]
    assert plan.next_due() is None
    assert len(plan) == 0


def test_offsets_count_from_the_first_send_even_when_it_came_late() -> None:
    plan = make_plan(0, 0.5, 2)
    plan.add(entry(A, 1, 100))
    assert serve(plan, 101) == [1]
    assert plan.next_due() == 101.5


def test_one_send_stands_for_all_that_were_missed() -> None:
    plan = make_plan(0, 0.5, 1, 8)
    plan.add(entry(A, 1, 100))
    serve(plan, 100)
    assert serve(plan, 103) == [1]
    assert plan.next_due() == 108
    assert serve(plan, 200) == [1]
    assert len(plan) == 0


def test_the_same_link_and_address_is_merged_and_starts_over() -> None:
    plan = make_plan(0, 0.5, 2)
    assert not plan.add(entry(A, 1, 100, mac=1))
    serve(plan, 100)
    assert plan.add(entry(A, 1, 100.25, mac=2))
    assert len(plan) == 1
    due = plan.take_due(100.25)
    assert due is not None
    assert due.announcement.mac[-1] == 2
    plan.sent(due, 100.25)
    assert plan.next_due() == 100.75


def test_the_same_address_on_another_link_or_generation_is_another_entry() -> None:
    plan = make_plan(0, 0.5)
    assert not plan.add(entry(A, 1, 100))
    assert not plan.add(entry(B, 1, 100))
    assert not plan.add(entry(LinkKey(A.ifindex, A.generation + 1), 1, 100))
    assert len(plan) == 3


def test_first_sends_go_before_repeats() -> None:
    plan = make_plan(0, 0.5)
    plan.add(entry(A, 1, 100))
    serve(plan, 100)
    plan.add(entry(A, 2, 100.75))
    assert serve(plan, 100.75) == [2, 1]


def test_falling_behind_leaves_every_queue_sorted() -> None:
    plan = make_plan(0, 1, 3, 7)
    plan.add(entry(A, 1, 100))
    serve(plan, 100)
    assert serve(plan, 101) == [1]
    plan.add(entry(A, 2, 102))
    serve(plan, 102)
    # Both are overdue: the older for its third send, the younger for its second and its third, so both wait for the
    # last one next, and must do so in the order of their first sends.
    assert serve(plan, 105.5) == [1, 2]
    assert plan.next_due() == 107
    assert serve(plan, 107) == [1]
    assert serve(plan, 109) == [2]


def test_an_entry_that_is_not_given_back_is_cancelled() -> None:
    plan = make_plan(0, 0.5)
    plan.add(entry(A, 1, 100))
    assert plan.take_due(100) is not None
    assert len(plan) == 0
    assert plan.next_due() is None


def test_the_bound_counts_all_links_and_merging_passes_it() -> None:
    plan = make_plan(0, 0.5, limit=3)
    for link, number in ((A, 1), (A, 2), (B, 1)):
        assert plan.has_room(link, bytes([10, 0, 0, number]))
        plan.add(entry(link, number, 100))
    assert not plan.has_room(A, bytes([10, 0, 0, 3]))
    assert not plan.has_room(B, bytes([10, 0, 0, 2]))
    assert plan.has_room(A, bytes([10, 0, 0, 2]))
    assert plan.add(entry(A, 2, 101))
    assert len(plan) == 3
    assert plan.clear() == 3
    assert plan.has_room(A, bytes([10, 0, 0, 3]))


@pytest.mark.parametrize("offsets", [(), (0.5,), (0, 0), (0, 2, 1), (-1, 0)])
def test_offsets_that_are_no_schedule_are_refused(offsets: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="start with 0 and increase"):
        make_plan(*offsets)


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_plan(0, limit=0)


@dataclass
class Waiting:
    """What the model knows of one address: when its schedule started and which offsets were not sent yet."""

    started_at: float | None
    left: list[float]


OFFSETS = (0.0, 1.0, 3.0, 7.0)

steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 5)),
        st.tuples(st.just("wait"), st.integers(0, 9)),
        st.tuples(st.just("serve"), st.integers(1, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 0)),
    ),
    max_size=60,
)


def next_due_of(waiting: Waiting, asked_at: float) -> float:
    return asked_at if waiting.started_at is None else waiting.started_at + waiting.left[0]


@given(steps)
def test_nothing_is_sent_early_forgotten_or_sent_twice(actions: list[tuple[str, int]]) -> None:
    """Compared with a model that looks at every address each time, under lateness, budgets and cancellation."""
    plan = make_plan(*OFFSETS)
    model: dict[int, Waiting] = {}
    asked: dict[int, float] = {}
    now = 0.0
    for action, value in actions:
        if action == "add":
            assert plan.add(entry(A, value, now)) == (value in model)
            model[value], asked[value] = Waiting(None, list(OFFSETS[1:])), now
        elif action == "wait":
            now += value / 2
        else:
            for _ in range(value or 1):
                due = {number for number, waiting in model.items() if next_due_of(waiting, asked[number]) <= now}
                first_sends = {number for number in due if model[number].started_at is None}
                taken = plan.take_due(now)
                if taken is None:
                    assert not due
                    break
                number = taken.ip[-1]
                assert number in (first_sends or due)
                if action == "cancel":
                    del model[number]
                    continue
                plan.sent(taken, now)
                waiting = model[number]
                waiting.started_at = started = now if waiting.started_at is None else waiting.started_at
                waiting.left = [offset for offset in waiting.left if started + offset > now]
                if not waiting.left:
                    del model[number]
        assert len(plan) == len(model)
        expected = min((next_due_of(waiting, asked[number]) for number, waiting in model.items()), default=None)
        assert plan.next_due() == expected


def test_other_offsets_count_for_the_addresses_that_wait() -> None:
    plan = make_plan(0, 1, 2, 3)
    for number, at in ((1, 100.0), (2, 100.5)):
        plan.add(entry(A, number, at))
        serve(plan, at)
    assert serve(plan, 101) == [1]
    plan.add(entry(A, 3, 101.25))
    plan.configure(repeats_s=(0, 0.5), max_waiting=1000)
    # The first was sent twice already; the second is due since 101; the third was not sent.
    assert serve(plan, 101.25) == [3, 2]
    assert serve(plan, 101.75) == [3]
    assert plan.next_due() is None
    assert len(plan) == 0


def test_a_lower_bound_refuses_only_others() -> None:
    plan = make_plan(0, 1)
    for number in (1, 2):
        plan.add(entry(A, number, 100))
    plan.configure(repeats_s=(0, 1), max_waiting=1)
    assert not plan.has_room(A, bytes([10, 0, 0, 3]))
    assert serve(plan, 100) == [1, 2]
    with pytest.raises(ValueError, match="start with 0"):
        plan.configure(repeats_s=(1,), max_waiting=1)
