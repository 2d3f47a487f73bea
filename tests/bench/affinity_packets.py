"""What flow affinity adds to the cost of a packet, beside the nftables distributor alone.

The table is switched off and on (`flags dormant`) before each few thousand packets, and each pair is compared; so what
else the machine does meanwhile concerns both. The load balancer has four targets: with more of them its routing rules
take longer, and the share of affinity is smaller.
"""

import statistics
from dataclasses import dataclass

from lbguard.affinity.names import IN_TABLE, AffinityOptions
from lbguard.affinity.table import AffinityTable
from lbguard.core.model import StreamTable
from lbguard.distributor.base import Distributor
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nftables.distributor import NftDistributor
from lbguard.distributor.nftables.session import LIBRARY, NftContext
from lbguard.lab.netns import Namespace
from tests.bench import commit
from tests.bench.packet_flood import Flood, tcp_frames
from tests.bench.results import Row, Say, Scale
from tests.bench.world import Pair, mark_of, path
from tests.steering import steering

AIM = 0.05
"""Share of the time of a packet with the distributor alone."""
TARGETS = 4
UNKNOWN, _NEW = 200_000, 300_000
"""Numbers of the first flow of those that are never remembered, and of those that only begin."""
_EARLY_DROP = """
add table netdev early
add chain netdev early drops { type filter hook ingress device "client" priority 0; policy drop; }
"""


@dataclass(frozen=True, slots=True)
class Size:
    """Pairs of measurements, packets of each half, and flows that are sent at most."""

    pairs: int
    packets: int
    flows: int


SIZES = {
    Scale.FULL: Size(40, 8192, 65_536),
    Scale.QUICK: Size(25, 4096, 65_536),
    Scale.SMOKE: Size(2, 128, 64),
}


async def packet_rows(benchmark: str, scale: Scale, say: Say) -> list[Row]:
    """Measure packets of unknown, new and remembered flows in both families."""
    with path("affinity", TARGETS, "tcp dport 443") as (client, built):
        trial = Trial(benchmark, SIZES[scale], say, client, built)
        await trial.start()
        try:
            return [row for family in (4, 6) for row in await _of_family(trial, family)]
        finally:
            await trial.stop()


async def _of_family(trial: "Trial", family: int) -> list[Row]:
    name = f"IPv{family}"
    await trial.remember(family, 0)
    rows = [
        trial.compare(f"{name}, unknown flow, no flow remembered", family, UNKNOWN),
        trial.compare(f"{name}, first packet of a flow, no flow remembered", family, _NEW, begin=True),
    ]
    await trial.learn()
    rows.append(trial.compare(f"{name}, first packet of a flow, remembered by it", family, _NEW, begin=True, once=True))
    for count in sorted({min(1000, trial.size.flows), trial.size.flows}):
        await trial.remember(family, count)
        rows += [
            trial.compare(f"{name}, unknown flow, {count} remembered", family, UNKNOWN),
            trial.compare(f"{name}, one of {count} remembered flows", family, 0, count=count),
        ]
    return rows


class Trial:
    """A load balancer with four targets, the distributor of one stream, and a client that floods it."""

    where = ""
    table = IN_TABLE
    beside = "a packet with the distributor alone"

    def __init__(self, benchmark: str, size: Size, say: Say, client: Namespace, built: Pair) -> None:
        self.size = size
        self.lb, self.peer = built.lb, built.peer
        self._benchmark = benchmark
        self._say = say
        self._client = client
        self._macs = client.link("lb").mac, built.lb.link("client").mac
        with built.lb.entered():
            self._nft = NftContext(LIBRARY)
            self._table = AffinityTable(AffinityOptions())
        self._distributor: Distributor | None = None
        self._sender_ns = 0.0

    @property
    def _packets_of_half(self) -> int:
        """Those that are measured, and before them some for which caches are not filled yet."""
        return self.size.packets + self.size.packets // 16

    async def start(self) -> None:
        """Let the distributor work, and measure the sender alone."""
        active = frozenset(range(1, TARGETS + 1))
        stream = commit.stream()
        self._distributor = await self.distribute()
        await self._distributor.attach(stream)
        (result,) = await self._distributor.commit([StreamTable(stream=stream, registered=active, active=active)])
        if result.error:
            raise RuntimeError(result.error)
        self._nft.run(_EARLY_DROP)
        with self._flood(4, 0, self.size.packets, begin=False) as flood:
            self._sender_ns = statistics.median([flood.send(self.size.packets) for _ in range(self.size.pairs)])
        self._nft.run("delete table netdev early")

    async def distribute(self) -> Distributor:
        """Return the distributor."""
        with self.lb.entered():
            return NftDistributor(TableKind.ANCHORED)

    async def stop(self) -> None:
        """Release what was opened; the namespaces go with all the rest."""
        await self._table.close()
        if self._distributor is not None:
            await self._distributor.close()
        self._nft.close()

    def send(self, flood: Flood, count: int) -> float:
        """Send so many packets and wait until they have left; return the processor time of each, in nanoseconds."""
        return flood.send(count)

    async def learn(self) -> None:
        """Let new flows be remembered from now on."""
        await self._table.apply([steering("stream-0", tuple(map(mark_of, range(TARGETS))))])

    async def remember(self, family: int, count: int) -> None:
        """Let exactly so many flows of a family be remembered."""
        await self._table.remove()
        await self.learn()
        if count:
            with self._flood(family, 0, count, begin=True) as flood:
                self.send(flood, count)
        await self._table.apply([steering("stream-0", tuple(map(mark_of, range(TARGETS))), learning=False)])
        found = (await self._table.read()).flows["tcp", family]
        if found != count:
            raise RuntimeError(f"{found} flows are remembered, and not {count}")

    def compare(
        self, what: str, family: int, first: int, *, count: int = 0, begin: bool = False, once: bool = False
    ) -> Row:
        """Return the time that a packet takes more with the table than without it. `once`: no flow is sent twice."""
        self._say(what)
        without, added = [], []
        flows = count or self.size.flows
        pairs = min(self.size.pairs, flows // (2 * self._packets_of_half)) if once else self.size.pairs
        with self._flood(family, first, flows, begin=begin) as flood:
            for _ in range(max(2, pairs)):
                alone, beside = (self._measure(flood, flags) for flags in ("flags dormant;", ""))
                without.append(alone)
                added.append(beside - alone)
        base, more = statistics.median(without), statistics.median(added)
        low, _, high = statistics.quantiles(added, n=4)
        return Row(
            benchmark=self._benchmark,
            what=f"added to a packet{self.where}: {what}",
            unit="ns",
            # A difference may be lost in the noise of few packets.
            measured=max(0.0, more),
            repetitions=len(added),
            # A flow has one first packet.
            aim=None if begin else AIM * base,
            reference=base,
            reference_what=self.beside,
            details={
                "packets": 2 * len(added) * self.size.packets,
                "added_ns_quartiles": [low, high],
                "rate_lost_percent": 100 * more / (base + more),
                "sender_ns": self._sender_ns,
            },
        )

    def _measure(self, flood: Flood, flags: str) -> float:
        self._nft.run(f"add table {self.table} {{ {flags} }}")
        self.send(flood, self._packets_of_half - self.size.packets)
        return self.send(flood, self.size.packets)

    def _flood(self, family: int, first: int, count: int, *, begin: bool) -> Flood:
        client, gateway = self._macs
        frames = tcp_frames(client, gateway, family, first=first, count=count, begin=begin)
        return Flood(self._client, "lb", frames)
