"""nfqlb through its stock commands, for those who want nothing but them.

Every `activate` and `deactivate` rebuilds the whole table in place, so packets are lost while it runs, once for each
target that changes. The table is nfqlb's own, so `anchored` cannot be had here.
"""

import asyncio
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import CommitResult, DistributorError
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.memory import SHM_DIR, FileIdentity, check_identifiers, check_room, memory_path

_SIZES = re.compile(r"^ *Maglev: M=(\d+), N=(\d+)$", re.MULTILINE)
_ACTIVE_LINE = re.compile(r"^ *Active:(.*)$", re.MULTILINE)
_ACTIVE = re.compile(r"(\d+)\((\d+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Output of `nfqlb show` for a memory: M, N, and the fwmark of each active target index."""

    slots: int
    targets: int
    marks: Mapping[int, int]


def parse_show(text: str) -> Shown:
    """Read the output of `nfqlb show`; it lists the active targets as `fwmark(index)`.

    Raises:
        DistributorError: the text has another form.
    """
    sizes = _SIZES.search(text)
    active = _ACTIVE_LINE.search(text)
    entries = active[1].split() if active else []
    pairs = [_ACTIVE.fullmatch(entry) for entry in entries]
    if sizes is None or active is None or not all(pairs):
        raise DistributorError(f"the output of nfqlb show is not understood: {text[:200]!r}")
    marks = {int(pair[2]): int(pair[1]) for pair in pairs if pair}
    return Shown(slots=int(sizes[1]), targets=int(sizes[2]), marks=marks)


class NfqlbCliDistributor:
    """The tables of nfqlb, read and written with its own commands."""

    kind = "nfqlb-cli"

    def __init__(
        self,
        table: TableKind = TableKind.MAGLEV,
        binary: str = "nfqlb",
        shm_dir: Path = SHM_DIR,
        *,
        call_timeout_s: float = 5.0,
    ) -> None:
        """Set the program and how long (seconds) one call of it may take; `shm_dir` is only looked at, for loss.

        Raises:
            DistributorError: another table than `maglev` is asked for.
        """
        if table is not TableKind.MAGLEV:
            raise DistributorError(
                f"distributor.table={table} is not possible with distributor.kind={self.kind}: the stock commands"
                f" compute their own table; set distributor.table={TableKind.MAGLEV} or distributor.kind=nfqlb-shm"
            )
        self._binary = binary
        self._shm_dir = shm_dir
        self._call_timeout_s = call_timeout_s
        self._identities: dict[str, tuple[Path, FileIdentity]] = {}

    async def attach(self, stream: StreamSpec) -> None:
        """Check that the memory of a stream can be shown and has room; no slot changes.

        Raises:
            DistributorError: it cannot, or the binary cannot be run.
        """
        await self._show(stream)

    async def read_active(self, stream: StreamSpec) -> frozenset[int]:
        """Return the active identifiers; unregistered ones, as another writer may have left, are included.

        Raises:
            DistributorError: the memory cannot be shown.
        """
        shown = await self._show(stream)
        return frozenset(index + 1 for index in shown.marks)

    async def commit(self, tables: Sequence[StreamTable]) -> Sequence[CommitResult]:
        """Activate what is missing, then deactivate what is too much: one call for each target that changes.

        `slots_changed` is all slots as soon as there was one call, because each call rewrites every one of them.
        """
        return [await self._commit(table) for table in tables]

    async def lost_streams(self) -> dict[str, str]:
        """Return the streams whose file was removed, replaced or initialised anew (one stat each)."""
        changes = {name: identity.change_since(path) for name, (path, identity) in self._identities.items()}
        return {name: change for name, change in changes.items() if change}

    async def detach(self, stream: StreamSpec, *, withdraw: bool) -> None:
        """Stop looking after a stream; with `withdraw` deactivate its targets. A memory that is gone is no error.

        Raises:
            DistributorError: the targets could not be withdrawn.
        """
        self._identities.pop(stream.name, None)
        if not (withdraw and self._identity(stream)):
            return
        result = await self._commit(StreamTable(stream=stream, registered=frozenset(), active=frozenset()))
        self._identities.pop(stream.name, None)
        if result.error:
            raise DistributorError(result.error)

    async def prune(self, known: Collection[str]) -> Sequence[str]:
        """Do nothing: nfqlb's memories are not ours to remove."""
        return ()

    async def close(self) -> None:
        """Forget the streams; the tables stay as they are."""
        self._identities.clear()

    async def _commit(self, table: StreamTable) -> CommitResult:
        started = time.perf_counter()
        stream = table.stream
        calls = slots = 0
        error = ""
        try:
            shown = await self._show(stream)
            slots = shown.slots
            check_identifiers(table, shown.targets)
            wanted = {identifier - 1: stream.mark(identifier) for identifier in sorted(table.active)}
            shm = f"--shm={memory_path(self._shm_dir, stream).name}"
            for index, mark in wanted.items():
                if shown.marks.get(index) != mark:
                    await self._call("activate", f"--index={index}", shm, str(mark))
                    calls += 1
            for index in sorted(shown.marks.keys() - wanted.keys()):
                await self._call("deactivate", f"--index={index}", shm)
                calls += 1
            if calls and (await self._show(stream)).marks != wanted:
                raise DistributorError(f"another process changed the memory of stream {stream.name} during a commit")
        except DistributorError as problem:
            error = str(problem)
        return CommitResult(
            stream=stream.name,
            slots_changed=slots if calls else 0,
            slots_total=slots,
            duration_s=time.perf_counter() - started,
            error=error,
        )

    async def _show(self, stream: StreamSpec) -> Shown:
        path = memory_path(self._shm_dir, stream)
        # Taken before the memory is read: what happens to the file from here on counts as a loss.
        identity = self._identity(stream)
        shown = parse_show(await self._call("show", f"--shm={path.name}"))
        check_room(path, stream, shown.targets)
        if identity:
            self._identities[stream.name] = (path, identity)
        return shown

    def _identity(self, stream: StreamSpec) -> FileIdentity | None:
        try:
            return FileIdentity.of(memory_path(self._shm_dir, stream).stat())
        except OSError:
            return None

    async def _call(self, *arguments: str) -> str:
        """Run one command and return what it printed.

        Raises:
            DistributorError: it cannot be run, takes too long, or fails.
        """
        command = " ".join((self._binary, *arguments))
        try:
            process = await asyncio.create_subprocess_exec(
                self._binary,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise DistributorError(
                f"{self._binary} was not found: put it on PATH, or set distributor.kind=nfqlb-shm, which does without"
            ) from error
        except OSError as error:
            raise DistributorError(f"{self._binary} cannot be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._call_timeout_s):
                output, complaint = await process.communicate()
        except TimeoutError as error:
            raise DistributorError(f"{command} did not end within {self._call_timeout_s:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            said = complaint.decode(errors="replace").strip() or output.decode(errors="replace").strip()
            raise DistributorError(f"{command} failed with status {process.returncode}: {said or 'it said nothing'}")
        return output.decode(errors="replace")
