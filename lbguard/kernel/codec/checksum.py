"""The Internet checksum (RFC 1071). Pure."""

import struct


def checksum(data: bytes, initial: int = 0) -> int:
    """Return the Internet checksum of `data`; `initial` is added to the sum before it is complemented."""
    if len(data) % 2:
        data += b"\0"
    total: int = initial + sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
