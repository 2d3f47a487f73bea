"""A distributor that only looks: everything is read through another one, and nothing is ever written."""

import logging
from collections.abc import Collection, Sequence

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import CommitResult, Distributor, DistributorError

_log = logging.getLogger(__name__)


class ObserveDistributor:
    """Reads the tables through another distributor and reports every commit as done.

    The other one is never asked to attach, commit or withdraw, so it cannot create or change anything. A table that
    cannot be read counts as empty; the reason is logged when it changes.
    """

    kind = "observe"

    def __init__(self, inner_reader: Distributor) -> None:
        self._reader = inner_reader
        self._problems: dict[str, str] = {}

    async def attach(self, stream: StreamSpec) -> None:
        """Do nothing: making a table ready might create it."""

    async def read_active(self, stream: StreamSpec) -> frozenset[int]:
        """Return the identifiers that are active in a stream's table; none when it cannot be read."""
        try:
            active = await self._reader.read_active(stream)
        except DistributorError as error:
            if self._problems.get(stream.name) != str(error):
                self._problems[stream.name] = str(error)
                _log.warning("stream %s reads as empty: %s", stream.name, error)
            return frozenset()
        self._problems.pop(stream.name, None)
        return active

    async def commit(self, tables: Sequence[StreamTable]) -> Sequence[CommitResult]:
        """Report success with no slot changed."""
        return [CommitResult(stream=table.stream.name) for table in tables]

    async def lost_streams(self) -> dict[str, str]:
        """Return what the reader has noticed."""
        return await self._reader.lost_streams()

    async def detach(self, stream: StreamSpec, *, withdraw: bool) -> None:
        """Stop looking at a stream, without withdrawing anything."""
        self._problems.pop(stream.name, None)
        await self._reader.detach(stream, withdraw=False)

    async def prune(self, known: Collection[str]) -> Sequence[str]:
        """Do nothing: nothing is ever removed."""
        return ()

    async def close(self) -> None:
        """Release the reader's handles."""
        await self._reader.close()
