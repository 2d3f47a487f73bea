"""Flow affinity comes after the chain that queues packets, also after one that appears later."""

import re

import pytest

from lbguard.affinity.table import AffinityTable
from lbguard.distributor.nftables.queueing import FILTER
from lbguard.lab.queueing import send_to_queues
from tests.netns.affinity.conftest import FAMILIES, AffinityLab, flows
from tests.netns.distributor.packets import TCP
from tests.steering import steering

pytestmark = pytest.mark.netns

ELSEWHERE = {"ip": "30.0.0.1", "ip6": "3000::1"}


def priority(lab: AffinityLab) -> str:
    shown = lab.balancer.run("nft", "-y", "list", "table", "inet", "lbguard-affinity")
    found = re.findall(r"hook prerouting priority (-?[0-9]+); policy accept;\n\t\tmeta mark", shown)
    assert len(found) == 1, "only one chain has rules"
    return str(found[0])


async def test_flows_stay_when_the_rules_move_behind_a_queue(lab: AffinityLab, table: AffinityTable) -> None:
    await table.apply([steering(learning=True)])
    assert priority(lab) == "-140"
    lab.choose(1)
    some = [flow for family in FAMILIES for flow in flows(family, TCP, 10)]
    lab.begin(some)
    send_to_queues(lab.balancer, ELSEWHERE, 0, 3, priority=FILTER, table="meridio-lb")
    assert await table.look(), "nobody changed our table"
    assert priority(lab) == "10"
    lab.choose(2)
    assert lab.go_on(some) == [1] * 20
    assert await table.look()


async def test_a_new_keeper_keeps_the_place_while_the_load_balancer_is_away(
    lab: AffinityLab, table: AffinityTable
) -> None:
    send_to_queues(lab.balancer, ELSEWHERE, 0, 3, priority=FILTER, table="meridio-lb")
    await table.apply([steering()])
    assert priority(lab) == "10"
    lab.balancer.run("nft", "delete table ip meridio-lb; delete table ip6 meridio-lb")
    second = lab.keeper()
    await second.apply([steering()])
    assert priority(lab) == "10"
    await second.close()
