"""Address pairs between which the datapath of a mesh's connection is tested. Pure.

A connection lists more addresses than those of its two interfaces: a target's source addresses include its VIPs, and
pings from a VIP are not answered along the connection. So only addresses with the other end in their own subnet are
used, by the prefix lengths of the connection or the kernel. Where every prefix is a single address (a point-to-point
connection), each address of the far end is tested from the nearest local address.

Addresses that the connection names take precedence: Meridio's proxies list them in the extra context. A local address
there that neither the connection nor the kernel has any more is out of date, because the mesh does not change the extra
context when it gives a connection new addresses.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from lbguard.core.addr import Ip, is_ipv4, prefix_of
from lbguard.nsm.scope import Address, addresses_of
from lbguard.probe.connection import Pair

SOURCE_KEY, DESTINATION_KEY = "DATAPATH_SOURCE_IPS", "DATAPATH_DESTINATION_IPS"


def told_pairs(extra_context: Mapping[str, str], *, from_source: bool, current: Callable[[Ip], bool]) -> list[Pair]:
    """Return the address pairs in the extra context, local address first.

    Args:
        extra_context: of the connection.
        from_source: the local end is the client, whose addresses are the source.
        current: returns whether a local address is not out of date.
    """
    source, destination = _addresses(extra_context, SOURCE_KEY), _addresses(extra_context, DESTINATION_KEY)
    local, remote = (source, destination) if from_source else (destination, source)
    return [
        Pair(ours.ip, theirs.ip)
        for ours in local
        if current(ours.ip)
        for theirs in remote
        if is_ipv4(ours.ip) == is_ipv4(theirs.ip) and ours.ip != theirs.ip
    ]


def on_link_pairs(
    local: Sequence[Address], remote: Sequence[Address], lengths_of: Callable[[Ip], Iterable[int]]
) -> list[Pair]:
    """Return each local address with the addresses of the far end in its subnet.

    Args:
        local: the local addresses.
        remote: the addresses of the far end.
        lengths_of: returns the kernel's prefix lengths of a local address.
    """
    pairs: list[Pair] = []
    for ipv4 in (True, False):
        ours = [(ip, {length, *lengths_of(ip)}) for ip, length in local if is_ipv4(ip) == ipv4]
        theirs = [(ip, length) for ip, length in remote if is_ipv4(ip) == ipv4]
        joined = [
            Pair(our_ip, their_ip)
            for our_ip, lengths in ours
            for their_ip, length in theirs
            if our_ip != their_ip and _in_one_subnet(our_ip, their_ip, {*lengths, length})
        ]
        pairs += joined or _nearest(ours, theirs)
    return pairs


def _in_one_subnet(one: Ip, other: Ip, lengths: Collection[int]) -> bool:
    return any(prefix_of(one, length) == prefix_of(other, length) for length in lengths if 0 < length < 8 * len(one))


def _nearest(ours: Sequence[tuple[Ip, set[int]]], theirs: Sequence[tuple[Ip, int]]) -> list[Pair]:
    """Return the pairs of a point-to-point connection; none of any other, whose far end is in no local subnet."""
    lengths = {length for _, some in ours for length in some} | {length for _, length in theirs}
    candidates = [ip for ip, _ in ours]
    if not candidates or any(length < 8 * len(candidates[0]) for length in lengths):
        return []
    return [Pair(min(candidates, key=lambda ip: _distance(ip, far)), far) for far, _ in theirs if far not in candidates]


def _distance(one: Ip, other: Ip) -> int:
    """Return how many bits are left after what two addresses begin with in common."""
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_length()


def _addresses(extra_context: Mapping[str, str], key: str) -> list[Address]:
    return list(addresses_of(extra_context[key].replace(",", " ").split())) if key in extra_context else []
