"""Decoder of netlink datagrams: bytes in, events of the core out.

It is pure. This module reads headers, the ends of dumps and errors; `rtnetlink.py` reads the messages themselves. A
message that is not used is dropped for a named reason, and no input makes `decode` raise.
"""

import struct
from functools import lru_cache
from struct import Struct
from typing import Final, NamedTuple

from lbguard.core.events import KernelChange, NeighborSeen
from lbguard.core.model import NeighborState
from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.constants import IgnoredReason
from lbguard.kernel.codec.rtnetlink import DECODERS, Buffer, IsTargetTable, Outcome

_HEADER: Final = Struct("=IHHII").unpack_from
_HEADER_LENGTH: Final = 16
_ATTRIBUTE: Final = Struct("=HH").unpack_from
_I32: Final = Struct("=i").unpack_from

_MALFORMED: Final = IgnoredReason.MALFORMED


class Change(NamedTuple):
    """An event with the flags (NLM_F_*) and the sequence number of its message."""

    event: KernelChange
    flags: int
    sequence: int


class Control(NamedTuple):
    """The end of a dump or the answer to a request. `error` is an errno, 0 for success; `text` is the kernel's."""

    done: bool
    sequence: int
    flags: int
    error: int
    text: str


class Decoded:
    """Content of one datagram, in order."""

    __slots__ = ("changes", "controls", "ignored", "interrupted")

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.controls: list[Control] = []
        self.ignored: list[IgnoredReason] = []
        self.interrupted: list[int] = []


def _control(data: Buffer, offset: int, end: int, kind: int, flags: int, sequence: int) -> Control | IgnoredReason:
    """Read NLMSG_DONE (its payload is the result of the dump) or NLMSG_ERROR (errno, quoted header, text)."""
    done = kind == c.NLMSG_DONE
    if end - offset < 4:
        return Control(True, sequence, flags, 0, "") if done else _MALFORMED
    error = -_I32(data, offset)[0]
    text = ""
    offset += 4 if done else 4 + _HEADER_LENGTH
    while flags & c.NLM_F_ACK_TLVS and offset + 4 <= end:
        length, attribute = _ATTRIBUTE(data, offset)
        if length < 4 or offset + length > end:
            return _MALFORMED
        if attribute == c.NLMSGERR_ATTR_MSG:
            text = bytes(data[offset + 4 : offset + length]).rstrip(b"\0").decode("utf-8", "backslashreplace")
        offset += (length + 3) & -4
    return Control(done, sequence, flags, error, text)


def decode(data: Buffer, length: int, is_target_table: IsTargetTable) -> Decoded:
    """Decode one datagram.

    Args:
        data: a buffer that starts with the datagram.
        length: how many bytes of it the datagram fills; bytes after that are never read.
        is_target_table: returns whether a routing table is of interest. Routes and rules that carry our own protocol
            number pass in any table, so that leftovers of removed targets are seen.

    Returns:
        The events, the control messages and the reasons of what was ignored. Never raises, whatever the bytes.
    """
    result = Decoded()
    offset = 0
    while offset < length:
        if length - offset < _HEADER_LENGTH:
            result.ignored.append(IgnoredReason.TRUNCATED)
            break
        size, kind, flags, sequence, _port = _HEADER(data, offset)
        end = offset + size
        if size < _HEADER_LENGTH or end > length:
            result.ignored.append(IgnoredReason.TRUNCATED)
            break
        if flags & c.NLM_F_DUMP_INTR and flags & c.NLM_F_MULTI:
            result.interrupted.append(sequence)
        entry = DECODERS.get(kind)
        outcome: Outcome | Control
        try:
            if flags & c.NLM_F_MULTI and kind in _DUMPED_AGAIN:
                outcome = _dumped(kind, bytes(data[offset + _HEADER_LENGTH : end]), is_target_table)
            elif entry is not None:
                decoder, least = entry
                outcome = decoder(data, offset + _HEADER_LENGTH, end, is_target_table) if size >= least else _MALFORMED
            elif kind in (c.NLMSG_DONE, c.NLMSG_ERROR):
                outcome = _control(data, offset + _HEADER_LENGTH, end, kind, flags, sequence)
            else:
                outcome = IgnoredReason.UNKNOWN_TYPE
        except struct.error:
            outcome = _MALFORMED
        if isinstance(outcome, IgnoredReason):
            result.ignored.append(outcome)
        elif isinstance(outcome, Control):
            result.controls.append(outcome)
        else:
            result.changes.append(Change(outcome, flags, sequence))
        offset = (end + 3) & -4
    return result


_REMEMBERED: Final = 16_384
_DUMPED_AGAIN: Final = frozenset({c.RTM_NEWROUTE, c.RTM_NEWRULE})


@lru_cache(maxsize=2 * _REMEMBERED)
def _dumped(kind: int, body: bytes, is_target_table: IsTargetTable) -> Outcome:
    """Decode a record of a dump: each reconcile reads the same routes and rules again, and then shares their events."""
    decoder, least = DECODERS[kind]
    return decoder(body, 0, len(body), is_target_table) if _HEADER_LENGTH + len(body) >= least else _MALFORMED


_LENGTH: Final = Struct("=I")
# Of the message header: length, type, flags; of struct ndmsg: family, state.
_FIXED: Final = Struct("=IHH8xB7xH")
# Message header, struct ndmsg, address, Ethernet address (padded): the order in which the kernel writes them.
_BEGINNINGS: Final = {c.AF_INET: 16 + 12 + 8 + 12, c.AF_INET6: 16 + 12 + 20 + 12}
# Number of probes and ages follow. Further attributes show which program made the entry; `decode` reads those.
_REST: Final = Struct("=HH4xHH16x")
_REST_HEADERS: Final = (8, c.NDA_PROBES, 20, c.NDA_CACHEINFO)


def lone_neighbor(data: Buffer, length: int) -> NeighborSeen | None:
    """Return the event of a datagram with a single neighbour notification, as `decode` does; None for any other.

    Args:
        data: a buffer that starts with the datagram.
        length: how many bytes of it the datagram fills; bytes after that are never used.
    """
    if length < _FIXED.size:
        return None
    declared, kind, flags, family, state = _FIXED.unpack_from(data)
    if kind != c.RTM_NEWNEIGH or state != NeighborState.REACHABLE or flags or declared != length:
        return None
    size = _BEGINNINGS.get(family)
    if size is None or length != size + _REST.size or _REST.unpack_from(data, size) != _REST_HEADERS:
        return None
    return _event(bytes(data[:size]))


@lru_cache(maxsize=_REMEMBERED)
def _event(beginning: bytes) -> NeighborSeen | None:
    """Decode a message as if it ended here; the rest does not change a complete event."""
    decoded = decode(_LENGTH.pack(len(beginning)) + beginning[_LENGTH.size :], len(beginning), lambda _: False)
    event = decoded.changes[0].event if decoded.changes else None
    return event if isinstance(event, NeighborSeen) and event.mac else None
