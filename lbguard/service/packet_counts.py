"""Packet counters of the kernel: of each target for the metrics, and of each link for the core.

Packets that arrive through a link veto a verdict that the link is down.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from lbguard.core.engine_state import LinkView
from lbguard.core.events import TrafficSeen
from lbguard.core.model import TargetKey
from lbguard.distributor.base import DistributorError
from lbguard.distributor.nftables.counters import FallbackCounters, HeldCount
from lbguard.telemetry.link_counters import parse_net_dev, read_net_dev
from lbguard.telemetry.log import fields
from lbguard.telemetry.metrics.guard import Metrics

_log = logging.getLogger("lbguard.service.packet_counts")

Readings = Mapping[TargetKey, HeldCount]


class PacketCounts:
    """Packet counts per target, and of packets dropped while held. A failure of nftables is logged once."""

    def __init__(
        self,
        metrics: Metrics,
        counters: FallbackCounters | None = None,
        *,
        on_read: Callable[[Readings, Readings], None] = lambda hits, held: None,
    ) -> None:
        """Set the receivers of readings besides the metrics: packets to each target, and those dropped while held."""
        self._metrics = metrics
        self._on_read = on_read
        self._counters = counters or FallbackCounters()
        self._counted: dict[int, TargetKey] = {}
        self._suspected: frozenset[int] = frozenset()
        self._problem = ""

    async def follow(self, targets: Mapping[int, TargetKey], suspected: Collection[int]) -> None:
        """Count exactly these marks, and the drops of suspected ones; cheap when they are unchanged."""
        if targets == self._counted:
            await self.suspect(suspected)
            return
        try:
            await self._counters.ensure(targets, suspected)
        except (DistributorError, OSError) as error:
            self._complain(str(error))
        else:
            self._counted, self._suspected = dict(targets), frozenset(suspected)
            self._problem = ""

    async def suspect(self, suspected: Collection[int]) -> None:
        """Count drops of exactly these of the marks from now on."""
        wanted = frozenset(suspected)
        if wanted == self._suspected or not self._counted:
            return
        try:
            await self._counters.suspect(wanted)
        except (DistributorError, OSError) as error:
            self._complain(str(error))
            # What the kernel has is unknown: the next `follow` writes all of it.
            self._counted = {}
        else:
            self._suspected = wanted

    async def read(self) -> None:
        """Record a reading for the metrics."""
        if not self._counted:
            # The last target was removed: its series are removed too.
            self._metrics.packets.record({}, {})
            return
        try:
            hits, held = await self._counters.read_hits(), await self._counters.read()
        except (DistributorError, OSError) as error:
            self._complain(str(error))
            return
        self._problem = ""
        keys = self._counted
        given = {keys[mark]: count for mark, count in hits.items() if mark in keys}
        fallen = {keys[mark]: count for mark, count in held.items() if mark in keys}
        self._metrics.packets.record(given, fallen)
        self._on_read(given, fallen)

    async def read_marks(self) -> dict[int, int]:
        """Return the packets of each mark that is counted; empty when the counts cannot be read."""
        if not self._counted:
            return {}
        try:
            hits = await self._counters.read_hits()
        except (DistributorError, OSError) as error:
            self._complain(str(error))
            return {}
        return {mark: count.packets for mark, count in hits.items()}

    async def remove(self) -> None:
        """Remove the counters from the kernel."""
        try:
            await self._counters.remove()
        except (DistributorError, OSError) as error:
            self._complain(str(error))

    async def close(self) -> None:
        """Release the handle; the counters continue to count."""
        await self._counters.close()

    def _complain(self, problem: str) -> None:
        # The service does not stop when counters fail.
        if problem != self._problem:
            self._problem = problem
            _log.warning("packets are not counted", extra=fields(reason=problem))


_RX_PACKETS = 1


def read_traffic(links: Iterable[LinkView]) -> Sequence[TrafficSeen]:
    """Return one reading for each link; none when the counters cannot be read."""
    counts = parse_net_dev(read_net_dev())
    return [
        TrafficSeen(ifindex=link.ifindex, rx_packets=counts[link.name][_RX_PACKETS])
        for link in links
        if link.name in counts
    ]
