"""Between the verdict service and the runner: a verdict goes in with a ticket, and its answer finds the way back."""

import asyncio
import itertools
from collections.abc import Callable

from lbguard.core.effects import VerdictAnswered
from lbguard.core.events import VerdictReported
from lbguard.core.model import Verdict

OVERLOADED = "overloaded"
"""The reason given when too many verdicts wait already; the reporter may send the same again."""

IGNORED_REASONS = ("late", "repeated", "ended", "state_full", OVERLOADED)
"""Why a verdict may change nothing, by name (`core.evidence`, and here)."""


class VerdictDesk:
    """Hands verdicts to the runner and waits for what the core makes of each. `post` is the runner's inbox."""

    def __init__(self, post: Callable[[VerdictReported], bool]) -> None:
        self._post = post
        self._tickets = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[str]] = {}

    def submit(self, reporter: str, verdict: Verdict) -> asyncio.Future[str]:
        """Hand a verdict in; resolves to the reason why it was ignored, or to an empty text. May be cancelled."""
        ticket = next(self._tickets)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if self._post(VerdictReported(reporter=reporter, verdict=verdict, ticket=ticket)):
            self._waiting[ticket] = answer
            answer.add_done_callback(lambda _: self._waiting.pop(ticket, None))
        else:
            answer.set_result(OVERLOADED)
        return answer

    def answered(self, effect: VerdictAnswered) -> None:
        """Take the core's answer; nobody may wait for it any more."""
        answer = self._waiting.get(effect.ticket)
        if answer is not None and not answer.done():
            answer.set_result(effect.reason)
