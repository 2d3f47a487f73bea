"""Network namespaces that vanish with the process that made them.

`enter_sandbox` moves the calling process into a network and a mount namespace of its own (and a user namespace when it
is not root), with private `/run` and `/dev/shm`. Namespaces made by name after that are seen by nobody else, and the
kernel removes them when the process ends, however it ends.
"""

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2 import netns

from lbguard.lab.network import Network

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

_DIRECTORY = Path("/run/netns")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def enter_sandbox() -> None:
    """Leave the host's network, mounts and `/run` behind. Call it once, early, while there is one thread.

    Raises:
        OSError: the kernel refuses (neither root nor unprivileged user namespaces).
    """
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNS | CLONE_NEWNET
    if uid != 0:
        flags |= CLONE_NEWUSER
    _check(_libc.unshare(flags), "unshare")
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for path in ("/run", "/dev/shm"):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    set_loopback_up()


def set_loopback_up() -> None:
    """Set the loopback of the calling thread's namespace up."""
    with Network() as network:
        network.set_link("lo", up=True)


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    """Switch the calling thread into a named namespace and back; sockets opened meanwhile stay in it."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(_DIRECTORY / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(there, CLONE_NEWNET), f"setns {name}")
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET), "setns back")
    finally:
        os.close(there)
        os.close(home)


class CurrentNamespace:
    """The network namespace of the process, with what `Namespace` has for programs."""

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` inside."""
        return list(argv)

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a command inside and return what it printed."""
        return subprocess.run(self.command(*argv), check=check, capture_output=True, text=True).stdout

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Stay where the thread is."""
        yield


class Namespace(Network):
    """A named network namespace with loopback up. Use it as a context manager, or call `delete`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = _DIRECTORY / name
        """The file that stands for the namespace."""
        super().__init__()
        self.set_link("lo", up=True)

    def open(self) -> Any:
        """Move the thread into a new namespace, name that, and open the socket."""
        # The thread moves and the process does not. (`netns.create` would fork a process that may have many threads.)
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        # "thread-self" stands for a process: the number of the thread means another one where /proc is the host's.
        netns.attach(str(self.path), "thread-self")
        return super().open()

    def __exit__(self, *_: object) -> None:
        self.delete()

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` inside the namespace."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a command inside and return what it printed."""
        return subprocess.run(self.command(*argv), check=check, capture_output=True, text=True).stdout

    def sysctl(self, key: str, value: str) -> None:
        """Set a network sysctl of the namespace, such as `net.ipv4.ip_forward`."""
        # /proc/sys/net shows the namespace of the thread that looks.
        self.in_thread((Path("/proc/sys") / key.replace(".", "/")).write_text, value)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Switch the calling thread into the namespace; sockets opened meanwhile stay in it."""
        with entered(self.name):
            yield

    def delete(self) -> None:
        """Remove the namespace; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            netns.remove(str(self.path))
        self.close()


def connect(left: Namespace, left_name: str, right: Namespace, right_name: str, **fields: Any) -> None:
    """Join two namespaces with a veth pair, both ends up; `fields` are those of the left end.

    The left end, which was up before it had a carrier, sends when the kernel has noticed that, a moment later; until
    then packets are dropped.
    """
    left.add_veth(left_name, right_name, right.path, **fields)
    right.set_link(right_name, up=True)
    while not left.link(left_name).operational:
        time.sleep(0.001)
