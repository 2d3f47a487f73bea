"""Tickets: every verdict gets its own answer, and nothing is kept of those that were answered or given up."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.api.verdicts.queue import (
    OVERLOADED,
    Accounts,
    Limit,
    LimitExceeded,
    Shares,
    TokenBucket,
    VerdictQueue,
    size_of,
)
from lbguard.core.effects import VerdictAnswered
from lbguard.core.events import VerdictReported
from lbguard.core.model import ConnectionSubject, TargetSubject, Verdict, VerdictState
from lbguard.core.opinions import REMEMBERED_S
from lbguard.settings.verdicts import VerdictLimits


def verdicts(*numbers: int, lease_s: float = 10.0) -> list[Verdict]:
    """Return verdicts on targets by number."""
    return [
        Verdict(
            subject=TargetSubject(ip=number.to_bytes(4)),
            state=VerdictState.UP,
            generation=1,
            sequence=1,
            lease_s=lease_s,
        )
        for number in numbers
    ]


def refused(limit: Limit, words: str) -> "pytest.RaisesExc[LimitExceeded]":
    return pytest.RaisesExc(LimitExceeded, match=rf"^verdicts\.{limit}: .*{words}", check=lambda e: e.limit is limit)


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(10.0, 5, now=100.0)
    assert bucket.take(5, 100.0) == 0
    assert bucket.take(1, 100.0) == pytest.approx(0.1)
    assert bucket.take(1, 100.1) == 0
    assert not bucket.full(100.2)
    assert bucket.full(200.0)
    assert bucket.take(6, 200.0) == float("inf")


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 60)), max_size=60))
def test_a_bucket_never_gives_more_than_burst_and_rate(steps: list[tuple[float, int]]) -> None:
    bucket = TokenBucket(20.0, 50, now=0.0)
    now, given_out = 0.0, 0
    for pause_s, tokens in steps:
        now += pause_s
        if bucket.take(tokens, now) == 0:
            given_out += tokens
        assert given_out <= 50 + 20 * now + 1e-6


def test_a_clock_that_steps_back_gives_nothing_and_takes_nothing() -> None:
    bucket = TokenBucket(10.0, 10, now=100.0)
    assert bucket.take(5, 90.0) == 0
    assert bucket.take(5, 90.0) == 0
    assert bucket.take(1, 90.0) > 0


def test_the_rate_counts_verdicts_and_says_when_to_come_again() -> None:
    accounts = Accounts(VerdictLimits(rate=10, burst=20, per_request_max=20))
    accounts.enter("id", "a", 0.0)
    accounts.charge("a", 15, 0.0)
    with refused(Limit.RATE, "10 verdicts a second, 20 at once; try again in 0.500 s"):
        accounts.charge("a", 10, 0.0)
    accounts.charge("a", 10, 0.5)


def test_an_empty_request_costs_as_much_as_one_verdict() -> None:
    accounts = Accounts(VerdictLimits(rate=1, burst=3, per_request_max=3))
    accounts.enter("id", "a", 0.0)
    for _ in range(3):
        accounts.charge("a", 0, 0.0)
    with refused(Limit.RATE, "try again"):
        accounts.charge("a", 0, 0.0)


def test_one_reporter_does_not_pay_for_another() -> None:
    accounts = Accounts(VerdictLimits(rate=1, burst=2, per_request_max=2))
    for name in ("a", "b"):
        accounts.enter(name, name, 0.0)
        accounts.charge(name, 2, 0.0)


def test_a_request_has_a_largest_size() -> None:
    accounts = Accounts(VerdictLimits(per_request_max=4))
    accounts.enter("id", "a", 0.0)
    accounts.charge("a", 4, 0.0)
    with refused(Limit.REQUEST, "5 verdicts in one request; at most 4"):
        accounts.charge("a", 5, 0.0)


def test_subjects_count_until_their_lease_ends() -> None:
    accounts = Accounts(VerdictLimits(subjects_max=3))
    accounts.enter("id", "a", 0.0)
    accounts.hold("a", verdicts(1, 2, 3, lease_s=10), 0.0)
    accounts.hold("a", verdicts(1, 2, 3, lease_s=10), 5.0)
    with refused(Limit.SUBJECTS, "at most 3 subjects of one reporter"):
        accounts.hold("a", verdicts(4), 15.0 + REMEMBERED_S - 0.1)
    accounts.hold("a", verdicts(4), 16.0 + REMEMBERED_S)
    assert accounts.subjects == 1


def test_a_verdict_with_a_short_lease_gives_no_room_back_early() -> None:
    accounts = Accounts(VerdictLimits(subjects_max=1))
    accounts.enter("id", "a", 0.0)
    accounts.hold("a", verdicts(1, lease_s=100), 0.0)
    # It may well be too late to count, and the one before stays in force.
    accounts.hold("a", verdicts(1, lease_s=0.01), 1.0)
    with refused(Limit.SUBJECTS, "at most 1"):
        accounts.hold("a", verdicts(2), 50.0)


def test_a_connection_counts_for_every_four_of_its_addresses() -> None:
    accounts = Accounts(VerdictLimits(subjects_max=8))

    def of_connection(id: str, addresses: int) -> list[Verdict]:
        ips = tuple(number.to_bytes(4) for number in range(addresses))
        subject = ConnectionSubject(id=id, lb_ips=ips[:16], peer_ips=ips[16:])
        return [Verdict(subject=subject, state=VerdictState.UP, generation=1, sequence=1, lease_s=10.0)]

    assert [size_of(of_connection("c", count)[0].subject) for count in (0, 1, 4, 5, 32)] == [1, 1, 1, 2, 8]
    accounts.enter("id", "a", 0.0)
    accounts.hold("a", of_connection("c", 1), 0.0)
    accounts.hold("a", of_connection("c", 28), 0.0)
    assert accounts.subjects == 7
    with refused(Limit.SUBJECTS, "at most 8"):
        accounts.hold("a", of_connection("d", 8), 0.0)
    accounts.hold("a", of_connection("c", 1), 0.0)
    assert accounts.subjects == 7


def test_what_is_kept_of_a_subject_is_small() -> None:
    accounts = Accounts(VerdictLimits())
    accounts.enter("id", "a", 0.0)
    subject = ConnectionSubject(id="x" * 253, lb_ips=tuple(number.to_bytes(16) for number in range(16)))
    accounts.hold("a", [Verdict(subject=subject, state=VerdictState.UP, generation=1, sequence=1, lease_s=10.0)], 0.0)
    (key,) = accounts._accounts["a"].held
    assert len(key) <= 33


def test_a_request_that_is_refused_takes_up_nothing() -> None:
    accounts = Accounts(VerdictLimits(subjects_max=3))
    accounts.enter("id", "a", 0.0)
    accounts.hold("a", verdicts(1), 0.0)
    with refused(Limit.SUBJECTS, "at most 3"):
        accounts.hold("a", verdicts(2, 3, 4), 0.0)
    assert accounts.subjects == 1
    accounts.hold("a", verdicts(2, 2, 3, 3), 0.0)
    assert accounts.subjects == 3


def test_all_reporters_together_have_a_limit() -> None:
    accounts = Accounts(VerdictLimits(subjects_total_max=4))
    for name in ("a", "b"):
        accounts.enter(name, name, 0.0)
    accounts.hold("a", verdicts(1, 2, 3), 0.0)
    accounts.hold("b", verdicts(1), 0.0)
    with refused(Limit.SUBJECTS_TOTAL, "at most 4 subjects of all reporters"):
        accounts.hold("b", verdicts(2), 0.0)
    accounts.hold("b", verdicts(1), 1.0)
    accounts.hold("b", verdicts(2, 3), 10.5 + REMEMBERED_S)
    assert accounts.subjects == 3


@given(st.integers(1, 50), st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-3, 5)), max_size=80))
def test_room_is_shared_so_that_whoever_comes_next_finds_some(total: int, steps: list[tuple[str, int]]) -> None:
    shares = Shares(total)
    for owner, change in steps:
        if change > 0 and shares.allows(owner, change):
            shares.add(owner, change)
        elif change < 0 and shares.of(owner) >= -change:
            shares.remove(owner, -change)
        assert shares.taken == sum(map(shares.of, "abcd")) <= total
    greedy = Shares(1000)
    for owner in "abc":
        while greedy.allows(owner):
            greedy.add(owner)
    assert [greedy.of(owner) for owner in "abc"] == [800, 160, 32]
    assert greedy.allows("newcomer")


def test_names_get_an_identity_no_more_than_its_share() -> None:
    accounts = Accounts(VerdictLimits(reporters_max=10, subjects_total_max=100, subjects_max=100))
    for number in range(8):
        accounts.enter("greedy", f"greedy#{number}", 0.0)
        accounts.hold(f"greedy#{number}", verdicts(*range(10 * number, 10 * number + 10), lease_s=1e9), 0.0)
    with refused(Limit.REPORTERS, "8 of 10 reporters are there, 8 of them by this identity"):
        accounts.enter("greedy", "greedy#8", 0.0)
    with refused(Limit.SUBJECTS_TOTAL, "80 of them are this identity's"):
        accounts.hold("greedy#0", verdicts(1000), 0.0)
    accounts.enter("other", "other", 0.0)
    accounts.hold("other", verdicts(*range(16)), 0.0)


def test_a_reporter_is_forgotten_only_when_it_is_as_good_as_new() -> None:
    accounts = Accounts(VerdictLimits(reporters_max=1, rate=1, burst=4, per_request_max=4))

    def another() -> "pytest.RaisesExc[LimitExceeded]":
        return refused(Limit.REPORTERS, "1 of 1 reporters are there")

    accounts.enter("id", "a", 0.0)
    accounts.charge("a", 4, 0.0)
    accounts.hold("a", verdicts(1, lease_s=8.0), 0.0)
    with another():  # its call is open
        accounts.enter("id", "b", 1.0)
    accounts.leave("a")
    with another():  # its bucket is empty
        accounts.enter("id", "b", 3.0)
    with another():  # a lease runs
        accounts.enter("id", "b", 5.0)
    accounts.enter("id", "b", 9.0 + REMEMBERED_S)
    assert accounts.reporters == 1


def test_looking_for_room_again_and_again_costs_little() -> None:
    accounts = Accounts(VerdictLimits(subjects_max=2))
    accounts.enter("id", "a", 0.0)
    accounts.hold("a", verdicts(1, 2, lease_s=0.1), 0.0)
    later = REMEMBERED_S + 0.2
    accounts.hold("a", verdicts(3, 4, lease_s=0.1), later)
    with refused(Limit.SUBJECTS, "at most 2"):
        accounts.hold("a", verdicts(5), 2 * later - 0.3)
    with refused(Limit.SUBJECTS, "at most 2"):  # they are over, but the last look was less than a second ago
        accounts.hold("a", verdicts(5), 2 * later)
    accounts.hold("a", verdicts(5), 2 * later + 0.8)


def test_a_reporter_has_a_few_calls_at_once() -> None:
    accounts = Accounts(VerdictLimits(calls_max=2))
    for _ in range(2):
        accounts.enter("id", "a", 0.0)
    accounts.enter("id", "b", 0.0)
    with refused(Limit.CALLS, "2 calls of this reporter are open already"):
        accounts.enter("id", "a", 0.0)
    accounts.leave("a")
    accounts.enter("id", "a", 0.0)


def verdict(sequence: int = 1) -> Verdict:
    subject = TargetSubject(ip=b"\x0a\x00\x00\x01")
    return Verdict(subject=subject, state=VerdictState.UP, generation=1, sequence=sequence, lease_s=1.0)


class Inbox:
    """A runner's inbox with room for `room` verdicts."""

    def __init__(self, room: int = 100) -> None:
        self.posted: list[VerdictReported] = []
        self._room = room

    def post(self, event: VerdictReported) -> bool:
        if len(self.posted) >= self._room:
            return False
        self.posted.append(event)
        return True


async def test_a_verdict_is_handed_on_with_its_reporter_and_answered_by_its_ticket() -> None:
    inbox = Inbox()
    desk = VerdictQueue(inbox.post)
    first, second = desk.submit("a", verdict(1)), desk.submit("b", verdict(2))
    assert [(event.reporter, event.verdict.sequence) for event in inbox.posted] == [("a", 1), ("b", 2)]
    assert len({event.ticket for event in inbox.posted}) == 2
    late = VerdictAnswered(ticket=inbox.posted[1].ticket, reason="late", generation=7)
    desk.answered(late)
    assert await second == late
    assert not first.done()
    desk.answered(VerdictAnswered(ticket=inbox.posted[0].ticket))
    assert (await first).reason == ""


async def test_what_finds_no_room_is_answered_at_once_and_may_come_again() -> None:
    inbox = Inbox(room=1)
    desk = VerdictQueue(inbox.post)
    desk.submit("a", verdict(1))
    refused = desk.submit("a", verdict(2))
    assert (await refused).reason == OVERLOADED
    inbox.posted.clear()
    again = desk.submit("a", verdict(2))
    desk.answered(VerdictAnswered(ticket=inbox.posted[0].ticket))
    assert (await again).reason == ""


async def test_an_answer_to_nobody_is_no_error() -> None:
    inbox = Inbox()
    desk = VerdictQueue(inbox.post)
    given_up = desk.submit("a", verdict())
    ticket = inbox.posted[0].ticket
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    desk.answered(VerdictAnswered(ticket=ticket))
    desk.answered(VerdictAnswered(ticket=ticket, reason="repeated"))
    desk.answered(VerdictAnswered(ticket=999))


async def test_an_answer_after_giving_up_in_the_same_turn_is_no_error() -> None:
    inbox = Inbox()
    desk = VerdictQueue(inbox.post)
    answer = desk.submit("a", verdict())
    answer.cancel()
    desk.answered(VerdictAnswered(ticket=inbox.posted[0].ticket))
    assert answer.cancelled()


async def test_nothing_is_kept_of_what_is_over() -> None:
    inbox = Inbox(room=3)
    desk = VerdictQueue(inbox.post)
    answered, cancelled, waiting, refused = (desk.submit("a", verdict(number)) for number in range(4))
    cancelled.cancel()
    desk.answered(VerdictAnswered(ticket=inbox.posted[0].ticket))
    assert answered.done()
    assert refused.done()
    # What was given up stands in the runner's inbox still, and takes up its place until the core has had it.
    assert list(desk._waiting) == [event.ticket for event in inbox.posted[1:]]
    assert not waiting.done()
    for event in inbox.posted[1:]:
        desk.answered(VerdictAnswered(ticket=event.ticket))
    assert desk._waiting == {}


async def test_one_identity_leaves_room_for_others_under_whatever_names() -> None:
    inbox = Inbox(room=1000)
    desk = VerdictQueue(inbox.post, waiting_max=100)
    for number in range(200):
        # Giving up at once makes no room: the verdict waits for the core all the same.
        desk.submit(f"dns:greedy#{number}", verdict(number)).cancel()
    assert len(inbox.posted) == 80
    other = desk.submit("dns:other@10.0.0.1", verdict())
    assert not other.done()
    desk.answered(VerdictAnswered(ticket=inbox.posted[80].ticket))
    assert (await other).reason == ""
