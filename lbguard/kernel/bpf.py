"""Classic BPF filters of sockets (linux/filter.h), and the filter of the mirror's socket.

Each verify probe of a neighbour causes two notifications: its start (PROBE, or DELAY before it) and its outcome
(REACHABLE, FAILED). The first one carries no news. At thousands of probes per second it is half of all messages, so the
filter drops it before it is queued. Dump replies hold many messages in one datagram and always pass.
"""

import socket
import struct
from typing import Final

from lbguard.core.model import NeighborState
from lbguard.kernel.codec import constants as c

LOAD_HALF: Final = 0x28
LOAD_BYTE: Final = 0x30
LOAD_HALF_INDEXED: Final = 0x48
LOAD_BYTE_INDEXED: Final = 0x50
LOAD_IPV4_HEADER_LENGTH: Final = 0xB1
"""Sets the index register to the length of the IPv4 header that starts at the offset."""
JUMP_EQUAL: Final = 0x15
JUMP_SET: Final = 0x45
RETURN: Final = 0x06
ACCEPT: Final = 0xFFFFFFFF
"""Accept the whole packet; 0 drops it."""

_TYPE_AT, _FLAGS_AT, _STATE_AT = 4, 6, 24

Instruction = tuple[int, int, int, int]
"""Operation, how many instructions to skip when true and when false, and the operand (struct sock_filter)."""


def assemble(*instructions: Instruction) -> bytes:
    """Return a program in the kernel's form."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def quiet_neighbors() -> bytes:
    """Return the program that drops notifications of a neighbour in PROBE or DELAY."""
    # BPF loads in network order, while netlink writes in host order: the constants are byte-swapped instead.
    return assemble(
        (LOAD_HALF, 0, 0, _TYPE_AT),
        (JUMP_EQUAL, 0, 5, socket.htons(c.RTM_NEWNEIGH)),
        (LOAD_HALF, 0, 0, _FLAGS_AT),
        (JUMP_SET, 3, 0, socket.htons(c.NLM_F_MULTI)),
        (LOAD_HALF, 0, 0, _STATE_AT),
        (JUMP_EQUAL, 2, 0, socket.htons(NeighborState.PROBE)),
        (JUMP_EQUAL, 1, 0, socket.htons(NeighborState.DELAY)),
        (RETURN, 0, 0, ACCEPT),
        (RETURN, 0, 0, 0),
    )
