"""Which flow and which slot a packet belongs to, and the verdict that goes back to the kernel; without a kernel."""

import ipaddress
import struct
from pathlib import Path

import pytest

from lbguard.lab.nfqlb_packets import OK, Flows, Tuple5, dissect, verdict_of
from lbguard.lab.nfqlb_stand_in import Memory, make_memory

TCP, UDP, ICMP = 6, 17, 1
SLOTS, TARGETS = 97, 5


def _ipv4(protocol: int = UDP, *, port: int = 4000, destination: str = "20.0.0.1", fragment: int = 0) -> bytes:
    addresses = ipaddress.ip_address("10.0.0.2").packed + ipaddress.ip_address(destination).packed
    header = struct.pack("!BBHHHBBH", 0x46, 0, 40, 1, fragment, 64, protocol, 0) + addresses
    # An IPv4 header may have options.
    return header + bytes(4) + struct.pack("!HHHH", port, 80, 8, 0)


def _ipv6(protocol: int = TCP) -> bytes:
    addresses = ipaddress.ip_address("fd00::2").packed + ipaddress.ip_address("2000::1").packed
    return struct.pack("!IHBB", 0x60000000, 20, protocol, 64) + addresses + struct.pack("!HH16x", 4000, 80)


def _word(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def test_headers_are_read() -> None:
    ports = b"\x0f\xa0\x00\x50"
    assert dissect(_ipv4()) == Tuple5(UDP, _word("20.0.0.1"), b"\x11" + _word("10.0.0.2") + _word("20.0.0.1") + ports)
    assert dissect(_ipv6()) == Tuple5(TCP, _word("2000::1"), b"\x06" + _word("fd00::2") + _word("2000::1") + ports)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x00" * 40,
        _ipv4(ICMP),
        _ipv4()[:25],
        _ipv6()[:41],
        _ipv4(fragment=0x2000),
        _ipv4(fragment=0x0010),
        _ipv6(protocol=44),
    ],
    ids=["nothing", "no version", "no ports", "short", "short 6", "first fragment", "later fragment", "fragment 6"],
)
def test_what_has_no_ports_is_no_connections_packet(packet: bytes) -> None:
    assert dissect(packet) is None


def test_a_fragment_bit_of_do_not_fragment_is_none() -> None:
    assert dissect(_ipv4(fragment=0x4000)) is not None


def _memory(directory: Path, name: str, mark: int) -> None:
    make_memory(directory / name, SLOTS, TARGETS)
    Memory(directory / name).change(0, mark)


@pytest.fixture
def flows(tmp_path: Path) -> Flows:
    _memory(tmp_path, "a", 5001)
    _memory(tmp_path, "b", 6001)
    made = Flows(tmp_path)
    options = {"name": "a", "target": "a", "protocols": "tcp,udp", "dsts": "20.0.0.0/24,2000::1/128", "prio": "1"}
    assert made.change("flow-set", options) == OK
    return made


def test_a_packet_gets_the_mark_of_its_flow(flows: Flows) -> None:
    assert flows.mark(_ipv4()) == 5001
    assert flows.mark(_ipv6()) == 5001
    assert flows.mark(_ipv4(ICMP)) == -1
    assert flows.mark(_ipv4(132)) == -1
    assert flows.mark(_ipv4(destination="20.0.1.1")) == -1


def test_of_two_flows_the_one_with_the_higher_priority_takes_a_packet(flows: Flows) -> None:
    assert flows.change("flow-set", {"name": "b", "target": "b", "prio": "0"}) == OK
    assert flows.mark(_ipv4()) == 5001
    assert flows.mark(_ipv4(destination="20.0.1.1")) == 6001
    assert flows.change("flow-set", {"name": "b", "target": "b", "prio": "2"}) == OK
    assert flows.mark(_ipv4()) == 6001
    assert flows.change("flow-delete", {"name": "b"}) == OK
    assert flows.mark(_ipv4()) == 5001
    assert flows.mark(_ipv4(destination="20.0.1.1")) == -1


def test_a_change_by_another_process_is_seen_at_once(flows: Flows, tmp_path: Path) -> None:
    assert flows.mark(_ipv4()) == 5001
    Memory(tmp_path / "a").change(0, -1)
    assert flows.mark(_ipv4()) == -1
    Memory(tmp_path / "a").change(3, 5004)
    assert flows.mark(_ipv4()) == 5004


def test_ports_spread_over_the_targets(flows: Flows, tmp_path: Path) -> None:
    Memory(tmp_path / "a").change(1, 5002)
    marks = [flows.mark(_ipv4(port=port)) for port in range(1000, 1200)]
    assert set(marks) == {5001, 5002}
    assert 50 < marks.count(5001) < 150


def _message(kind: int, number: int, packet: bytes) -> bytes:
    """Build what the kernel sends for a packet of queue 3 (nfnetlink_queue.h), or another message of that form."""
    body = struct.pack("=HH", 11, 1) + struct.pack("!IHB", number, 0x0800, 0) + b"\0"
    body += struct.pack("=HH", 4 + len(packet), 10) + packet + bytes(-len(packet) % 4)
    return struct.pack("=IHHII", 20 + len(body), kind, 0, 0, 0) + struct.pack("!BBH", 2, 0, 3) + body


def test_the_verdict_names_queue_packet_and_mark(flows: Flows) -> None:
    accept, drop = verdict_of(_message(0x300, 77, _ipv4()), flows), verdict_of(_message(0x300, 78, _ipv4(ICMP)), flows)
    header = struct.pack("=HHII", 0x301, 1, 0, 0) + struct.pack("!BBH", 0, 0, 3)
    said = struct.pack("=HH", 12, 2) + struct.pack("!II", 1, 77) + struct.pack("=HH", 8, 3) + struct.pack("!I", 5001)
    assert accept == struct.pack("=I", 40) + header + said
    assert drop == struct.pack("=I", 32) + header + struct.pack("=HH", 12, 2) + struct.pack("!II", 0, 78)
    assert verdict_of(_message(2, 77, b""), flows) == b""
