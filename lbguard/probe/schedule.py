"""Schedule of pings (a timer wheel, and the moments of a round), and the timer that drives it."""

import asyncio
import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

T = TypeVar("T")

JITTER: Final = 0.1
"""Each ping is moved by a random part of up to this share of the time between two pings, so that nothing locks step."""

TICK_MIN_S: Final = 0.001
TICK_MAX_S: Final = 0.01


def tick_s(spacing_s: float) -> float:
    """Return the resolution of times: a fraction of the time between two pings, within bounds."""
    return min(TICK_MAX_S, max(TICK_MIN_S, spacing_s / 20))


def ping_offset_s(number: int, spacing_s: float, chance: float) -> float:
    """Return when a ping of a round leaves, from the start of the round.

    Args:
        number: which ping, from 0.
        spacing_s: the timeout of the round over its pings.
        chance: a random number in [0, 1).
    """
    return (number + JITTER * chance) * spacing_s


def next_start(started: float, interval_s: float, now: float) -> float:
    """Return the beginning of the round after the one begun at `started`, in step with it.

    It may be slightly in the past, because rounds are judged after their end; rounds further in the past are skipped.
    """
    behind_s = now - (started + interval_s)
    return started + interval_s * (1 + max(0, round(behind_s / interval_s)))


def spread_starts(count: int, interval_s: float, now: float) -> Iterator[float]:
    """Yield when the first rounds of connections that came together begin: evenly over an interval, the first now."""
    for number in range(count):
        yield now + interval_s * number / count


class Wheel(Generic[T]):
    """Items by moment, rounded up to ticks, so that thousands of items need one timer and no sorting.

    Adding costs O(1) but for the first item of a tick.
    """

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._slots: dict[int, list[T]] = {}
        self._order: list[int] = []

    def add(self, at: float, item: T) -> None:
        """Add an item that is due at a moment."""
        number = math.ceil(at / self._tick)
        slot = self._slots.get(number)
        if slot is None:
            self._slots[number] = [item]
            heapq.heappush(self._order, number)
        else:
            slot.append(item)

    def next(self) -> float | None:
        """Return the earliest moment at which something is due, if there is any."""
        return self._order[0] * self._tick if self._order else None

    def pop_due(self, now: float) -> list[tuple[float, list[T]]]:
        """Remove and return the items due at or before `now`, with their times, earliest first."""
        due = []
        while self._order and self._order[0] * self._tick <= now:
            number = heapq.heappop(self._order)
            due.append((number * self._tick, self._slots.pop(number)))
        return due


class PollTimer:
    """One timer that calls a step function when something is due or readable, but not more often than a tick.

    At thousands of replies a second, waking for each would cost more than all the rest. The kernel stamped them on
    arrival, so they lose nothing by waiting for the next tick.

    Args:
        step: called from the event loop; an exception ends `run` with it.
        next_due: when `step` has something to do, in seconds of `clock`.
        clock: seconds, monotonic.
        tick_s: least time between two steps.
    """

    def __init__(
        self, step: Callable[[], None], next_due: Callable[[], float | None], clock: Callable[[], float], tick_s: float
    ) -> None:
        self._step = step
        self._next_due = next_due
        self._clock = clock
        self._tick_s = tick_s
        self._stepped_at = clock()
        self._readers: Sequence[int] = ()
        self._unwatched: set[int] = set()
        self._waiting = False
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] | None = None

    async def run(self, descriptors: Sequence[int]) -> None:
        """Call `step` until cancelled, or until it raises."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._readers = [descriptor for descriptor in descriptors if descriptor >= 0]
        self._unwatched = set(self._readers)
        try:
            self._beat()
            await self._ended
        finally:
            self._ended = None
            if self._timer:
                self._timer.cancel()
            for descriptor in self._readers:
                loop.remove_reader(descriptor)

    def arm(self) -> None:
        """Set the timer for the next due work; call it when that changed. It does nothing while not running."""
        if self._ended is None:
            return
        if self._timer:
            self._timer.cancel()
            self._timer = None
        soonest = self._stepped_at + self._tick_s
        due = soonest if self._waiting else self._next_due()
        if due is not None:
            at = max(due, soonest)
            self._timer = asyncio.get_running_loop().call_later(max(0.0, at - self._clock()), self._beat)

    def _readable(self, descriptor: int) -> None:
        # Level-triggered: it would be reported again and again until the next step reads it.
        asyncio.get_running_loop().remove_reader(descriptor)
        self._unwatched.add(descriptor)
        self._waiting = True
        self.arm()

    def _beat(self) -> None:
        ended = self._ended
        if ended is None or ended.done():
            return
        try:
            self._step()
        except BaseException as error:
            ended.set_exception(error)
            return
        self._stepped_at = self._clock()
        self._waiting = False
        due = self._next_due()
        if due is None or due > self._stepped_at + self._tick_s:
            # Otherwise the next step comes before anything could wake it, and watching would only cost.
            loop = asyncio.get_running_loop()
            for descriptor in self._unwatched:
                loop.add_reader(descriptor, self._readable, descriptor)
            self._unwatched.clear()
        self.arm()
