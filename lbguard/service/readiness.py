"""Readiness files for the router of Meridio-2, in a directory of our own.

The router advertises the VIPs while its directory holds a file `lb-ready-NAME`. The load balancer writes one for each
stream with an activated target, and does not know whether a packet would reach it. Here a file exists while the load
balancer's own exists and the stream is available. A stream of which nothing is known yet has the load balancer's word
alone, and so have all streams in mode `observe` and after the service has stopped.

When the load balancer's directory cannot be read, or ours cannot be written, the files stay as they are.
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from lbguard.sources.interposer.directory import SharedDirectory
from lbguard.telemetry.log import fields

PREFIX = "lb-ready-"

_log = logging.getLogger("lbguard.service.readiness")

_NAME = re.compile(rf"{PREFIX}([A-Za-z0-9][A-Za-z0-9._-]{{0,252}})")
_NAMES_MAX = 10_000
_LOOK_S = 0.1
_MODE = 0o644


def ready_streams(activated: Iterable[str], available: Callable[[str], bool | None]) -> frozenset[str]:
    """Return the streams that are ready, of those with an activated target. `available`: None where not known."""
    return frozenset(name for name in activated if available(name) is not False)


class ReadinessFiles:
    """Keeper of the files.

    Args:
        directory: for our files; made if it is missing.
        balancer: the load balancer's directory.
        available: returns whether a stream is available; None while that is not known.
        at_end: the same for the files that are left; None: the load balancer's word counts alone.
    """

    def __init__(
        self,
        directory: Path,
        balancer: Path,
        available: Callable[[str], bool | None],
        at_end: Callable[[str], bool | None] = lambda stream: None,
    ) -> None:
        self._ours = SharedDirectory(directory)
        self._balancer = balancer
        self._available = available
        self._at_end = at_end
        self.problem = ""

    async def run(self) -> None:
        """Keep the files until cancelled, then leave those of the end."""
        try:
            while True:
                self.look()
                await asyncio.sleep(_LOOK_S)
        finally:
            self._available = self._at_end
            self.look()
            self._ours.close()

    def look(self) -> None:
        """Make and remove files as needed; a failure is logged once."""
        try:
            self._ours.open()
            activated = _streams(entry.name for entry in self._balancer.iterdir())
            there = _streams(self._ours.names(_NAMES_MAX))
            ready = ready_streams(activated, self._available)
            for stream in sorted(ready - there):
                os.close(self._ours.new_file(PREFIX + stream, _MODE))
                _log.info("stream is ready for the router", extra=fields(stream=stream))
            for stream in sorted(there - ready):
                self._ours.clear(PREFIX + stream)
                reason = "no path is usable" if stream in activated else "the load balancer has no target"
                _log.warning("stream is not ready for the router", extra=fields(stream=stream, reason=reason))
        except OSError as error:
            problem = f"{error.filename or self._balancer}: {error.strerror}"
            if problem != self.problem:
                _log.error("readiness files cannot be kept; they stay as they are", extra=fields(reason=problem))
            self.problem = problem
            return
        self.problem = ""


def _streams(names: Iterable[str]) -> frozenset[str]:
    found = (_NAME.fullmatch(name) for name in names)
    return frozenset(match[1] for match in found if match is not None)
