"""Chooses the distributor: the one that is asked for, or per stream whichever is there (`auto`)."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import CommitResult, Distributor
from lbguard.distributor.nfqlb_memory import memory_path


class AutoDistributor:
    """nfqlb's memory where a stream has one, nftables otherwise.

    The choice stands until the stream is lost. A memory that appears later (the load balancer's container started after
    us) counts as a loss of the nftables table, so that the stream moves over.
    """

    kind = "auto"

    def __init__(self, shm_dir: Path, memory: Distributor, make_embedded: Callable[[], Distributor]) -> None:
        self._shm_dir = shm_dir
        self._memory = memory
        self._make_embedded = make_embedded
        self._embedded: Distributor | None = None
        self._streams: dict[str, tuple[Distributor, StreamSpec]] = {}

    def chosen(self) -> dict[str, str]:
        """Return the kind that was chosen for each stream."""
        return {name: distributor.kind for name, (distributor, _) in self._streams.items()}

    async def attach(self, stream: StreamSpec) -> None:
        """Choose, and make the table ready; see the protocol."""
        before = self._streams.get(stream.name)
        chosen = self._memory if memory_path(self._shm_dir, stream).exists() else self._get_embedded()
        if before is not None and before[0] is not chosen:
            await before[0].detach(stream, withdraw=before[0] is self._embedded)
        await chosen.attach(stream)
        self._streams[stream.name] = (chosen, stream)

    async def read_active(self, stream: StreamSpec) -> frozenset[int]:
        """Return what is active in a stream's table; see the protocol."""
        return await self._of(stream).read_active(stream)

    async def commit(self, tables: Sequence[StreamTable]) -> Sequence[CommitResult]:
        """Bring the tables to these states, one batch for each distributor; see the protocol."""
        batches: dict[int, tuple[Distributor, list[StreamTable]]] = {}
        for table in tables:
            distributor = self._of(table.stream)
            batches.setdefault(id(distributor), (distributor, []))[1].append(table)
        results: dict[str, CommitResult] = {}
        for distributor, batch in batches.values():
            for result in await distributor.commit(batch):
                results[result.stream] = result
        return [results[table.stream.name] for table in tables]

    async def lost_streams(self) -> dict[str, str]:
        """Return the streams to attach again; see the protocol."""
        lost = dict(await self._memory.lost_streams())
        if self._embedded is not None:
            lost |= await self._embedded.lost_streams()
        for name, (distributor, stream) in self._streams.items():
            if distributor is self._embedded and memory_path(self._shm_dir, stream).exists():
                lost[name] = "nfqlb memory appeared"
        return lost

    async def detach(self, stream: StreamSpec, *, withdraw: bool) -> None:
        """Stop looking after a stream; see the protocol."""
        entry = self._streams.pop(stream.name, None)
        if entry is not None:
            await entry[0].detach(stream, withdraw=withdraw)

    async def prune(self, known: Collection[str]) -> Sequence[str]:
        """Remove what an earlier run left in nftables, if that is in use; see the protocol."""
        return await self._embedded.prune(known) if self._embedded is not None else ()

    async def close(self) -> None:
        """Release the handles of both."""
        await self._memory.close()
        if self._embedded is not None:
            await self._embedded.close()

    def _of(self, stream: StreamSpec) -> Distributor:
        entry = self._streams.get(stream.name)
        if entry is not None:
            return entry[0]
        return self._memory if memory_path(self._shm_dir, stream).exists() else self._get_embedded()

    def _get_embedded(self) -> Distributor:
        # Made when it is needed: beside nfqlb no nftables library has to be there.
        if self._embedded is None:
            self._embedded = self._make_embedded()
        return self._embedded
