"""Tickets: every verdict gets its own answer, and nothing is kept of those that were answered or given up."""

import asyncio

import pytest

from lbguard.core.effects import VerdictAnswered
from lbguard.core.events import VerdictReported
from lbguard.core.model import TargetSubject, Verdict, VerdictState
from lbguard.service.verdict_desk import OVERLOADED, VerdictDesk


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
    desk = VerdictDesk(inbox.post)
    first, second = desk.submit("a", verdict(1)), desk.submit("b", verdict(2))
    assert [(event.reporter, event.verdict.sequence) for event in inbox.posted] == [("a", 1), ("b", 2)]
    assert len({event.ticket for event in inbox.posted}) == 2
    desk.answered(VerdictAnswered(ticket=inbox.posted[1].ticket, reason="late"))
    assert await second == "late"
    assert not first.done()
    desk.answered(VerdictAnswered(ticket=inbox.posted[0].ticket))
    assert await first == ""


async def test_what_finds_no_room_is_answered_at_once_and_may_come_again() -> None:
    inbox = Inbox(room=1)
    desk = VerdictDesk(inbox.post)
    desk.submit("a", verdict(1))
    refused = desk.submit("a", verdict(2))
    assert await refused == OVERLOADED
    inbox.posted.clear()
    again = desk.submit("a", verdict(2))
    desk.answered(VerdictAnswered(ticket=inbox.posted[0].ticket))
    assert await again == ""


async def test_an_answer_to_nobody_is_no_error() -> None:
    inbox = Inbox()
    desk = VerdictDesk(inbox.post)
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
    desk = VerdictDesk(inbox.post)
    answer = desk.submit("a", verdict())
    answer.cancel()
    desk.answered(VerdictAnswered(ticket=inbox.posted[0].ticket))
    assert answer.cancelled()


async def test_nothing_is_kept_of_what_is_over() -> None:
    inbox = Inbox(room=3)
    desk = VerdictDesk(inbox.post)
    answered, cancelled, waiting, refused = (desk.submit("a", verdict(number)) for number in range(4))
    desk.answered(VerdictAnswered(ticket=inbox.posted[0].ticket))
    cancelled.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert answered.done()
    assert refused.done()
    assert list(desk._waiting) == [inbox.posted[2].ticket]
    assert not waiting.done()
