"""Tuning of Python's garbage collector: keeps full collections short, since they block the event loop."""

import gc
import time
from collections.abc import Callable

THAW_S = 3600.0


class GarbageCalmer:
    """Freezes the objects that survive a full collection, and thaws them once an hour.

    Objects of the running service are mostly free of cycles, so full collections can be rare; and the survivors of one,
    such as kept decisions and opinions, do not have to be traversed by the next. A frozen object without a cycle is
    freed normally when nothing refers to it any more. A cycle is not: without the thaw, each full collection would leak
    the cycles that were in use.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, thaw_s: float = THAW_S) -> None:
        self._clock = clock
        self._thaw_s = thaw_s
        self._thawed_at = clock()

    def prepare(self) -> None:
        """Freeze the objects that exist, enable the collector, and make collections rare.

        The command disables the collector at its beginning. Adopting a thousand targets makes many objects and little
        garbage: with Python's thresholds, collections took a twentieth of that time.
        """
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        gc.enable()

    def start(self) -> None:
        """Collect and freeze the objects of the start, and those that survive later full collections."""
        gc.collect()
        gc.freeze()
        gc.callbacks.append(self._on_collection)

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] != 2:
            return
        if phase == "stop":
            gc.freeze()
        elif self._clock() - self._thawed_at >= self._thaw_s:
            # The collection that begins now includes the thawed objects: one long pause an hour.
            self._thawed_at = self._clock()
            gc.unfreeze()
