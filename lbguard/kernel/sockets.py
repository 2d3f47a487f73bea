"""Sockets of the adapters: netlink sockets opened by pyroute2, socket options, and classic BPF filters.

pyroute2 would read its sockets into an unbounded queue. The event stream and the answers to a repair are read directly
from the socket, so that waiting messages stay in the kernel, which bounds them and reports drops.

Each verify probe of a neighbour causes two notifications: its start (PROBE, or DELAY before it) and its outcome
(REACHABLE, FAILED). The first one carries no news. At thousands of probes per second it is half of all messages, so the
BPF program of the mirror drops it before it is queued. Dump replies hold many messages in one datagram and always pass.
"""

import contextlib
import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import Final, Protocol

from pyroute2.netlink import SOL_NETLINK
from pyroute2.netlink.nlsocket import AsyncNetlinkSocket

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


LOAD_WORD: Final = 0x20
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


KERNEL_PORT: Final = 0
"""The port id of the kernel. Any process may send to a netlink socket; only the kernel's messages are accepted."""

_NETLINK_CAP_ACK: Final = 10


def open_netlink(
    protocol: int,
    *,
    groups: Sequence[int] = (),
    receive_buffer_bytes: int = 1 << 20,
    send_buffer_bytes: int = 1 << 20,
    netns: str | None = None,
) -> socket.socket:
    """Open and bind a netlink socket with strict checking and extended acknowledgements.

    Args:
        protocol: NETLINK_ROUTE or another one (socket(2), netlink(7)).
        groups: the multicast groups (such as RTNLGRP_LINK) that it listens to.
        receive_buffer_bytes: the receive buffer; net.core.rmem_max limits it without CAP_NET_ADMIN.
        send_buffer_bytes: the send buffer; net.core.wmem_max limits it without CAP_NET_ADMIN.
        netns: name of the network namespace; None: that of the calling thread.

    Raises:
        OSError: the kernel refuses.
    """
    opened: socket.socket = AsyncNetlinkSocket(
        family=protocol, netns=netns, ext_ack=True, strict_check=True
    ).setup_socket()
    try:
        set_buffers(opened, receive_bytes=receive_buffer_bytes, send_bytes=send_buffer_bytes)
        with contextlib.suppress(OSError):
            # Without this option errors quote the whole request.
            opened.setsockopt(SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        opened.bind((0, sum(1 << (group - 1) for group in groups)))
    except BaseException:
        opened.close()
        raise
    return opened


class KernelSocket(Protocol):
    """Interface of a netlink socket; tests implement it with a working model of the kernel."""

    def fileno(self) -> int:
        """Return the descriptor that polls readable when a datagram waits."""

    def send(self, data: bytes | bytearray) -> None:
        """Send requests to the kernel, which carries them out before this method returns.

        Raises:
            OSError: the kernel refuses the datagram as a whole.
        """

    def receive_into(self, buffer: bytearray) -> tuple[int, int]:
        """Receive one datagram: its full length (more than the buffer: it was cut) and the sender's port id.

        Raises:
            BlockingIOError: there is none.
            OSError: ENOBUFS when the kernel had to drop messages.
        """

    def close(self) -> None:
        """Close the socket."""


class NetlinkSocket:
    """A non-blocking NETLINK_ROUTE socket that is read directly; see `open_netlink`.

    It receives the messages of `groups` that pass the BPF `program`, if there is one.
    """

    def __init__(
        self,
        *,
        receive_buffer_bytes: int,
        groups: Sequence[int] = (),
        program: bytes = b"",
        netns: str | None = None,
    ) -> None:
        self._socket = open_netlink(
            socket.NETLINK_ROUTE, groups=groups, receive_buffer_bytes=receive_buffer_bytes, netns=netns
        )
        self._socket.setblocking(False)
        if program:
            # Without the filter more messages arrive than are needed, with no other effect.
            with contextlib.suppress(OSError):
                attach_filter(self._socket, program)

    @property
    def port(self) -> int:
        """The port id that the kernel assigned to this socket."""
        return int(self._socket.getsockname()[0])

    @property
    def receive_buffer_bytes(self) -> int:
        """The receive buffer that the kernel granted (it doubles the requested size, for its overhead)."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def fileno(self) -> int:
        """See KernelSocket."""
        return self._socket.fileno()

    def send(self, data: bytes | bytearray) -> None:
        """See KernelSocket."""
        self._socket.sendto(data, (KERNEL_PORT, 0))

    def receive_into(self, buffer: bytearray) -> tuple[int, int]:
        """See KernelSocket."""
        length, (port, _groups) = self._socket.recvfrom_into(buffer, 0, socket.MSG_TRUNC)
        return length, port

    def close(self) -> None:
        """See KernelSocket."""
        self._socket.close()
