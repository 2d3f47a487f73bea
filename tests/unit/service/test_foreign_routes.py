"""A VIP that is an address of this machine is told when it becomes one, and when it is one no more."""

import logging

import pytest

from lbguard.core.addr import parse_ip, parse_prefix
from lbguard.core.events import KernelSnapshot, LinkGone, RouteGone, RouteSeen
from lbguard.core.model import BLACKHOLE_METRIC, ROUTE_METRIC, ROUTE_PROTOCOL, Route, RouteKind, StreamSpec
from lbguard.core.status import GuardStatus, StreamStatus
from lbguard.service.foreign_routes import LocalVips, TargetRoutes

V4, V4_NEW, V6 = (parse_ip(text) for text in ("172.16.1.11", "172.16.1.99", "fd00:1::b"))
BOOT = 3  # RTPROT_BOOT, which the load balancer's routes carry


def default(table: int, gateway: bytes, metric: int = 0, protocol: int = BOOT) -> Route:
    return Route(table, len(gateway) == 4, RouteKind.UNICAST, metric, gateway, 7, protocol)


def test_the_load_balancers_routes_tell_the_addresses_of_a_target() -> None:
    routes = TargetRoutes()
    routes.observe([RouteSeen(route=default(5001, V6, 1024)), LinkGone(ifindex=9), RouteSeen(route=default(5001, V4))])
    routes.observe([RouteSeen(route=default(5002, V4_NEW))])
    assert routes.gateways(5001) == (V4, V6)
    assert routes.gateways(5003) == ()
    routes.observe([RouteGone(route=default(5001, V6, 1024))])
    assert routes.gateways(5001) == (V4,)


def test_ours_and_those_that_lead_nowhere_do_not_count() -> None:
    routes = TargetRoutes()
    routes.observe(
        [
            RouteSeen(route=default(5001, V4, ROUTE_METRIC, ROUTE_PROTOCOL)),
            RouteSeen(route=Route(5001, True, RouteKind.BLACKHOLE, BLACKHOLE_METRIC, protocol=BOOT)),
            RouteSeen(route=Route(5001, False, RouteKind.UNICAST, 0, b"", 7, BOOT)),
        ]
    )
    assert routes.gateways(5001) == ()


def test_a_new_address_takes_the_place_of_the_old_one() -> None:
    """The kernel does not tell that an IPv4 route went with its link; the next one of its kind does."""
    routes = TargetRoutes()
    routes.observe([RouteSeen(route=default(5001, V4)), RouteSeen(route=default(5001, V4_NEW))])
    assert routes.gateways(5001) == (V4_NEW,)
    routes.observe([RouteGone(route=default(5001, V4))])
    assert routes.gateways(5001) == (V4_NEW,)
    routes.observe([RouteSeen(route=default(5001, V4, 50))])
    assert routes.gateways(5001) == (V4_NEW,), "the better metric is the one that the kernel takes"


def test_a_full_view_replaces_everything() -> None:
    routes = TargetRoutes()
    routes.observe([RouteSeen(route=default(5001, V4))])
    assert not routes.known
    assert routes.routes() is None
    routes.observe([KernelSnapshot(routes=(default(5002, V6, 1024), default(5003, V4, 2048, ROUTE_PROTOCOL)))])
    assert routes.known
    assert routes.gateways(5001) == ()
    assert routes.gateways(5002) == (V6,)
    assert routes.routes() == [default(5002, V6, 1024)]


A = StreamSpec(name="a", vips=(parse_prefix("20.0.0.1/32"), parse_prefix("2000::/64")))
B = StreamSpec(name="b", vips=(parse_prefix("20.0.0.2/32"),))


def status() -> GuardStatus:
    streams = (
        StreamStatus(
            name=spec.name,
            max_targets=100,
            identifier_offset=5000,
            available=True,
            availability_reason="ok",
            mass_failure=False,
            counts={},
            table_committed=True,
        )
        for spec in (A, B)
    )
    return GuardStatus(
        now=0.0,
        observe=False,
        in_sync=True,
        sync_reason="",
        source_ok=True,
        source_reason="",
        streams=tuple(streams),
        targets=(),
        links=(),
    )


def test_what_is_local_is_shown_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watch = LocalVips(lambda: (A, B), lambda: ())
    local = [parse_prefix(text) for text in ("127.0.0.0/8", "fe80::1/128", "20.0.0.1/32", "2000::7/128")]
    watch.compare(())
    assert watch.add_to(status()) == status()
    watch.compare(local)
    watch.compare(local)
    assert [stream.local_vips for stream in watch.add_to(status()).streams] == [("20.0.0.1/32", "2000::/64"), ()]
    assert [record.message for record in caplog.records] == ["VIP is local: its packets reach no target"] * 2
    caplog.clear()
    watch.compare(local[:3])
    assert [stream.local_vips for stream in watch.add_to(status()).streams] == [("20.0.0.1/32",), ()]
    assert [record.message for record in caplog.records] == ["VIP is local no more"]
