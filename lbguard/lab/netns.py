"""Network namespaces that vanish with the process that made them.

`enter_sandbox` moves the calling process into a network and a mount namespace of its own (and a user namespace when it
is not root), with private `/run` and `/dev/shm`. Namespaces made by name after that are seen by nobody else, and the
kernel removes them when the process ends, however it ends.
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

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
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    """Switch the calling thread into a named namespace and back; sockets opened meanwhile stay in it."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(Path("/run/netns") / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(there, CLONE_NEWNET), f"setns {name}")
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET), "setns back")
    finally:
        os.close(there)
        os.close(home)


class Namespace:
    """A named network namespace with loopback up. Use it as a context manager, or call `delete`."""

    def __init__(self, name: str) -> None:
        self.name = name
        subprocess.run(["ip", "netns", "add", name], check=True)
        self.ip("link", "set", "lo", "up")

    def __enter__(self) -> "Namespace":
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()

    @property
    def path(self) -> Path:
        """The file that stands for the namespace."""
        return Path("/run/netns") / self.name

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs `argv` inside the namespace."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a command inside and return what it printed."""
        return subprocess.run(self.command(*argv), check=check, capture_output=True, text=True).stdout

    def ip(self, *args: str) -> str:
        """Run `ip` on the namespace and return what it printed."""
        done = subprocess.run(["ip", "-n", self.name, *args], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"ip -n {self.name} {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def batch(self, lines: Sequence[str]) -> None:
        """Run many `ip` commands in one process, stopping at the first that fails."""
        text = "\n".join(lines) + "\n"
        done = subprocess.run(["ip", "-n", self.name, "-batch", "-"], input=text, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"ip -n {self.name} -batch: {done.stderr.strip()}\n{text}")

    def sysctl(self, key: str, value: str) -> None:
        """Set a network sysctl of the namespace, such as `net.ipv4.ip_forward`."""
        with self.entered():  # /proc/sys/net shows the namespace of the thread that looks
            (Path("/proc/sys") / key.replace(".", "/")).write_text(value)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Switch the calling thread into the namespace; sockets opened meanwhile stay in it."""
        with entered(self.name):
            yield

    def delete(self) -> None:
        """Remove the namespace; one that is gone already is no error."""
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


def connect(left: Namespace, left_name: str, right: Namespace, right_name: str) -> None:
    """Join two namespaces with a veth pair, both ends up."""
    left.ip("link", "add", "name", left_name, "type", "veth", "peer", "name", right_name, "netns", right.name)
    left.ip("link", "set", left_name, "up")
    right.ip("link", "set", right_name, "up")
