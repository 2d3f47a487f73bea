"""Packets per target and packets that met the fallback, counted in the kernel."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from lbguard.distributor.nftables.counters import FallbackCounters, HeldCount
from lbguard.distributor.nftables.distributor import NftDistributor
from lbguard.lab.netns import connect
from tests.netns.distributor import packets
from tests.netns.distributor.conftest import CLIENT4, CLIENT6, TARGETS, VIP4, VIP6, WAIT_S, Lab, spec, table
from tests.netns.distributor.packets import UDP, Flow

pytestmark = pytest.mark.netns

MARKS = [5000 + target for target in TARGETS]
NOTHING = dict.fromkeys(MARKS, HeldCount(0, 0))
FLOWS = [Flow(CLIENT4, VIP4, UDP, 1000 + i, 443) for i in range(40)] + [
    Flow(CLIENT6, VIP6, UDP, 1000 + i, 443) for i in range(40)
]


@pytest.fixture
async def counters(lab: Lab) -> AsyncIterator[FallbackCounters]:
    with lab.balancer.entered():
        made = FallbackCounters()
    await made.ensure(MARKS)
    yield made
    await made.close()


async def until(read: Callable[[], Awaitable[dict[int, HeldCount]]], wanted: int) -> dict[int, HeldCount]:
    """Read until so many packets are counted."""
    deadline = time.monotonic() + WAIT_S
    counts = await read()
    while sum(count.packets for count in counts.values()) < wanted:
        assert time.monotonic() < deadline, counts
        await asyncio.sleep(0.01)
        counts = await read()
    return counts


async def test_hits_and_held_packets_are_counted_per_target(
    lab: Lab, distributor: NftDistributor, counters: FallbackCounters
) -> None:
    sent = [packets.flow_packet(flow) for flow in FLOWS]
    homes = lab.deliver(sent)
    hits = {
        5000 + t: HeldCount(homes.count(t), sum(len(p) for p, home in zip(sent, homes, strict=True) if home == t))
        for t in TARGETS
    }
    assert await until(counters.read_hits, len(sent)) == hits
    assert await counters.read() == NOTHING
    lab.sever(2)
    lab.send(sent)
    held = homes.count(2)
    assert await until(counters.read, held) == NOTHING | {5002: hits[5002]}
    arrived = Counter(target for target, _ in lab.received(len(sent) - held))
    assert arrived == Counter(home for home in homes if home != 2)
    lab.repair(2)
    assert lab.deliver(sent) == homes
    assert (await counters.read())[5002] == hits[5002]
    assert (await counters.read_hits())[5001].packets == 3 * homes.count(1)


async def test_drops_are_counted_for_suspected_marks_only(
    lab: Lab, distributor: NftDistributor, counters: FallbackCounters
) -> None:
    """The route lookup is most of the cost of a packet, and a target whose path is good needs none."""
    sent = [packets.flow_packet(flow) for flow in FLOWS]
    homes = lab.deliver(sent)
    await counters.ensure(MARKS, ())
    lab.sever(2)
    lab.send(sent)
    await until(counters.read_hits, 2 * len(sent))
    assert await counters.read() == NOTHING
    await counters.suspect([5002, 4711])
    lab.send(sent)
    await until(counters.read_hits, 3 * len(sent))
    assert (await counters.read())[5002].packets == homes.count(2)
    await counters.suspect(())
    lab.send(sent)
    await until(counters.read_hits, 4 * len(sent))
    assert (await counters.read())[5002].packets == homes.count(2)
    assert (await counters.read_hits())[5002].packets == 4 * homes.count(2)


async def test_packets_on_the_parking_link_count_as_held_where_parking_is_on(
    lab: Lab, distributor: NftDistributor, counters: FallbackCounters
) -> None:
    connect(lab.balancer, "lbguard-park", lab.targets[1], "elsewhere")
    lab.sever(2)
    for family in ("-4", "-6"):
        lab.balancer.run(
            *("ip", family, "route", "add", "default", "dev", "lbguard-park"),
            *("metric", "4294967294", "table", "5002"),
        )
    with lab.balancer.entered():
        parking = FallbackCounters(parking=True)
    await parking.ensure(MARKS)
    sent = [packets.flow_packet(flow) for flow in FLOWS]
    lab.send(sent)
    hits = await until(parking.read_hits, len(sent))
    assert hits[5002].packets > 0
    assert await parking.read() == NOTHING | {5002: hits[5002]}
    await parking.close()


async def test_marks_of_any_origin_are_counted(lab: Lab, counters: FallbackCounters) -> None:
    """With nfqlb the mark comes from a queue in the mangle hook; a rule there stands in for it."""
    lab.balancer.run("nft", "add table ip other")
    lab.balancer.run("nft", "add chain ip other c { type filter hook prerouting priority mangle; }")
    lab.balancer.run("nft", f"add rule ip other c ip daddr {VIP4} meta mark set 5003")
    lab.sever(3)
    lab.send([packets.flow_packet(flow) for flow in FLOWS[:7]])
    assert (await until(counters.read, 7))[5003].packets == 7


async def test_counts_survive_the_service(lab: Lab, distributor: NftDistributor, counters: FallbackCounters) -> None:
    lab.deliver([packets.flow_packet(flow) for flow in FLOWS])
    before = await until(counters.read_hits, len(FLOWS))
    await counters.close()
    with lab.balancer.entered():
        second = FallbackCounters()
    await second.ensure(MARKS)
    assert await second.read_hits() == before
    await second.ensure([*MARKS[1:], 5009])
    assert await second.read_hits() == {m: before[m] for m in MARKS[1:]} | {5009: HeldCount(0, 0)}
    await second.remove()
    assert "lbguard-counters" not in lab.balancer.run("nft", "list ruleset")
    await second.remove()
    await second.close()


async def test_a_table_that_was_removed_is_made_again(lab: Lab, counters: FallbackCounters) -> None:
    lab.balancer.run("nft", "flush ruleset")
    assert await counters.read() == NOTHING
    assert await counters.read_hits() == NOTHING
    lab.balancer.run("nft", "flush chain inet lbguard-counters marked")
    await counters.ensure(MARKS)
    assert "@fallback" in lab.balancer.run("nft", "list ruleset")


def mark_at(lab: Lab, table: str, priority: str, mark: int) -> None:
    """Let a table of someone else mark all packets to the VIP, in place of all before."""
    lab.balancer.run("nft", f"add table ip {table}")
    lab.balancer.run("nft", f"add chain ip {table} c {{ type filter hook prerouting priority {priority}; }}")
    lab.balancer.run("nft", f"add rule ip {table} c ip daddr {VIP4} meta mark set {mark}")


@pytest.mark.parametrize("affinity_first", [True, False])
async def test_counted_is_the_mark_that_flow_affinity_leaves(
    lab: Lab, counters: FallbackCounters, affinity_first: bool
) -> None:
    """Among chains of one priority the newest comes first, so counters of the same one would see either mark."""
    await counters.remove()
    mark_at(lab, "distributor", "mangle", 5003)
    if affinity_first:
        mark_at(lab, "affinity", "-140", 5004)
    await counters.ensure(MARKS)
    if not affinity_first:
        mark_at(lab, "affinity", "-140", 5004)
    lab.deliver([packets.flow_packet(flow) for flow in FLOWS[:7]])
    assert (await until(counters.read_hits, 7))[5004].packets == 7


async def test_the_chain_of_an_earlier_version_is_emptied_and_its_counts_stay(
    lab: Lab, counters: FallbackCounters
) -> None:
    old = "add chain inet lbguard-counters prerouting { type filter hook prerouting priority -140; }"
    lab.balancer.run("nft", "delete chain inet lbguard-counters marked")
    lab.balancer.run("nft", old)
    lab.balancer.run("nft", "add rule inet lbguard-counters prerouting meta mark @hits")
    mark_at(lab, "distributor", "mangle", 5003)
    lab.deliver([packets.flow_packet(flow) for flow in FLOWS[:5]])
    await counters.ensure(MARKS)
    # It stays: where a hook is removed, the kernel drops the packets that are queued.
    left = lab.balancer.run("nft", "list chain inet lbguard-counters prerouting")
    assert "priority" in left
    assert "@hits" not in left
    lab.deliver([packets.flow_packet(flow) for flow in FLOWS[:7]])
    assert (await until(counters.read_hits, 12))[5003].packets == 12


async def test_no_mark_is_allowed(lab: Lab, counters: FallbackCounters) -> None:
    await counters.ensure([])
    assert await counters.read() == {}
    assert await counters.read_hits() == {}


async def test_counters_and_commits_do_not_disturb_each_other(
    lab: Lab, distributor: NftDistributor, counters: FallbackCounters
) -> None:
    """Each has a thread and a libnftables context of its own, and they work at the same time."""

    async def commits() -> None:
        for round_number in range(30):
            (result,) = await distributor.commit([table(spec(), active=TARGETS[: round_number % 4 + 1])])
            assert result.error == ""

    async def counts() -> None:
        for round_number in range(30):
            await counters.ensure(MARKS[: round_number % 4 + 1])
            assert len(await counters.read()) == round_number % 4 + 1

    await asyncio.gather(commits(), counts())
    assert await distributor.lost_streams() == {}
    assert await distributor.read_active(spec()) == {1, 2}
