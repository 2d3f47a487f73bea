"""Netlink messages as the kernel sends them, laid out by hand from its headers, apart from the code under test."""

import struct

MULTI, INTERRUPTED, REPLACE = 0x2, 0x10, 0x100


def attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + b"\0" * (-length % 4)


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def message(kind: int, body: bytes, *, flags: int = 0, sequence: int = 0) -> bytes:
    raw = struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body
    return raw + b"\0" * (-len(raw) % 4)


def done(sequence: int, *, error: int = 0, flags: int = MULTI) -> bytes:
    return message(3, struct.pack("=i", -error), flags=flags, sequence=sequence)


def error(sequence: int, code: int, text: str = "") -> bytes:
    """An NLMSG_ERROR with a capped quotation (flag 0x100) and, when there is a text, attributes (flag 0x200)."""
    body = struct.pack("=i", -code) + struct.pack("=IHHII", 28, 24, 0, sequence, 0)
    flags = 0x100
    if text:
        body += attribute(1, text.encode() + b"\0")
        flags |= 0x200
    return message(2, body, flags=flags, sequence=sequence)


def link_body(index: int, name: str, flags: int, mac: bytes, *, family: int = 0, padding_attributes: int = 25) -> bytes:
    """The kernel puts about 25 attributes between the name and the address."""
    body = struct.pack("=BBHiII", family, 0, 1, index, flags, 0) + attribute(3, name.encode() + b"\0")
    body += b"".join(u32(4, 1500) for _ in range(padding_attributes))
    return body + attribute(1, mac) + attribute(2, b"\xff" * 6)


def address_body(index: int, local: bytes, length: int, *, peer: bytes = b"", flags: int = 0) -> bytes:
    family = 2 if len(local) == 4 else 10
    body = struct.pack("=BBBBI", family, length, flags & 0xFF, 0, index)
    if family == 2 or peer:
        return body + attribute(1, peer or local) + attribute(2, local) + u32(8, flags)
    return body + attribute(1, local) + attribute(6, b"\0" * 16) + u32(8, flags)


def neighbor_body(
    index: int,
    ip: bytes,
    state: int,
    mac: bytes = b"",
    *,
    family: int = 0,
    flags: int = 0,
    age: int = 0,
    extra: bytes = b"",
) -> bytes:
    body = struct.pack("=BBHiHBB", family or (2 if len(ip) == 4 else 10), 0, 0, index, state, flags, 1)
    body += attribute(1, ip)
    if mac:
        body += attribute(2, mac)
    return body + u32(4, 1) + attribute(3, age.to_bytes(16, "little")) + extra


def route_body(
    table: int,
    *,
    gateway: bytes = b"",
    oif: int = 0,
    metric: int = 0,
    ipv4: bool = True,
    kind: int = 1,
    protocol: int = 152,
    dst_len: int = 0,
    flags: int = 0,
    extra: bytes = b"",
) -> bytes:
    family = 2 if ipv4 else 10
    body = struct.pack("=BBBBBBBBI", family, dst_len, 0, 0, table if table < 256 else 252, protocol, 0, kind, flags)
    body += u32(15, table)
    if metric:
        body += u32(6, metric)
    if gateway:
        body += attribute(5, gateway)
    if oif:
        body += u32(4, oif)
    return body + extra


def rule_body(
    mark: int,
    table: int,
    *,
    priority: int = 3000,
    protocol: int = 152,
    mask: int = 0xFFFFFFFF,
    family: int = 2,
    action: int = 1,
    flags: int = 0,
    extra: bytes = b"",
) -> bytes:
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, table if table < 256 else 252, 0, 0, action, flags)
    body += u32(15, table) + u32(14, 0xFFFFFFFF)
    if mark:
        body += u32(10, mark) + u32(16, mask)
    return body + attribute(21, bytes([protocol])) + u32(6, priority) + extra
