"""Flows that began before a change of the list, and flows of a family that was withdrawn alone, on the real kernel."""

import asyncio
import time
from dataclasses import replace

import pytest

from lbguard.affinity.names import AffinityOptions
from lbguard.affinity.table import AffinityTable
from lbguard.core.model import FamilySteering, StreamSteering
from tests.netns.affinity import segments
from tests.netns.affinity.conftest import FAMILIES, AffinityLab, flows
from tests.netns.distributor.conftest import WAIT_S
from tests.netns.distributor.packets import SCTP, TCP
from tests.steering import MARKS, steering

pytestmark = pytest.mark.netns

every_family = pytest.mark.parametrize("family", FAMILIES)
every_protocol = pytest.mark.parametrize("protocol", [TCP, SCTP], ids=["tcp", "sctp"])


def apart(ipv4: FamilySteering, ipv6: FamilySteering, *, learning: bool = True) -> StreamSteering:
    """Return the steering of a stream whose families differ."""
    return StreamSteering(stream="stream-a", marks=MARKS, ipv4=ipv4, ipv6=ipv6, learning=learning)


LOST = FamilySteering(healthy=(5002,), avoid=(5001, 5003, 5004), served=(5002, 5003, 5004))
WELL = FamilySteering(healthy=MARKS, served=MARKS)


@every_family
@every_protocol
async def test_flows_seen_before_a_change_of_the_list_stay_where_they_are(
    lab: AffinityLab, table: AffinityTable, family: str, protocol: int
) -> None:
    await table.apply([steering(learning=False)])
    lab.choose(1)
    seen, unseen = flows(family, protocol, 10), flows(family, protocol, 10, 30000)
    assert set(lab.begin(seen + unseen)) == {1}
    assert set(lab.go_on(seen)) == {1}
    assert not any((await table.read()).flows.values()), "flows are remembered in quiet times"
    await table.apply([steering(observing=True)])
    assert set(lab.go_on(seen)) == {1}
    lab.choose(2)
    await table.apply([steering(learning=False)])
    assert lab.go_on(seen) == [1] * 10
    assert lab.go_on(unseen) == [2] * 10
    counts = await table.read()
    assert (counts.observed, sum(counts.flows.values())) == (10, 10)


@every_family
async def test_what_is_remembered_already_is_not_overwritten(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    await table.apply([steering()])
    lab.choose(1)
    some = flows(family, TCP, 10)
    lab.begin(some)
    lab.choose(2)
    await table.apply([steering(observing=True)])
    assert lab.go_on(some) == [1] * 10
    lab.choose(3)
    assert lab.go_on(some) == [1] * 10
    assert (await table.read()).observed == 0


@every_family
@every_protocol
async def test_a_flow_of_a_held_target_is_remembered_with_its_own(
    lab: AffinityLab, table: AffinityTable, family: str, protocol: int
) -> None:
    lab.choose(1)
    lab.sever(1)
    await table.apply([steering(healthy=(5002,), avoid=(5001,), observing=True)])
    some = flows(family, protocol, 10)
    lab.send([segments.go_on(flow) for flow in some])
    lab.ended(some, "observed", 10)
    assert lab.quiet()
    lab.repair(1)
    lab.choose(3)
    await table.apply([steering(learning=False)])
    assert lab.go_on(some) == [1] * 10


@every_family
async def test_only_the_flows_of_the_stream_whose_list_changes_are_observed(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    await table.apply([steering("a", (5001, 5002), observing=True), steering("b", (5003, 5004), learning=False)])
    some, others = flows(family, TCP, 5), flows(family, TCP, 5, 30000)
    lab.choose(1)
    lab.go_on(some)
    lab.choose(3)
    lab.go_on(others)
    lab.choose(4)
    assert lab.go_on(some) == [1] * 5
    assert lab.go_on(others) == [4] * 5


@every_family
async def test_the_last_packets_of_an_observed_flow_are_remembered_for_seconds(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    """The client's last ACK comes after its FIN, and is no reason to remember the flow for long."""
    await table.apply([steering(observing=True)])
    lab.choose(1)
    [flow] = flows(family, TCP, 1)
    lab.deliver([segments.ends(flow)["fin"]])
    lab.go_on([flow])
    lab.choose(2)
    assert lab.go_on([flow]) == [1]
    deadline = time.monotonic() + WAIT_S
    while any((await table.read()).flows.values()):
        assert time.monotonic() < deadline, "the ended flow is remembered for long"
        await asyncio.sleep(0.1)


@every_family
async def test_a_full_map_says_how_often_a_flow_was_not_observed(lab: AffinityLab, family: str) -> None:
    table = lab.keeper(AffinityOptions(max_flows=4))
    await table.apply([steering(observing=True)])
    lab.choose(1)
    lab.go_on(flows(family, TCP, 10))
    counts = await table.read()
    assert (counts.observed, counts.refused, counts.flows["tcp", int(family[-1])]) == (4, 6, 4)
    await table.close()


@every_family
@every_protocol
async def test_a_family_that_is_withdrawn_alone_falls_back_and_the_other_one_stays(
    lab: AffinityLab, table: AffinityTable, family: str, protocol: int
) -> None:
    await table.apply([steering()])
    lab.choose(1)
    some = {each: flows(each, protocol, 10) for each in FAMILIES}
    lab.begin([flow for each in FAMILIES for flow in some[each]])
    other = next(each for each in FAMILIES if each != family)
    await table.apply([apart(LOST, WELL) if family == "ipv4" else apart(WELL, LOST)])
    # The target keeps its slots for the other family.
    assert lab.go_on(some[family]) == [2] * 10
    assert lab.go_on(some[other]) == [1] * 10
    assert (await table.read()).orphaned == 10


@every_family
@every_protocol
async def test_flows_of_a_withdrawn_family_fall_back_also_when_they_were_not_remembered(
    lab: AffinityLab, table: AffinityTable, family: str, protocol: int
) -> None:
    await table.apply([steering(learning=False)])
    lab.choose(1)
    some = {each: flows(each, protocol, 10) for each in FAMILIES}
    assert set(lab.begin([flow for each in FAMILIES for flow in some[each]])) == {1}
    other = next(each for each in FAMILIES if each != family)
    withdrawn = apart(LOST, WELL) if family == "ipv4" else apart(WELL, LOST)
    # Observing remembers no flow that has no target any more.
    await table.apply([replace(withdrawn, observing=True)])
    for _ in range(2):
        assert lab.go_on(some[family]) == [2] * 10
    assert lab.go_on(some[other]) == [1] * 10
    assert lab.begin(flows(family, protocol, 5, 30000)) == [2] * 5
    await table.apply([steering(learning=False)])
    assert lab.go_on(some[family]) == [1] * 10


@every_family
async def test_without_a_healthy_target_a_withdrawn_family_stays(
    lab: AffinityLab, table: AffinityTable, family: str
) -> None:
    lost = FamilySteering(healthy=(), avoid=(), served=(5002, 5003, 5004))
    await table.apply([apart(lost, WELL) if family == "ipv4" else apart(WELL, lost)])
    lab.choose(1)
    assert lab.go_on(flows(family, TCP, 5)) == [1] * 5
