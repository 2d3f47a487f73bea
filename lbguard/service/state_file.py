"""Files of state beside the API's socket, which a later run reads: written as a whole, and read with distrust.

They are valid for the same boot and network namespace (`identity`), because their times are of the monotonic clock and
their targets of this namespace.
"""

import contextlib
import json
import math
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lbguard.core.addr import Ip, parse_ip

MAX_BYTES = 8 * 2**20
INVALID = (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError)
"""Errors of a file that cannot be read or whose content is damaged."""

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_NAMESPACE = "/proc/self/ns/net"


class StateFile:
    """One file of state; the clock is the monotonic one.

    `present`: it was read, or written and not removed since.

    The directory is opened for each use, and the file relative to it: no symbolic link is followed except in the
    configured path.
    """

    def __init__(self, path: Path, form: str) -> None:
        self.path = path
        self.present = False
        self._form = form
        self._whose = identity()
        self._lock = threading.Lock()

    def read(self, now: float) -> tuple[Any, float | None]:
        """Return the document in the file, and its age in seconds; None: it is of another boot or namespace.

        Raises:
            FileNotFoundError: there is none.
            OSError, ValueError, TypeError, KeyError, RecursionError: it cannot be read, or is not of this format.
        """
        with opened_directory(self.path) as directory:
            text = read_private(self.path.name, directory)
        self.present = True
        document = json.loads(text)
        if document["format"] != self._form:
            raise ValueError(f"not {self._form}")
        age_s = now - seconds_of(document["at"])
        known = age_s >= 0 and all(document[name] == value for name, value in self._whose.items())
        return document, age_s if known else None

    def write(self, content: Mapping[str, object] | None, now: float) -> None:
        """Replace the file; None: remove it.

        Raises:
            OSError: it cannot be written or removed.
        """
        with self._lock, opened_directory(self.path) as directory:
            if content is None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path.name, dir_fd=directory)
            else:
                document = {"format": self._form, **self._whose, "at": now, **content}
                replace_file(self.path.name, directory, json.dumps(document).encode())
            self.present = content is not None


def addresses_of(stream: Any, identifier: Any, ips: Any) -> tuple[Ip, ...]:
    """Return the addresses of a row, whose first values have to have the types of a target's.

    Raises:
        TypeError, ValueError: the row has another form.
    """
    texts = isinstance(ips, list) and all(isinstance(text, str) for text in (stream, *ips))
    if not texts or type(identifier) is not int:
        raise TypeError("a target of another form")
    return tuple(parse_ip(ip) for ip in ips)


def seconds_of(value: Any) -> float:
    """Return a time in seconds.

    Raises:
        ValueError: it is none.
    """
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError("a time that is not a number of seconds")
    return float(value)


def identity() -> dict[str, object]:
    """Return the identity that a valid file has to have: this boot and this network namespace."""
    try:
        namespace = Path(_NAMESPACE).stat()
        return {"boot": Path(_BOOT_ID).read_text().strip(), "namespace": [namespace.st_dev, namespace.st_ino]}
    except OSError:
        # Without this identity, no file is valid.
        return {"boot": f"unknown {os.getpid()}", "namespace": []}


@contextlib.contextmanager
def opened_directory(path: Path) -> Iterator[int]:
    """Open the directory of a path; no symbolic link is followed except in the path itself."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_private(name: str, directory: int) -> bytes:
    """Return the content of a file that nobody else may write.

    Raises:
        OSError, ValueError: it cannot be read, is no regular file, others may write it, or it is too long.
    """
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=directory)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("not a regular file")
        if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
            raise ValueError("others may write it")
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES} bytes")
    return text


def replace_file(name: str, directory: int, content: bytes) -> None:
    """Replace the file as a whole. A leftover of an earlier attempt is removed first."""
    beside = f"{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(beside, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(beside, flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(content)
    os.rename(beside, name, src_dir_fd=directory, dst_dir_fd=directory)


def reason_of(error: Exception) -> str:
    """Return in a few words why a file cannot be used."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
