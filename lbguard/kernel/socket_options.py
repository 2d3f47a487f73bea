"""Options of sockets that Python has no names for, and classic BPF programs (linux/filter.h), with the mirror's.

Each verify probe of a neighbour brings two notifications: that the probe began (PROBE, or DELAY before it) and how it
ended (REACHABLE, FAILED). The first keeps the link-layer address and says nothing of the outcome. At thousands of
probes a second it is half of all messages, so the kernel drops it before it is queued. Dump replies carry many
messages in one datagram and always pass.
"""

import contextlib
import ctypes
import socket
import struct
from typing import Final

from lbguard.core.model import NeighborState
from lbguard.kernel.codec import constants as c

_SO_ATTACH_FILTER: Final = 26
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33


def set_buffers(sock: socket.socket, *, receive_bytes: int = 0, send_bytes: int = 0) -> None:
    """Set the sizes of a socket's buffers; 0 leaves one as it is.

    Without CAP_NET_ADMIN the kernel limits them to net.core.rmem_max and net.core.wmem_max.
    """
    for size, plain, forced in (
        (receive_bytes, socket.SO_RCVBUF, _SO_RCVBUFFORCE),
        (send_bytes, socket.SO_SNDBUF, _SO_SNDBUFFORCE),
    ):
        if size:
            sock.setsockopt(socket.SOL_SOCKET, plain, size)
            with contextlib.suppress(PermissionError):
                sock.setsockopt(socket.SOL_SOCKET, forced, size)


def attach_filter(sock: socket.socket, program: bytes) -> None:
    """Attach a classic BPF program to a socket; see `assemble`.

    Raises:
        OSError: the kernel refuses it.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)


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
    """Return a program as the kernel takes it."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def quiet_neighbors() -> bytes:
    """Return the program that drops notifications of a neighbour in PROBE or DELAY."""
    # The machine loads in network order, while netlink writes in host order: constants are turned round instead.
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
