"""The service with a distributor that fails as told: `python -m tests.netns.service.faulty FAULT`, with its settings.

Faults: those of the fake distributor, after the first commit; `prune-first`, the first pruning; or `stuck`, which
blocks a thread of the distributor for ever after the first commit.
"""

import asyncio
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lbguard.core.model import StreamTable
from lbguard.distributor.base import CommitResult, Distributor
from lbguard.service.daemon import run
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


def make(_: Settings) -> Distributor:
    if sys.argv[1] == "stuck":
        return Stuck()
    if sys.argv[1] == "prune-first":
        refusing = FakeDistributor()
        refusing.fault("prune")
        return refusing
    return AfterTheFirstCommit(sys.argv[1])


if __name__ == "__main__":
    sys.exit(run(load().settings, make))
