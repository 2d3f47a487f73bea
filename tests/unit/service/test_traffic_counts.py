"""Receive counters of links, as /proc/net/dev shows them."""

import pytest

from lbguard.core.config import EngineConfig
from lbguard.core.events import LinkGone, LinkSeen
from lbguard.service.traffic_counts import parse_counters, read_traffic
from tests.unit.core.harness import Guard

# Two links and the loopback as Linux 6 prints them; the second column of numbers is received packets (proc(5)).
SHOWN = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo:  201820    2016    0    0    0     0          0         0   201820    2016    0    0    0
nse-a.1: 99887766  123456    0    5    0     0          0         0  4567890   45678    0    0    0
nsm-proxy1-ab:0       0    0    0    0     0          0         0      786       9    0    0    0
"""


def test_received_packets_are_found_by_the_name_of_the_link() -> None:
    assert parse_counters(SHOWN) == {"lo": 2016, "nse-a.1": 123456, "nsm-proxy1-ab": 0}


@pytest.mark.parametrize("text", ["", "one line", "two\nlines", SHOWN[:200], SHOWN + "\ngarbage\nx:\ny: 1\nz: a b\n"])
def test_anything_else_is_no_counter_and_no_error(text: str) -> None:
    assert parse_counters(text).keys() <= {"lo", "nse-a.1", "nsm-proxy1-ab"}


def test_only_links_that_face_targets_are_read() -> None:
    """The loopback of this machine stands for a link: it is the one that every machine has."""
    guard = Guard(EngineConfig(excluded_links=()), targets=0, start=False)
    guard.link(7)
    guard.tell(
        LinkSeen(ifindex=1, name="lo", up=True, mac=bytes(6)),
        LinkSeen(ifindex=2, name="nobody-has-this", up=True, mac=bytes(6)),
        guard.address(1, "172.16.0.3/24"),
        guard.address(2, "172.16.0.4/24"),
    )
    assert read_traffic(guard.engine.view) == []
    guard.register(1)
    [seen] = read_traffic(guard.engine.view)
    assert seen.ifindex == 1
    assert seen.rx_packets >= 0
    guard.tell(LinkGone(ifindex=1))
    assert read_traffic(guard.engine.view) == []
