"""Calls a step function when something is due or when a descriptor is readable, but not more often than a tick.

At thousands of replies a second, waking for each would cost more than all the rest. The kernel stamped them on arrival,
so they lose nothing by waiting for the next tick.
"""

import asyncio
from collections.abc import Callable, Sequence


class PollTimer:
    """One timer for everything.

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
