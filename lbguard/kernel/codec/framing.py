"""Framing of netlink messages: headers, and attributes padded to four bytes (include/uapi/linux/netlink.h)."""

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

HEADER: Final = Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port id."""
ATTRIBUTE: Final = Struct("=HH")
"""struct nlattr: length and type."""
FLAGS: Final = Struct("=H")
FLAGS_AT: Final = 6
SEQUENCE: Final = Struct("=I")
SEQUENCE_AT: Final = 8
ERROR: Final = Struct("=i")

_NLM_F_REQUEST: Final = 0x1  # of pyroute2 too, which takes long to load: the lab's nfqlb needs this module alone
_KIND_MASK: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

Buffer = bytes | bytearray | memoryview


class Message(NamedTuple):
    """One message of a datagram."""

    kind: int
    flags: int
    sequence: int
    data: memoryview
    """The bytes after the header."""

    @property
    def error(self) -> int:
        """The errno of an error, of an acknowledgement (0) or of the end of a dump."""
        return -int(ERROR.unpack_from(self.data)[0]) if len(self.data) >= ERROR.size else 0


class Sequences:
    """Generator of sequence numbers, none of which is 0."""

    def __init__(self) -> None:
        self._last = 0

    def next(self, count: int = 1) -> int:
        """Return the first of `count` numbers in a row."""
        if self._last + count > 0xFFFFFFFF:
            self._last = 0
        first = self._last + 1
        self._last += count
        return first


def message(kind: int, flags: int, body: bytes, sequence: int = 0) -> bytes:
    """Return a request; the caller pads it to four bytes where another follows."""
    return HEADER.pack(HEADER.size + len(body), kind, flags | _NLM_F_REQUEST, sequence, 0) + body


def attribute(kind: int, payload: bytes) -> bytes:
    """Return an attribute, padded to four bytes."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(payload), kind) + payload + bytes(-len(payload) % 4)


def attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield type (without its flags) and payload of each attribute; stop at the first that does not fit."""
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < ATTRIBUTE.size or at + length > len(data):
            return
        yield kind & _KIND_MASK, data[at + ATTRIBUTE.size : at + length]
        at += length + 3 & ~3


def messages(datagram: memoryview) -> Iterator[Message]:
    """Yield the messages of a datagram; the last may be cut, since an error may quote the refused request."""
    at = 0
    while at + HEADER.size <= len(datagram):
        length, kind, flags, sequence, _port = HEADER.unpack_from(datagram, at)
        if length < HEADER.size:
            return
        yield Message(kind, flags, sequence, datagram[at + HEADER.size : at + length])
        at += length + 3 & ~3


def number_messages(datagram: bytearray, starts: Iterator[int] | list[int], first: int) -> None:
    """Write sequence numbers from `first` on into the messages that start at `starts`."""
    for sequence, start in enumerate(starts, first):
        SEQUENCE.pack_into(datagram, start + SEQUENCE_AT, sequence)


def add_flags(datagram: bytearray, start: int, flags: int) -> None:
    """Set more flags of the message that starts at `start`."""
    (old,) = FLAGS.unpack_from(datagram, start + FLAGS_AT)
    FLAGS.pack_into(datagram, start + FLAGS_AT, old | flags)
