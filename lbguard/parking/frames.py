"""Frames of the parking link: the target that each is for, and the TCP segment that it carries. Pure.

Each target has a neighbour entry of its own on the parking link. Its link-layer address contains the target's fwmark,
so the destination of a frame names the target.
"""

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from lbguard.core.addr import Ip
from lbguard.kernel.sockets import ACCEPT, JUMP_EQUAL, LOAD_BYTE, LOAD_HALF, LOAD_WORD, RETURN, Instruction, assemble

_MAC_PREFIX: Final = b"\x02\x6c"
"""A locally administered address; the four bytes that follow are the mark."""
_GATEWAY_PREFIX: Final = bytes.fromhex("fe80") + bytes(10)

ETHERNET_BYTES: Final = 14
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_IPV4_BYTES, _IPV6_BYTES, _TCP_BYTES = 20, 40, 20
_IPV4_NO_OPTIONS: Final = 0x45
_TCP: Final = 6
_SCTP: Final = 132
_FRAGMENT: Final = 0x3FFF
"""More fragments follow, or the offset is not 0."""
_SYN_FIN_RST: Final = 0x07

_MARK_AT, _KIND_AT = 2, 12
_PROTOCOL_AT, _NEXT_HEADER_AT = ETHERNET_BYTES + 9, ETHERNET_BYTES + 6
_TESTS: Final = 8
"""Instructions that tell which kind of protocol a frame has."""
IGNORED_MAX: Final = 100
"""Targets of each kind of protocol in a filter: a classic BPF jump skips at most 255 instructions."""


def gateway_of(mark: int) -> Ip:
    """Return the address of a target's neighbour entry on the parking link."""
    return _GATEWAY_PREFIX + mark.to_bytes(4)


def mac_of(mark: int) -> bytes:
    """Return the link-layer address of a target's neighbour entry on the parking link."""
    return _MAC_PREFIX + mark.to_bytes(4)


class ParkedPacket(NamedTuple):
    """A packet of a target.

    `segment` names the TCP segment by flow, sequence number, length and flags; every pure acknowledgement of a flow has
    the same one. It is empty for any other packet, and for fragments and packets with options or extension headers.
    """

    mark: int
    ipv4: bool
    packet: bytes
    segment: bytes = b""

    @property
    def responsive(self) -> bool:
        """True for TCP and SCTP, whose senders react to loss, and for fragments with that protocol in the header."""
        return self.packet[9 if self.ipv4 else 6] in (_TCP, _SCTP)

    @property
    def destination(self) -> Ip:
        """The destination of the packet."""
        return self.packet[16:20] if self.ipv4 else self.packet[24:40]


def read_frame(frame: bytes) -> ParkedPacket | None:
    """Return the packet of a frame; None when it is for no target or is cut."""
    if frame[:2] != _MAC_PREFIX or len(frame) < ETHERNET_BYTES + _IPV4_BYTES:
        return None
    kind, packet = frame[12:14], frame[ETHERNET_BYTES:]
    mark = int.from_bytes(frame[2:6])
    if kind == _IPV4:
        plain = packet[0] == _IPV4_NO_OPTIONS and packet[9] == _TCP and not (packet[6] << 8 | packet[7]) & _FRAGMENT
        return ParkedPacket(mark, True, packet, _segment(packet, _IPV4_BYTES, 12) if plain else b"")
    if kind == _IPV6 and len(packet) >= _IPV6_BYTES:
        return ParkedPacket(mark, False, packet, _segment(packet, _IPV6_BYTES, 8) if packet[6] == _TCP else b"")
    return None


def ignoring(crowds: Collection[tuple[int, bool]]) -> bytes:
    """Return the classic BPF program that drops the frames of crowds: a mark, and whether its packets are responsive.

    Beyond IGNORED_MAX crowds of each kind, the frames of those with the highest marks pass.
    """
    others, responsive = (sorted(mark for mark, kind in crowds if kind is of)[:IGNORED_MAX] for of in (False, True))
    lists = [_dropping(others), _dropping(responsive)]
    tests = [(LOAD_HALF, 0, 0, _KIND_AT), (JUMP_EQUAL, 0, 3, int.from_bytes(_IPV4))]
    for protocol_at in (_PROTOCOL_AT, _NEXT_HEADER_AT):
        tests.append((LOAD_BYTE, 0, 0, protocol_at))
        for last, protocol in ((False, _TCP), (True, _SCTP)):
            to_others = _TESTS - len(tests) - 1
            tests.append((JUMP_EQUAL, to_others + len(lists[0]), to_others if last else 0, protocol))
    return assemble(*tests, *lists[0], *lists[1])


def _dropping(marks: Sequence[int]) -> list[Instruction]:
    """Return the instructions that drop the frames of these marks, and accept others."""
    compared = [(JUMP_EQUAL, len(marks) - n, 0, mark) for n, mark in enumerate(marks)]
    return [(LOAD_WORD, 0, 0, _MARK_AT), *compared, (RETURN, 0, 0, ACCEPT), (RETURN, 0, 0, 0)]


def _segment(packet: bytes, header: int, addresses: int) -> bytes:
    """Name the TCP segment of a packet, whose IP header has `header` bytes and its addresses at an offset."""
    if len(packet) < header + _TCP_BYTES:
        return b""
    flags = packet[header + 13] & _SYN_FIN_RST
    length = len(packet) - header - (packet[header + 12] >> 4) * 4
    flow = packet[addresses : header + 4]
    if not length and not flags:
        return flow
    return flow + packet[header + 4 : header + 8] + length.to_bytes(4, signed=True) + bytes([flags])
