"""Base of the sources that follow a server: sessions with backoff, what is reported of them, and their counters.

The loss of the server changes nothing: it is reported once for each kind of loss, and the last list stays.
"""

import asyncio
import contextlib
import logging
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field

from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.rpc.backoff import Backoff
from lbguard.sources.skipped import Skipped, count_reasons
from lbguard.telemetry.log import fields

RELOAD = "RELOAD"
"""Kind of the end of a session that `reload` asked for."""

Ending = tuple[str, str]
"""End of a session: its kind, by which losses are compared, and a text."""

_STEADY_S = 10.0
_SKIPPED_LOGGED = 10


async def first_end(parts: Iterable[Coroutine[None, None, Ending]]) -> Ending:
    """Run the parts of a session until one ends, cancel the others, and return how it ended."""
    tasks = {asyncio.create_task(part) for part in parts}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return done.pop().result()


@dataclass(slots=True)
class SourceCounters:
    """Counters that only grow, except `connected`, `waiting` and `lost_at`.

    `lost_at`: since when the server gives no usable list, seconds since the epoch; 0: it does.
    """

    connected: bool = False
    waiting: int = 0
    lost_at: float = 0.0
    sessions: int = 0
    losses: int = 0
    lists: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)


class ConnectedSource(ABC):
    """Source that follows a server.

    Args:
        server: the server's name in the log, such as `registry`.
        address: where it is, for the log.
        emit: receives what is reported, in the thread of the event loop.
        max_backoff_s: the longest wait before the server is dialled again.
        clock: seconds, monotonic.
        log: the logger of the source.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        server: str,
        address: str,
        emit: Callable[[SourceSnapshot | SourceLost], None],
        *,
        max_backoff_s: float,
        clock: Callable[[], float],
        log: logging.Logger,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.counters = SourceCounters()
        self._server = server
        self._address = address
        self._emit = emit
        self._max_backoff_s = max_backoff_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._log = log
        self._reload = asyncio.Event()
        self._skipped: dict[str, tuple[Skipped, ...]] = {}
        self._lost_for: str | None = None
        self._last: SourceSnapshot | None = None

    def reload(self) -> None:
        """Begin a new session now and report the list even if it is unchanged (SIGHUP)."""
        self._last = None
        self._reload.set()

    async def run(self) -> None:
        """Follow the server until cancelled."""
        backoff = Backoff(self._max_backoff_s, first_s=0.05, jitter=lambda: random.uniform(0.5, 1.0))
        while True:
            self._reload.clear()
            began = self._clock()
            code, reason = await self._session()
            self._end_session(code, reason)
            if self._reload.is_set():
                continue
            if self._clock() - began > _STEADY_S:
                backoff.reset()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._reload.wait(), backoff.next_s())

    @abstractmethod
    async def _session(self) -> Ending:
        """Follow the server until one part of the session ends; return the kind and the text of the end."""

    async def _await_reload(self) -> Ending:
        await self._reload.wait()
        return RELOAD, ""

    def _report(self, snapshot: SourceSnapshot) -> None:
        if snapshot != self._last or self._lost_for is not None:
            self._last, self._lost_for, self.counters.lost_at = snapshot, None, 0.0
            self._emit(snapshot)

    def _begin_service(self) -> None:
        if not self.counters.connected:
            self.counters.connected = True
            self.counters.sessions += 1
            self._log.info("%s answers", self._server, extra=fields(address=self._address))

    def _end_session(self, code: str, reason: str) -> None:
        was_connected, self.counters.connected = self.counters.connected, False
        if code == RELOAD:
            return
        self.counters.losses += was_connected
        self._lose(code, reason)

    def _lose(self, code: str, reason: str) -> None:
        if self._lost_for == code:
            return
        self._lost_for = code
        self.counters.lost_at = self.counters.lost_at or self._wall_clock()
        self._log.warning("the %s tells nothing; the last list stays", self._server, extra=fields(reason=reason))
        self._emit(SourceLost(reason=reason))

    def _note_skipped(self, name: str, skipped: tuple[Skipped, ...]) -> None:
        """Count and log skipped entries, each once while it stays."""
        new = tuple(entry for entry in skipped if entry not in self._skipped.get(name, ()))
        self._skipped[name] = skipped
        self.counters.skipped.update({reason.value: count for reason, count in count_reasons(new).items()})
        for entry in new[:_SKIPPED_LOGGED]:
            self._log.warning(
                "entry of the %s skipped", self._server, extra=fields(reason=entry.reason.value, what=entry.what)
            )
        if len(new) > _SKIPPED_LOGGED:
            self._log.warning("more entries skipped", extra=fields(count=len(new) - _SKIPPED_LOGGED))
