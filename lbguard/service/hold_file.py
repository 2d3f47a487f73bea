"""File of open holds and drains beside the API's socket, so that they survive a crash and do not begin again.

It is written while a hold or a drain is open or a subnet is lost that targets were reached by, and removed with the
last one. A later run reads in it that a wider subnet, such as the pod's own network, does not lead to those targets,
and which targets drain that the source no longer lists. It is valid for the same boot and network namespace, and for a
minute: a supervisor restarts the process within that time; after a longer absence a loss may have healed and occurred
again, and forgetting it costs at most one more window. A file with any error is ignored, with a line in the log.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lbguard.core.addr import Ip, Prefix, format_ip, parse_ip, parse_prefix
from lbguard.core.events import OpenDrain, OpenHold
from lbguard.core.model import Condition
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.service.hold_file")

FORMAT = "lbguard-holds-1"
MAX_AGE_S = 60.0
MAX_BYTES = 8 * 2**20
_SAVE_EVERY_S = 0.25
_REFRESH_S = 15.0
"""With lost subnets and drains alone, the file is written at this interval to stay valid."""
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_NAMESPACE = "/proc/self/ns/net"


class HoldFile:
    """One file of open holds, `<socket>.holds`; the clock is the monotonic one. Nothing here raises.

    `subnets`, `drains`: the lost subnets and the open drains, as last read or written.

    The directory is opened for each use, and the file relative to it: no symbolic link is followed except in the
    configured path.
    """

    def __init__(self, socket: Path) -> None:
        self.path = socket.with_name(f"{socket.name}.holds")
        self._whose = _whose()
        self._written = False
        self._refused = False
        self.subnets: tuple[Prefix, ...] = ()
        self.drains: tuple[OpenDrain, ...] = ()
        self._saved_at = -math.inf
        self._saving = threading.Lock()

    async def keep(
        self,
        open_holds: Callable[[], Sequence[OpenHold] | None],
        subnets_to_remember: Callable[[], tuple[Prefix, ...]] = tuple,
        open_drains: Callable[[float], tuple[OpenDrain, ...]] = lambda _: (),
    ) -> None:
        """Save the open holds repeatedly until cancelled; None: they are not known yet."""
        held = True
        while True:
            await asyncio.sleep(_SAVE_EVERY_S)
            holds, now = open_holds(), time.monotonic()
            if holds is None:
                continue
            subnets, drains = subnets_to_remember(), open_drains(now)
            same = subnets == self.subnets and [*map(_whom, drains)] == [*map(_whom, self.drains)]
            waits = not holds and not held and same and now < self._saved_at + _REFRESH_S
            if (holds or subnets or drains or self._written) and not waits:
                held = bool(holds)
                await asyncio.to_thread(self.save, holds, now, subnets, drains)

    def load(self, now: float) -> tuple[OpenHold, ...]:
        """Return the holds that an earlier run left open; empty when there are none or the file is not valid."""
        try:
            with _directory(self.path) as directory:
                text = _read(self.path.name, directory)
            self._written = True
            return self._holds(json.loads(text), now)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            _log.warning(
                "open holds of an earlier run are ignored", extra=fields(path=str(self.path), reason=_reason(error))
            )
            return ()

    def save(
        self,
        holds: Sequence[OpenHold],
        now: float,
        subnets: tuple[Prefix, ...] = (),
        drains: tuple[OpenDrain, ...] = (),
    ) -> None:
        """Replace the file; without holds, drains and lost subnets, remove it."""
        content = bool(holds or subnets or drains)
        if not content and not self._written:
            return
        self.subnets, self.drains, self._saved_at = subnets, drains, now
        try:
            with self._saving, _directory(self.path) as directory:
                if content:
                    _replace(
                        self.path.name, directory, json.dumps(self._document(holds, now, subnets, drains)).encode()
                    )
                else:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.path.name, dir_fd=directory)
            self._written, self._refused = content, False
        except OSError as error:
            if not self._refused:
                self._refused = True
                _log.warning(
                    "open holds cannot be written: a restart gives each its whole window again",
                    extra=fields(
                        path=str(self.path),
                        reason=_reason(error),
                        remedy="make the directory of the socket writable for lbguard",
                    ),
                )

    def _document(
        self, holds: Sequence[OpenHold], now: float, subnets: tuple[Prefix, ...], drains: tuple[OpenDrain, ...]
    ) -> dict[str, object]:
        draining = [
            [drain.stream, drain.identifier, [format_ip(ip) for ip in drain.ips], round(drain.left_s, 3)]
            for drain in drains
        ]
        rows = [
            [
                hold.stream,
                hold.identifier,
                [format_ip(ip) for ip in hold.ips],
                hold.cause.value,
                round(hold.broken_s, 3),
                None if hold.frozen_s is None else round(hold.frozen_s, 3),
                round(hold.left_s, 3),
                [format_ip(ip) for ip in hold.lost],
            ]
            for hold in holds
        ]
        lost = [*map(str, subnets)]
        return {"format": FORMAT, **self._whose, "at": now, "holds": rows, "subnets": lost, "drains": draining}

    def _holds(self, document: Any, now: float) -> tuple[OpenHold, ...]:
        """Return the holds in a document.

        Raises:
            ValueError, TypeError, KeyError: the document is not a hold file, or damaged.
        """
        if document["format"] != FORMAT:
            raise ValueError(f"not {FORMAT}")
        age_s = now - _seconds(document["at"])
        known = all(document[name] == value for name, value in self._whose.items())
        if not known or not 0 <= age_s <= MAX_AGE_S:
            # That is not a fault: the host booted, the pod was re-created, or lbguard did not run for long.
            _log.info("open holds of an earlier run are too old", extra=fields(path=str(self.path)))
            return ()
        holds = tuple(_hold(*row) for row in document["holds"])
        # The time of a drain runs on while lbguard does not.
        drains = tuple(_drain(*row, age_s=age_s) for row in document.get("drains", ()))
        self.subnets = tuple(parse_prefix(subnet) for subnet in document["subnets"])
        self.drains = drains
        return holds


def _whom(drain: OpenDrain) -> tuple[str, int, tuple[Ip, ...]]:
    return drain.stream, drain.identifier, drain.ips


def _ips(stream: Any, identifier: Any, ips: Any) -> tuple[Ip, ...]:
    """Return the addresses of a row, whose first values have to have the types of a target's."""
    texts = isinstance(ips, list) and all(isinstance(text, str) for text in (stream, *ips))
    if not texts or type(identifier) is not int:
        raise TypeError("a target of another form")
    return tuple(parse_ip(ip) for ip in ips)


def _drain(stream: Any, identifier: Any, ips: Any, left_s: Any, *, age_s: float) -> OpenDrain:
    left = max(0.0, _seconds(left_s) - age_s)
    return OpenDrain(stream=stream, identifier=identifier, ips=_ips(stream, identifier, ips), left_s=left)


def _hold(
    stream: Any,
    identifier: Any,
    ips: Any,
    cause: Any,
    broken_s: Any,
    frozen_s: Any,
    left_s: Any,
    lost: Any = None,
) -> OpenHold:
    return OpenHold(
        stream=stream,
        identifier=identifier,
        ips=_ips(stream, identifier, ips),
        cause=Condition(cause),
        broken_s=_seconds(broken_s),
        frozen_s=None if frozen_s is None else _seconds(frozen_s),
        left_s=_seconds(left_s),
        # Earlier versions did not write them.
        lost=() if lost is None else _ips(stream, identifier, lost),
    )


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError("a time that is not a number of seconds")
    return float(value)


def _whose() -> dict[str, object]:
    """Return the identity that a valid file has to have: this boot and this network namespace."""
    try:
        namespace = Path(_NAMESPACE).stat()
        return {"boot": Path(_BOOT_ID).read_text().strip(), "namespace": [namespace.st_dev, namespace.st_ino]}
    except OSError:
        # Without this identity, no file is valid.
        return {"boot": f"unknown {os.getpid()}", "namespace": []}


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(name: str, directory: int) -> bytes:
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


def _replace(name: str, directory: int, content: bytes) -> None:
    """Replace the file as a whole. A leftover of an earlier attempt is removed first."""
    beside = f"{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(beside, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(beside, flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(content)
    os.rename(beside, name, src_dir_fd=directory, dst_dir_fd=directory)


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
