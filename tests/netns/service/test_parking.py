"""Packets of held targets are kept and given back by the real service, on the real kernel."""

import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lbguard.core.model import Action
from lbguard.kernel.codec.checksum import checksum
from lbguard.lab.netns import Namespace, connect
from tests.netns.service.guarded import (
    LIMIT_S,
    PATIENT,
    Guarded,
    Process,
    ips_of,
    stream,
    targets_yaml,
    wait_until,
    with_prefix,
)

pytestmark = pytest.mark.netns

ON = {"LBGUARD_PARKING__ENABLED": "true"}
VIPS = {4: "20.0.0.1", 6: "2000::1"}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT = 4000
ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
ONE = targets_yaml(stream("stream-a", 1))
TWO = targets_yaml(stream("stream-a", 1, 3))
PARKING = "lbguard-park"
AFFINITY = {"LBGUARD_AFFINITY__MODE": "incident", "LBGUARD_AFFINITY__LEARN": "0s"}
NEVER_FAILED = {"LBGUARD_NEIGHBORS__RETRANS": "1m", "LBGUARD_NEIGHBORS__UCAST_PROBES": "100"}
"""Timers with which the kernel waits for an answer for longer than a test takes."""
ARRIVALS = """
add table inet arrivals
add set inet arrivals lb-1 { type inet_service; flags dynamic; size 1024; }
add set inet arrivals lb-2 { type inet_service; flags dynamic; size 1024; }
add chain inet arrivals input { type filter hook prerouting priority 0; }
add rule inet arrivals input iifname "lb-1" meta l4proto tcp add @lb-1 { tcp sport }
add rule inet arrivals input iifname "lb-2" meta l4proto tcp add @lb-2 { tcp sport }
"""
LOSES_REPLIES = """
add table inet lost
add chain inet lost replies { type filter hook prerouting priority -500 ; }
add rule inet lost replies iifname "back" meta l4proto tcp drop
"""
_IP_RECVERR = 11


class Parked(Guarded):
    """A guarded load balancer with a client, and receivers behind the links to the proxies."""

    def __init__(self, lb: Namespace, proxies: Namespace, client: Namespace, directory: os.PathLike[str]) -> None:
        for namespace in (lb, proxies, client):
            namespace.sysctl("net.ipv6.conf.default.accept_dad", "0")
        connect(client, "up", lb, "client")
        client.add_addresses("up", "10.0.0.2/24", "fd10::2/64")
        lb.add_addresses("client", "10.0.0.1/24", "fd10::1/64")
        client.add_route("default", "10.0.0.1")
        client.add_route("::/0", "fd10::1")
        lb.sysctl("net.ipv4.ip_forward", "1")
        lb.sysctl("net.ipv6.conf.all.forwarding", "1")
        self.client_side = client
        super().__init__(lb, proxies, directory)  # type: ignore[arg-type]
        proxies.add_addresses("lo", *(f"{vip}/{32 if family == 4 else 128}" for family, vip in VIPS.items()))
        self._open: list[socket.socket] = []
        self.receivers = {family: self.bound(family) for family in VIPS}
        with client.entered():
            self.senders = {family: socket.socket(FAMILIES[family], socket.SOCK_DGRAM) for family in VIPS}
        self._open += [*self.senders.values(), *self.receivers.values()]

    def make_link(self, link: str) -> None:
        super().make_link(link)
        if link == "nse-a":
            self.proxies.add_route("10.0.0.0/24", "172.16.1.1")
            self.proxies.add_route("fd10::/64", "fd00:1::1")

    def way_back_of_its_own(self) -> None:
        """Let replies take a link that stays."""
        connect(self.lb, "back", self.proxies, "home")
        self.lb.add_addresses("back", "10.9.0.1/24", "fd09::1/64")
        self.proxies.add_addresses("home", "10.9.0.2/24", "fd09::2/64")
        self.proxies.add_route("10.0.0.2/32", "10.9.0.1")
        self.proxies.add_route("fd10::2/128", "fd09::1")

    def bound(self, family: int) -> socket.socket:
        with self.proxies.entered():
            made = socket.socket(FAMILIES[family], socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            made.bind((VIPS[family], PORT))
            made.setblocking(False)
        return made

    def send(self, family: int, *texts: str) -> None:
        for text in texts:
            self.senders[family].sendto(text.encode(), (VIPS[family], PORT))

    def received(self, family: int) -> list[str]:
        """Return what has arrived since the last call."""
        found = []
        while True:
            try:
                found.append(self.receivers[family].recv(65536).decode())
            except BlockingIOError:
                return found

    def arrive(self, family: int, count: int) -> list[str]:
        """Wait until so many packets arrived, and return them."""
        found: list[str] = []

        def there() -> bool:
            found.extend(self.received(family))
            return len(found) >= count

        wait_until(there, f"{count} packets of IPv{family}, not {len(found)}")
        return found

    def note_arrivals(self) -> None:
        """Have the kernel note on which link the TCP segments of each source port arrive."""
        self.proxies.run("nft", ARRIVALS)

    def arrived_through(self, link: str) -> set[int]:
        """Return the source ports of the segments that arrived on a link."""
        listed = json.loads(self.proxies.run("nft", "-j", "list", "set", "inet", "arrivals", link))["nftables"]
        return set(next(thing["set"] for thing in listed if "set" in thing).get("elem", ()))

    @contextmanager
    def server(self, family: int) -> Iterator[Callable[[], socket.socket]]:
        """Serve TCP connections; yields what returns the next accepted one."""
        with self.proxies.entered():
            listener = socket.create_server((VIPS[family], 443), family=FAMILIES[family], backlog=128)
        listener.settimeout(LIMIT_S)

        def serve() -> socket.socket:
            served, _ = listener.accept()
            served.settimeout(LIMIT_S)
            self._open.append(served)
            return served

        with listener:
            yield serve

    def connection(self, family: int) -> socket.socket:
        """Return an established TCP connection of the client."""
        with self.client_side.entered():
            made = socket.socket(FAMILIES[family])
        self._open.append(made)
        made.settimeout(LIMIT_S)
        made.connect((VIPS[family], 443))
        return made

    def diverted(self, family: int) -> bool:
        """Return whether the packets of target 1 are led to the parking link before its own route."""
        return "metric 1025" in self.lb.run("ip", f"-{family}", "route", "show", "table", "5001", check=False)

    def in_force(self) -> None:
        wait_until(lambda: self.metric("lbguard_parking_in_force") == 1, "parking in force")

    def parked(self, count: int) -> None:
        """Wait until so many packets are kept."""
        wait_until(lambda: self.metric("lbguard_parking_packets") == count, f"{count} packets parked")

    def dropped(self, reason: str) -> float:
        return self.metric(f'lbguard_parking_packets_dropped_total{{reason="{reason}"}}') or 0.0

    def forwards(self) -> None:
        """Wait until packets of both families come through."""
        for family in VIPS:
            deadline = time.monotonic() + LIMIT_S
            while not self.received(family):
                assert time.monotonic() < deadline, f"no packet of IPv{family} comes through"
                self.send(family, "try")
                time.sleep(0.05)

    @contextmanager
    def parking(self, settings: dict[str, str] | None = None, *, targets: str = ONE) -> Iterator[Process]:
        """Run the service with parking, until packets come through."""
        with self.service(
            ON | PATIENT | (settings or {}), targets=targets, admitted=targets.count("identifier:")
        ) as one:
            self.in_force()
            self.forwards()
            time.sleep(0.1)
            for family in VIPS:
                self.received(family)
            yield one

    def close(self) -> None:
        for each in self._open:
            each.close()
        super().close()


@pytest.fixture
def lab(make_namespace: Callable[[str], Namespace], tmp_path: os.PathLike[str]) -> Iterator[Parked]:
    made = Parked(make_namespace("lb"), make_namespace("px"), make_namespace("client"), tmp_path)
    yield made
    made.close()


def numbers(first: int, count: int) -> list[str]:
    return [str(number) for number in range(first, first + count)]


def test_packets_of_both_families_are_given_back_in_order_with_none_lost(lab: Parked) -> None:
    with lab.parking():
        lab.delete_link("nse-a")
        lab.wait_for(t1="held")
        for family in VIPS:
            lab.send(family, *numbers(0, 200))
        lab.parked(400)
        for family in VIPS:
            assert lab.received(family) == []
        lab.make_link("nse-a")
        lab.wait_for(t1="active")
        for family in VIPS:
            assert lab.arrive(family, 200) == numbers(0, 200)
        lab.parked(0)
        assert lab.metric("lbguard_parking_packets_given_back_total") == 400
        assert lab.metric("lbguard_parking_seconds_count") == 400
        assert lab.metric('lbguard_held_packets_total{identifier="1",stream="stream-a"}') is not None
        lab.forwards()


def test_fragments_are_given_back_and_put_together_by_the_target(lab: Parked) -> None:
    with lab.parking():
        lab.delete_link("nse-a")
        lab.wait_for(t1="held")
        for family in VIPS:
            lab.send(family, "x" * 4000)
        wait_until(lambda: (lab.metric("lbguard_parking_packets") or 0) >= 2)
        lab.make_link("nse-a")
        for family in VIPS:
            assert lab.arrive(family, 1) == ["x" * 4000]


@pytest.mark.parametrize("family", VIPS)
@pytest.mark.parametrize("protocol", ["sctp", "icmp"])
def test_packets_of_other_protocols_are_given_back(lab: Parked, family: int, protocol: str) -> None:
    number = socket.IPPROTO_SCTP if protocol == "sctp" else ICMP[family]
    with lab.proxies.entered():
        receiver = socket.socket(FAMILIES[family], socket.SOCK_RAW, number)
    with lab.client_side.entered():
        sender = socket.socket(FAMILIES[family], socket.SOCK_RAW, number)
    with receiver, sender, lab.parking():
        receiver.settimeout(LIMIT_S)
        lab.delete_link("nse-a")
        lab.wait_for(t1="held")
        packets = [other_packet(protocol, family, number) for number in range(20)]
        for packet in packets:
            sender.sendto(packet, (VIPS[family], 0))
        wait_until(lambda: (lab.metric("lbguard_parking_packets") or 0) >= 20, "20 packets parked")
        lab.make_link("nse-a")
        found: list[bytes] = []
        while len(found) < 20:
            data = receiver.recv(65536)
            body = data[20:] if family == 4 else data
            if body[12:] in {packet[12:] for packet in packets}:
                found.append(body[12:])
        assert found == [packet[12:] for packet in packets]


def other_packet(protocol: str, family: int, number: int) -> bytes:
    """Return a packet of a protocol, without checksums: an SCTP DATA chunk, or an ICMP echo request."""
    text = b"numbered %4d" % number
    if protocol == "sctp":
        return struct.pack("!HHIIBBH", 5000, PORT, 7, 0, 0, 3, 4 + len(text)) + text
    head = struct.pack("!BBHHH", 8 if family == 4 else 128, 0, 0, 7, number) + bytes(4) + text
    return head[:2] + checksum(head).to_bytes(2) + head[4:] if family == 4 else head


@pytest.mark.parametrize("family", VIPS)
def test_a_connection_goes_on_with_what_was_given_back(lab: Parked, family: int) -> None:
    with lab.parking():
        with lab.proxies.entered():
            listener = socket.create_server((VIPS[family], 443), family=FAMILIES[family])
        with lab.client_side.entered():
            client = socket.socket(FAMILIES[family])
        with listener, client:
            listener.settimeout(LIMIT_S)
            client.settimeout(LIMIT_S)
            client.connect((VIPS[family], 443))
            served, _ = listener.accept()
            with served:
                served.settimeout(LIMIT_S)
                client.sendall(b"one")
                assert served.recv(3, socket.MSG_WAITALL) == b"one"
                lab.delete_link("nse-a")
                lab.wait_for(t1="held")
                client.sendall(b"two")
                wait_until(lambda: (lab.metric("lbguard_parking_packets") or 0) > 0)
                lab.make_link("nse-a")
                assert served.recv(3, socket.MSG_WAITALL) == b"two"
                served.sendall(b"end")
                assert client.recv(3, socket.MSG_WAITALL) == b"end"
                wait_until(lambda: (lab.metric("lbguard_parking_packets_given_back_total") or 0) > 0)


@pytest.mark.parametrize("family", VIPS)
def test_a_target_repeats_its_lost_reply_at_once(lab: Parked, family: int) -> None:
    lab.way_back_of_its_own()
    with lab.parking():
        with lab.proxies.entered():
            listener = socket.create_server((VIPS[family], 443), family=FAMILIES[family])
        with lab.client_side.entered():
            client = socket.socket(FAMILIES[family])
        with listener, client:
            listener.settimeout(LIMIT_S)
            client.settimeout(LIMIT_S)
            client.connect((VIPS[family], 443))
            served, _ = listener.accept()
            with served:
                served.settimeout(LIMIT_S)
                client.sendall(b"one")
                assert served.recv(3, socket.MSG_WAITALL) == b"one"
                lab.delete_link("nse-a")
                lab.wait_for(t1="held")
                lab.lb.run("nft", LOSES_REPLIES)
                served.sendall(b"lost")
                client.sendall(b"two")
                wait_until(lambda: backoff(served) >= 4, "the reply is repeated in vain")
                # It is repeated 3.2 s after the last time, if nobody says that it may be earlier.
                lab.lb.run("nft", "delete table inet lost")
                lab.make_link("nse-a")
                began = time.monotonic()
                assert client.recv(4, socket.MSG_WAITALL) == b"lost"
                assert time.monotonic() - began < 2.0
                wait_until(lambda: (lab.metric("lbguard_parking_unreachables_sent_total") or 0) > 0)


def backoff(connection: socket.socket) -> int:
    """Return how often the retransmission timer of a connection was doubled (`tcpi_backoff`)."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[4]


def test_a_withdrawn_targets_packets_are_dropped(lab: Parked) -> None:
    with lab.parking({"LBGUARD_GRACE__WINDOW": "3s", "LBGUARD_GRACE__MAX": "3s"}):
        lab.delete_link("nse-a")
        lab.wait_for(t1="held")
        lab.send(4, *numbers(0, 5))
        lab.parked(5)
        lab.wait_for(t1="withdrawn")
        lab.parked(0)
        assert lab.dropped("withdrawn") == 5
        wait_until(lambda: PARKING not in lab.lb.run("ip", "route", "show", "table", "5001"))
        lab.make_link("nse-a")
        lab.wait_for(t1="active")
        lab.forwards()
        assert set(lab.received(4)) <= {"try"}


def test_packets_meant_for_another_address_are_dropped(lab: Parked) -> None:
    with lab.parking():
        lab.delete_link("nse-a")
        lab.wait_for(t1="held")
        lab.send(4, *numbers(0, 5))
        lab.parked(5)
        changed = {"identifier": 1, "ips": ["172.16.1.12", "fd00:1::c"]}
        lab.write_targets(targets_yaml(stream("stream-a", targets=[changed])))
        lab.parked(0)
        assert lab.dropped("address_changed") == 5
        lab.make_link("nse-a")
        lab.wait_for(t1="active")
        wait_until(lambda: lab.gateways(1) >= {"172.16.1.12", "fd00:1::c"})
        lab.forwards()
        assert set(lab.received(4)) <= {"try"}


def test_a_killed_service_leaves_silence(lab: Parked) -> None:
    with lab.parking() as service:
        lab.delete_link("nse-a")
        lab.wait_for(t1="held")
        lab.send(4, "lost")
        lab.parked(1)
        service.kill()
        wait_until(lambda: PARKING not in {link.name for link in lab.lb.links()})
        assert {(route.kind, route.gateway) for route in lab.routes(5001)} == {("blackhole", "")}
        lab.senders[4].setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        lab.send(4, "lost too", "and this")
        time.sleep(0.3)
        lab.send(4, "no error came")
    with lab.service(ON | PATIENT, targets=ONE, admitted=1):
        lab.in_force()
        lab.make_link("nse-a")
        lab.wait_for(t1="active")
        lab.forwards()
        assert set(lab.received(4)) <= {"try"}


def test_a_stopped_service_stalls_no_other_target(lab: Parked) -> None:
    with lab.parking(targets=TWO) as service:
        lab.delete_link("nse-a")
        lab.wait_for(t1="held")
        os.kill(service.pid, signal.SIGSTOP)
        try:
            lab.send(4, *(["filler"] * 6000))
            # Flows of other ports go to the other target, too.
            with lab.client_side.entered():
                others = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(40)]
            lab.received(4)
            for n, other in enumerate(others):
                with other:
                    other.sendto(f"other {n}".encode(), (VIPS[4], PORT))
            assert any(text.startswith("other") for text in lab.arrive(4, 1))
        finally:
            os.kill(service.pid, signal.SIGCONT)
        lab.make_link("nse-a")
        lab.wait_for(t1="active")


@pytest.mark.parametrize("family", VIPS)
def test_packets_of_a_neighbour_whose_answer_is_overdue_are_kept_until_it_answers(lab: Parked, family: int) -> None:
    """The kernel is given timers with which it does not notice within this test that the neighbour is silent."""
    other = 10 - family
    silent = with_prefix(ips_of(1))[family == 6]
    with lab.parking(NEVER_FAILED):
        lab.proxies.run("ip", "addr", "del", silent, "dev", "lb-1")
        wait_until(lambda: lab.diverted(family))
        lab.send(family, *numbers(0, 20))
        lab.parked(20)
        lab.send(other, "the other family works")
        assert lab.arrive(other, 1) == ["the other family works"]
        assert not lab.diverted(other)
        assert not lab.received(family)
        assert lab.states() == {1: "active"}
        lab.proxies.add_addresses("lb-1", silent)
        assert lab.arrive(family, 20) == numbers(0, 20)
        wait_until(lambda: not lab.diverted(family))
        lab.forwards()
        assert not [decision for decision in lab.decisions() if decision.action is Action.HOLD]


@pytest.mark.parametrize("family", VIPS)
def test_with_flow_affinity_only_connections_of_the_held_target_wait(lab: Parked, family: int) -> None:
    lab.way_back_of_its_own()
    lab.note_arrivals()
    with lab.parking(AFFINITY, targets=TWO), lab.server(family) as serve:
        wait_until(lambda: lab.metric("lbguard_affinity_in_force") == 1)
        old = [lab.connection(family) for _ in range(32)]
        served = {each.getpeername()[1]: each for each in [serve() for _ in old]}
        own = {local_port(each) for each in old} & lab.arrived_through("lb-1")
        assert 0 < len(own) < len(old), "the table gives connections to both targets"
        lab.delete_link("nse-a")
        lab.wait_for(t1="held", t3="active")
        for each in old:
            each.sendall(b"while held")
        for port in served.keys() - own:
            assert served[port].recv(10, socket.MSG_WAITALL) == b"while held"
        lab.parked(len(own))
        # Those that begin now are answered at once, whatever the table says of them.
        new = [lab.connection(family) for _ in range(32)]
        served_new = [serve() for _ in new]
        wait_until(lambda: (lab.metric("lbguard_affinity_steered_total") or 0) > 0)
        assert {local_port(each) for each in new} <= lab.arrived_through("lb-2")
        assert lab.metric("lbguard_parking_packets") == len(own)
        lab.make_link("nse-a")
        lab.wait_for(t1="active")
        for port in own:
            assert served[port].recv(10, socket.MSG_WAITALL) == b"while held"
        for each in new:
            each.sendall(b"stays")
        for other in served_new:
            assert other.recv(5, socket.MSG_WAITALL) == b"stays"
        lab.parked(0)
        assert (lab.metric("lbguard_parking_packets_given_back_total") or 0) >= len(own)
        assert lab.arrived_through("lb-1") == own
        assert own.isdisjoint(lab.arrived_through("lb-2"))


def local_port(connection: socket.socket) -> int:
    port: int = connection.getsockname()[1]
    return port


def test_without_a_device_the_service_works_and_takes_it_when_it_can(lab: Parked) -> None:
    connect(lab.lb, PARKING, lab.proxies, "in-the-way")
    with lab.service(ON | PATIENT, targets=ONE, admitted=1) as service:
        line = service.wait_for_log("packets are not parked")
        assert line["remedy"]
        assert lab.metric("lbguard_parking_in_force") == 0
        lab.forwards()
        lab.delete_link(PARKING)
        lab.in_force()
        service.wait_for_log("packets are parked again")


def test_the_link_and_its_routes_are_made_again(lab: Parked) -> None:
    with lab.parking({"LBGUARD_KERNEL__RECONCILE_INTERVAL": "500ms"}):
        lab.delete_link(PARKING)
        wait_until(lambda: PARKING in lab.lb.run("ip", "route", "show", "table", "5001"))
        lab.lb.run("ip", "route", "del", "default", "dev", PARKING, "table", "5001")
        wait_until(lambda: PARKING in lab.lb.run("ip", "route", "show", "table", "5001"))
        lab.delete_link("nse-a")
        lab.wait_for(t1="held")
        lab.send(4, "kept")
        lab.parked(1)


def test_a_stop_removes_the_link_and_leaves_the_rest(lab: Parked) -> None:
    with lab.parking() as service:
        before = {route for route in lab.routes() if route.link != PARKING}
        assert {route.link for route in lab.routes()} >= {PARKING}
        assert service.terminate() == 0
    assert set(lab.routes()) == before
    assert PARKING not in {link.name for link in lab.lb.links()}
