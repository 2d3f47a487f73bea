"""Keep the garbage collector's full collections short: they stop everything, also the loop that holds targets."""

import gc
import time
from collections.abc import Callable

THAW_S = 3600.0


class GarbageCalmer:
    """Freezes what outlives a full collection, and thaws it once an hour.

    What is made while the service runs is mostly free of cycles, so full collections can be rare; and what one of them
    leaves, such as decisions and opinions that are kept, the next need not walk through again. What is frozen and in no
    cycle is freed all the same when nothing refers to it any more. What was in a cycle is not: without the thaw, each
    full collection would leak the cycles that happened to be in use.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, thaw_s: float = THAW_S) -> None:
        self._clock = clock
        self._thaw_s = thaw_s
        self._thawed_at = clock()

    def start(self) -> None:
        """Collect and freeze what start-up left, and make full collections rare."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        gc.callbacks.append(self._on_collection)

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] != 2:
            return
        if phase == "stop":
            gc.freeze()
        elif self._clock() - self._thawed_at >= self._thaw_s:
            # The collection that begins now takes the thawed objects along: one long step an hour.
            self._thawed_at = self._clock()
            gc.unfreeze()
