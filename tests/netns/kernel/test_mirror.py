"""The mirror against the real kernel; what it tells is compared with what `ip` says."""

import asyncio
import json
import socket

import pytest

from lbguard.core.addr import format_ip, parse_ip
from lbguard.core.events import AddressSeen, LinkGone, LinkSeen, RouteGone, RouteSeen, RuleGone, RuleSeen
from lbguard.core.model import Route, RouteKind, Rule
from lbguard.kernel.mirror import KernelMirror, MirrorSettings
from lbguard.lab.netns import Namespace
from tests.netns.kernel.recorder import Recorder, mirrored, of_targets

GATEWAY4, GATEWAY6 = parse_ip("172.16.0.10"), parse_ip("fd00::10")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def add_link(namespace: Namespace, name: str = "nse-a", host: int = 1) -> None:
    namespace.ip("link", "add", "name", name, "type", "veth", "peer", "name", f"{name}-peer")
    namespace.ip("link", "set", name, "up")
    namespace.ip("link", "set", f"{name}-peer", "up")
    namespace.ip("addr", "add", f"172.16.0.{host}/24", "dev", name)
    namespace.ip("addr", "add", f"fd00::{host}/64", "dev", name, "nodad")


def add_routes(namespace: Namespace, link: str = "nse-a") -> None:
    for gateway in ("172.16.0.10", "fd00::10"):
        namespace.ip(
            *("route", "add", "default", "via", gateway, "dev", link),
            *("table", "5001", "metric", "2048", "protocol", "152"),
        )


def routes_of_table(namespace: Namespace, family: str, table: int = 5001) -> list[tuple[str, int]]:
    text = namespace.run("ip", "-j", family, "route", "show", "table", str(table), check=False)
    return [(route.get("gateway", ""), route["metric"]) for route in json.loads(text or "[]")]


async def test_snapshot_holds_what_ip_shows(namespace: Namespace, recorder: Recorder) -> None:
    add_link(namespace)
    add_routes(namespace)
    namespace.ip("route", "add", "blackhole", "default", "table", "5001", "metric", "4294967295", "protocol", "152")
    namespace.ip(
        "-6", "route", "add", "blackhole", "default", "table", "5001", "metric", "4294967295", "protocol", "152"
    )
    namespace.ip("route", "add", "default", "via", "172.16.0.99", "dev", "nse-a")
    namespace.ip("rule", "add", "fwmark", "5001", "lookup", "5001", "priority", "3000", "protocol", "152")
    namespace.ip("rule", "add", "from", "10.0.0.0/8", "lookup", "5001")
    namespace.ip("neigh", "add", "172.16.0.10", "lladdr", "02:00:00:00:00:0a", "dev", "nse-a", "nud", "reachable")
    async with mirrored(namespace, recorder):
        shown = {link["ifindex"]: link for link in json.loads(namespace.ip("-j", "link"))}
        assert recorder.links.keys() == shown.keys()
        for ifindex, link in recorder.links.items():
            assert (link.name, link.mac.hex(":")) == (shown[ifindex]["ifname"], shown[ifindex]["address"])
            assert link.up == ("LOWER_UP" in shown[ifindex]["flags"])
        index = recorder.ifindex("nse-a")
        assert recorder.routes == {
            Route(5001, True, RouteKind.UNICAST, 2048, GATEWAY4, index),
            Route(5001, False, RouteKind.UNICAST, 2048, GATEWAY6, index),
            Route(5001, True, RouteKind.BLACKHOLE, 4294967295),
            Route(5001, False, RouteKind.BLACKHOLE, 4294967295),
        }
        assert recorder.rules == {Rule(5001, True, 5001)}
        assert recorder.neighbors[index, GATEWAY4].mac == bytes.fromhex("02000000000a")
        shown_addresses = {
            (link["ifindex"], entry["local"])
            for link in json.loads(namespace.ip("-j", "addr"))
            for entry in link["addr_info"]
        }
        assert {(ifindex, format_ip(ip)) for ifindex, ip in recorder.addresses} == shown_addresses


async def test_tentative_address_becomes_usable(namespace: Namespace, recorder: Recorder) -> None:
    async with mirrored(namespace, recorder):
        add_link(namespace)
        namespace.ip("addr", "add", "fd00::99/64", "dev", "nse-a")
        address = parse_ip("fd00::99")
        await recorder.until(
            lambda: any(ip == address and entry.usable for (_, ip), entry in recorder.addresses.items())
        )
        usable = [event.usable for event in recorder.events if isinstance(event, AddressSeen) and event.ip == address]
        assert usable[0] is False


@pytest.mark.parametrize("how", ["set down", "delete", "last address"])
async def test_routes_go_with_their_link(namespace: Namespace, recorder: Recorder, how: str) -> None:
    """IPv4 routes go without a message of the kernel, so their end must be inferred."""
    add_link(namespace)
    add_routes(namespace)
    async with mirrored(namespace, recorder):
        assert len(recorder.routes) == 2
        if how == "set down":
            namespace.ip("link", "set", "nse-a", "down")
        elif how == "delete":
            namespace.ip("link", "del", "nse-a")
        else:
            namespace.ip("addr", "del", "172.16.0.1/24", "dev", "nse-a")
        remaining = 1 if how == "last address" else 0
        await recorder.until(lambda: len(recorder.routes) == remaining)
        assert routes_of_table(namespace, "-4") == []
        assert len(routes_of_table(namespace, "-6")) == remaining


async def test_routes_stay_while_the_carrier_is_lost(namespace: Namespace, recorder: Recorder) -> None:
    add_link(namespace)
    add_routes(namespace)
    async with mirrored(namespace, recorder):
        index = recorder.ifindex("nse-a")
        namespace.ip("link", "set", "nse-a-peer", "down")
        await recorder.until(lambda: not recorder.links[index].up)
        assert recorder.links[index].admin_up
        assert (
            len(recorder.routes) == len(routes_of_table(namespace, "-4")) + len(routes_of_table(namespace, "-6")) == 2
        )


async def test_replaced_route(namespace: Namespace, recorder: Recorder) -> None:
    add_link(namespace, "nse-a", 1)
    add_link(namespace, "nse-b", 2)
    add_routes(namespace, "nse-a")
    async with mirrored(namespace, recorder):
        old, new = recorder.ifindex("nse-a"), recorder.ifindex("nse-b")
        assert {route.oif for route in recorder.routes} == {old}
        for family, gateway in (("-4", "172.16.0.10"), ("-6", "fd00::10")):
            namespace.ip(
                *(family, "route", "replace", "default", "via", gateway, "dev", "nse-b"),
                *("table", "5001", "metric", "2048", "protocol", "152"),
            )
        await recorder.until(lambda: {route.oif for route in recorder.routes} == {new})
        assert len(recorder.routes) == 2
        # The end of the old link takes nothing away from the new one.
        namespace.ip("link", "del", "nse-a")
        await recorder.until(lambda: LinkGone(ifindex=old) in recorder.events)
        assert len(recorder.routes) == 2


async def test_rules_come_and_go(namespace: Namespace, recorder: Recorder) -> None:
    async with mirrored(namespace, recorder):
        for family in ("-4", "-6"):
            namespace.ip(
                family, "rule", "add", "fwmark", "5001", "lookup", "5001", "priority", "3000", "protocol", "152"
            )
        both = {RuleSeen(rule=Rule(5001, ipv4, 5001)) for ipv4 in (True, False)}
        await recorder.until(lambda: both <= set(recorder.events))
        namespace.ip("rule", "del", "fwmark", "5001", "lookup", "5001")
        await recorder.until(lambda: RuleGone(rule=Rule(5001, True, 5001)) in recorder.events)


async def test_ifindex_reuse(namespace: Namespace, recorder: Recorder) -> None:
    async with mirrored(namespace, recorder):
        for number in range(3):
            namespace.ip("link", "add", "name", f"nse-{number}", "index", "77", "type", "veth", "peer", "name", "peer")
            namespace.ip("link", "del", f"nse-{number}")
        await recorder.until(
            lambda: recorder.link("nse-2") is None and recorder.events.count(LinkGone(ifindex=77)) == 3
        )
        told = [event for event in recorder.events if isinstance(event, LinkSeen | LinkGone) and event.ifindex == 77]
        names = [event.name if isinstance(event, LinkSeen) else "gone" for event in told]
        # Several messages of one link may follow each other; the order of the links must show.
        assert [name for n, name in enumerate(names) if n == 0 or names[n - 1] != name] == [
            *("nse-0", "gone", "nse-1", "gone", "nse-2", "gone")
        ]


async def test_port_that_leaves_a_bridge_is_still_a_link(namespace: Namespace, recorder: Recorder) -> None:
    add_link(namespace)
    namespace.ip("link", "add", "name", "br0", "type", "bridge")
    async with mirrored(namespace, recorder) as mirror:
        namespace.ip("link", "set", "nse-a", "master", "br0")
        namespace.ip("link", "set", "nse-a", "nomaster")
        namespace.ip("link", "set", "br0", "alias", "the-end")
        await recorder.until(lambda: mirror.counters.ignored["other_family"] >= 2)
        assert recorder.link("nse-a") is not None
        assert not any(isinstance(event, LinkGone) for event in recorder.events)


async def test_storm_with_a_tiny_buffer_ends_in_the_exact_state(namespace: Namespace, recorder: Recorder) -> None:
    add_link(namespace)
    settings = MirrorSettings(
        reconcile_interval_s=0, receive_buffer_bytes=4096, resync_min_interval_s=0.02, resync_max_interval_s=0.1
    )
    lines = []
    for number in range(1500):
        verb = "add" if number % 3 != 2 else "del"
        table = 5001 + (number if verb == "add" else number - 1)
        lines.append(f"route {verb} default via 172.16.0.10 dev nse-a table {table} metric 2048 protocol 152")
    async with mirrored(namespace, recorder, settings) as mirror:
        # The loop does not read while the storm blows, so the socket must overflow.
        namespace.batch(lines)
        await recorder.until(lambda: mirror.counters.overruns > 0 and recorder.in_sync)
        assert recorder.losses()[0] == "overrun"
        tables = {
            route["table"]
            for route in json.loads(namespace.ip("-j", "-4", "route", "show", "table", "all"))
            if route["dst"] == "default"
        }
        assert len(tables) == 500
        assert {str(route.table) for route in recorder.routes} == tables
        # It follows again.
        namespace.ip("route", "flush", "table", "5001")
        await recorder.until(lambda: all(route.table != 5001 for route in recorder.routes))
        assert len(recorder.routes) == 499


async def test_storm_while_reading_ends_in_the_exact_state(namespace: Namespace, recorder: Recorder) -> None:
    add_link(namespace)
    add_link(namespace, "nse-b", 2)
    settings = MirrorSettings(
        reconcile_interval_s=0.05, receive_buffer_bytes=65536, resync_min_interval_s=0.01, resync_max_interval_s=0.05
    )
    lines = []
    for turn in range(12):
        link = ("nse-a", "nse-b")[turn % 2]
        lines += [
            f"route replace default via 172.16.0.10 dev {link} table {5001 + n} metric 2048 protocol 152"
            for n in range(100)
        ]
        if turn % 4 == 3:
            lines += ["link set nse-b down", "link set nse-b up"]
    async with mirrored(namespace, recorder, settings):
        await asyncio.to_thread(namespace.batch, lines)
        namespace.ip("rule", "add", "fwmark", "8999", "lookup", "8999")
        await recorder.until(lambda: recorder.in_sync and any(rule.mark == 8999 for rule in recorder.rules))
        shown = {
            (int(route["table"]), route["dev"])
            for route in json.loads(namespace.ip("-j", "-4", "route", "show", "table", "all"))
            if route["dst"] == "default"
        }
        assert {(route.table, recorder.links[route.oif].name) for route in recorder.routes} == shown


async def test_messages_of_other_processes_are_dropped(namespace: Namespace, recorder: Recorder) -> None:
    add_link(namespace)
    mirror = KernelMirror(recorder, of_targets, MirrorSettings(reconcile_interval_s=0))
    with namespace.entered():
        await mirror.start()
        forger = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    await recorder.until(lambda: recorder.in_sync)
    assert mirror.port is not None
    with forger:
        forger.bind((0, 0))
        index = recorder.ifindex("nse-a")
        body = index.to_bytes(4, "little")
        forger.sendto(b"\x20\0\0\0\x11\0\0\0" + bytes(8) + bytes(4) + body + bytes(8), (mirror.port, 0))
        namespace.ip("link", "set", "nse-a", "alias", "later")
        await recorder.until(lambda: any(isinstance(event, LinkSeen) for event in recorder.events))
    assert mirror.counters.ignored["foreign_sender"] == 1
    assert recorder.link("nse-a") is not None
    await mirror.stop()


async def test_route_events_of_a_foreign_default_route_in_a_target_table(
    namespace: Namespace, recorder: Recorder
) -> None:
    add_link(namespace)
    async with mirrored(namespace, recorder):
        index = recorder.ifindex("nse-a")
        foreign = Route(5001, True, RouteKind.UNICAST, 0, GATEWAY4, index, 3)
        namespace.ip("route", "add", "default", "via", "172.16.0.10", "dev", "nse-a", "table", "5001")
        await recorder.until(lambda: RouteSeen(route=foreign) in recorder.events)
        namespace.ip("route", "del", "default", "table", "5001")
        await recorder.until(lambda: RouteGone(route=foreign) in recorder.events)
