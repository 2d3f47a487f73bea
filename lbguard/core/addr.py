"""IP addresses and prefixes as the core uses them: packed bytes, as they stand in netlink messages.

An address is 4 or 16 bytes, so its length tells its family. Packed bytes hash and compare several times faster than
`ipaddress` objects, which matters on the event path; text is made only where a person reads it.
"""

import ipaddress
from functools import lru_cache
from typing import NamedTuple

Ip = bytes

IPV4_LEN = 4
IPV6_LEN = 16


class Prefix(NamedTuple):
    """A network: packed network address (host bits zero) and prefix length in bits."""

    network: Ip
    length: int

    def __str__(self) -> str:
        return f"{format_ip(self.network)}/{self.length}"


def is_ipv4(ip: Ip) -> bool:
    """Tell whether a packed address is IPv4."""
    return len(ip) == IPV4_LEN


def is_link_local(ip: Ip) -> bool:
    """Tell whether a packed address is an IPv6 link-local one (fe80::/10, RFC 4291)."""
    return len(ip) == IPV6_LEN and ip[0] == 0xFE and ip[1] & 0xC0 == 0x80


def parse_ip(text: str) -> Ip:
    """Parse an address, with or without a full-length prefix (`/32`, `/128`).

    Raises:
        ValueError: the text is no address, or its prefix is not the full length.
    """
    host, slash, length = text.partition("/")
    packed = ipaddress.ip_address(host).packed
    if slash and length != str(len(packed) * 8):
        raise ValueError(f"{text!r} is a network; a single address is needed, such as {host}/{len(packed) * 8}")
    return packed


@lru_cache(maxsize=16_384)  # a status names the same addresses again and again, and IPv6 costs 10 us
def format_ip(ip: Ip) -> str:
    """Write a packed address in its usual text form."""
    return str(ipaddress.ip_address(ip))


def parse_prefix(text: str) -> Prefix:
    """Parse `address/length`; host bits must be zero. A bare address is a full-length prefix.

    Raises:
        ValueError: the text is no network.
    """
    network = ipaddress.ip_network(text)
    return Prefix(network.network_address.packed, network.prefixlen)


def prefix_of(ip: Ip, length: int) -> Prefix:
    """Return the prefix of the given length (bits) that contains an address."""
    bits = len(ip) * 8
    shift = bits - length
    value = int.from_bytes(ip) >> shift << shift
    return Prefix(value.to_bytes(len(ip)), length)


def format_mac(mac: bytes | None) -> str:
    """Write a link-layer address as colon-separated hex; `-` when there is none."""
    return mac.hex(":") if mac else "-"
