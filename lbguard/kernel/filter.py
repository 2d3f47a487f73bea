"""Classic BPF program that drops messages without news before they reach the mirror.

Each verify probe of a neighbour brings two notifications: that the probe began (PROBE, or DELAY before it) and how it
ended (REACHABLE, FAILED). The first keeps the link-layer address and says nothing of the outcome; at thousands of
probes a second it is half of all messages, so the kernel drops it before it is queued. Dump replies carry many
messages in one datagram and always pass.
"""

import ctypes
import socket
import struct
from typing import Final

from lbguard.core.model import NeighborState
from lbguard.kernel.codec import constants as c

_SO_ATTACH_FILTER: Final = 26
_LOAD_HALF: Final = 0x28
_JUMP_EQUAL: Final = 0x15
_JUMP_SET: Final = 0x45
_RETURN: Final = 0x06
_TYPE_AT, _FLAGS_AT, _STATE_AT = 4, 6, 24


def quiet_neighbors() -> bytes:
    """Return the program: instructions of struct sock_filter (linux/filter.h)."""
    # The machine loads in network order, while netlink writes in host order: constants are turned round instead.
    instructions = (
        (_LOAD_HALF, 0, 0, _TYPE_AT),
        (_JUMP_EQUAL, 0, 5, socket.htons(c.RTM_NEWNEIGH)),
        (_LOAD_HALF, 0, 0, _FLAGS_AT),
        (_JUMP_SET, 3, 0, socket.htons(c.NLM_F_MULTI)),
        (_LOAD_HALF, 0, 0, _STATE_AT),
        (_JUMP_EQUAL, 2, 0, socket.htons(NeighborState.PROBE)),
        (_JUMP_EQUAL, 1, 0, socket.htons(NeighborState.DELAY)),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def attach(sock: socket.socket, program: bytes) -> None:
    """Attach a program to a socket.

    Raises:
        OSError: the kernel refuses it.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
