"""The service with a distributor that fails as told: `python -m tests.netns.service.faulty FAULT`, with its settings.

Faults: those of the fake distributor, after the first commit; `prune-first`, the first pruning; `stuck`, which blocks a
thread of the distributor for ever after the first commit; or `block=PATH`, which blocks the loop while that file exists
and makes a file `blocked` beside it.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lbguard.core.model import StreamTable
from lbguard.distributor.base import CommitResult, Distributor
from lbguard.service.process import run
from lbguard.settings.model import Settings, load
from tests.fakes.distributor import FakeDistributor


class AfterTheFirstCommit(FakeDistributor):
    """A distributor that fails once its first commit is done."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self._armed = fault

    async def commit(self, tables: Sequence[StreamTable]) -> Sequence[CommitResult]:
        results = await super().commit(tables)
        if self._armed:
            self.fault(self._armed)
            self._armed = ""
        return results


class Stuck(AfterTheFirstCommit):
    """A distributor whose thread never comes back, as one that waits for a dead file system."""

    def __init__(self) -> None:
        super().__init__("")
        self._thread = ThreadPoolExecutor(max_workers=1)

    async def lost_streams(self) -> dict[str, str]:
        if self.tables:
            await asyncio.get_running_loop().run_in_executor(self._thread, threading.Event().wait)
        return {}

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, int)


class Blocking(FakeDistributor):
    """A distributor that looks at its tables without leaving the loop to others meanwhile."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    async def lost_streams(self) -> dict[str, str]:
        self._wait()
        return await super().lost_streams()

    def _wait(self) -> None:
        while self._path.exists():
            self._path.with_name("blocked").touch()
            time.sleep(0.01)


def make(_: Settings) -> Distributor:
    if sys.argv[1] == "stuck":
        return Stuck()
    if sys.argv[1] == "prune-first":
        refusing = FakeDistributor()
        refusing.fault("prune")
        return refusing
    if sys.argv[1].startswith("block="):
        return Blocking(Path(sys.argv[1].removeprefix("block=")))
    return AfterTheFirstCommit(sys.argv[1])


if __name__ == "__main__":
    sys.exit(run(load().settings, make))
