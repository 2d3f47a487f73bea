"""What flow affinity adds to the cost of a packet beside a real nfqlb.

nfqlb's own process gives each packet back to the kernel, which carries it through the rest of its way in that call. So
the cost of a packet is the processor time of the sender and of that process. Packets are sent in bursts that the
queues have room for.
"""

import time
from pathlib import Path

from lbguard.distributor.base import Distributor
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.shm import NfqlbShmDistributor
from lbguard.distributor.nftables.inventory import read_counter
from lbguard.distributor.nftables.session import LIBRARY, NftContext
from lbguard.lab.nfqlb import NfqlbProcess
from tests.bench import commit
from tests.bench.affinity_packets import TARGETS, Size, Trial
from tests.bench.packet_flood import Flood
from tests.bench.results import Row, Say, Scale
from tests.bench.world import path

_SIZES = {
    Scale.FULL: Size(40, 2048, 1000),
    Scale.QUICK: Size(20, 1024, 1000),
    Scale.SMOKE: Size(2, 128, 64),
}
_BURST = 256
_LIMIT_S = 20.0


async def nfqlb_rows(benchmark: str, scale: Scale, say: Say) -> list[Row]:
    """Measure packets of unknown and of remembered flows in both families."""
    rows = []
    size = _SIZES[scale]
    with path("affinity-nfqlb", TARGETS, "tcp dport 443") as (client, built):
        trial = _NfqlbTrial(benchmark, size, say, client, built)
        try:
            await trial.start()
            for family in (4, 6):
                await trial.remember(family, 0)
                rows.append(trial.compare(f"IPv{family}, unknown flow, no flow remembered", family, 200_000))
                await trial.remember(family, size.flows)
                what = f"IPv{family}, one of {size.flows} remembered flows"
                rows.append(trial.compare(what, family, 0, count=size.flows))
        finally:
            await trial.stop()
    return rows


class _NfqlbTrial(Trial):
    where = " beside nfqlb"
    beside = "a packet with nfqlb alone"

    async def distribute(self) -> Distributor:
        """Start nfqlb, and return the writer of its memory."""
        with self.peer.entered():
            self._counting = NftContext(LIBRARY)
        self._process = NfqlbProcess(self.lb, "stream-0", commit.TARGETS)
        await self._process.start()
        self._threads = _threads_of_nfqlb()
        return NfqlbShmDistributor(TableKind.ANCHORED)

    async def stop(self) -> None:
        """End nfqlb too."""
        await super().stop()
        await self._process.stop()
        self._counting.close()

    def send(self, flood: Flood, count: int) -> float:
        """Send bursts, and wait until the targets have each."""
        before, spent_ns = self._nfqlb_ns(), 0.0
        for start in range(0, count, _BURST):
            burst = min(_BURST, count - start)
            goal = self._arrived() + burst
            spent_ns += burst * flood.send(burst)
            deadline = time.monotonic() + _LIMIT_S
            while self._arrived() < goal:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{goal - self._arrived()} of {burst} packets did not come out of nfqlb")
                time.sleep(0.0002)
        return (spent_ns + self._nfqlb_ns() - before) / count

    def _arrived(self) -> int:
        count = read_counter(self._counting.kernel, "count", "arrived")
        if count is None:
            raise RuntimeError("the counter of the targets is gone")
        return count.packets

    def _nfqlb_ns(self) -> int:
        return sum(int((task / "schedstat").read_text().split()[0]) for task in self._threads.iterdir())


def _threads_of_nfqlb() -> Path:
    """Return the directory of the threads of nfqlb: the only process of the sandbox with this command."""
    for directory in Path("/proc").glob("[0-9]*"):
        if b"flowlb" in (directory / "cmdline").read_bytes():
            return directory / "task"
    raise RuntimeError("nfqlb does not run")
