"""Packets as bytes, for what sockets would not send: SCTP without an association, fragments, ICMP errors."""

import struct
from dataclasses import dataclass

from lbguard.core.addr import is_ipv4, parse_ip

TCP = 6
UDP = 17
SCTP = 132
ICMP = 1
ICMPV6 = 58
FRAGMENT = 44


@dataclass(frozen=True, slots=True)
class Flow:
    """The five-tuple of a packet on its way from the client to the VIP."""

    source: str
    destination: str
    protocol: int
    sport: int
    dport: int

    @property
    def reverse(self) -> "Flow":
        return Flow(self.destination, self.source, self.protocol, self.dport, self.sport)

    @property
    def ipv4(self) -> bool:
        return is_ipv4(parse_ip(self.source))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data)) if len(data) % 2 == 0 else checksum(data + b"\0") ^ 0xFFFF
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ip_packet(
    source: str, destination: str, protocol: int, payload: bytes, *, fragment: int = 0, ident: int = 0
) -> bytes:
    """Wrap a payload in an IPv4 or IPv6 header. `fragment` is the IPv4 flags-and-offset word."""
    src, dst = parse_ip(source), parse_ip(destination)
    if not is_ipv4(src):
        return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + src + dst + payload
    length = 20 + len(payload)
    fields = [0x45, 0, length, ident, fragment, 64, protocol, 0]
    fields[7] = checksum(struct.pack("!BBHHHBBH", *fields) + src + dst)
    return struct.pack("!BBHHHBBH", *fields) + src + dst + payload


def segment(flow: Flow, data: bytes = b"") -> bytes:
    """Return the transport header and data of a flow; checksums are left out, routers do not look at them."""
    if flow.protocol == UDP:
        return struct.pack("!HHHH", flow.sport, flow.dport, 8 + len(data), 0) + data
    if flow.protocol == TCP:
        return struct.pack("!HHIIBBHHH", flow.sport, flow.dport, 1, 0, 5 << 4, 2, 1024, 0, 0) + data
    return struct.pack("!HHII", flow.sport, flow.dport, 1, 0) + data


def flow_packet(flow: Flow, data: bytes = b"") -> bytes:
    return ip_packet(flow.source, flow.destination, flow.protocol, segment(flow, data))


def echo_request(source: str, destination: str, ident: int, sequence: int) -> bytes:
    kind, protocol = (8, ICMP) if is_ipv4(parse_ip(source)) else (128, ICMPV6)
    return ip_packet(source, destination, protocol, struct.pack("!BBHHH", kind, 0, 0, ident, sequence))


def packet_too_big(router: str, flow: Flow, *, quoted: bytes | None = None) -> bytes:
    """Return the error a router sends to the VIP because of a target's answer in this flow."""
    answer = flow_packet(flow.reverse, bytes(64)) if quoted is None else quoted
    if flow.ipv4:
        header = struct.pack("!BBHHH", 3, 4, 0, 0, 1280)
        return ip_packet(router, flow.destination, ICMP, header[:2] + _sum(header + answer) + header[4:] + answer)
    return ip_packet(router, flow.destination, ICMPV6, struct.pack("!BBHI", 2, 0, 0, 1280) + answer)


def _sum(data: bytes) -> bytes:
    return checksum(data).to_bytes(2)


def fragments(flow: Flow, ident: int, *, size: int = 512, cut: int = 256) -> list[bytes]:
    """Return two fragments of one packet of a flow with `size` bytes behind the IP header."""
    body = segment(flow, bytes(size - len(segment(flow))))
    if flow.ipv4:
        return [
            ip_packet(flow.source, flow.destination, flow.protocol, body[:cut], fragment=0x2000, ident=ident),
            ip_packet(flow.source, flow.destination, flow.protocol, body[cut:], fragment=cut // 8, ident=ident),
        ]
    return [
        ip_packet(flow.source, flow.destination, FRAGMENT, fragment_header(flow.protocol, 0, True, ident) + body[:cut]),
        ip_packet(
            flow.source, flow.destination, FRAGMENT, fragment_header(flow.protocol, cut, False, ident) + body[cut:]
        ),
    ]


def fragment_header(protocol: int, offset: int, more: bool, ident: int) -> bytes:
    return struct.pack("!BBHI", protocol, 0, offset | more, ident)


def destination_of(packet: bytes) -> bytes:
    return packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]


def body_of(packet: bytes) -> bytes:
    return packet[20:] if packet[0] >> 4 == 4 else packet[40:]
