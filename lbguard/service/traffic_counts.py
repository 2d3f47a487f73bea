"""Reads the receive counters of links that face targets: packets that arrive veto a verdict that says nothing does."""

from collections.abc import Sequence
from pathlib import Path

from lbguard.core.events import TrafficSeen
from lbguard.core.netview import NetView

_COUNTERS = Path("/proc/thread-self/net/dev")


def parse_counters(text: str) -> dict[str, int]:
    """Return received packets by link name from the text of /proc/net/dev (proc(5))."""
    counts = {}
    for line in text.splitlines()[2:]:
        name, colon, rest = line.partition(":")
        numbers = rest.split()
        if colon and len(numbers) > 1 and numbers[1].isdigit():
            counts[name.strip()] = int(numbers[1])
    return counts


def read_traffic(view: NetView) -> Sequence[TrafficSeen]:
    """Return one reading for each link that faces targets; none when the counters cannot be read."""
    try:
        counts = parse_counters(_COUNTERS.read_text())
    except OSError:
        return ()
    return [
        TrafficSeen(ifindex=link.ifindex, rx_packets=counts[link.name])
        for link in view.links.values()
        if link.name in counts and view.faces_targets(link)
    ]
