"""Address pairs between which the datapath of a mesh's connection is tested. Pure.

A connection lists more addresses than those of its two interfaces: a target's source addresses include its VIPs, and
pings from a VIP are not answered along the connection. So only addresses with the other end in their own subnet are
used, by the prefix lengths of the connection or the kernel. Where every prefix is a single address (a point-to-point
connection), each address of the far end is tested from the nearest local address.

Addresses that the connection names take precedence: Meridio's proxies list them in the extra context. A local address
there that neither the connection nor the kernel has any more is out of date, because the mesh does not change the extra
context when it gives a connection new addresses.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lbguard.core.addr import Ip, is_ipv4, prefix_of
from lbguard.core.model import VerdictState
from lbguard.nsm import Address, addresses_of
from lbguard.probe.connections import Pair

SOURCE_KEY, DESTINATION_KEY = "DATAPATH_SOURCE_IPS", "DATAPATH_DESTINATION_IPS"


def reported_pairs(extra_context: Mapping[str, str], *, from_source: bool, current: Callable[[Ip], bool]) -> list[Pair]:
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


RTT_BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
LAG_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """Counts by upper bound, in seconds; the last count is of what exceeds every bound."""

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def add(self, value_s: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds_s, value_s)] += times
        self.sum_s += value_s * times


@dataclass(slots=True)
class ProbeCounters:
    """Counters of the monitor since it was made. Keys by family are True for IPv4.

    Attributes:
        rounds: judged rounds by outcome: `good`, `partial` (some pairs without a reply), `bad` (no pair with a reply),
            `untested` (no reply, but pings left late or not at all).
        pings: sent pings, by family.
        replies: replies in time, by family.
        late_replies: replies after the end of their round, and those to pings of the round before, by family.
        stray_replies: replies to pings of closed or changed connections, and duplicates.
        astray_replies: replies that came in by another link than the connection's.
        send_errors: pings that could not be sent, by errno name.
        doubts: rounds shortened to re-check a connection that stopped answering.
        overflows: packets that the kernel dropped because they were not read in time.
        changes: verdicts that changed the state, by the new one.
        rtt: round-trip times, by family.
        lag: delay of pings behind their scheduled time.
    """

    rounds: Counter[str] = field(default_factory=Counter)
    pings: Counter[bool] = field(default_factory=Counter)
    replies: Counter[bool] = field(default_factory=Counter)
    late_replies: Counter[bool] = field(default_factory=Counter)
    stray_replies: int = 0
    astray_replies: int = 0
    send_errors: Counter[str] = field(default_factory=Counter)
    doubts: int = 0
    overflows: int = 0
    changes: Counter[VerdictState] = field(default_factory=Counter)
    rtt: dict[bool, Histogram] = field(
        default_factory=lambda: {True: Histogram(RTT_BOUNDS_S), False: Histogram(RTT_BOUNDS_S)}
    )
    lag: Histogram = field(default_factory=lambda: Histogram(LAG_BOUNDS_S))
