"""Interface of a distributor: reads active identifiers, commits tables, detects lost tables, cleans up."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from lbguard.core.model import StreamSpec, StreamTable


class DistributorError(Exception):
    """An operating error of a distributor; the message names the fault and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitResult:
    """The outcome of one stream's commit. `error` is empty on success; then the table is exactly as requested.

    `digest`: of the table (`maglev.table_digest`); None when it did not change, or is not known.
    """

    stream: str
    slots_changed: int = 0
    slots_total: int = 0
    duration_s: float = 0.0
    error: str = ""
    digest: int | None = None


class Distributor(Protocol):
    """Maps packets to fwmarks through one table per stream.

    Methods do not block the event loop (blocking work runs in a thread of the adapter's own) and are called one at a
    time. Every method is idempotent.
    """

    kind: str

    async def attach(self, stream: StreamSpec) -> None:
        """Make a stream's table ready for use, changing no slot of one that exists.

        Raises:
            DistributorError: the table is missing, not accessible, malformed or too small.
        """

    async def read_active(self, stream: StreamSpec) -> frozenset[int]:
        """Return the identifiers that are active in a stream's table.

        Raises:
            DistributorError: the table cannot be read.
        """

    async def commit(self, tables: Sequence[StreamTable]) -> Sequence[CommitResult]:
        """Bring the tables to these states, touching only slots that differ; one result per table, same order."""

    async def lost_streams(self) -> dict[str, str]:
        """Return the attached streams whose table was removed or replaced since, with the reason; cheap to poll."""

    async def detach(self, stream: StreamSpec, *, withdraw: bool) -> None:
        """Detach a stream; with `withdraw` remove all its targets (and our own rules)."""

    async def prune(self, known: Collection[str]) -> Sequence[str]:
        """Remove the leftovers of an earlier run for streams that are no longer known; return their names.

        Raises:
            DistributorError: they cannot be listed or removed.
        """

    async def close(self) -> None:
        """Release handles; leave every table unchanged."""
