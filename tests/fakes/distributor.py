"""A small working distributor: tables in memory, with one-shot faults by name."""

import asyncio
from collections.abc import Collection, Sequence

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import CommitResult, DistributorError

FAULTS = frozenset(
    {"attach", "read_active", "commit", "refuse_table", "lost_streams", "detach", "prune", "hang", "unexpected"}
)


class FakeDistributor:
    """Holds (registered, active) per stream, as a kernel would: tables outlive `close`.

    Faults, each once: the name of a method makes its next call raise DistributorError; `refuse_table` makes the next
    commit report an error for its first table and carry out the others; `hang` makes the next call of any method wait
    for `release`; `unexpected` makes it raise ValueError, as a fault of the program would.
    """

    kind = "fake"

    def __init__(self, kind: str = "fake") -> None:
        self.kind = kind
        self.tables: dict[str, tuple[frozenset[int], frozenset[int]]] = {}
        self.attached: set[str] = set()
        self.calls: list[str] = []
        self.closed = False
        self.release = asyncio.Event()
        self._faults: list[str] = []
        self._lost: dict[str, str] = {}
        self._busy = False

    def fault(self, name: str) -> None:
        assert name in FAULTS
        self._faults.append(name)

    def lose(self, stream: str, reason: str = "removed") -> None:
        """Someone else takes the table away."""
        self.tables.pop(stream, None)
        self._lost[stream] = reason

    async def attach(self, stream: StreamSpec) -> None:
        await self._begin("attach", stream.name)
        self.attached.add(stream.name)
        self.tables.setdefault(stream.name, (frozenset(), frozenset()))
        self._lost.pop(stream.name, None)

    async def read_active(self, stream: StreamSpec) -> frozenset[int]:
        await self._begin("read_active", stream.name)
        if stream.name not in self.tables:
            raise DistributorError(f"stream {stream.name}: there is no table")
        return self.tables[stream.name][1]

    async def commit(self, tables: Sequence[StreamTable]) -> Sequence[CommitResult]:
        await self._begin("commit", ",".join(table.stream.name for table in tables))
        results = []
        for number, table in enumerate(tables):
            if number == 0 and self._strikes("refuse_table"):
                results.append(CommitResult(stream=table.stream.name, error="refused"))
                continue
            self.tables[table.stream.name] = (table.registered, table.active)
            results.append(CommitResult(stream=table.stream.name, slots_changed=1, slots_total=97))
        return results

    async def lost_streams(self) -> dict[str, str]:
        await self._begin("lost_streams")
        return {name: reason for name, reason in self._lost.items() if name in self.attached}

    async def detach(self, stream: StreamSpec, *, withdraw: bool) -> None:
        await self._begin("detach", f"{stream.name} withdraw={withdraw}")
        self.attached.discard(stream.name)
        if withdraw:
            self.tables.pop(stream.name, None)

    async def prune(self, known: Collection[str]) -> Sequence[str]:
        await self._begin("prune")
        strangers = sorted(self.tables.keys() - set(known))
        for name in strangers:
            del self.tables[name]
        return strangers

    async def close(self) -> None:
        self.closed = True

    async def _begin(self, method: str, what: str = "") -> None:
        assert not self._busy, "methods are called one at a time"
        assert not self.closed, "called after close"
        self.calls.append(f"{method} {what}".strip())
        self._busy = True
        try:
            if self._strikes("hang"):
                await self.release.wait()
            if self._strikes("unexpected"):
                raise ValueError("a fault of the program")
            if self._strikes(method):
                raise DistributorError(f"{method} refused")
        finally:
            self._busy = False

    def _strikes(self, name: str) -> bool:
        if name in self._faults:
            self._faults.remove(name)
            return True
        return False
