"""IP addresses and prefixes as the core uses them: packed bytes, as in netlink messages.

An address is 4 or 16 bytes, so its length gives its family. Packed bytes hash and compare several times faster than
`ipaddress` objects, which matters on the event path; text is made only for output.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

Ip = bytes

IPV4_LEN = 4
IPV6_LEN = 16

_MAPPED = bytes(10) + b"\xff\xff"


class Prefix(NamedTuple):
    """A network: packed network address (host bits zero) and prefix length in bits."""

    network: Ip
    length: int

    def __str__(self) -> str:
        return f"{format_ip(self.network)}/{self.length}"


def is_ipv4(ip: Ip) -> bool:
    """Return whether a packed address is IPv4."""
    return len(ip) == IPV4_LEN


def is_link_local(ip: Ip) -> bool:
    """Return whether a packed address is an IPv6 link-local one (fe80::/10, RFC 4291)."""
    return len(ip) == IPV6_LEN and ip[0] == 0xFE and ip[1] & 0xC0 == 0x80


def is_ipv4_mapped(ip: Ip) -> bool:
    """Return whether a packed address is an IPv4 one in the form of IPv6 (::ffff:0:0/96, RFC 4291)."""
    return len(ip) == IPV6_LEN and ip[:12] == _MAPPED


def why_not_unicast(ip: Ip) -> str:
    """Return why packets cannot be routed to an address; empty: they can."""
    if len(ip) == IPV4_LEN:
        first = ip[0]
        if first == 127:
            return "a loopback address"
        if ip == bytes(4):
            return "an unspecified address"
        if ip[:2] == b"\xa9\xfe":
            return "a link-local address"
        if 224 <= first <= 239:
            return "a multicast address"
        return "the broadcast address" if ip == b"\xff\xff\xff\xff" else ""
    if ip[:15] == bytes(15) and ip[15] <= 1:
        return "a loopback address" if ip[15] else "an unspecified address"
    if ip[0] == 0xFF:
        return "a multicast address"
    if is_link_local(ip):
        return "a link-local address"
    return f"an IPv4-mapped address; write {format_ip(ip[12:])}" if is_ipv4_mapped(ip) else ""


def why_no_vip(prefix: Prefix) -> str:
    """Return why no client can send packets to the addresses of a prefix; empty: it can."""
    return why_not_unicast(prefix.network) if prefix.length else ""


def prefix_overlaps(prefixes: Iterable[tuple[Prefix, str]]) -> Iterator[tuple[Prefix, str, Prefix, str]]:
    """Yield each prefix that shares addresses with one that another owner (a name) has, and that one, the wider last.

    Takes time in proportion to the prefixes and the lengths in use, not to their pairs.
    """
    wider: dict[Prefix, str] = {}
    lengths: dict[int, list[int]] = {IPV4_LEN: [], IPV6_LEN: []}
    for prefix, owner in sorted(prefixes, key=lambda item: (item[0].length, item[0].network)):
        known = lengths[len(prefix.network)]
        for length in known:
            other = prefix_of(prefix.network, length)
            if wider.get(other, owner) != owner:
                yield prefix, owner, other, wider[other]
                break
        if prefix.length not in known:
            known.append(prefix.length)
        wider.setdefault(prefix, owner)


def overlapping(prefixes: Iterable[Prefix], others: Iterable[Prefix]) -> dict[Prefix, Prefix]:
    """Return the prefixes that share addresses with one of the others, and that one (of several, any)."""
    wanted, against = dict.fromkeys(prefixes), dict.fromkeys(others)
    found: dict[Prefix, Prefix] = {}
    for narrow, wide in ((wanted, against), (against, wanted)):
        lengths = {(len(prefix.network), prefix.length) for prefix in wide}
        for prefix in narrow:
            for family_length, length in lengths:
                if family_length == len(prefix.network) and length <= prefix.length:
                    other = prefix_of(prefix.network, length)
                    if other in wide:
                        found.setdefault(*((prefix, other) if narrow is wanted else (other, prefix)))
    return found


def parse_ip(text: str) -> Ip:
    """Parse an address, with or without a full-length prefix (`/32`, `/128`).

    Raises:
        ValueError: the text is no address, has a zone, or its prefix is not the full length.
    """
    _refuse_zone(text)
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
        ValueError: the text is no network, or has a zone.
    """
    _refuse_zone(text)
    network = ipaddress.ip_network(text)
    return Prefix(network.network_address.packed, network.prefixlen)


def _refuse_zone(text: str) -> None:
    # The library accepts `fe80::1%eth0` and drops the zone from the packed form.
    host, zone, _ = text.partition("%")
    if zone:
        raise ValueError(f"{text!r} has a zone, which says nothing beyond one machine; write {host} alone")


def prefix_of(ip: Ip, length: int) -> Prefix:
    """Return the prefix of the given length (bits) that contains an address."""
    bits = len(ip) * 8
    shift = bits - length
    value = int.from_bytes(ip) >> shift << shift
    return Prefix(value.to_bytes(len(ip)), length)


def format_mac(mac: bytes | None) -> str:
    """Write a link-layer address as colon-separated hex; `-` when there is none."""
    return mac.hex(":") if mac else "-"
