"""The place after the chains that queue packets, found in the real kernel's ruleset."""

import contextlib
import re
from collections.abc import Iterator

import pytest

from lbguard.distributor.nftables.counters import FallbackCounters
from lbguard.distributor.nftables.nfnetlink import NetfilterSocket, Nfnetlink
from lbguard.distributor.nftables.queueing import FILTER, MANGLE, LastQueue, queue_priority
from lbguard.lab.queueing import send_to_queues
from tests.netns.distributor.conftest import VIP4, VIP6, Lab

pytestmark = pytest.mark.netns

VIPS = {"ip": VIP4, "ip6": VIP6}
OTHERS = """
add table inet other
add chain inet other late { type filter hook prerouting priority 300; }
add rule inet other late ip daddr 20.0.0.1 counter
add chain inet other output { type filter hook output priority 400; }
"""


@pytest.fixture
def kernel(lab: Lab) -> Iterator[Nfnetlink]:
    with lab.balancer.entered():
        opened = Nfnetlink(NetfilterSocket())
    with contextlib.closing(opened):
        yield opened


def test_chains_that_queue_nothing_do_not_count(lab: Lab, kernel: Nfnetlink) -> None:
    assert queue_priority(kernel) is None
    lab.balancer.run("nft", OTHERS)
    assert queue_priority(kernel) is None
    assert LastQueue().look(kernel) == MANGLE
    assert LastQueue(FILTER).look(kernel) == FILTER


@pytest.mark.parametrize("priority", [MANGLE, FILTER, 50])
def test_the_chain_that_queues_is_found_whatever_its_priority(lab: Lab, kernel: Nfnetlink, priority: int) -> None:
    lab.balancer.run("nft", OTHERS)
    send_to_queues(lab.balancer, VIPS, 0, 3, priority=priority)
    assert queue_priority(kernel) == priority


def test_the_place_is_kept_while_the_load_balancer_is_away(lab: Lab, kernel: Nfnetlink) -> None:
    last = LastQueue()
    assert last.look(kernel) == MANGLE
    send_to_queues(lab.balancer, VIPS, 0, 3, priority=FILTER, table="meridio-lb")
    assert last.look(kernel) == FILTER
    lab.balancer.run("nft", "delete table ip meridio-lb; delete table ip6 meridio-lb")
    assert queue_priority(kernel) is None
    assert last.look(kernel) == FILTER


async def test_counters_come_after_a_queue_that_appears_and_keep_their_counts(lab: Lab) -> None:
    def priority() -> str:
        shown = lab.balancer.run("nft", "-y", "list", "table", "inet", "lbguard-counters")
        found = re.findall(r"hook prerouting priority (-?[0-9]+); policy accept;\n\t\tmeta mark", shown)
        assert len(found) == 1, "only one chain has rules"
        return str(found[0])

    with lab.balancer.entered():
        counters = FallbackCounters()
    await counters.ensure([5001])
    assert priority() == "-139"
    lab.balancer.run("nft", "add table inet choice")
    lab.balancer.run("nft", "add chain inet choice c { type filter hook prerouting priority -150; }")
    lab.balancer.run("nft", f"add rule inet choice c ip saddr 10.0.0.0/8 ip daddr != {VIP4} meta mark set 5001")
    send_to_queues(lab.balancer, VIPS, 0, 3, priority=FILTER)
    await counters.read()
    assert priority() == "11"
    await counters.close()
