"""Tables of nfqlb as today's load balancer writes them: one stock command for each target that changes.

Every `activate` and `deactivate` empties the whole table and refills it in place, so packets are lost while it runs.
"""

import asyncio
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lbguard.core.model import StreamTable
from lbguard.distributor.base import CommitResult
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.memory import SHM_DIR, memory_path
from lbguard.distributor.nfqlb.shm import NfqlbShmDistributor


class StockCommands(NfqlbShmDistributor):
    """nfqlb's memory, read as lbguard reads it and written by nfqlb's own commands."""

    kind = "nfqlb commands"

    def __init__(self, binary: str = "nfqlb", shm_dir: Path = SHM_DIR) -> None:
        super().__init__(TableKind.MAGLEV, shm_dir, read_only=True)
        self._binary = binary

    async def commit(self, tables: Sequence[StreamTable]) -> Sequence[CommitResult]:
        """Activate what is missing, then deactivate what is too much."""
        return [await self._run_commands(table) for table in tables]

    async def _run_commands(self, table: StreamTable) -> CommitResult:
        stream = table.stream
        present = await self.read_active(stream)
        shm = f"--shm={memory_path(self._shm_dir, stream).name}"
        calls: list[tuple[str, ...]] = [
            ("activate", f"--index={identifier - 1}", shm, str(stream.mark(identifier)))
            for identifier in sorted(table.active - present)
        ]
        calls += [("deactivate", f"--index={identifier - 1}", shm) for identifier in sorted(present - table.active)]
        started = time.perf_counter()
        for call in calls:
            done = await asyncio.to_thread(
                subprocess.run, [self._binary, *call], check=False, capture_output=True, text=True
            )
            if done.returncode:
                said = (done.stderr or done.stdout).strip()
                return CommitResult(stream=stream.name, error=f"{self._binary} {' '.join(call)}: {said}")
        return CommitResult(stream=stream.name, duration_s=time.perf_counter() - started)
