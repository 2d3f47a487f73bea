"""The parking link: a TAP device of our own, which vanishes with every route through it when this process ends.

A TAP device and not a TUN device, because the link-layer destination of a frame names its target (`frames.py`).
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Final

from lbguard.core.model import PARKING_LINK
from lbguard.parking.frames import ignoring

TUN: Final = Path("/dev/net/tun")

# include/uapi/linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNATTACHFILTER: Final = 0x401054D5
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000

MTU: Final = 65_000
"""Larger than that of any link to targets: the parking link must cause no ICMP error."""
QUEUE_FRAMES: Final = 4096
"""Frames that wait in the kernel until they are read; more are dropped there."""
_FRAME_BYTES_MAX: Final = MTU + 100


class ParkingLink:
    """The open device; it exists until `close`.

    Raises:
        OSError: /dev/net/tun is missing, not permitted, or the device is in use.
    """

    def __init__(self, name: str = PARKING_LINK) -> None:
        self._fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(self._fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
            self.ifindex = socket.if_nametoindex(name)
        except BaseException:
            os.close(self._fd)
            raise
        self._buffer = bytearray(_FRAME_BYTES_MAX)
        self._into = [self._buffer]
        self._ignored: frozenset[tuple[int, bool]] = frozenset()

    def fileno(self) -> int:
        """Return the descriptor that polls readable when a frame waits."""
        return self._fd

    def read(self) -> bytes | None:
        """Return the next frame; None when none waits.

        Raises:
            OSError: the device is gone.
        """
        try:
            length = os.readv(self._fd, self._into)
        except BlockingIOError:
            return None
        return bytes(self._buffer[:length])

    def ignore(self, crowds: Collection[tuple[int, bool]]) -> None:
        """Have the kernel drop the frames of these crowds (see `ignoring`), until the next call.

        Raises:
            OSError: the kernel refuses.
        """
        wanted = frozenset(crowds)
        if wanted == self._ignored:
            return
        program = ignoring(wanted)
        code = ctypes.create_string_buffer(program, len(program))
        fcntl.ioctl(self._fd, _TUNATTACHFILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
        self._ignored = wanted

    def close(self) -> None:
        """Remove the device, and with it every route through it."""
        os.close(self._fd)


def remedy_for(error: OSError) -> str:
    """Return what to do about an error of the device."""
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return "provide /dev/net/tun (modprobe tun; in a container, mount the device), or set parking.enabled to false"
    if error.errno in (errno.EPERM, errno.EACCES):
        return "add the capability NET_ADMIN, or set parking.enabled to false"
    return f"see whether another program uses a link {PARKING_LINK}"
