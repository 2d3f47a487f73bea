"""Feeds for readers of the API: the last decisions, kept in bounded memory, and the load balancer's availability."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from lbguard.core.model import Decision, TargetKey

KEPT_OVERALL = 10_000
KEPT_PER_TARGET = 50
KEPT_TARGETS = 20_000


class Logged(NamedTuple):
    """A decision with the wall clock time it was taken at (seconds since the epoch)."""

    decision: Decision
    wall_time: float


class Missed(NamedTuple):
    """Gap in a reader's feed: how many decisions were dropped before the next because the reader was slow."""

    lost: int
    logged: Logged


class Subscription:
    """Decisions added since it was made, oldest first; use it as a context manager and an async iterator.

    At most `limit` wait; beyond that the oldest are dropped and counted in the next item's `lost`.
    """

    def __init__(self, log: "DecisionLog", limit: int) -> None:
        self._log = log
        self._waiting: deque[Logged] = deque()
        self._limit = limit
        self._lost = 0
        self._arrived = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Missed:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        lost, self._lost = self._lost, 0
        return Missed(lost, self._waiting.popleft())

    def close(self) -> None:
        """Receive nothing more."""
        self._log._subscriptions.discard(self)

    def _put(self, logged: Logged) -> None:
        if len(self._waiting) >= self._limit:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(logged)
        self._arrived.set()


class DecisionLog:
    """The last decisions overall and of each target. Everything happens in the thread of the event loop."""

    def __init__(
        self, *, overall: int = KEPT_OVERALL, per_target: int = KEPT_PER_TARGET, targets: int = KEPT_TARGETS
    ) -> None:
        self._all: deque[Logged] = deque(maxlen=overall)
        self._by_target: OrderedDict[TargetKey, deque[Logged]] = OrderedDict()
        self._per_target = per_target
        self._targets = targets
        self._subscriptions: set[Subscription] = set()

    def add(self, decision: Decision, wall_time: float) -> None:
        """Keep a decision and pass it to every subscription."""
        logged = Logged(decision, wall_time)
        self._all.append(logged)
        own = self._by_target.setdefault(decision.target, deque(maxlen=self._per_target))
        own.append(logged)
        self._by_target.move_to_end(decision.target)
        if len(self._by_target) > self._targets:
            self._by_target.popitem(last=False)  # the target that was quiet for longest
        for subscription in self._subscriptions:
            subscription._put(logged)

    def last(self, target: TargetKey | None, limit: int) -> Sequence[Logged]:
        """Return the last `limit` decisions, oldest first, of one target or (None) of all."""
        ring = self._all if target is None else self._by_target.get(target, deque[Logged]())
        # Iterating from the end costs as much as the requested number, not as much as the kept one.
        newest_first = [logged for logged, _ in zip(reversed(ring), range(limit), strict=False)]
        return newest_first[::-1]

    def subscribe(self, limit: int = 1000) -> Subscription:
        """Return a feed of the decisions from now on, of which at most `limit` wait for the reader."""
        subscription = Subscription(self, limit)
        self._subscriptions.add(subscription)
        return subscription


class AvailabilityState:
    """The availability of the whole, made of that of each stream. For one thread."""

    def __init__(self) -> None:
        self._streams: dict[str, bool] = {}
        self._names: set[str] | None = None
        self._stopped = False
        self._changed = asyncio.Event()
        self.value: bool | None = None
        """True if the load balancer can forward; None while that is not known."""

    def set(self, stream: str, available: bool) -> None:
        """Take the state of one stream (effect SetAvailability)."""
        self._streams[stream] = available
        self._update()

    def of(self, stream: str) -> bool | None:
        """Return whether a stream is available; None while that is not known."""
        return False if self._stopped else self._streams.get(stream)

    @property
    def stopped(self) -> bool:
        """Return whether the load balancer became unavailable for good."""
        return self._stopped

    def retain(self, streams: Iterable[str]) -> None:
        """Record the complete list of streams: others are removed, and unknown ones are waited for."""
        self._names = names = set(streams)
        self._streams = {name: available for name, available in self._streams.items() if name in names}
        self._update()

    def stop(self) -> None:
        """Become unavailable for good."""
        self._stopped = True
        self._update()

    async def changes(self) -> AsyncIterator[bool]:
        """Yield the state once it is known, and each time that it differs from the last yielded one.

        A slow watcher gets only the newest state.
        """
        reported: bool | None = None
        while True:
            changed, value = self._changed, self.value
            if value is None or value is reported:
                await changed.wait()
            else:
                reported = value
                yield value

    def _update(self) -> None:
        value: bool | None = None
        if self._stopped:
            value = False
        elif any(self._streams.values()):
            value = True
        elif self._names is not None and self._names <= self._streams.keys():
            value = False
        elif self.value is not None:
            # A stream came that is not known yet; that alone takes nothing back.
            value = self.value
        if value is not self.value:
            self.value = value
            self._changed.set()
            self._changed = asyncio.Event()
