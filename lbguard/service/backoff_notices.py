"""Tells targets to repeat lost replies at once, when the packets of their connections were given back."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from lbguard.parking.backoff import BackoffReverts, Unreachable
from lbguard.parking.frames import ParkedPacket
from lbguard.parking.sender import Outcome

_CONNECTIONS_PER_PASS: Final = 32
_PAUSE_S: Final = 0.001
"""Time between two passes."""


class BackoffNotices:
    """Sends the ICMP errors at their times, in small portions. `limit`: the most connections; 0 turns it off."""

    def __init__(self, limit: int, send: Callable[[Unreachable], Outcome]) -> None:
        self._reverts = BackoffReverts(limit)
        self._send = send
        self._pass: asyncio.TimerHandle | None = None
        self.sent = 0
        """Messages that were sent."""

    def given_back(self, parked: ParkedPacket, since: float, now: float) -> None:
        """Note that a packet was given back whose first copy arrived at a time (monotonic seconds)."""
        self._reverts.note(parked, since, now)

    def discard(self, mark: int, *, ipv4: bool) -> None:
        """Send no more messages to this family of a target."""
        self._reverts.discard(mark, ipv4=ipv4)

    def plan(self) -> None:
        """Plan the next pass, after packets were given back."""
        if self._pass is not None:
            return
        at = self._reverts.next_at()
        if at is not None:
            delay_s = max(_PAUSE_S, at - time.monotonic())
            self._pass = asyncio.get_running_loop().call_later(delay_s, self._send_due)

    def _send_due(self) -> None:
        self._pass = None
        for message in self._reverts.take(time.monotonic(), _CONNECTIONS_PER_PASS):
            if self._send(message) is Outcome.SENT:
                self.sent += message.times
        self.plan()
