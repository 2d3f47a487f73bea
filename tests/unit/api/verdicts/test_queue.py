"""Tickets: every verdict gets its own answer, and nothing is kept of those that were answered or given up."""

import asyncio

import pytest

from lbguard.api.verdicts.queue import OVERLOADED, VerdictQueue
from lbguard.core.effects import VerdictAnswered
from lbguard.core.events import VerdictReported
from lbguard.core.model import TargetSubject, Verdict, VerdictState


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
