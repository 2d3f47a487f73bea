"""Ready-made frames sent with sendmmsg, and the processor time that a frame takes on its whole way.

On veth links the sender's system call carries each frame through the load balancer to the target, so the processor time
of the sending thread is the cost of all of it. Other processes on the machine add little to it.
"""

import ctypes
import os
import socket
import struct
import time
from collections.abc import Sequence
from typing import Self

from lbguard.lab.netns import CurrentNamespace, Namespace
from tests.netns.distributor.packets import TCP, ip_packet

_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
_BATCH = 1024
_PORTS = 50_000
_FIRST_PORT = 1024
_VIP4, _VIP6 = "20.0.0.1", "2000::1"
_ETHERNET = 14
_SYN, _ACK = 0x02, 0x10

_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    _fields_ = (("header", _Header), ("length", ctypes.c_uint))


class Flood:
    """Sends the same frames, all of one length, again and again through a link of a namespace."""

    def __init__(self, namespace: Namespace | CurrentNamespace, link: str, frames: Sequence[bytes]) -> None:
        with namespace.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            self._socket.bind((link, 0))
        self._socket.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        size = len(frames[0])
        self._content = ctypes.create_string_buffer(b"".join(frames))
        self._vectors = (_Vector * len(frames))()
        self._messages = (_Message * len(frames))()
        content, vectors = ctypes.addressof(self._content), ctypes.addressof(self._vectors)
        for number in range(len(frames)):
            self._vectors[number].base = content + number * size
            self._vectors[number].length = size
            header = self._messages[number].header
            header.vectors = vectors + number * ctypes.sizeof(_Vector)
            header.vector_count = 1
        self._at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, count: int) -> float:
        """Send so many frames; return the processor time of each, in nanoseconds."""
        messages, size, total = ctypes.addressof(self._messages), ctypes.sizeof(_Message), len(self._messages)
        left, descriptor = count, self._socket.fileno()
        began = time.thread_time_ns()
        while left:
            batch = min(left, total - self._at, _BATCH)
            sent = _libc.sendmmsg(descriptor, ctypes.c_void_p(messages + self._at * size), batch, 0)
            if sent <= 0:
                code = ctypes.get_errno()
                raise OSError(code, f"sendmmsg: {os.strerror(code)}")
            left -= sent
            self._at = (self._at + sent) % total
        return (time.thread_time_ns() - began) / count


def tcp_frames(client: str, gateway: str, family: int, *, first: int, count: int, begin: bool) -> list[bytes]:
    """Return one frame of each of `count` TCP flows to the VIP, from the one with the number `first` on.

    `client` and `gateway` are the MAC addresses of both ends of the client's link. With `begin` it is the SYN, else a
    segment in the middle.
    """
    ethernet = bytes.fromhex((gateway + client).replace(":", "")) + (b"\x08\x00" if family == 4 else b"\x86\xdd")
    segment = struct.pack("!HHIIBBHHH", 0, 443, 1, 0, 5 << 4, _SYN if begin else _ACK, 1024, 0, 0)
    frames = []
    template, host_before = b"", -1
    ports_at = _ETHERNET + (20 if family == 4 else 40)
    for number in range(first, first + count):
        host, port = divmod(number, _PORTS)
        if host != host_before:
            source, vip = (f"10.{8 + host}.1.2", _VIP4) if family == 4 else (f"fd05::{1 + host:x}", _VIP6)
            template, host_before = ethernet + ip_packet(source, vip, TCP, segment), host
        # No router looks at the checksum of the segment.
        frames.append(template[:ports_at] + struct.pack("!H", _FIRST_PORT + port) + template[ports_at + 2 :])
    return frames
