"""ICMP and ICMPv6 echo messages (RFC 792, RFC 4443): encode, decode, checksum, and the filters of raw sockets. Pure.

An echo is an 8-byte header and 12 bytes of data: a nonce, which says that this monitor sent it, a token, which says for
which address pair, and the complement of the token. A token and its complement add up to the same one's complement sum
whatever the token is, so all echoes of one sequence number have one checksum and share one header; only the tail (token
and complement) differs from pair to pair.
"""

import struct
from typing import Final, NamedTuple

from lbguard.kernel.codec.checksum import checksum
from lbguard.kernel.sockets import (
    ACCEPT,
    JUMP_EQUAL,
    LOAD_BYTE,
    LOAD_BYTE_INDEXED,
    LOAD_HALF,
    LOAD_HALF_INDEXED,
    LOAD_IPV4_HEADER_LENGTH,
    RETURN,
    assemble,
)

ICMP_ECHO_REQUEST: Final = 8
ICMP_ECHO_REPLY: Final = 0
ICMP6_ECHO_REQUEST: Final = 128
ICMP6_ECHO_REPLY: Final = 129

NONCE_LEN: Final = 4
HEAD_LEN: Final = 12
"""Length of the shared part in bytes: the ICMP header and the nonce."""

TAIL_LEN: Final = 8
"""Length of the part of a pair in bytes: its token and the complement."""

ECHO_LEN: Final = HEAD_LEN + TAIL_LEN
TOKEN_MAX: Final = 0xFFFFFFFF
SEQUENCE_MAX: Final = 0xFFFF

IPV4_HEADER_LEN: Final = 20
"""Length of the IPv4 header without options, which a raw IPv4 socket returns before the ICMP header."""

_HEADER = struct.Struct("!BBHHH")
_ECHO = struct.Struct(f"!BBHHH{NONCE_LEN}sII")


class Echo(NamedTuple):
    """Fields of an echo message that matter here."""

    type: int
    identifier: int
    sequence: int
    nonce: bytes
    token: int


def encode_tail(token: int) -> bytes:
    """Return the part of an echo that names a pair."""
    return struct.pack("!II", token, token ^ TOKEN_MAX)


class HeadTemplate:
    """Builds the shared part of the echo requests of one family, one sequence number after the other.

    Args:
        ipv4: ICMP or ICMPv6. The checksum of ICMPv6 covers the addresses and is always the kernel's work.
        identifier: the identifier field; the kernel overwrites it (and the checksum) on ping sockets.
        nonce: NONCE_LEN bytes.
    """

    def __init__(self, *, ipv4: bool, identifier: int, nonce: bytes) -> None:
        if len(nonce) != NONCE_LEN:
            raise ValueError(f"a nonce has {NONCE_LEN} bytes")
        self._type = ICMP_ECHO_REQUEST if ipv4 else ICMP6_ECHO_REQUEST
        self._identifier = identifier
        self._nonce = nonce
        self._sum = 0
        if ipv4:
            rest = _HEADER.pack(self._type, 0, 0, identifier, 0) + nonce + encode_tail(0)
            self._sum = ~checksum(rest) & 0xFFFF
        self._ipv4 = ipv4

    def head(self, sequence: int) -> bytes:
        """Return the first HEAD_LEN bytes of every echo request with this sequence number (0..SEQUENCE_MAX)."""
        value = 0
        if self._ipv4:
            total = self._sum + sequence
            value = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        return _HEADER.pack(self._type, 0, value, self._identifier, sequence) + self._nonce


def decode(data: bytes) -> Echo | None:
    """Return the echo message, or None for a foreign one: wrong length, code, or token and complement differ."""
    if len(data) != ECHO_LEN:
        return None
    kind, code, _, identifier, sequence, nonce, token, complement = _ECHO.unpack(data)
    if code != 0 or token ^ complement != TOKEN_MAX:
        return None
    return Echo(kind, identifier, sequence, nonce, token)


def reply_filter(*, ipv4: bool, identifier: int) -> bytes:
    """Return a classic BPF program (struct sock_filter) for a raw socket: only echo replies of this identifier pass.

    A raw IPv4 socket filters from the IP header on, a raw IPv6 one from the ICMPv6 header on.
    """
    if ipv4:
        instructions = [
            (LOAD_IPV4_HEADER_LENGTH, 0, 0, 0),
            (LOAD_BYTE_INDEXED, 0, 0, 0),
            (JUMP_EQUAL, 0, 3, ICMP_ECHO_REPLY),
            (LOAD_HALF_INDEXED, 0, 0, 4),
        ]
    else:
        instructions = [
            (LOAD_BYTE, 0, 0, 0),
            (JUMP_EQUAL, 0, 3, ICMP6_ECHO_REPLY),
            (LOAD_HALF, 0, 0, 4),
        ]
    instructions += [(JUMP_EQUAL, 0, 1, identifier), (RETURN, 0, 0, ACCEPT), (RETURN, 0, 0, 0)]
    return assemble(*instructions)
