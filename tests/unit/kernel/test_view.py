from lbguard.core.events import (
    AddressGone,
    AddressSeen,
    Event,
    KernelChange,
    LinkGone,
    LinkSeen,
    NeighborGone,
    NeighborSeen,
    RouteGone,
    RouteSeen,
    RuleGone,
    RuleSeen,
)
from lbguard.core.model import NeighborState, Route, RouteKind, Rule
from lbguard.kernel.codec.encode import DumpKind
from lbguard.kernel.view import View

V4 = bytes([172, 16, 0, 10])
V6 = bytes.fromhex("fd000000000000000000000000000010")
ROUTE4 = Route(5001, True, RouteKind.UNICAST, 2048, V4, 3)
ROUTE6 = Route(5001, False, RouteKind.UNICAST, 2048, V6, 3)
ELSEWHERE = Route(5002, True, RouteKind.UNICAST, 2048, V4, 4)
BLACKHOLE = Route(5001, True, RouteKind.BLACKHOLE, 0xFFFFFFFF)


def link(ifindex: int, *, admin_up: bool = True) -> LinkSeen:
    return LinkSeen(ifindex=ifindex, name=f"l{ifindex}", up=admin_up, mac=b"", admin_up=admin_up)


def address(ip: bytes, ifindex: int = 3) -> AddressSeen:
    return AddressSeen(ifindex=ifindex, ip=ip, prefix_length=24)


def gone(ip: bytes, ifindex: int = 3) -> AddressGone:
    return AddressGone(ifindex=ifindex, ip=ip, prefix_length=24)


def notify(view: View, event: KernelChange, *, replaces: bool = False) -> list[Event]:
    out: list[Event] = []
    view.notify(event, replaces=replaces, out=out)
    return out


def filled() -> View:
    view = View()
    for event in (link(3), link(4), address(V4), address(V4[:3] + b"\x0b"), address(V6), address(V4, 4)):
        view.record(event)
    for route in (ROUTE4, ROUTE6, ELSEWHERE, BLACKHOLE):
        view.record(RouteSeen(route=route))
    view.finish()
    return view


def test_ipv4_routes_go_in_silence_when_their_link_is_set_down() -> None:
    view = filled()
    assert notify(view, link(3, admin_up=False)) == [link(3, admin_up=False), RouteGone(route=ROUTE4)]
    assert notify(view, link(3, admin_up=False)) == [link(3, admin_up=False)]
    assert set(view.finish().routes) == {ROUTE6, ELSEWHERE, BLACKHOLE}


def test_ipv4_routes_go_in_silence_with_their_link() -> None:
    assert notify(filled(), LinkGone(ifindex=3)) == [LinkGone(ifindex=3), RouteGone(route=ROUTE4)]


def test_ipv4_routes_go_in_silence_with_the_last_ipv4_address() -> None:
    view = filled()
    assert notify(view, gone(V4)) == [gone(V4)]
    assert notify(view, gone(V6)) == [gone(V6)]
    last = V4[:3] + b"\x0b"
    assert notify(view, gone(last)) == [gone(last), RouteGone(route=ROUTE4)]


def test_replacing_ends_the_other_route_of_that_metric_only() -> None:
    view = filled()
    newer = ROUTE4._replace(oif=4)
    assert notify(view, RouteSeen(route=newer), replaces=True) == [RouteGone(route=ROUTE4), RouteSeen(route=newer)]
    assert set(view.finish().routes) == {newer, ROUTE6, ELSEWHERE, BLACKHOLE}
    assert notify(view, RouteSeen(route=newer), replaces=True) == [RouteSeen(route=newer)]
    assert notify(view, link(3, admin_up=False)) == [link(3, admin_up=False)]


def test_records_never_override_notifications() -> None:
    view = View()
    rule = Rule(5001, True, 5001)
    entry = NeighborSeen(ifindex=3, ip=V4, state=NeighborState.STALE, mac=b"\x02" * 6)
    notify(view, LinkGone(ifindex=3))
    notify(view, gone(V4))
    notify(view, RouteGone(route=ROUTE4))
    notify(view, RuleGone(rule=rule))
    notify(view, NeighborGone(ifindex=3, ip=V4))
    for event in (link(3), address(V4), RouteSeen(route=ROUTE4), RuleSeen(rule=rule), entry, link(4)):
        view.record(event)
    snapshot = view.finish()
    assert snapshot.links == (link(4),)
    assert (snapshot.addresses, snapshot.routes, snapshot.rules, snapshot.neighbors) == ((), (), (), ())


def test_silent_losses_override_records_too() -> None:
    view = View()
    view.record(RouteSeen(route=ROUTE4))
    notify(view, link(3, admin_up=False))
    view.record(RouteSeen(route=ROUTE4))
    assert view.finish().routes == ()


def test_repeated_dump_starts_over_but_keeps_notifications() -> None:
    rule, other_rule = Rule(5001, True, 5001), Rule(5002, True, 5002)
    entry = NeighborSeen(ifindex=3, ip=V4, state=NeighborState.STALE, mac=b"\x02" * 6)
    told = (link(4), address(V4, 4), RouteSeen(route=ELSEWHERE), RuleSeen(rule=other_rule))
    view = View()
    for event in (link(3), address(V4), RouteSeen(route=ROUTE4), RuleSeen(rule=rule), entry):
        view.record(event)
    for event in told:
        notify(view, event)
    for kind in DumpKind:
        view.restart(kind)
    snapshot = view.finish()
    assert snapshot.links == (link(4),)
    assert snapshot.addresses == (address(V4, 4),)
    assert snapshot.routes == (ELSEWHERE,)
    assert snapshot.rules == (other_rule,)
    assert snapshot.neighbors == ()
