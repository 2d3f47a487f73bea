"""Distributor that reads and writes nfqlb's shared memory, without the stock commands.

The stock commands empty the whole lookup array and refill it in place, so packets that arrive meanwhile are dropped.
Here the new table is computed separately, once for any number of changed targets, and only the slots that differ are
stored.
"""

import asyncio
import os
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import CommitResult, DistributorError
from lbguard.distributor.maglev import TableKind, table_digest
from lbguard.distributor.nfqlb.memory import SHM_DIR, StreamMemory, check_identifiers, check_room, memory_path

Result = TypeVar("Result")


class NfqlbShmDistributor:
    """The tables of nfqlb, read and written in its shared memory.

    File access runs in one worker thread, so calls of one distributor never overlap.
    """

    kind = "nfqlb-shm"

    def __init__(self, table: TableKind, shm_dir: Path = SHM_DIR, *, read_only: bool = False) -> None:
        """Set the kind of table and where the memories are.

        With `read_only` the files do not have to be writable, and every commit fails.
        """
        self.table = table
        self._shm_dir = shm_dir
        self._read_only = read_only
        self._memories: dict[str, StreamMemory] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self.kind)
        self._closed = False

    async def attach(self, stream: StreamSpec) -> None:
        """Open and validate the memory of a stream; no slot changes.

        Raises:
            DistributorError: it is missing, not accessible, malformed or too small; the message says what to do.
        """
        await self._run(lambda: self._memory(stream))

    async def read_active(self, stream: StreamSpec) -> frozenset[int]:
        """Return the active identifiers, including unregistered ones that another writer may have left.

        Raises:
            DistributorError: the memory cannot be read.
        """
        marks = await self._run(lambda: self._memory(stream).active())
        return frozenset(index + stream.first_identifier for index, mark in enumerate(marks) if mark >= 0)

    async def commit(self, tables: Sequence[StreamTable]) -> Sequence[CommitResult]:
        """Make each memory exactly as requested: one computation per stream, for any number of changes."""
        return await self._run(lambda: [self._commit(table) for table in tables])

    async def lost_streams(self) -> dict[str, str]:
        """Return the streams whose file was removed, replaced or initialised again (one stat each).

        A stream stays lost until an attach, a read or a commit has found a valid file again.
        """
        return await self._run(self._lost)

    async def detach(self, stream: StreamSpec, *, withdraw: bool) -> None:
        """Close the memory of a stream; with `withdraw` empty it first. A missing memory is not an error.

        Raises:
            DistributorError: the targets could not be withdrawn; the memory is closed anyway.
        """
        await self._run(lambda: self._detach(stream, withdraw=withdraw))

    async def prune(self, known: Collection[str]) -> Sequence[str]:
        """Do nothing: nfqlb's memories belong to nfqlb."""
        return ()

    async def close(self) -> None:
        """Close every memory and end the thread; the tables stay unchanged."""
        if self._closed:
            return
        await self._run(self._release)
        self._closed = True
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _memory(self, stream: StreamSpec) -> StreamMemory:
        """Return the stream's memory, opened again when its file was replaced."""
        path = memory_path(self._shm_dir, stream)
        known = self._memories.get(stream.name)
        if known is not None and known.path == path and not known.identity.change_since(path):
            check_room(path, stream, known.layout.targets)
            return known
        # The old memory is kept until a new one is open, so that the stream is reported as lost meanwhile.
        memory = StreamMemory(path, stream, self.table, read_only=self._read_only)
        if known is not None:
            known.close()
        self._memories[stream.name] = memory
        return memory

    def _commit(self, table: StreamTable) -> CommitResult:
        started = time.perf_counter()
        name = table.stream.name
        try:
            memory = self._memory(table.stream)
            check_identifiers(table, memory.layout.targets)
            marks = [-1] * memory.layout.targets
            for identifier in table.active:
                marks[table.stream.index(identifier)] = table.stream.mark(identifier)
            registered = frozenset(map(table.stream.index, table.registered))
            active = frozenset(map(table.stream.index, table.active))
            lookup = memory.table(registered, active)
            changed = memory.write(lookup, marks)
        except DistributorError as error:
            return CommitResult(stream=name, error=str(error), duration_s=time.perf_counter() - started)
        return CommitResult(
            stream=name,
            slots_changed=changed,
            slots_total=memory.layout.slots,
            digest=table_digest(lookup),
            duration_s=time.perf_counter() - started,
        )

    def _lost(self) -> dict[str, str]:
        changes = {name: memory.identity.change_since(memory.path) for name, memory in self._memories.items()}
        return {name: change for name, change in changes.items() if change}

    def _detach(self, stream: StreamSpec, *, withdraw: bool) -> None:
        try:
            if withdraw and os.path.lexists(memory_path(self._shm_dir, stream)):
                empty = StreamTable(stream=stream, registered=frozenset(), active=frozenset())
                if error := self._commit(empty).error:
                    raise DistributorError(error)
        finally:
            known = self._memories.pop(stream.name, None)
            if known is not None:
                known.close()

    def _release(self) -> None:
        for memory in self._memories.values():
            memory.close()
        self._memories.clear()
