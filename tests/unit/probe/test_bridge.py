from collections.abc import Sequence

from lbguard.core.events import AddressSeen, KernelSnapshot, LinkSeen, NeighborGone, NeighborSeen
from lbguard.core.model import LinkSubject, NeighborState, TargetSubject
from lbguard.probe.bridge import BridgeNeighbors
from lbguard.probe.connections import Connection, ConnectionList, ConnectionsLost, Pair
from lbguard.probe.kernel_view import KernelView
from tests.unit.probe.verdicts import ip

BRIDGE, LB_PORT, TARGET_PORT, OTHER = 3, 4, 5, 6
MAC_BRIDGE = b"\x02\0\0\0\0\x03"
MAC_A, MAC_B, MAC_LB = b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b", b"\x02\0\0\0\0\x01"


def link(ifindex: int, name: str, mac: bytes = bytes(6)) -> LinkSeen:
    return LinkSeen(ifindex=ifindex, name=name, up=True, mac=mac)


def neighbor(
    text: str, mac: bytes = MAC_A, state: NeighborState = NeighborState.REACHABLE, ifindex: int = BRIDGE
) -> NeighborSeen:
    return NeighborSeen(ifindex=ifindex, ip=ip(text), state=state, mac=mac)


async def view_with(neighbors: Sequence[NeighborSeen], *, bridge: str = "bridge0") -> KernelView:
    view = KernelView()
    view.observe(
        [
            KernelSnapshot(
                links=(
                    link(BRIDGE, bridge, MAC_BRIDGE),
                    link(LB_PORT, "lb-fe-1"),
                    link(TARGET_PORT, "t1"),
                    link(OTHER, "eth0"),
                ),
                addresses=(
                    AddressSeen(ifindex=BRIDGE, ip=ip("172.16.0.1"), prefix_length=24),
                    AddressSeen(ifindex=BRIDGE, ip=ip("fd00::1"), prefix_length=64),
                ),
                neighbors=tuple(neighbors),
            )
        ],
        0.0,
    )
    return view


def neighbors_of(lb_ports: tuple[str, ...] = (), keep_s: float = 60.0, most: int = 100) -> BridgeNeighbors:
    return BridgeNeighbors("bridge0", lb_ports, keep_s, most)


def listed(told: ConnectionList | ConnectionsLost) -> tuple[Connection, ...]:
    assert isinstance(told, ConnectionList)
    return told.connections


async def test_neighbours_on_the_bridge_are_targets_and_are_pinged_from_its_own_address() -> None:
    view = await view_with([neighbor("172.16.0.10"), neighbor("fd00::10", MAC_B)])
    first, second = listed(neighbors_of().look(view, {}, 0.0))
    assert first == Connection(
        id="bridge0/172.16.0.10",
        subject=TargetSubject(ip=ip("172.16.0.10")),
        pairs=(Pair(ip("172.16.0.1"), ip("172.16.0.10")),),
        ifname="bridge0",
        mac=MAC_A,
    )
    assert (second.subject, second.pairs[0].source) == (TargetSubject(ip=ip("fd00::10")), ip("fd00::1"))


async def test_what_is_no_target_is_passed_over() -> None:
    view = await view_with(
        [
            neighbor("172.16.0.11", ifindex=OTHER),
            neighbor("fe80::10"),
            neighbor("172.16.0.1"),
            neighbor("172.16.0.12", b"", NeighborState.INCOMPLETE),
            neighbor("172.16.0.13", MAC_A, NeighborState.FAILED),
        ]
    )
    assert listed(neighbors_of().look(view, {}, 0.0)) == ()


async def test_a_neighbour_outside_the_bridges_subnets_is_left_out_and_named() -> None:
    view = await view_with([neighbor("10.9.9.9")])
    told = neighbors_of().look(view, {}, 0.0)
    assert isinstance(told, ConnectionList)
    assert told.left_out == ("10.9.9.9: bridge0 has no address in its subnet",)


async def test_a_neighbour_that_fails_or_is_forgotten_is_kept_for_a_while() -> None:
    neighbors = neighbors_of(keep_s=60.0)
    view = await view_with([neighbor("172.16.0.10")])
    assert len(listed(neighbors.look(view, {}, 0.0))) == 1
    view.observe([neighbor("172.16.0.10", b"", NeighborState.FAILED)], 0.0)
    assert listed(neighbors.look(view, {}, 30.0))[0].mac == MAC_A
    view.observe([NeighborGone(ifindex=BRIDGE, ip=ip("172.16.0.10"))], 0.0)
    assert len(listed(neighbors.look(view, {}, 60.0))) == 1
    assert listed(neighbors.look(view, {}, 60.1)) == ()


async def test_another_mac_is_told() -> None:
    neighbors = neighbors_of()
    view = await view_with([neighbor("172.16.0.10")])
    neighbors.look(view, {}, 0.0)
    view.observe([neighbor("172.16.0.10", MAC_B)], 0.0)
    assert listed(neighbors.look(view, {}, 1.0))[0].mac == MAC_B


async def test_what_is_behind_a_port_to_a_load_balancer_is_judged_as_a_link() -> None:
    view = await view_with([neighbor("172.16.0.254", MAC_LB), neighbor("172.16.0.10"), neighbor("172.16.0.11", MAC_B)])
    told = neighbors_of(lb_ports=("lb-*",)).look(view, {MAC_LB: LB_PORT, MAC_A: TARGET_PORT}, 0.0)
    assert isinstance(told, ConnectionList)
    assert [connection.subject for connection in told.connections] == [
        LinkSubject(lb_ip=ip("172.16.0.254"), proxy_ip=ip("172.16.0.1")),
        TargetSubject(ip=ip("172.16.0.10")),
    ]
    assert [connection.mac for connection in told.connections] == [MAC_BRIDGE, MAC_A]
    assert told.left_out == ("172.16.0.11: the bridge has not learned on which port it is",)


async def test_a_port_that_was_learned_is_remembered_while_the_bridge_forgets() -> None:
    neighbors = neighbors_of(lb_ports=("lb-*",))
    view = await view_with([neighbor("172.16.0.254", MAC_LB)])
    neighbors.look(view, {MAC_LB: LB_PORT}, 0.0)
    (kept,) = listed(neighbors.look(view, {}, 1.0))
    assert isinstance(kept.subject, LinkSubject)


async def test_without_the_bridge_the_source_counts_as_lost() -> None:
    view = await view_with([neighbor("172.16.0.10")], bridge="br-other")
    assert neighbors_of().look(view, {}, 0.0) == ConnectionsLost(reason="there is no link bridge0")


async def test_more_than_the_limit_is_left_out() -> None:
    view = await view_with([neighbor(f"172.16.0.{n}") for n in range(10, 20)])
    told = neighbors_of(most=3).look(view, {}, 0.0)
    assert isinstance(told, ConnectionList)
    assert len(told.connections) == 3
    assert told.left_out == ("more than 3 connections",)
