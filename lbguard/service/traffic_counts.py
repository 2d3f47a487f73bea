"""Reads the receive counters of links that face targets: packets that arrive veto a verdict that says nothing does."""

from collections.abc import Iterable, Sequence

from lbguard.core.engine_state import LinkView
from lbguard.core.events import TrafficSeen
from lbguard.telemetry.link_counters import parse_net_dev, read_net_dev

_RX_PACKETS = 1


def read_traffic(links: Iterable[LinkView]) -> Sequence[TrafficSeen]:
    """Return one reading for each link; none when the counters cannot be read."""
    counts = parse_net_dev(read_net_dev())
    return [
        TrafficSeen(ifindex=link.ifindex, rx_packets=counts[link.name][_RX_PACKETS])
        for link in links
        if link.name in counts
    ]
