"""The keeper of the table on the real kernel: restarts, what others do, options, sizes."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lbguard.affinity.names import VERSION, AffinityOptions, layout_chain, steer_chain
from lbguard.affinity.table import AffinityTable
from lbguard.distributor.base import DistributorError
from tests.netns.affinity import segments
from tests.netns.affinity.conftest import FAMILIES, OPTIONS, AffinityLab, flows
from tests.netns.distributor.packets import SCTP, TCP, UDP
from tests.steering import steering

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[3]


async def test_a_new_keeper_takes_over_what_an_earlier_one_left(lab: AffinityLab, table: AffinityTable) -> None:
    await table.apply([steering()])
    lab.choose(1)
    some = [flow for family in FAMILIES for protocol in (TCP, UDP, SCTP) for flow in flows(family, protocol, 10)]
    lab.begin(some)
    lab.choose(2)
    before = lab.balancer.run("nft", "-s", "list", "table", "inet", "lbguard-affinity")
    second = lab.keeper()
    await second.apply([steering()])
    assert lab.go_on(some) == [1] * 60
    assert await second.look()
    assert sum((await second.read()).flows.values()) == 60
    after = lab.balancer.run("nft", "-s", "list", "table", "inet", "lbguard-affinity")
    shown = [line for line in after.splitlines() if "timeout" not in line and "expires" not in line]
    assert shown == [line for line in before.splitlines() if "timeout" not in line and "expires" not in line]
    await second.close()


async def test_a_new_keeper_ends_what_is_desired_no_more(lab: AffinityLab, table: AffinityTable) -> None:
    await table.apply([steering("one", (5001, 5002), avoid=(5001,)), steering("two", (5003, 5004))])
    second = lab.keeper()
    # The mark changes its stream, too.
    await second.apply([steering("two", (5002, 5003)), steering("three", (5004,), served=())])
    shown = lab.balancer.run("nft", "list", "table", "inet", "lbguard-affinity")
    assert steer_chain("one", 4) not in shown
    assert "healthy_6_one" not in shown
    assert await second.look()
    lab.choose(2)
    lab.sever(2)
    assert lab.begin(flows("ipv4", TCP, 10)) == [3] * 10
    await second.apply([])
    shown = lab.balancer.run("nft", "list", "table", "inet", "lbguard-affinity")
    assert "healthy_" not in shown
    assert await second.look()
    await second.close()


async def test_no_packet_of_a_remembered_flow_goes_astray_while_keepers_come_and_go(
    lab: AffinityLab, table: AffinityTable
) -> None:
    total = 6000
    await table.apply([steering()])
    lab.choose(1)
    some = [flow for family in FAMILIES for flow in flows(family, TCP, 50)]
    lab.begin(some)
    lab.choose(2)
    done = threading.Event()

    def send() -> None:
        messages = [segments.go_on(flow) for flow in some]
        for start in range(0, total, 40):
            lab.send([messages[i % len(messages)] for i in range(start, start + 40)])
            time.sleep(0.002)
        done.set()

    sender = threading.Thread(target=send)
    sender.start()
    starts = 0
    while not done.is_set() or starts < 4:
        keeper = lab.keeper()
        await keeper.apply([steering(), steering(f"s{starts}", (6001, 6002))])
        await keeper.apply([steering(avoid=(5003,)), steering("other", (7001,))])
        await keeper.close()
        starts += 1
    sender.join()
    assert {target for target, _ in lab.received(total)} == {1}
    assert lab.quiet()


@pytest.mark.parametrize(
    "commands",
    [
        "flush ruleset",
        "delete table inet lbguard-affinity",
        "flush chain inet lbguard-affinity prerouting",
        "flush chain inet lbguard-affinity known_tcp_4",
        "flush chain inet lbguard-affinity steer_4_stream-a",
        "flush chain inet lbguard-affinity sweep_6",
        "flush chain inet lbguard-affinity first_tcp_4",
        "flush set inet lbguard-affinity learn",
        "delete element inet lbguard-affinity next_6 { 5001 }",
        "add element inet lbguard-affinity observe { 5001 }",
        "flush chain inet lbguard-affinity remember_tcp_6",
        "flush set inet lbguard-affinity served_4",
        "flush map inet lbguard-affinity steer_4",
        "delete element inet lbguard-affinity marks { 5002 }",
        "add element inet lbguard-affinity avoid_4 { 5002 }",
        "add element inet lbguard-affinity marks { 77 }",
    ],
)
async def test_what_others_change_is_mended(lab: AffinityLab, table: AffinityTable, commands: str) -> None:
    await table.apply([steering()])
    lab.choose(1)
    assert await table.look()
    lab.balancer.run("nft", commands)
    assert not await table.look()
    assert await table.look()
    lab.choose(1)
    some = flows("ipv4", TCP, 10)
    assert lab.begin(some) == [1] * 10
    lab.choose(2)
    assert lab.go_on(some) == [1] * 10


async def test_the_rules_of_an_incident_are_mended_too(lab: AffinityLab, table: AffinityTable) -> None:
    await table.apply([steering(observing=True, learning=False)])
    lab.balancer.run("nft", "flush chain inet lbguard-affinity missed_sctp_4")
    assert not await table.look()
    assert await table.look()
    lab.choose(1)
    some = flows("ipv4", SCTP, 5)
    lab.go_on(some)
    lab.choose(2)
    assert lab.go_on(some) == [1] * 5


async def test_what_others_do_next_door_is_no_change(lab: AffinityLab, table: AffinityTable) -> None:
    await table.apply([steering()])
    lab.balancer.run("nft", "add table ip noise; add chain ip noise c")
    assert await table.look()
    await table.apply([steering(avoid=(5001,))])
    assert await table.look()


async def test_remembered_flows_outlive_the_mending_of_a_set(lab: AffinityLab, table: AffinityTable) -> None:
    await table.apply([steering()])
    lab.choose(1)
    some = flows("ipv6", TCP, 10)
    lab.begin(some)
    lab.choose(2)
    lab.balancer.run("nft", "flush map inet lbguard-affinity steer_6")
    assert not await table.look()
    assert lab.go_on(some) == [1] * 10


@pytest.mark.parametrize(
    "options",
    [
        AffinityOptions(udp=True, every_flow=True),
        AffinityOptions(udp=True, max_flows=10),
        AffinityOptions(udp=True, idle_s=60),
        AffinityOptions(),
    ],
)
async def test_other_options_make_the_table_anew(
    lab: AffinityLab, table: AffinityTable, options: AffinityOptions
) -> None:
    await table.apply([steering()])
    lab.choose(1)
    some = flows("ipv4", TCP, 10)
    lab.begin(some)
    second = lab.keeper(options)
    await second.apply([steering()])
    assert await second.look()
    assert sum((await second.read()).flows.values()) == 0
    assert lab.begin(some) == [1] * 10
    lab.choose(2)
    assert lab.go_on(some) == [1] * 10
    await second.close()


async def test_a_table_of_an_earlier_version_is_made_anew(lab: AffinityLab, table: AffinityTable) -> None:
    await table.apply([steering()])
    lab.choose(1)
    some = flows("ipv4", TCP, 10)
    lab.begin(some)
    earlier = layout_chain(OPTIONS).replace(f"layout-{VERSION}", f"layout-{VERSION - 1}")
    lab.balancer.run("nft", f"delete chain inet lbguard-affinity {layout_chain(OPTIONS)}")
    lab.balancer.run("nft", f"add chain inet lbguard-affinity {earlier}")
    second = lab.keeper()
    await second.apply([steering()])
    assert earlier not in lab.balancer.run("nft", "list", "table", "inet", "lbguard-affinity")
    assert not any((await second.read()).flows.values())
    assert await second.look()
    await second.close()


async def test_half_a_table_is_made_anew(lab: AffinityLab) -> None:
    """A service was killed after it had made the chains and before it filled them."""
    first = lab.keeper()
    await first.apply([])
    lab.balancer.run("nft", "flush chain inet lbguard-affinity prerouting")
    await first.close()
    second = lab.keeper()
    await second.apply([steering()])
    assert await second.look()
    lab.choose(1)
    lab.sever(1)
    assert 1 not in lab.begin(flows("ipv4", TCP, 10))
    await second.close()


async def test_nft_lists_the_table_while_it_holds_flows(lab: AffinityLab, table: AffinityTable) -> None:
    """libnftables 1.0.6 is ended by an assertion at some rules that the kernel takes."""
    await table.apply([steering(avoid=(5004,), served=(5002, 5003, 5004), observing=True)])
    lab.choose(1)
    for family in FAMILIES:
        for protocol in (TCP, UDP, SCTP):
            some = flows(family, protocol, 5)
            lab.begin(some)
            if protocol != UDP:
                lab.deliver([next(iter(segments.ends(some[0]).values()))])
    text = lab.balancer.run("nft", "list", "ruleset")
    assert text.count("expires") >= 30
    assert json.loads(lab.balancer.run("nft", "-j", "list", "ruleset"))["nftables"]


async def test_nft_shows_the_elements_that_are_meant(lab: AffinityLab, table: AffinityTable) -> None:
    """They are written and read without nft, which says here what they are."""

    def elements(kind: str, name: str) -> list[Any]:
        shown = json.loads(lab.balancer.run("nft", "-j", "list", kind, "inet", "lbguard-affinity", name))
        (found,) = [thing[kind] for thing in shown["nftables"] if kind in thing]
        return sorted(found.get("elem", []), key=json.dumps)

    await table.apply([steering(avoid=(5001,), learning=False), steering("b", (7001, 0xFFFFFFFE), learning=True)])
    assert elements("set", "marks") == sorted([5001, 5002, 5003, 5004, 7001, 0xFFFFFFFE], key=json.dumps)
    assert elements("set", "avoid_6") == [5001]
    assert elements("set", "learn") == sorted([7001, 0xFFFFFFFE], key=json.dumps)
    assert elements("map", "next_4") == sorted(
        [[5002, 5003], [5003, 5004], [5004, 5002], [7001, 0xFFFFFFFE], [0xFFFFFFFE, 7001]], key=json.dumps
    )
    assert [5001, {"jump": {"target": "steer_6_stream-a"}}] in elements("map", "steer_6")
    slots = elements("map", "healthy_4_stream-a")
    assert sorted(mark for _, mark in slots) == [5002, 5003, 5004]
    assert sorted(keys["range"] for keys, _ in slots) == [[0, 340], [341, 681], [682, 1023]]
    await table.apply([steering("b", (7001,), learning=False)])
    assert elements("set", "marks") == [7001]
    assert elements("map", "next_4") == []
    assert elements("map", "steer_4") == [[7001, {"jump": {"target": "steer_4_b"}}]]
    assert elements("map", "healthy_6_b") == [[{"range": [0, 1023]}, 7001]]


async def test_the_table_is_removed_and_an_absent_one_is_no_error(lab: AffinityLab, table: AffinityTable) -> None:
    await table.apply([steering()])
    await table.remove()
    assert "lbguard-affinity" not in lab.balancer.run("nft", "list", "tables")
    await table.remove()
    await table.apply([steering()])
    assert await table.look()


@pytest.mark.parametrize("name", ["Straße 7/ä{}; flush ruleset", "名" * 200, "x" * 246, "a" * 5000])
async def test_any_name_of_a_stream_will_do(lab: AffinityLab, table: AffinityTable, name: str) -> None:
    await table.apply([steering(name), steering("b", (6001,))])
    assert await table.look()
    lab.choose(1)
    lab.sever(1)
    assert 1 not in lab.begin(flows("ipv4", TCP, 10))
    await table.apply([steering("b", (6001,))])
    assert await table.look()


async def test_many_targets_and_streams_fit(lab: AffinityLab, table: AffinityTable) -> None:
    """Hundreds of targets in one stream; a hundred streams; more healthy targets than there are slots for them."""
    for streams, targets in ((1, 300), (100, 20), (1, 1500)):
        desired = [
            steering(f"s{n}", tuple(range(10_000 + n * targets, 10_000 + (n + 1) * targets))) for n in range(streams)
        ]
        await table.apply(desired)
        assert await table.look()
        changed = [steering(each.stream, each.marks, avoid=each.marks[:3]) for each in desired]
        await table.apply(changed)
        second = lab.keeper()
        await second.apply(changed)
        assert await table.look()
        assert await second.look()
        await second.close()


IN_A_USER_NAMESPACE = """
import asyncio
from lbguard.affinity.table import AffinityTable
from tests.netns.affinity.conftest import OPTIONS
from tests.steering import steering

async def fill():
    table = AffinityTable(OPTIONS)
    desired = [steering(f"s{n}", tuple(range(5000 + 40 * n, 5040 + 40 * n))) for n in range(40)]
    await table.apply(desired)
    assert await table.look()
    await table.apply([steering(each.stream, each.marks, avoid=each.marks[:1]) for each in desired])
    assert await table.look()
    second = AffinityTable(OPTIONS)
    await second.apply(desired)
    assert not await table.look()
    await table.close()
    await second.close()

asyncio.run(fill())
"""


def test_many_streams_fit_without_privilege_over_the_machine(sandbox: None) -> None:
    """In a user namespace the send buffer cannot be raised: what does not fit is done in several transactions."""
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", IN_A_USER_NAMESPACE]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


async def test_what_is_refused_leaves_nothing_and_stands_in_nobodys_way(lab: AffinityLab, table: AffinityTable) -> None:
    await table.apply([steering()])
    failing = lab.keeper(AffinityOptions(idle_s=-1))
    for _ in range(2):
        with pytest.raises(DistributorError, match="nftables: "):
            await failing.apply([steering()])
        assert "lbguard-affinity" not in lab.balancer.run("nft", "list", "tables")
    await failing.close()
    assert not await table.look()
    assert await table.look()


async def test_a_stranger_under_our_name_gives_way(lab: AffinityLab, table: AffinityTable) -> None:
    lab.balancer.run(
        "nft", "add table inet lbguard-affinity; add map inet lbguard-affinity served { type mark : mark; }"
    )
    await table.apply([steering()])
    assert await table.look()
