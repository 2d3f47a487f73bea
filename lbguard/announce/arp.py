"""Frames of gratuitous ARP and of ARP requests, with Ethernet header (RFC 826, RFC 5227); pure bytes, no sockets.

There are two forms, because receivers differ in which they accept. The request form is the ARP Announcement of RFC
5227: sender and target are both the announced address, the target hardware address is zero. The reply form is for
receivers that accept replies only; Linux treats a reply as gratuitous only when its target hardware address equals the
sender's (`arp_is_garp` in net/ipv4/arp.c), and otherwise ignores it for a second after the entry's last change.
"""

import struct

from lbguard.core.addr import IPV4_LEN, Ip

MAC_LEN = 6

ETHERTYPE_ARP = 0x0806

_ETHERTYPE_IPV4 = 0x0800
_HARDWARE_ETHERNET = 1
_OPERATION_REQUEST = 1
_OPERATION_REPLY = 2
_BROADCAST = b"\xff" * MAC_LEN
_UNKNOWN = bytes(MAC_LEN)

# Ethernet header (destination, source, type), then hardware type, protocol type, their address lengths, operation,
# and the sender's and the target's hardware and protocol addresses.
_FRAME = struct.Struct("!6s6sH HHBBH 6s4s 6s4s")


def _frame(operation: int, mac: bytes, ip: Ip, target_mac: bytes, target_ip: Ip) -> bytes:
    if len(mac) != MAC_LEN:
        raise ValueError(f"an Ethernet address has {MAC_LEN} bytes, this one {len(mac)}")
    for address in (ip, target_ip):
        if len(address) != IPV4_LEN:
            raise ValueError(f"ARP carries IPv4 addresses of {IPV4_LEN} bytes, this one has {len(address)}")
    return _FRAME.pack(
        _BROADCAST,
        mac,
        ETHERTYPE_ARP,
        _HARDWARE_ETHERNET,
        _ETHERTYPE_IPV4,
        MAC_LEN,
        IPV4_LEN,
        operation,
        mac,
        ip,
        target_mac,
        target_ip,
    )


def gratuitous_request(mac: bytes, ip: Ip) -> bytes:
    """Build the ARP Announcement of RFC 5227 section 3: a broadcast request with sender and target `ip`.

    Args:
        mac: the 6-byte link-layer address that now holds the address; also the Ethernet source.
        ip: the packed IPv4 address.

    Returns:
        The Ethernet frame: 42 bytes, without padding or frame check sequence.

    Raises:
        ValueError: an address has the wrong length.
    """
    return _frame(_OPERATION_REQUEST, mac, ip, _UNKNOWN, ip)


def request(mac: bytes, ip: Ip, target: Ip) -> bytes:
    """Build an ordinary broadcast request: who has `target`, tell `ip` at `mac` (RFC 826).

    Args:
        mac: our 6-byte link-layer address; also the Ethernet source.
        ip: our packed IPv4 address on the link.
        target: the packed IPv4 address to resolve.

    Returns:
        The Ethernet frame: 42 bytes, without padding or frame check sequence.

    Raises:
        ValueError: an address has the wrong length.
    """
    return _frame(_OPERATION_REQUEST, mac, ip, _UNKNOWN, target)


def gratuitous_reply(mac: bytes, ip: Ip) -> bytes:
    """Build the reply form: a broadcast ARP reply from `mac` and `ip` to themselves.

    Args:
        mac: the 6-byte link-layer address that now holds the address; also the Ethernet source.
        ip: the packed IPv4 address.

    Returns:
        The Ethernet frame: 42 bytes, without padding or frame check sequence.

    Raises:
        ValueError: an address has the wrong length.
    """
    return _frame(_OPERATION_REPLY, mac, ip, mac, ip)
