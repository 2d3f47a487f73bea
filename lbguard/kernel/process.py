"""Capabilities of the process, and the lock that allows one lbguard per network namespace.

The image's interpreter has file capabilities without the effective bit (capabilities(7)): a file with that bit cannot
be started where one of its capabilities is not granted, and `lbguard check-config`, observe mode and the probe need
none or fewer. The granted capabilities are permitted after the start, and have to be made effective.

The lock is a unix socket of an abstract name. The kernel keeps such names per network namespace and removes them when
their holder ends in any way (unix(7)), so no stale lock remains.
"""

import contextlib
import ctypes
import errno
import os
import socket
import struct
from typing import Final

from lbguard.errors import StartError

# include/uapi/linux/capability.h
_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def use_permitted() -> None:
    """Make every permitted capability of this thread effective; call it before other threads start.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    if libc.capget(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if all(half.effective == half.permitted for half in data):
        return
    for half in data:
        half.effective = half.permitted
    if libc.capset(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


_NAME: Final = b"\0lbguard.instance"
_CREDENTIALS: Final = struct.Struct("=iII")


class InstanceRunning(StartError):  # noqa: N818 (it names a state that the operator knows)
    """Another instance runs in this network namespace; `pid` is its process, or None when it cannot be seen."""

    def __init__(self, pid: int | None) -> None:
        who = f"process {pid}" if pid else "a process in another pid namespace"
        super().__init__(f"another lbguard runs in this network namespace ({who}); stop it first")
        self.pid = pid


class InstanceLock:
    """Lock that is held from `acquire` until `release`, or until the process ends."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def __enter__(self) -> "InstanceLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock of the network namespace of the calling thread.

        Raises:
            InstanceRunning: another process (or lock) holds it.
            OSError: the kernel refuses the socket for another reason.
        """
        assert self._socket is None, "the lock is held already"
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            holder.bind(_NAME)
            # A refused instance connects once to read our credentials; no connection is accepted, so the backlog bounds
            # them.
            holder.listen(128)
        except OSError as error:
            holder.close()
            if error.errno != errno.EADDRINUSE:
                raise
            raise InstanceRunning(_holder_pid()) from error
        self._socket = holder

    def release(self) -> None:
        """Release the lock; without effect when it is not held."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _holder_pid() -> int | None:
    """Return the process that holds the lock; None when it cannot be seen from here."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        asking.setblocking(False)
        with contextlib.suppress(OSError):
            asking.connect(_NAME)
            data = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid: int = _CREDENTIALS.unpack(data)[0]
            return pid or None
    return None
