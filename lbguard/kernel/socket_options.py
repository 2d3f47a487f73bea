"""Socket options that the socket module of Python has no names for (include/uapi/asm-generic/socket.h)."""

import contextlib
import ctypes
import socket
import struct
from typing import Final

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
    """Attach a classic BPF program to a socket; see `bpf.assemble`.

    Raises:
        OSError: the kernel refuses it.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
