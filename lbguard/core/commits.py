"""Effects per stream: commits of its slot table to the distributor, and its availability as routers see it.

Tables are attached, read back, committed where they differ, and retried after a failure. Only a loss of availability is
delayed.

Each stream has at most one commit in flight, and one effect carries the commits of all streams of a decision. Commits
are level-triggered: each carries the whole desired pair (registered, active), so the next one corrects a failed one.

Availability does not depend on the grace windows: while a table is held or frozen, routers should already send new
traffic to other load balancers (symptom S12).
"""

from typing import NamedTuple

from lbguard.core import events as ev
from lbguard.core.config import EngineConfig
from lbguard.core.deadlines import Deadlines, Retries
from lbguard.core.effects import AttachStream, CommitTables, Effect, SetAvailability
from lbguard.core.state import Stream
from lbguard.core.stream_registry import StreamRegistry


def availability_reason(stream: Stream, usable: int, config: EngineConfig, *, available: bool | None) -> str:
    """Return `ok`, or why a stream is not available.

    The quorum is never more than the targets that the source lists, or a stream with few of them would never be
    available. With hysteresis, a stream that flaps around its quorum makes one transition.

    Args:
        stream: the stream.
        usable: number of its targets that get new traffic.
        config: has quorum and hysteresis.
        available: as last reported.
    """
    if usable == 0:
        return "no_usable_path" if stream.targets else "no_targets"
    listed = sum(not target.unlisted for target in stream.targets.values())
    needed = max(1, config.availability_quorum.of(listed))
    if available is False:
        needed += config.availability_hysteresis.of(listed)
    return "ok" if usable >= min(needed, listed) else "below_quorum"


class Availability:
    """Availability by stream name. A stream is unknown (None) until its first verdict."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._state: dict[str, tuple[bool, str]] = {}
        self._losing: Deadlines[str] = Deadlines()
        self._reasons: dict[str, str] = {}

    def configure(self, config: EngineConfig, now: float) -> None:
        """Use another delay from now on, also for losses that wait: counted from the loss, and not before now."""
        longer_s, self._grace_s = config.availability_grace_s - self._grace_s, config.availability_grace_s
        if longer_s:
            for until, name in self._losing.in_order():
                self._losing.set(name, max(now, until + longer_s))

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


_ATTACHES_OF_REMOVED = 3
"""After so many failures in a row to attach, the table of a removed stream counts as gone."""


_FILLING_S = 1.0
"""A load balancer that starts registers its targets one after another in this time."""


class _Attempt(NamedTuple):
    what: str
    stream: str


class Commits:
    """Keeps the distributor's tables equal to the desired ones of the stream registry."""

    def __init__(self, config: EngineConfig, stream_registry: StreamRegistry) -> None:
        self._owns_tables = config.owns_paths
        self._learn_s = config.learn_s if config.affinity else 0.0
        self._learning: Deadlines[str] = Deadlines()
        self._steered = True
        self._stream_registry = stream_registry
        self._retries: Retries[_Attempt] = Retries(config.retry_min_s, config.retry_max_s)
        self._attaching: set[str] = set()

    def configure(self, config: EngineConfig, now: float) -> None:
        """Use another delay of changed lists from now on, also for those that wait."""
        before_s, self._learn_s = self._learn_s, config.learn_s if config.affinity else 0.0
        for until, name in self._learning.in_order() if self._learn_s != before_s else ():
            stream = self._stream_registry.streams.get(name)
            if stream is not None:
                stream.learn_until = max(now, until - before_s + self._learn_s)
                self._learning.set(name, stream.learn_until)

    def next(self) -> float | None:
        """Return when the next failed operation is due for a retry, or the next change that waits for flows."""
        return min((at for at in (self._retries.next(), self._learning.next()) if at is not None), default=None)

    def fire(self, now: float) -> None:
        """Queue the due retries, and confirm removals that need no commit.

        A target that was added and removed between two commits was never in the table, so no commit confirms its
        removal.
        """
        for name in list(self._stream_registry.review) if self._stream_registry.retiring else ():
            stream = self._stream_registry.streams.get(name)
            if stream is not None and stream.committed is not None and not stream.in_flight:
                self._stream_registry.confirm(stream, stream.committed[0], now)
        for name in self._learning.pop_due(now):
            if name in self._stream_registry.streams:
                self._stream_registry.review[name] = None
        for what, name in self._retries.pop_due(now):
            if name in self._stream_registry.streams:
                (self._stream_registry.attach if what == "attach" else self._stream_registry.review)[name] = None

    def seen(self, event: ev.DistributorSeen) -> None:
        """Apply a read-back. A difference from the last commit means another writer, or a new table."""
        stream = self._known(event.stream)
        if stream is None:
            return
        self._attaching.discard(event.stream)
        self._retries.succeeded(_Attempt("attach", event.stream))
        stream.active_seen = event.active
        if stream.committed and event.active != stream.committed[1] and self._owns_tables and not stream.in_flight:
            stream.committed = None
        self._stream_registry.review[event.stream] = None

    def lost(self, event: ev.DistributorLost) -> None:
        """Record that a table was removed or replaced: it is attached again, then committed again."""
        stream = self._known(event.stream)
        if stream is not None:
            stream.committed = stream.in_flight = stream.active_seen = None
            self._stream_registry.attach[event.stream] = None

    def done(self, event: ev.CommitDone, now: float) -> None:
        """Record a commit that took effect."""
        stream = self._known(event.stream)
        if stream is None:
            return
        self._retries.succeeded(_Attempt("commit", event.stream))
        if event.active and not (stream.committed or (None, stream.active_seen))[1]:
            stream.serves_since = now
        stream.committed, stream.in_flight = (event.registered, event.active), None
        self._stream_registry.review[event.stream] = None
        self._stream_registry.confirm(stream, event.registered, now)

    def failed(self, event: ev.CommitFailed, now: float) -> None:
        """Record a failure to attach or to commit; it is retried with backoff."""
        stream = self._known(event.stream)
        if stream is None:
            return
        what = "attach" if event.stream in self._attaching else "commit"
        self._attaching.discard(event.stream)
        stream.in_flight = None
        attempt = _Attempt(what, event.stream)
        self._retries.failed(attempt, now)
        if stream.removed and what == "attach" and self._retries.failures(attempt) >= _ATTACHES_OF_REMOVED:
            # The table cannot be attached, most likely because it was removed with the stream: no confirmation will
            # come.
            self._retries.succeeded(attempt)
            self._stream_registry.confirm(stream, frozenset(), now)

    def steered(self, in_force: bool) -> None:
        """Record whether the kernel remembers flows. If it does not, no change of a list waits for that."""
        self._steered = in_force
        if not in_force:
            waiting = [name for name, stream in self._stream_registry.streams.items() if stream.learn_until is not None]
            self._stream_registry.review.update(dict.fromkeys(waiting))

    def adoptable(self) -> list[tuple[Stream, frozenset[int]]]:
        """Return the streams that were read back and are not adopted yet, with their active identifiers."""
        streams = [self._stream_registry.streams[name] for name in self._stream_registry.review]
        return [(s, s.active_seen) for s in streams if not s.adopted and s.active_seen is not None]

    def take_effects(self, now: float) -> list[Effect]:
        """Return the attach and commit effects that are due, once."""
        stream_registry = self._stream_registry
        effects: list[Effect] = []
        for name in list(stream_registry.attach):
            stream = stream_registry.streams.get(name)
            if stream is not None and stream.in_flight:
                continue  # One operation at a time: a failure carries the stream's name only.
            del stream_registry.attach[name]
            if stream is not None and not self._retries.waiting(_Attempt("attach", name)):
                self._attaching.add(name)
                effects.append(AttachStream(stream=stream.spec))
        tables = []
        for name in stream_registry.review:
            stream = stream_registry.streams[name]
            if not stream.adopted or stream.active_seen is None or stream.in_flight or name in self._attaching:
                continue
            pair = self._after_learning(stream, now)
            if pair != stream.committed and not self._retries.waiting(_Attempt("commit", name)):
                stream.in_flight = pair
                tables.append(stream.table(pair))
        if tables:
            effects.append(CommitTables(tables=tuple(tables)))
        return effects

    def _after_learning(self, stream: Stream, now: float) -> tuple[frozenset[int], frozenset[int]]:
        """Return the pair to be committed now.

        A change of the registered targets moves flows of others. With flow affinity it waits for `learn_s`, in which
        the kernel remembers the flows that it sees; a target that is removed gets no packets from the start. A stream
        that has just begun to serve does not wait: its targets come one after another, and the first one must not get
        all flows. Nor does a change that leaves none of the earlier targets: it moves no flow that could stay.
        """
        pair, held = stream.desired_pair(), stream.committed
        waits = self._learn_s > 0 and self._steered and not stream.removed
        young = now < stream.serves_since + _FILLING_S
        if not waits or held is None or held[0] == pair[0] or not pair[1] & held[1] or young:
            stream.learn_until = None
            self._learning.cancel(stream.spec.name)
            return pair
        if stream.learn_until is None:
            stream.learn_until = now + self._learn_s
            self._learning.set(stream.spec.name, stream.learn_until)
        return pair if now >= stream.learn_until else (held[0], pair[1] & held[0])

    def _known(self, name: str) -> Stream | None:
        stream = self._stream_registry.streams.get(name)
        if stream is None:
            self._attaching.discard(name)
            self._stream_registry.ignored["stream_unknown"] += 1
        return stream
