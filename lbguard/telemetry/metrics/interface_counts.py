"""Kernel counters of the links that face targets, with the labels of Meridio's metrics.

They are read at each scrape. A re-created link begins at 0 and has another `mac_address`, so it is another series; a
removed link has no series.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from lbguard.core.addr import format_mac, is_link_local
from lbguard.core.engine_state import LinkView
from lbguard.telemetry.link_counters import parse_net_dev, read_net_dev

INTERFACE_LABELS = ("interface_name", "mac_address", "ips")

# Columns of /proc/net/dev after the name.
_COLUMNS = {
    "rx_bytes": 0,
    "rx_packets": 1,
    "rx_errors": 2,
    "rx_dropped": 3,
    "tx_bytes": 8,
    "tx_packets": 9,
    "tx_errors": 10,
    "tx_dropped": 11,
}

INTERFACE_METRICS = {
    f"lbguard_interface_{kind}_total": f"{words} on a link that faces targets, by the kernel's count."
    for kind, words in {
        "rx_bytes": "Bytes received",
        "rx_packets": "Packets received",
        "rx_errors": "Receive errors",
        "rx_dropped": "Received packets dropped",
        "tx_bytes": "Bytes sent",
        "tx_packets": "Packets sent",
        "tx_errors": "Send errors",
        "tx_dropped": "Packets to send dropped",
    }.items()
}
"""Names of the metrics, with their help texts."""


@dataclass(frozen=True, slots=True)
class LinkLabels:
    """A link as labels of its series; `ips` are addresses with prefix lengths between commas."""

    name: str
    mac: str
    ips: str


def labels_of(links: Iterable[LinkView]) -> tuple[LinkLabels, ...]:
    """Return the labels of those links that are up."""
    found = []
    for link in links:
        if link.up:
            addresses = sorted(address for address, _ in link.addresses if not is_link_local(address.ip))
            ips = ",".join(str(address) for address in addresses)
            found.append(LinkLabels(link.name, format_mac(link.mac), ips))
    return tuple(found)


class InterfaceTotals(Collector):
    """Exports the counters of the links that it follows.

    Args:
        place: labels that every series has (trench, conduit).
        read: returns the content of /proc/net/dev.
    """

    def __init__(self, place: Mapping[str, str], read: Callable[[], bytes] = read_net_dev) -> None:
        self._place = dict(place)
        self._read = read
        self._links: tuple[LinkLabels, ...] = ()

    def follow(self, links: tuple[LinkLabels, ...]) -> None:
        """Export exactly these links."""
        self._links = links

    def collect(self) -> Iterable[Metric]:
        """Return the counters; called by the thread that serves a scrape."""
        links = self._links
        counters = parse_net_dev(self._read()) if links else {}
        for (name, help_text), column in zip(INTERFACE_METRICS.items(), _COLUMNS.values(), strict=True):
            family = CounterMetricFamily(name, help_text, labels=(*self._place, *INTERFACE_LABELS))
            for link in links:
                if link.name in counters:
                    labels = (*self._place.values(), link.name, link.mac, link.ips)
                    family.add_metric(labels, counters[link.name][column])
            yield family
