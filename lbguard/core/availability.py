"""Availability of streams, as routers see it: whether this load balancer has a forwarding path. Losses are delayed.

It does not depend on the grace windows: while a table is held or frozen, routers should already send new traffic to
other load balancers (symptom S12).
"""

from lbguard.core.deadlines import Deadlines
from lbguard.core.effects import SetAvailability


class Availability:
    """Availability by stream name. A stream is unknown (None) until its first verdict."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._state: dict[str, tuple[bool, str]] = {}
        self._losing: Deadlines[str] = Deadlines()
        self._reasons: dict[str, str] = {}

    def get(self, name: str) -> tuple[bool | None, str]:
        """Return whether a stream is available, and the reason."""
        return self._state.get(name, (None, "starting"))

    def update(self, name: str, reason: str, now: float) -> list[SetAvailability]:
        """Apply the current condition of a stream: `ok`, or the reason why it has no usable path."""
        if reason == "ok":
            self._losing.cancel(name)
            return self._set(name, True, reason)
        self._reasons[name] = reason
        if self.get(name)[0] is not False and self._losing.get(name) is None:
            self._losing.set(name, now + self._grace_s)
        return self.expire(now)

    def expire(self, now: float) -> list[SetAvailability]:
        """Return the losses whose delay has passed by now."""
        effects = []
        for name in self._losing.pop_due(now):
            effects += self._set(name, False, self._reasons[name])
        return effects

    def postpone(self, until: float) -> None:
        """Delay every loss until a moment: a path that came back unobserved is being repaired."""
        for name in self._losing.pop_due(until):
            self._losing.set(name, until)

    def forget(self, name: str) -> list[SetAvailability]:
        """Forget a removed stream; if it was reported available, it is reported unavailable."""
        self._losing.cancel(name)
        self._reasons.pop(name, None)
        last = self._set(name, False, "stream_removed") if name in self._state else []
        self._state.pop(name, None)
        return last

    def next(self) -> float | None:
        """Return when the next loss is to be reported."""
        return self._losing.next()

    def _set(self, name: str, available: bool, reason: str) -> list[SetAvailability]:
        before = self._state.get(name)
        self._state[name] = (available, reason)
        if before is not None and before[0] is available:
            return []
        return [SetAvailability(stream=name, available=available, reason=reason)]
