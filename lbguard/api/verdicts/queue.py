"""Between the verdict service and the runner: a verdict goes in with a ticket, and its answer finds the way back."""

import asyncio
import itertools
from collections.abc import Callable

from lbguard.api.verdicts.limits import Shares
from lbguard.api.verdicts.policy import identity_of
from lbguard.core.effects import VerdictAnswered
from lbguard.core.events import VerdictReported
from lbguard.core.model import Verdict

VERDICTS_WAITING_MAX = 8_192
"""So many verdicts wait for the core at most; more are answered `overloaded`."""

OVERLOADED = "overloaded"
"""The reason given when too many verdicts wait already; the reporter may send the same again."""

IGNORED_REASONS = ("late", "repeated", "ended", "state_full", OVERLOADED)
"""Reasons for which a verdict changes nothing (`core.evidence`, and here)."""


class VerdictQueue:
    """Queue that passes verdicts to the runner and waits for the core's answer to each.

    Args:
        post: the runner's inbox.
        waiting_max: how many may wait there; each identity has its share of it.
    """

    def __init__(self, post: Callable[[VerdictReported], bool], waiting_max: int = VERDICTS_WAITING_MAX) -> None:
        self._post = post
        self._tickets = itertools.count(1)
        # A verdict without a waiting caller keeps its place until the core has processed it.
        self._waiting: dict[int, tuple[str, asyncio.Future[VerdictAnswered]]] = {}
        self._shares = Shares(waiting_max)

    def submit(self, reporter: str, verdict: Verdict) -> asyncio.Future[VerdictAnswered]:
        """Submit a verdict; resolves to the core's answer. May be cancelled."""
        ticket, identity = next(self._tickets), identity_of(reporter)
        answer: asyncio.Future[VerdictAnswered] = asyncio.get_running_loop().create_future()
        event = VerdictReported(reporter=reporter, verdict=verdict, ticket=ticket)
        if self._shares.allows(identity) and self._post(event):
            self._shares.add(identity)
            self._waiting[ticket] = (identity, answer)
        else:
            answer.set_result(VerdictAnswered(ticket=ticket, reason=OVERLOADED))
        return answer

    def answered(self, effect: VerdictAnswered) -> None:
        """Apply the core's answer; its request may have ended already."""
        waiting = self._waiting.pop(effect.ticket, None)
        if waiting is None:
            return
        identity, answer = waiting
        self._shares.remove(identity)
        if not answer.done():
            answer.set_result(effect)
