"""Schedule of pings. Pure: a timer wheel, and the moments of a round."""

import heapq
import math
from collections.abc import Iterator
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
