"""Targets that are lost while nobody acts, and marks that another stream gets, on the real kernel."""

import pytest

from lbguard.affinity.choice import SWEEP_STEPS
from lbguard.affinity.table import AffinityTable
from tests.netns.affinity import segments
from tests.netns.affinity.conftest import FAMILIES, AffinityLab, flows
from tests.netns.distributor import packets
from tests.netns.distributor.conftest import FAR_ROUTER4, FAR_ROUTER6
from tests.netns.distributor.packets import SCTP, TCP, UDP
from tests.steering import MARKS, steering

pytestmark = pytest.mark.netns

FAR_ROUTERS = {"ipv4": FAR_ROUTER4, "ipv6": FAR_ROUTER6}
every_family = pytest.mark.parametrize("family", FAMILIES)
A, B, C = (5001, 5002), (5001, 5002), (5003, 5004)


def cut_off(lab: AffinityLab, marks: range) -> None:
    """Give targets that nobody has a rule and a fallback each, as lbguard gives to a target without a route."""
    for mark in marks:
        for everywhere in ("0.0.0.0/0", "::/0"):
            lab.balancer.add_rule(mark, mark, ipv4="." in everywhere)
            lab.balancer.add_route(everywhere, kind="blackhole", metric=4294967295, table=mark)


@every_family
@pytest.mark.parametrize("protocol", [TCP, SCTP, UDP], ids=["tcp", "sctp", "udp"])
@pytest.mark.parametrize("left", [5001, 5003])
async def test_the_last_target_that_is_left_is_found(
    lab: AffinityLab, table: AffinityTable, family: str, protocol: int, left: int
) -> None:
    """As many targets as the sweep has steps count as healthy, and all but one of them are lost."""
    lost = range(5005, 5001 + SWEEP_STEPS)
    cut_off(lab, lost)
    await table.apply([steering(marks=(*MARKS, *lost), learning=False)])
    for mark in MARKS:
        if mark != left:
            lab.sever(mark - 5000)
    lab.choose(next(mark for mark in MARKS if mark != left) - 5000)
    some = flows(family, protocol, 60)
    assert lab.begin(some) == [left - 5000] * 60
    assert lab.go_on(some) == [left - 5000] * 60
    assert lab.quiet()


@every_family
async def test_where_all_are_lost_a_new_flow_waits_and_the_next_try_finds_the_one_that_came_back(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    await table.apply([steering(learning=False)])
    for target in (1, 2, 3, 4):
        lab.sever(target)
    lab.choose(1)
    some = flows(family, TCP, 10)
    lab.send([segments.begin(flow) for flow in some])
    lab.ended(some, "steered", 10)
    assert lab.quiet()
    lab.repair(3)
    assert lab.begin(some) == [3] * 10
    assert lab.go_on(some) == [3] * 10


@every_family
@pytest.mark.parametrize("restart", [False, True])
async def test_flows_of_a_stream_that_ended_do_not_reach_the_stream_that_got_its_marks(
    lab: AffinityLab, table: AffinityTable, family: str, restart: bool
) -> None:
    """Stream c serves the VIP now; the targets of b may have no such address."""
    await table.apply([steering("a", A), steering("c", C)])
    lab.choose(1)
    some = [flow for protocol in (TCP, SCTP, UDP) for flow in flows(family, protocol, 10)]
    lab.begin(some)
    # Ended flows have a time-out of their own.
    lab.deliver([segments.ends(flow)["fin"] for flow in some[2:5]])
    keeper = lab.keeper() if restart else table
    await keeper.apply([steering("b", B), steering("c", C)])
    lab.choose(3)
    assert lab.go_on(some) == [3] * 30
    assert await keeper.look()
    if restart:
        await keeper.close()


@every_family
@pytest.mark.parametrize("restart", [False, True])
async def test_marks_may_be_given_away_some_time_after_their_stream_ended(
    lab: AffinityLab, table: AffinityTable, family: str, restart: bool
) -> None:
    await table.apply([steering("a", A), steering("c", C)])
    lab.choose(1)
    some, kept = flows(family, TCP, 10), flows(family, TCP, 10, 30000)
    lab.begin(some)
    lab.choose(4)
    lab.begin(kept)
    await table.apply([steering("c", C)])
    keeper = lab.keeper() if restart else table
    await keeper.apply([steering("c", C)])
    await keeper.apply([steering("b", B), steering("c", C)])
    lab.choose(3)
    assert lab.go_on(some) == [3] * 10
    assert lab.go_on(kept) == [4] * 10, "flows of other targets are forgotten too"
    if restart:
        await keeper.close()


@every_family
async def test_a_stream_that_ended_between_two_runs_leaves_no_flow_to_the_next_one(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    await table.apply([steering("a", A), steering("c", C)])
    lab.choose(1)
    some = flows(family, TCP, 10)
    lab.begin(some)
    await table.apply([steering("c", C)])
    second = lab.keeper()
    await second.apply([steering("b", B), steering("c", C)])
    lab.choose(3)
    assert lab.go_on(some) == [3] * 10
    await second.close()


@every_family
async def test_a_target_that_is_listed_again_has_its_flows(lab: AffinityLab, table: AffinityTable, family: str) -> None:
    await table.apply([steering()])
    lab.choose(1)
    some = flows(family, TCP, 10)
    lab.begin(some)
    lab.choose(3)
    await table.apply([steering(marks=(5002, 5003, 5004))])
    await table.apply([steering()])
    assert lab.go_on(some) == [1] * 10


@every_family
async def test_an_error_about_a_flow_of_a_stream_that_ended_goes_nowhere(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    """The mark has no route any more but that to the client's gateway."""
    await table.apply([steering("a", A), steering("c", C)])
    lab.choose(1)
    some = flows(family, TCP, 10)
    lab.begin(some)
    lab.choose(3)
    await table.apply([steering("c", C)])
    lab.send([packets.packet_too_big(FAR_ROUTERS[family], flow) for flow in some])
    assert lab.go_on(flows(family, TCP, 1, 40000)) == [3]
    assert lab.quiet()
    # An error about another flow follows the table.
    assert (
        lab.deliver([packets.packet_too_big(FAR_ROUTERS[family], flow) for flow in flows(family, TCP, 5, 41000)])
        == [3] * 5
    )
