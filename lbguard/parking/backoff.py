"""Retransmission backoff of targets: which connections wait for it, and the message that shortens the wait. Pure.

A reply that is lost when the path breaks is repeated by its target after 0.2, 0.6, 1.4, 3.0, 6.2 s. Until then the
target sends nothing else on that connection, although it gets the kept packets of the client. A TCP that receives an
ICMP error "destination unreachable" for its first unacknowledged segment takes one doubling of its retransmission
timer back, and repeats the segment at once when the shorter time has passed (RFC 6069). The sequence number of that
segment is the acknowledgement number of the client's newest packet. A message with another sequence number is ignored.
"""

import struct
from collections import OrderedDict
from math import ceil, log2
from typing import Final, NamedTuple

from lbguard.core.addr import Ip
from lbguard.kernel.codec.checksum import checksum
from lbguard.parking.frames import ParkedPacket

_ROUNDS_S: Final = (0.003, 0.05, 0.3)
"""Times after a connection's packet was given back at which its target is told. The target ignores a message while its
application uses the socket, and its own path to the client may work a little later, so it is told again."""
_FIRST_TIMEOUT_S: Final = 0.2
"""The shortest retransmission time-out (Linux)."""
_DOUBLINGS_MAX: Final = 10

_IPV4_BYTES, _IPV6_BYTES = 20, 40
_TCP: Final = 6
_ACK, _SYN_RST = 0x10, 0x06
_HOPS: Final = 62
_ICMP_HOST_UNREACHABLE, _ICMPV6_NO_ROUTE = bytes((3, 1)), bytes((1, 0))
_NO_CHECKSUM: Final = bytes(2)
_UNUSED: Final = bytes(4)

FlowKey = tuple[int, bool, bytes]
"""Mark, whether the family is IPv4, and the addresses and ports of a connection."""


class Unreachable(NamedTuple):
    """An ICMP or ICMPv6 message to a target, to be sent so many times. The kernel fills the checksum of ICMPv6 in."""

    mark: int
    ipv4: bool
    destination: Ip
    message: bytes
    times: int


class _Flow:
    __slots__ = ("packet", "round", "since")

    def __init__(self, packet: bytes, since: float) -> None:
        self.packet = packet
        self.since = since
        self.round = 0


class BackoffReverts:
    """Connections whose packets were given back a moment ago. `limit`: the most connections."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._flows: dict[FlowKey, _Flow] = {}
        self._due: tuple[OrderedDict[FlowKey, float], ...] = tuple(OrderedDict() for _ in _ROUNDS_S)

    def note(self, parked: ParkedPacket, since: float, now: float) -> None:
        """Note that a packet, kept since a time, was given back. Only segments with an acknowledgement count."""
        header = _IPV4_BYTES if parked.ipv4 else _IPV6_BYTES
        if not parked.segment or parked.packet[header + 13] & (_ACK | _SYN_RST) != _ACK:
            return
        key = (parked.mark, parked.ipv4, parked.packet[header - 8 if parked.ipv4 else 8 : header + 4])
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) < self._limit:
                self._flows[key] = _Flow(parked.packet, since)
                self._due[0][key] = now + _ROUNDS_S[0]
            return
        flow.since = min(flow.since, since)
        if _is_newer(_number(parked.packet, header + 8), _number(flow.packet, header + 8)):
            flow.packet = parked.packet

    def take(self, now: float, count: int) -> list[Unreachable]:
        """Remove and return messages that are due, for at most so many connections."""
        messages: list[Unreachable] = []
        for n, due in enumerate(self._due):
            while due and len(messages) < count:
                key, at = next(iter(due.items()))
                if at > now:
                    break
                del due[key]
                flow = self._flows[key]
                messages.append(_unreachable(key, flow.packet, _doublings(now - flow.since)))
                if n + 1 < len(self._due):
                    self._due[n + 1][key] = now + _ROUNDS_S[n + 1] - _ROUNDS_S[n]
                else:
                    del self._flows[key]
        return messages

    def discard(self, mark: int, *, ipv4: bool) -> None:
        """Forget the connections of a target's family: its packets are not given back any more."""
        for key in [key for key in self._flows if key[0] == mark and key[1] is ipv4]:
            del self._flows[key]
            for due in self._due:
                due.pop(key, None)

    def next_at(self) -> float | None:
        """Return when a message is due next; None when there is none."""
        return min((next(iter(due.values())) for due in self._due if due), default=None)


def _doublings(kept_s: float) -> int:
    """Return how often a retransmission timer was doubled at most in this time."""
    return min(_DOUBLINGS_MAX, max(1, ceil(log2(kept_s / _FIRST_TIMEOUT_S + 1))))


def _number(packet: bytes, at: int) -> int:
    return int.from_bytes(packet[at : at + 4])


def _is_newer(number: int, than: int) -> bool:
    """Return whether a sequence number comes after another, in the arithmetic of RFC 9293 3.4."""
    return 0 < (number - than) & 0xFFFFFFFF < 1 << 31


def _unreachable(key: FlowKey, packet: bytes, times: int) -> Unreachable:
    """Return the message about the first segment that a client's packet does not acknowledge."""
    mark, ipv4, _ = key
    header = _IPV4_BYTES if ipv4 else _IPV6_BYTES
    ports, sequence, acknowledged = (packet[header + at : header + at + 4] for at in (0, 4, 8))
    segment = ports[2:] + ports[:2] + acknowledged + sequence + struct.pack("!BBHHH", 5 << 4, _ACK, 0, 0, 0)
    if ipv4:
        client, vip = packet[12:16], packet[16:20]
        head = struct.pack("!BBHHHBB", 0x45, 0, _IPV4_BYTES + len(segment), 0, 0, _HOPS, _TCP)
        addresses = vip + client
        quoted = head + checksum(head + addresses).to_bytes(2) + addresses + segment
        summed = checksum(_ICMP_HOST_UNREACHABLE + _UNUSED + quoted).to_bytes(2)
        return Unreachable(mark, ipv4, vip, _ICMP_HOST_UNREACHABLE + summed + _UNUSED + quoted, times)
    client, vip = packet[8:24], packet[24:40]
    quoted = struct.pack("!IHBB", 6 << 28, len(segment), _TCP, _HOPS) + vip + client + segment
    return Unreachable(mark, ipv4, vip, _ICMPV6_NO_ROUTE + _NO_CHECKSUM + _UNUSED + quoted, times)
