"""Frames of unsolicited neighbour advertisements and of solicitations, with Ethernet header (RFC 4861); pure bytes."""

import struct

from lbguard.core.addr import IPV6_LEN, Ip

MAC_LEN = 6

ETHERTYPE_IPV6 = 0x86DD

_ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
_ALL_NODES_MAC = bytes.fromhex("333300000001")  # RFC 2464 section 7: 33:33 and the last four bytes of the group
_NEXT_HEADER_ICMPV6 = 58
_HOP_LIMIT = 255  # RFC 4861 7.1.2: receivers discard any other value, for it may have crossed a router
_TYPE_NEIGHBOR_SOLICITATION = 135
_TYPE_NEIGHBOR_ADVERTISEMENT = 136
_FLAG_ROUTER = 0x80000000
_FLAG_OVERRIDE = 0x20000000
_OPTION_SOURCE_LINK_LAYER_ADDRESS = 1
_OPTION_TARGET_LINK_LAYER_ADDRESS = 2
# The solicited-node group is this, then the last three bytes of the address (RFC 4291 2.7.1).
_SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")

_ETHERNET = struct.Struct("!6s6sH")
_IPV6 = struct.Struct("!IHBB16s16s")
# Type, code, checksum, flags, target address; option type, its length in units of 8 bytes, link-layer address.
# Advertisement and solicitation have the same shape; the flags of the latter are reserved.
_MESSAGE = struct.Struct("!BBHI16s BB6s")
_PSEUDO_HEADER = struct.Struct("!16s16sI3xB")


def icmpv6_checksum(source: Ip, destination: Ip, message: bytes) -> int:
    """Compute the checksum of an ICMPv6 message with its pseudo-header (RFC 4443 2.3, RFC 8200 8.1).

    Args:
        source: the packed IPv6 source address.
        destination: the packed IPv6 destination address.
        message: the ICMPv6 message, its checksum field zero.

    Returns:
        The 16-bit checksum, to be stored in network byte order.
    """
    data = _PSEUDO_HEADER.pack(source, destination, len(message), _NEXT_HEADER_ICMPV6) + message
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def unsolicited_advertisement(mac: bytes, ip: Ip, *, router: bool) -> bytes:
    """Build an unsolicited neighbour advertisement: override set, solicited clear, from `ip` itself to all nodes.

    Args:
        mac: the 6-byte link-layer address that now holds the address; also the Ethernet source.
        ip: the packed IPv6 address. It must have passed duplicate address detection: a tentative address must not be a
        source.
        router: the R flag. It should be set if the link forwards IPv6: a host that uses the sender as its router drops
            its routes through it when the flag is cleared (RFC 4861 7.2.5).

    Returns:
        The Ethernet frame: 86 bytes, without frame check sequence.

    Raises:
        ValueError: an address has the wrong length.
    """
    flags = _FLAG_OVERRIDE | (_FLAG_ROUTER if router else 0)
    option = (_OPTION_TARGET_LINK_LAYER_ADDRESS, 1, mac)
    return _frame(mac, ip, (_ALL_NODES_MAC, _ALL_NODES), (_TYPE_NEIGHBOR_ADVERTISEMENT, flags, ip, option))


def solicitation(mac: bytes, ip: Ip, target: Ip) -> bytes:
    """Build a multicast neighbour solicitation: who has `target`, tell `ip` at `mac` (RFC 4861 7.2.2).

    Args:
        mac: our 6-byte link-layer address; also the Ethernet source and the source link-layer address option.
        ip: our packed IPv6 address on the link. It must have passed duplicate address detection.
        target: the packed IPv6 address to resolve.

    Returns:
        The Ethernet frame: 86 bytes, without frame check sequence.

    Raises:
        ValueError: an address has the wrong length.
    """
    group = _SOLICITED_NODE + target[-3:]
    group_mac = b"\x33\x33" + group[-4:]
    option = (_OPTION_SOURCE_LINK_LAYER_ADDRESS, 1, mac)
    return _frame(mac, ip, (group_mac, group), (_TYPE_NEIGHBOR_SOLICITATION, 0, target, option))


def _frame(
    mac: bytes, ip: Ip, destination: tuple[bytes, Ip], content: tuple[int, int, Ip, tuple[int, int, bytes]]
) -> bytes:
    kind, flags, subject, option = content
    if len(mac) != MAC_LEN:
        raise ValueError(f"an Ethernet address has {MAC_LEN} bytes, this one {len(mac)}")
    for address in (ip, subject):
        if len(address) != IPV6_LEN:
            raise ValueError(f"neighbour discovery carries IPv6 addresses of {IPV6_LEN} bytes, not {len(address)}")
    unsummed = _MESSAGE.pack(kind, 0, 0, flags, subject, *option)
    checksum = icmpv6_checksum(ip, destination[1], unsummed)
    return (
        _ETHERNET.pack(destination[0], mac, ETHERTYPE_IPV6)
        + _IPV6.pack(6 << 28, len(unsummed), _NEXT_HEADER_ICMPV6, _HOP_LIMIT, ip, destination[1])
        + _MESSAGE.pack(kind, 0, checksum, flags, subject, *option)
    )
