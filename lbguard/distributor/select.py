"""Distributors that delegate: `auto` (nfqlb's memory or nftables, per stream) and observe mode (read only)."""

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import CommitResult, Distributor, DistributorError
from lbguard.distributor.nfqlb.memory import memory_path

_log = logging.getLogger(__name__)


class AutoDistributor:
    """Distributor `auto`: nfqlb's memory where a stream has one, nftables otherwise.

    The choice stands until the stream is lost. A memory that appears later (the load balancer's container started after
    lbguard) counts as a loss of the nftables table, so that the stream moves to it. The nftables table is removed after
    the first commit to the memory: until then packets use it.
    """

    kind = "auto"

    def __init__(self, shm_dir: Path, memory: Distributor, make_embedded: Callable[[], Distributor]) -> None:
        self._shm_dir = shm_dir
        self._memory = memory
        self._make_embedded = make_embedded
        self._embedded: Distributor | None = None
        self._streams: dict[str, tuple[Distributor, StreamSpec]] = {}
        self._moving: dict[str, StreamSpec] = {}
        self._unusable: dict[str, str] = {}

    async def attach(self, stream: StreamSpec) -> None:
        """Choose a distributor, and make the table ready; see the protocol. When that fails, the previous one stays."""
        before = self._streams.get(stream.name)
        chosen = self._choose(stream)
        await chosen.attach(stream)
        self._streams[stream.name] = (chosen, stream)
        if chosen is self._embedded:
            self._moving.pop(stream.name, None)
        elif before is not None and before[0] is self._embedded:
            self._moving[stream.name] = stream
        if before is not None and before[0] is self._memory and chosen is not self._memory:
            await self._memory.detach(stream, withdraw=False)

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
            try:
                outcome = await distributor.commit(batch)
            except (DistributorError, OSError) as error:
                outcome = [CommitResult(stream=table.stream.name, error=str(error)) for table in batch]
            for result in outcome:
                results[result.stream] = await self._moved(result)
        return [results[table.stream.name] for table in tables]

    async def lost_streams(self) -> dict[str, str]:
        """Return the streams to attach again; see the protocol."""
        lost = dict(await self._memory.lost_streams())
        embedded = [stream for distributor, stream in self._streams.values() if distributor is self._embedded]
        for stream in embedded:
            if await self._memory_serves(stream):
                lost[stream.name] = "nfqlb memory appeared"
        if self._embedded is not None and embedded:
            try:
                lost = await self._embedded.lost_streams() | lost
            except DistributorError:
                # The known losses are returned now; the other distributor's error is reported by the next check.
                if not lost:
                    raise
        return {name: reason for name, reason in lost.items() if name in self._streams}

    async def detach(self, stream: StreamSpec, *, withdraw: bool) -> None:
        """Detach a stream; see the protocol."""
        if self._embedded is not None and stream.name in self._moving:
            await self._embedded.detach(stream, withdraw=withdraw)
            del self._moving[stream.name]
        entry = self._streams.get(stream.name)
        if entry is not None:
            await entry[0].detach(stream, withdraw=withdraw)
            del self._streams[stream.name]

    async def prune(self, known: Collection[str]) -> Sequence[str]:
        """Remove the leftovers of an earlier run in nftables, also of streams that nfqlb has now; see the protocol."""
        kept = {name for name in known if name in self._moving or not self._has_memory(name)}
        unused = self._embedded is None
        embedded = self._get_embedded()
        try:
            return await embedded.prune(kept)
        except DistributorError as error:
            if not unused:
                raise
            # With nfqlb the nftables library may be missing; then an earlier run had none either.
            self._embedded = None
            await embedded.close()
            _log.info("nftables was not looked at for leftovers: %s", error)
            return ()

    async def close(self) -> None:
        """Release the handles of both."""
        await self._memory.close()
        if self._embedded is not None:
            await self._embedded.close()

    async def _moved(self, result: CommitResult) -> CommitResult:
        """Remove a stream from nftables once nfqlb's memory has it; the commit is done only after that."""
        stream = self._moving.get(result.stream)
        if stream is None or result.error or self._embedded is None:
            return result
        try:
            await self._embedded.detach(stream, withdraw=True)
        except DistributorError as error:
            return CommitResult(stream=result.stream, error=f"nftables still takes its packets: {error}")
        del self._moving[result.stream]
        return result

    async def _memory_serves(self, stream: StreamSpec) -> bool:
        """Return whether nfqlb's memory of a stream exists and is usable; a broken one does not replace nftables."""
        if not memory_path(self._shm_dir, stream).exists():
            return False
        try:
            await self._memory.attach(stream)
        except (DistributorError, OSError) as error:
            if self._unusable.get(stream.name) != str(error):
                self._unusable[stream.name] = str(error)
                _log.warning(
                    "nfqlb memory cannot be used, nftables goes on",
                    extra={"fields": {"stream": stream.name, "reason": str(error)}},
                )
            return False
        self._unusable.pop(stream.name, None)
        return True

    def _has_memory(self, name: str) -> bool:
        entry = self._streams.get(name)
        return entry is not None and entry[0] is self._memory

    def _of(self, stream: StreamSpec) -> Distributor:
        entry = self._streams.get(stream.name)
        return entry[0] if entry is not None else self._choose(stream)

    def _choose(self, stream: StreamSpec) -> Distributor:
        return self._memory if memory_path(self._shm_dir, stream).exists() else self._get_embedded()

    def _get_embedded(self) -> Distributor:
        # Created when needed: with nfqlb the nftables library may be missing.
        if self._embedded is None:
            self._embedded = self._make_embedded()
        return self._embedded


class ObserveDistributor:
    """Reads the tables through another distributor and reports every commit as done.

    It never attaches, commits or withdraws, so it creates and changes nothing. A table that cannot be read counts as
    empty; the reason is logged when it changes.
    """

    kind = "observe"

    def __init__(self, inner_reader: Distributor) -> None:
        self._reader = inner_reader
        self._problems: dict[str, str] = {}

    async def attach(self, stream: StreamSpec) -> None:
        """Do nothing: attaching might create a table."""

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
        """Return the losses that the reader found."""
        return await self._reader.lost_streams()

    async def detach(self, stream: StreamSpec, *, withdraw: bool) -> None:
        """Forget a stream, without withdrawing anything."""
        self._problems.pop(stream.name, None)
        await self._reader.detach(stream, withdraw=False)

    async def prune(self, known: Collection[str]) -> Sequence[str]:
        """Do nothing: observe mode removes nothing."""
        return ()

    async def close(self) -> None:
        """Release the reader's handles."""
        await self._reader.close()
