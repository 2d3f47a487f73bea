"""Frames of the parking link, made by hand."""

import struct
from ipaddress import ip_address

SYN, ACK, FIN, RST, PSH = 0x02, 0x10, 0x01, 0x04, 0x08
UDP, TCP = 17, 6


def ipv4(protocol: int, body: bytes, *, source: str = "10.0.0.2", fragment: int = 0, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, 4 * words + len(body), 7, fragment, 63, protocol, 0)
    return head + ip_address(source).packed + ip_address("20.0.0.1").packed + options + body


def ipv6(protocol: int, body: bytes, *, source: str = "2000::2") -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 63)
    return head + ip_address(source).packed + ip_address("2000::1").packed + body


def segment(
    sequence: int, data: bytes = b"", *, port: int = 1000, flags: int = ACK, ack: int = 0, options: bytes = b""
) -> bytes:
    words = 5 + len(options) // 4
    return struct.pack("!HHIIBBHHH", port, 443, sequence, ack, words << 4, flags, 1024, 0, 0) + options + data


def datagram(data: bytes = b"x", *, port: int = 1000) -> bytes:
    return struct.pack("!HHHH", port, 443, 8 + len(data), 0) + data


def frame(packet: bytes, mark: int = 5001) -> bytes:
    kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
    return bytes((0x02, 0x6C)) + struct.pack("!I", mark) + b"source" + kind + packet
