"""Netlink sockets, opened by pyroute2, and their interface to the adapters.

pyroute2 would read its sockets into an unbounded queue. The event stream and the answers to a repair are read directly
from the socket, so that waiting messages stay in the kernel, which bounds them and reports drops.
"""

import contextlib
import socket
from collections.abc import Sequence
from typing import Final, Protocol

from pyroute2.netlink import SOL_NETLINK
from pyroute2.netlink.nlsocket import AsyncNetlinkSocket

from lbguard.kernel.socket_options import attach_filter, set_buffers

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
