"""Where the packets of new and of remembered flows go, on the real kernel."""

import asyncio
import time
from collections import Counter

import pytest

from lbguard.affinity.names import AffinityOptions
from lbguard.affinity.table import AffinityTable
from lbguard.lab.netns import connect
from tests.netns.affinity import segments
from tests.netns.affinity.conftest import FAMILIES, AffinityLab, flows
from tests.netns.distributor import packets
from tests.netns.distributor.conftest import FAR_ROUTER4, FAR_ROUTER6, WAIT_S
from tests.netns.distributor.packets import SCTP, TCP, UDP
from tests.steering import MARKS, steering

pytestmark = pytest.mark.netns

PROTOCOLS = {"tcp": TCP, "sctp": SCTP, "udp": UDP}
FAR_ROUTERS = {"ipv4": FAR_ROUTER4, "ipv6": FAR_ROUTER6}

every_family = pytest.mark.parametrize("family", FAMILIES)
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


async def remembered(table: AffinityTable, protocol: str, family: str, count: int) -> None:
    """Wait until so many flows are remembered: the kernel takes what is forgotten away a second later."""
    deadline = time.monotonic() + WAIT_S
    while (found := (await table.read()).flows[protocol, int(family[-1])]) != count:
        assert time.monotonic() < deadline, f"{found} flows are remembered and not {count}"
        await asyncio.sleep(0.05)


@every_family
@every_protocol
async def test_new_flows_of_a_target_that_is_cut_off_get_another_one_at_once(
    lab: AffinityLab, table: AffinityTable, family: str, protocol: str
) -> None:
    """Nobody says a word to the keeper: the kernel knows by the missing route. The flow stays there."""
    await table.apply([steering(learning=False)])
    lab.choose(1)
    some = flows(family, PROTOCOLS[protocol], 60)
    assert set(lab.begin(some[:20])) == {1}
    lab.sever(1)
    homes = lab.begin(some[20:])
    # One in 256 of the flows would meet the severed target four times over; the hash of these ports is known not to.
    assert set(homes) == {2, 3, 4}
    assert lab.begin(some[20:]) == homes, "a repeated first packet goes elsewhere"
    assert lab.go_on(some[20:]) == homes
    lab.repair(1)
    assert lab.go_on(some[20:]) == homes, "the return of the target moves flows"
    assert set(lab.begin(flows(family, PROTOCOLS[protocol], 5, 40000))) == {1}
    assert (await table.read()).flows[protocol, int(family[-1])] == 40


@every_family
async def test_a_route_to_the_parking_link_counts_as_none(lab: AffinityLab, table: AffinityTable, family: str) -> None:
    """The first two substitutes lead there too."""
    await table.apply([steering(learning=False)])
    lab.choose(1)
    connect(lab.balancer, "lbguard-park", lab.targets[1], "elsewhere")
    for target in (1, 2, 3):
        lab.sever(target)
        for ip in ("-4", "-6"):
            lab.balancer.run(
                *("ip", ip, "route", "add", "default", "dev", "lbguard-park"),
                *("metric", "4294967294", "table", str(5000 + target)),
            )
    some = flows(family, TCP, 40)
    assert lab.begin(some) == [4] * 40
    for target in (1, 2, 3):
        lab.repair(target)
    assert lab.go_on(some) == [4] * 40


@every_family
async def test_choices_are_spread_over_the_healthy_targets_alone(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    await table.apply([steering(healthy=(5002, 5004), avoid=(5001,))])
    lab.choose(1)
    spread = Counter(lab.begin(flows(family, TCP, 100)))
    # 100 fair draws of 2: fewer than 25 has a probability below 1e-6.
    assert spread.keys() == {2, 4}
    assert min(spread.values()) >= 25
    assert lab.counted("steered") == 100


@every_family
@every_protocol
async def test_a_remembered_flow_stays_while_the_table_changes_its_mind(
    lab: AffinityLab, table: AffinityTable, family: str, protocol: str
) -> None:
    await table.apply([steering()])
    some = flows(family, PROTOCOLS[protocol], 20)
    for target in (1, 2):
        lab.choose(target)
        assert set(lab.begin(some[(target - 1) * 10 : target * 10])) == {target}
    for target in (3, 4, 1, 2):
        lab.choose(target)
        assert lab.go_on(some) == [1] * 10 + [2] * 10
    await table.apply([steering(learning=False)])
    assert lab.go_on(some) == [1] * 10 + [2] * 10, "the end of the incident moves flows"


@every_family
async def test_flows_that_were_not_remembered_follow_the_table(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    await table.apply([steering(learning=False)])
    lab.choose(1)
    some = flows(family, TCP, 10)
    lab.begin(some)
    lab.choose(2)
    assert lab.go_on(some) == [2] * 10
    assert not any((await table.read()).flows.values())


@every_family
@every_protocol
async def test_a_flow_whose_substitute_is_lost_too_gets_one_more(
    lab: AffinityLab, table: AffinityTable, family: str, protocol: str
) -> None:
    """The kernel's `update` keeps the mark of an entry that is there: the flow has to be forgotten first."""
    await table.apply([steering(healthy=(5002,))])
    lab.choose(1)
    lab.sever(1)
    some = flows(family, PROTOCOLS[protocol], 10)
    assert lab.begin(some) == [2] * 10
    lab.sever(2)
    await table.apply([steering(healthy=(5003,))])
    if protocol == "udp":
        # Nothing tells the first packet of a UDP flow from the others: it is remembered, and waits for its target.
        some = flows(family, UDP, 10, 30000)
    assert lab.begin(some) == [3] * 10
    assert lab.go_on(some) == [3] * 10


@every_family
async def test_with_no_healthy_target_the_table_stands(lab: AffinityLab, table: AffinityTable, family: str) -> None:
    await table.apply([steering(served=(5001,), healthy=(), avoid=())])
    lab.choose(1)
    assert lab.begin(flows(family, TCP, 5)) == [1] * 5
    lab.sever(1)
    later = flows(family, TCP, 5, 30000)
    lab.send([segments.begin(flow) for flow in later])
    lab.repair(1)
    assert lab.begin(later) == [1] * 5
    assert lab.counted("steered") == 0


@every_family
@every_protocol
async def test_a_flow_of_a_target_that_is_served_no_more_falls_back_and_is_forgotten(
    lab: AffinityLab, table: AffinityTable, family: str, protocol: str
) -> None:
    await table.apply([steering()])
    lab.choose(1)
    some = flows(family, PROTOCOLS[protocol], 10)
    lab.begin(some)
    lab.choose(3)
    await table.apply([steering(served=(5002, 5003, 5004), healthy=(5002,))])
    assert lab.go_on(some) == [2] * 10, "a healthy target answers at once"
    assert lab.counted("orphaned") == 10
    assert lab.go_on(some) == [3] * 10
    await remembered(table, protocol, family, 10 if protocol == "udp" else 0)


@every_family
async def test_a_flow_keeps_a_target_that_is_served_no_more_while_no_other_is_healthy(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    await table.apply([steering()])
    lab.choose(1)
    some = flows(family, TCP, 10)
    lab.begin(some)
    lab.choose(3)
    await table.apply([steering(served=(5003,), healthy=())])
    assert lab.go_on(some) == [1] * 10
    await table.apply([steering(served=(5001, 5003), healthy=(5001, 5003))])
    assert lab.go_on(some) == [1] * 10


@every_family
async def test_a_remembered_flow_stays_when_the_table_names_a_target_that_nobody_told_of(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    """A commit may be done before affinity hears of the target that it adds, or after it hears of one that is gone."""
    await table.apply([steering(marks=(5001, 5002))])
    lab.choose(1)
    some = flows(family, TCP, 10)
    lab.begin(some)
    lab.choose(4)
    assert lab.go_on(some) == [1] * 10
    assert lab.begin(some) == [1] * 10
    assert lab.begin(flows(family, TCP, 5, 30000)) == [4] * 5
    errors = [packets.packet_too_big(FAR_ROUTERS[family], flow) for flow in some]
    assert lab.deliver(errors) == [1] * 10


@every_family
async def test_a_repeated_first_packet_to_a_withdrawn_target_begins_anew(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    await table.apply([steering()])
    lab.choose(1)
    some = flows(family, TCP, 10)
    lab.begin(some)
    await table.apply([steering(served=(5002, 5003, 5004), healthy=(5002,))])
    lab.choose(3)
    assert lab.begin(some) == [2] * 10
    assert lab.go_on(some) == [2] * 10


@every_family
async def test_the_packet_of_a_target_that_is_registered_no_more_goes_nowhere_and_the_next_one_follows_the_table(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    """The mark of a removed target leads to the main table, where the client's gateway stands."""
    await table.apply([steering()])
    lab.choose(1)
    some = flows(family, TCP, 10)
    again = flows(family, TCP, 10, 30000)
    lab.begin(some + again)
    lab.choose(3)
    await table.apply([steering(marks=(5002, 5003, 5004))])
    lab.send([segments.go_on(flow) for flow in some] + [segments.begin(flow) for flow in again])
    lab.ended(some, "orphaned", 10)
    assert lab.go_on(some) == [3] * 10
    assert lab.begin(again) == [3] * 10
    assert lab.quiet()


@every_family
async def test_an_avoided_target_keeps_its_flows_and_gets_no_new_one(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    await table.apply([steering()])
    lab.choose(1)
    old = flows(family, TCP, 10)
    lab.begin(old)
    await table.apply([steering(healthy=(5002,), avoid=(5001,))])
    assert lab.go_on(old) == [1] * 10
    new = flows(family, TCP, 10, 30000)
    assert lab.begin(new) == [2] * 10
    assert lab.go_on(new) == [2] * 10
    lab.choose(2)
    assert lab.go_on(old) == [1] * 10


def remaining_s(lab: AffinityLab, protocol: str, family: str) -> list[float]:
    """Return the seconds for which each entry is remembered still."""
    times = []
    for entry in lab.entries(protocol, family).split("expires ")[1:]:
        word = entry.split()[0]
        total = 0.0
        number = ""
        for part in word.replace("ms", "u"):
            if part.isdigit():
                number += part
            else:
                total += float(number) * {"m": 60, "s": 1, "u": 0.001}[part]
                number = ""
        times.append(total)
    return times


@every_family
@pytest.mark.parametrize(
    ("protocol", "end"),
    [("tcp", "fin"), ("tcp", "rst"), ("sctp", "abort"), ("sctp", "shutdown-ack"), ("sctp", "shutdown-complete")],
)
async def test_the_end_of_a_flow_leaves_its_entry_seconds(
    lab: AffinityLab, table: AffinityTable, family: str, protocol: str, end: str
) -> None:
    await table.apply([steering()])
    lab.choose(1)
    [flow] = flows(family, PROTOCOLS[protocol], 1)
    lab.begin([flow])
    assert min(remaining_s(lab, protocol, family)) > 600
    lab.choose(2)
    assert lab.deliver([segments.ends(flow)[end]]) == [1]
    assert max(remaining_s(lab, protocol, family)) <= 10
    if protocol == "tcp":
        assert lab.go_on([flow]) == [1], "the last packets find their target"
        assert max(remaining_s(lab, protocol, family)) <= 10, "the last ACK has no FIN"
        assert lab.begin([flow]) == [1]
        assert lab.go_on([flow]) == [1]
        assert min(remaining_s(lab, protocol, family)) > 600, "the ports are used again"
        lab.deliver([segments.ends(flow)[end]])
    if (family, end) in {("ipv4", "fin"), ("ipv6", "abort")}:
        await remembered(table, protocol, family, 0)
        assert lab.go_on([flow]) == [2]


@every_family
@every_protocol
async def test_errors_about_a_remembered_flow_reach_its_target(
    lab: AffinityLab, table: AffinityTable, family: str, protocol: str
) -> None:
    await table.apply([steering()])
    lab.choose(1)
    some = flows(family, PROTOCOLS[protocol], 10)
    lab.begin(some)
    lab.choose(2)
    strangers = flows(family, PROTOCOLS[protocol], 3, 50000)
    errors = [packets.packet_too_big(FAR_ROUTERS[family], flow) for flow in some + strangers]
    assert lab.deliver(errors) == [1] * 10 + [2] * 3


@every_family
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in-order", "reversed"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_fragments_of_a_remembered_flow_reach_its_target(
    lab: AffinityLab, table: AffinityTable, family: str, order: tuple[int, int], protocol: str
) -> None:
    """There is no distributor that has fragments put together: the table does so itself."""
    await table.apply([steering()])
    lab.choose(1)
    some = flows(family, PROTOCOLS[protocol], 10)
    lab.begin(some)
    lab.choose(2)
    for number, flow in enumerate(some):
        pieces = packets.fragments(flow, ident=100 + number)
        lab.send([pieces[k] for k in order])
        assert [target for target, _ in lab.received(2)] == [1, 1]


@every_family
async def test_a_full_map_steers_no_flow_and_moves_none(lab: AffinityLab, family: str) -> None:
    table = lab.keeper(AffinityOptions(max_flows=20))
    await table.apply([steering()])
    lab.choose(1)
    kept, more = flows(family, TCP, 20), flows(family, TCP, 5, 30000)
    lab.begin(kept)
    assert lab.begin(more) == [1] * 5, "a flow that is not remembered goes by the table"
    assert lab.counted("refused") == 5
    lab.choose(2)
    assert lab.go_on(kept) == [1] * 20
    assert lab.go_on(more) == [2] * 5
    await table.apply([steering(healthy=(5003,), avoid=(5001, 5002))])
    doubted = flows(family, TCP, 5, 31000)
    assert lab.begin(doubted) == [2] * 5, "the doubted target is used"
    assert lab.go_on(doubted) == [2] * 5
    lab.sever(2)
    cut_off = flows(family, TCP, 5, 32000)
    lab.send([segments.begin(flow) for flow in cut_off])
    lab.ended(cut_off, "refused", 15)
    assert lab.quiet(), "a target got the first packet and would not get the second one"
    lab.repair(2)
    assert lab.begin(cut_off) == [2] * 5
    await table.close()


async def test_the_families_are_steered_each_alone(lab: AffinityLab, table: AffinityTable) -> None:
    await table.apply([steering()])
    lab.choose(1)
    lab.balancer.delete_route("default", "fd01:1::2", table=5001)
    assert lab.begin(flows("ipv4", TCP, 20)) == [1] * 20
    assert 1 not in lab.begin(flows("ipv6", TCP, 20))


async def test_every_flow_is_remembered_where_that_is_asked_for(lab: AffinityLab) -> None:
    table = lab.keeper(AffinityOptions(every_flow=True))
    await table.apply([steering(learning=False)])
    lab.choose(1)
    some = [flow for family in FAMILIES for flow in flows(family, TCP, 10)]
    lab.begin(some)
    lab.choose(2)
    assert lab.go_on(some) == [1] * 20
    await table.close()


async def test_streams_do_not_mix(lab: AffinityLab, table: AffinityTable) -> None:
    await table.apply([steering("one", (5001, 5002), avoid=(5001,)), steering("two", (5003, 5004), avoid=(5003,))])
    lab.choose(1)
    assert lab.begin(flows("ipv4", TCP, 20)) == [2] * 20
    lab.choose(3)
    assert lab.begin(flows("ipv4", TCP, 20, 30000)) == [4] * 20


async def test_packets_without_a_mark_of_a_target_are_left_alone(lab: AffinityLab, table: AffinityTable) -> None:
    await table.apply([steering(marks=MARKS[1:])])
    lab.choose(1)
    some = flows("ipv4", TCP, 5)
    assert lab.begin(some) == [1] * 5
    lab.choose(2)
    assert lab.go_on(some) == [2] * 5
