"""`lbguard run`, with every step of its loop timed: `STEPS_FILE=FILE python -m tests.bench.timed_run run ...`.

A step is what the loop does between two looks at its selector. One that takes longer than `LONG_S` becomes a line of
JSON in the file: how long it took, how much of that the thread ran, waited for a processor (others had it, which is no
fault of the service) and collected garbage, how long the service's other threads waited for one (10 ms too much, at
most), and where it was, as a second thread saw it. A last line has the count.
"""

import asyncio
import atexit
import contextlib
import gc
import json
import os
import selectors
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from lbguard.cli.main import main

LONG_S = 0.02
_LOOK_EVERY_S = 0.01
_FRAMES = 7


class StepTimes:
    """Times steps, and writes the long ones down. `began` is the perf_counter of the running step, 0 between two."""

    def __init__(self, path: str) -> None:
        self.began = 0.0
        self.count = 0
        self.where = ""
        # It stays open as long as the process.
        self._file = Path(path).open("a", buffering=1)  # noqa: SIM115
        self._schedule = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self._ran_ns = self._waited_ns = 0
        self._others: dict[str, int] = {}
        self._others_before: dict[str, int] = {}
        self._collecting = self._collected = 0.0
        self._loop_thread = threading.get_ident()
        gc.callbacks.append(self._garbage)
        atexit.register(self._end)
        threading.Thread(target=self._watch, name="step-watch", daemon=True).start()

    def begin(self) -> None:
        """A step begins."""
        self._ran_ns, self._waited_ns = self._scheduled()
        self._collected, self.where = 0.0, ""
        self._others_before = self._others
        self.began = time.perf_counter()

    def end(self) -> None:
        """A step ended."""
        if not self.began:
            return
        took_s, self.began = time.perf_counter() - self.began, 0.0
        self.count += 1
        if took_s < LONG_S:
            return
        ran_ns, waited_ns = self._scheduled()
        self._write(
            took_ms=took_s * 1e3,
            ran_ms=(ran_ns - self._ran_ns) / 1e6,
            waited_ms=(waited_ns - self._waited_ns) / 1e6,
            others_waited_ms=sum(n - self._others_before.get(who, 0) for who, n in _waits_ns().items()) / 1e6,
            garbage_ms=self._collected * 1e3,
            where=self.where,
        )

    def _write(self, **values: Any) -> None:
        self._file.write(json.dumps({"at": time.time(), **values}) + "\n")

    def _scheduled(self) -> tuple[int, int]:
        """Return how long the loop's thread ran, and how long it waited for a processor, so far, in ns."""
        ran, waited, _ = os.pread(self._schedule, 100, 0).split()
        return int(ran), int(waited)

    def _garbage(self, phase: str, info: dict[str, int]) -> None:
        if threading.get_ident() == self._loop_thread:
            if phase == "start":
                self._collecting = time.perf_counter()
            else:
                self._collected += time.perf_counter() - self._collecting

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_EVERY_S)
            began, self._others = self.began, _waits_ns()
            if began and time.perf_counter() - began > LONG_S * 0.75:
                frame = sys._current_frames().get(self._loop_thread)
                if frame is not None and began == self.began:
                    self.where = _place(frame)

    def _end(self) -> None:
        self._write(steps=self.count)


def _waits_ns() -> dict[str, int]:
    """Return how long each thread but the loop's waited for a processor so far, in ns."""
    waits = {}
    for task in Path("/proc/self/task").iterdir():
        # A thread may end meanwhile.
        with contextlib.suppress(OSError):
            waits[task.name] = int((task / "schedstat").read_text().split()[1])
    waits.pop(str(os.getpid()), None)
    return waits


def _place(frame: FrameType | None) -> str:
    """Return the innermost functions of a stack, without reading any source."""
    found: list[str] = []
    while frame is not None and len(found) < _FRAMES:
        code = frame.f_code
        found.append(f"{code.co_qualname}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found)


class TimedSelector(selectors.EpollSelector):
    """Tells the times of the steps between two calls."""

    times: StepTimes

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors`."""
        self.times.end()
        ready = super().select(timeout)
        self.times.begin()
        return ready


class TimedPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes loops that are timed."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """See `asyncio`."""
        selector = TimedSelector()
        selector.times = StepTimes(os.environ["STEPS_FILE"])
        return asyncio.SelectorEventLoop(selector)


if __name__ == "__main__":
    asyncio.set_event_loop_policy(TimedPolicy())
    main()
