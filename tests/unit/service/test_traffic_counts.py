"""Receive counters of links, as /proc/net/dev shows them."""

from lbguard.core.config import EngineConfig
from lbguard.core.events import LinkGone, LinkSeen
from lbguard.service.traffic_counts import read_traffic
from tests.unit.core.harness import Guard


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
    assert read_traffic(guard.engine.links_facing_targets()) == []
    guard.register(1)
    [seen] = read_traffic(guard.engine.links_facing_targets())
    assert seen.ifindex == 1
    assert seen.rx_packets >= 0
    guard.tell(LinkGone(ifindex=1))
    assert read_traffic(guard.engine.links_facing_targets()) == []
