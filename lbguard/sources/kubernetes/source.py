"""Source `kubernetes`: streams and targets from objects of the Kubernetes API.

A list gives all objects, and a watch their changes from there on. Each watch continues at the version that the last
event or bookmark named. When the server has forgotten that version (410), everything is listed again, and what is
missing then was deleted meanwhile. The loss of the API server changes nothing; a start without it serves the list of
the earlier run.
"""

import asyncio
import contextlib
import importlib
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.rpc.backoff import Backoff
from lbguard.sources.connected import RELOAD, ConnectedSource, Ending, first_end
from lbguard.sources.kubernetes.address import CUT, GONE, UNUSABLE, ApiAddress, ApiError, Resource, Times, WatchEvent
from lbguard.sources.kubernetes.compose import Composer, Memory, Objects, StreamsConfig
from lbguard.sources.kubernetes.objects import Read
from lbguard.telemetry.log import fields

if TYPE_CHECKING:
    from lbguard.sources.kubernetes.api import Api

_log = logging.getLogger("lbguard.sources.kubernetes")

_BRIEF_S = 1.0
"""A watch that lasts less is not continued at once: it would be asked for again and again."""
_CUTS_MAX = 3
_STEADY_S = 10.0
_UNEXPECTED = "UNEXPECTED"


class MemoryFile(Protocol):
    """Keeps what a later run has to know. Nothing here raises."""

    def load(self) -> Memory:
        """Return what an earlier run kept; empty when there is nothing usable."""

    def save(self, memory: Memory) -> bool:
        """Replace it; return whether that was possible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesConfig:
    """Objects to watch, and the streams that they give targets for. Times in seconds."""

    address: ApiAddress
    resource: Resource
    read: Read
    streams: StreamsConfig
    times: Times = field(default_factory=Times)
    max_backoff_s: float = 1.0


class KubernetesSource(ConnectedSource):
    """Follower of the API server that reports every list and the server's loss.

    Args:
        config: what to watch.
        emit: receives what is reported, in the thread of the event loop.
        file: keeps identifiers and targets for a later run.
        rest_s: returns how long the identifier of a target that left is not given to another one.
        clock: seconds, monotonic.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        config: KubernetesConfig,
        emit: Callable[[SourceSnapshot | SourceLost], None],
        file: MemoryFile,
        *,
        rest_s: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            "API server",
            str(config.address),
            emit,
            max_backoff_s=config.max_backoff_s,
            clock=clock,
            log=_log,
            wall_clock=wall_clock,
        )
        self._config = config
        self._file = file
        self._rest_s = rest_s
        self._wake = asyncio.Event()
        self._objects = Objects(config.read)
        self._version = ""
        self._saved: Memory = {}
        self._composer: Composer | None = None
        self._answered = self._served = False

    # One session

    async def _session(self) -> Ending:
        """Follow the server until one part ends; return the kind and the text of the end."""
        if self._composer is None:
            self._saved = await asyncio.to_thread(self._file.load)
            self._composer = Composer(self._config.streams, self._saved)
        try:
            # The client library takes long to load.
            api = await asyncio.to_thread(importlib.import_module, "lbguard.sources.kubernetes.api")
            async with api.open_api(self._config.address, self._config.resource, self._config.times) as session:
                return await first_end(self._parts(session, self._composer))
        except ApiError as error:
            return error.kind, str(error)
        except Exception as error:  # on any error the last list stays in force
            if self._lost_for != _UNEXPECTED:
                _log.exception("unexpected error of the source")
            return _UNEXPECTED, f"{type(error).__name__}: {error}"

    def _parts(self, api: "Api", composer: Composer) -> tuple[Coroutine[None, None, Ending], ...]:
        return self._follow(api), self._compose_when_due(composer), self._await_reload()

    async def _follow(self, api: "Api") -> Ending:
        """List and watch until the server is lost."""
        backoff = Backoff(self._config.max_backoff_s)
        while True:
            began = self._clock()
            try:
                await self._list(api)
                await self._watch(api)
            except ApiError as error:
                if error.kind != GONE:
                    raise
                _log.info("the API server has forgotten the version: everything is listed again")
            if self._clock() - began > _STEADY_S:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())

    async def _list(self, api: "Api") -> None:
        objects, self._version = await api.list()
        self.counters.lists["list"] += 1
        self._objects.replace(objects)
        self._answered = True
        self._wake.set()

    async def _watch(self, api: "Api") -> None:
        """Watch, and continue each watch that the server ends, or that is cut.

        Raises:
            ApiError: the server cannot be reached, refuses, or cuts one watch after the other.
        """
        backoff = Backoff(self._config.max_backoff_s)
        cuts = 0
        while True:
            began = self._clock()
            try:
                await api.watch(self._version, self._observe)
                cuts = 0
            except ApiError as error:
                cuts = cuts + 1 if self._clock() - began < _BRIEF_S else 1
                if error.kind != CUT or cuts > _CUTS_MAX:
                    raise
            if self._clock() - began < _BRIEF_S:
                await asyncio.sleep(backoff.next_s())
            else:
                backoff.reset()

    def _observe(self, event: WatchEvent) -> None:
        metadata = event.object.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
        self.counters.lists["event"] += 1
        match event.kind:
            case "ADDED" | "MODIFIED":
                self._objects.put(event.object)
            case "DELETED":
                self._objects.remove(event.object)
            case "BOOKMARK":
                pass
            case _:
                raise ApiError(UNUSABLE, f"an event of the watch has the unknown type {event.kind[:40]!r}")
        if not isinstance(version, str) or not version:
            raise ApiError(UNUSABLE, "an event of the watch names no version")
        self._version = version
        self._wake.set()

    async def _compose_when_due(self, composer: Composer) -> Ending:
        while True:
            settles_at = composer.settles_at
            wait_s = None if settles_at is None else max(0.0, settles_at - self._clock())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)
            self._wake.clear()
            if self._answered:
                self._begin_service()
                await self._compose(composer)

    # Reports

    async def _compose(self, composer: Composer) -> None:
        composed = composer.compose(self._objects.by_stream(), self._clock(), self._rest_s())
        if composer.waits and not self.counters.waiting:
            _log.warning(
                "a stream loses all its targets at once: they stay for kubernetes.settle_time",
                extra=fields(targets=composer.waits, settle_s=self._config.streams.settle_s),
            )
        self.counters.waiting = composer.waits
        self._note_skipped("objects", (*self._objects.skipped, *composed.skipped))
        # Before the list: an identifier that is in force has to be known after a crash.
        if composed.memory != self._saved and await asyncio.to_thread(self._file.save, composed.memory):
            self._saved = composed.memory
        self._served = True
        self._report(SourceSnapshot(streams=composed.streams))

    def _end_session(self, code: str, reason: str) -> None:
        if code != RELOAD and not self._served and self._composer is not None:
            self._serve_remembered(self._composer)
        self._answered = False
        super()._end_session(code, reason)

    def _serve_remembered(self, composer: Composer) -> None:
        """Report the list of the earlier run, when the server cannot be reached at the start."""
        self._served = True
        remembered = composer.remembered()
        if remembered:
            _log.warning("the API server does not answer: the list of the earlier run is served")
            self._report(SourceSnapshot(streams=composer.compose(remembered, self._clock(), self._rest_s()).streams))

    def _lose(self, code: str, reason: str) -> None:
        since = datetime.fromtimestamp(self.counters.lost_at or self._wall_clock(), UTC)
        super()._lose(code, f"API server: {reason}; since {since:%Y-%m-%d %H:%M:%S} UTC")
