"""Lock for one lbguard per network namespace: two would undo each other's routes.

The lock is a unix socket of an abstract name. The kernel keeps such names per network namespace and removes them when
their holder ends in any way (unix(7)), so no stale lock remains.
"""

import contextlib
import errno
import socket
import struct
from typing import Final

from lbguard.errors import StartError

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
