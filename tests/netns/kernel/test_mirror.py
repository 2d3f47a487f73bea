"""The mirror against the real kernel; what it tells is compared with dumps that pyroute2 reads."""

import asyncio
import socket
from typing import Any

import pytest

from lbguard.core.addr import format_ip, parse_ip
from lbguard.core.events import AddressSeen, LinkGone, LinkSeen, RouteGone, RouteSeen, RuleGone, RuleSeen
from lbguard.core.model import Route, RouteKind, Rule
from lbguard.kernel.mirror import KernelMirror, MirrorSettings
from lbguard.lab.netns import Namespace
from lbguard.lab.network_objects import Route as ShownRoute
from tests.netns.kernel.recorder import Recorder, mirrored, of_targets

OURS: dict[str, Any] = {"table": 5001, "metric": 2048, "protocol": 152}
GATEWAY4, GATEWAY6 = parse_ip("172.16.0.10"), parse_ip("fd00::10")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def add_link(namespace: Namespace, name: str = "nse-a", host: int = 1) -> None:
    namespace.add_veth(name, f"{name}-peer")
    namespace.add_addresses(name, f"172.16.0.{host}/24", f"fd00::{host}/64")


def add_routes(namespace: Namespace, link: str = "nse-a") -> None:
    for gateway in ("172.16.0.10", "fd00::10"):
        namespace.add_route("default", gateway, link, **OURS)


def defaults(namespace: Namespace) -> list[ShownRoute]:
    return [route for route in namespace.routes(ipv4=True) if route.destination == "default"]


async def test_snapshot_holds_what_a_dump_shows(namespace: Namespace, recorder: Recorder) -> None:
    add_link(namespace)
    add_routes(namespace)
    for everywhere in ("0.0.0.0/0", "::/0"):
        namespace.add_route(everywhere, kind="blackhole", **OURS | {"metric": 4294967295})
    namespace.add_route("default", "172.16.0.99", "nse-a")
    namespace.add_rule(5001, 5001, priority=3000, protocol=152)
    namespace.request("rule", "add", src="10.0.0.0", src_len=8, table=5001)
    namespace.replace_neighbor("172.16.0.10", "nse-a", "02:00:00:00:00:0a", state="reachable")
    async with mirrored(namespace, recorder):
        seen = {(index, link.name, link.mac.hex(":"), link.up) for index, link in recorder.links.items()}
        assert seen == {(link.ifindex, link.name, link.mac, link.running) for link in namespace.links()}
        index = recorder.ifindex("nse-a")
        assert recorder.routes == {
            Route(5001, True, RouteKind.UNICAST, 2048, GATEWAY4, index),
            Route(5001, False, RouteKind.UNICAST, 2048, GATEWAY6, index),
            Route(5001, True, RouteKind.BLACKHOLE, 4294967295),
            Route(5001, False, RouteKind.BLACKHOLE, 4294967295),
        }
        assert recorder.rules == {Rule(5001, True, 5001)}
        assert recorder.neighbors[index, GATEWAY4].mac == bytes.fromhex("02000000000a")
        shown = {(namespace.index(address.link), address.ip) for address in namespace.addresses()}
        assert {(ifindex, format_ip(ip)) for ifindex, ip in recorder.addresses} == shown


async def test_tentative_address_becomes_usable(namespace: Namespace, recorder: Recorder) -> None:
    async with mirrored(namespace, recorder):
        add_link(namespace)
        namespace.add_addresses("nse-a", "fd00::99/64", dad=True)
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
            namespace.set_link("nse-a", up=False)
        elif how == "delete":
            namespace.delete_link("nse-a")
        else:
            namespace.delete_addresses("nse-a", "172.16.0.1/24")
        remaining = 1 if how == "last address" else 0
        await recorder.until(lambda: len(recorder.routes) == remaining)
        assert namespace.routes(5001, ipv4=True) == []
        assert len(namespace.routes(5001, ipv4=False)) == remaining


async def test_routes_stay_while_the_carrier_is_lost(namespace: Namespace, recorder: Recorder) -> None:
    add_link(namespace)
    add_routes(namespace)
    async with mirrored(namespace, recorder):
        index = recorder.ifindex("nse-a")
        namespace.set_link("nse-a-peer", up=False)
        await recorder.until(lambda: not recorder.links[index].up)
        assert recorder.links[index].admin_up
        assert len(recorder.routes) == len(namespace.routes(5001)) == 2


async def test_replaced_route(namespace: Namespace, recorder: Recorder) -> None:
    add_link(namespace, "nse-a", 1)
    add_link(namespace, "nse-b", 2)
    add_routes(namespace, "nse-a")
    async with mirrored(namespace, recorder):
        old, new = recorder.ifindex("nse-a"), recorder.ifindex("nse-b")
        assert {route.oif for route in recorder.routes} == {old}
        for gateway in ("172.16.0.10", "fd00::10"):
            namespace.replace_route("default", gateway, "nse-b", **OURS)
        await recorder.until(lambda: {route.oif for route in recorder.routes} == {new})
        assert len(recorder.routes) == 2
        # The end of the old link takes nothing away from the new one.
        namespace.delete_link("nse-a")
        await recorder.until(lambda: LinkGone(ifindex=old) in recorder.events)
        assert len(recorder.routes) == 2


async def test_rules_come_and_go(namespace: Namespace, recorder: Recorder) -> None:
    async with mirrored(namespace, recorder):
        for ipv4 in (True, False):
            namespace.add_rule(5001, 5001, ipv4=ipv4, priority=3000, protocol=152)
        both = {RuleSeen(rule=Rule(5001, ipv4, 5001)) for ipv4 in (True, False)}
        await recorder.until(lambda: both <= set(recorder.events))
        namespace.delete_rule(5001, 5001)
        await recorder.until(lambda: RuleGone(rule=Rule(5001, True, 5001)) in recorder.events)


async def test_ifindex_reuse(namespace: Namespace, recorder: Recorder) -> None:
    async with mirrored(namespace, recorder):
        for number in range(3):
            namespace.add_veth(f"nse-{number}", "peer", up=False, index=77)
            namespace.delete_link(f"nse-{number}")
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
    namespace.add_link("br0", "bridge", up=False)
    async with mirrored(namespace, recorder) as mirror:
        namespace.set_link("nse-a", master="br0")
        namespace.set_link("nse-a", master="")
        namespace.set_link("br0", ifalias="the-end")
        await recorder.until(lambda: mirror.counters.ignored["other_family"] >= 2)
        assert recorder.link("nse-a") is not None
        assert not any(isinstance(event, LinkGone) for event in recorder.events)


async def test_storm_with_a_tiny_buffer_ends_in_the_exact_state(namespace: Namespace, recorder: Recorder) -> None:
    add_link(namespace)
    settings = MirrorSettings(
        reconcile_interval_s=0, receive_buffer_bytes=4096, resync_min_interval_s=0.02, resync_max_interval_s=0.1
    )
    async with mirrored(namespace, recorder, settings) as mirror:
        # The first dump may have overflowed the socket already.
        overruns, losses = mirror.counters.overruns, len(recorder.losses())
        # The loop does not read while the storm blows, so the socket must overflow.
        with namespace.batch():
            for number in range(1500):
                change, table = (
                    (namespace.add_route, number) if number % 3 != 2 else (namespace.delete_route, number - 1)
                )
                change("default", "172.16.0.10", "nse-a", **OURS | {"table": 5001 + table})
        await recorder.until(lambda: mirror.counters.overruns > overruns and recorder.in_sync)
        assert recorder.losses()[losses] == "overrun"
        tables = {route.table for route in defaults(namespace)}
        assert len(tables) == 500
        assert {route.table for route in recorder.routes} == tables
        # It follows again.
        namespace.flush_routes(5001)
        await recorder.until(lambda: all(route.table != 5001 for route in recorder.routes))
        assert len(recorder.routes) == 499


async def test_storm_while_reading_ends_in_the_exact_state(namespace: Namespace, recorder: Recorder) -> None:
    add_link(namespace)
    add_link(namespace, "nse-b", 2)
    settings = MirrorSettings(
        reconcile_interval_s=0.05, receive_buffer_bytes=65536, resync_min_interval_s=0.01, resync_max_interval_s=0.05
    )

    def storm() -> None:
        for turn in range(12):
            with namespace.batch():
                for n in range(100):
                    link = ("nse-a", "nse-b")[turn % 2]
                    namespace.replace_route("default", "172.16.0.10", link, **OURS | {"table": 5001 + n})
            if turn % 4 == 3:
                namespace.set_link("nse-b", up=False)
                namespace.set_link("nse-b", up=True)

    async with mirrored(namespace, recorder, settings):
        await asyncio.to_thread(storm)
        namespace.add_rule(8999, 8999)
        await recorder.until(lambda: recorder.in_sync and any(rule.mark == 8999 for rule in recorder.rules))
        shown = {(route.table, route.link) for route in defaults(namespace)}
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
        namespace.set_link("nse-a", ifalias="later")
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
        namespace.add_route("default", "172.16.0.10", "nse-a", table=5001)
        await recorder.until(lambda: RouteSeen(route=foreign) in recorder.events)
        namespace.delete_route("default", table=5001)
        await recorder.until(lambda: RouteGone(route=foreign) in recorder.events)
