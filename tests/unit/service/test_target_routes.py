from lbguard.core.addr import parse_ip
from lbguard.core.events import KernelSnapshot, LinkGone, RouteGone, RouteSeen
from lbguard.core.model import BLACKHOLE_METRIC, ROUTE_METRIC, ROUTE_PROTOCOL, Route, RouteKind
from lbguard.service.target_routes import TargetRoutes

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
