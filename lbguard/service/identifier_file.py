"""File of the marks, identifiers and targets of source `kubernetes`, so that a restart changes none of them.

It is written before a changed list is applied. It has no times and is valid for any boot and network namespace: what it
says is what the API server said last. Beside the API's socket it lives as long as the pod. A file with any error is
ignored, with a line in the log.
"""

import json
import logging
import threading
from pathlib import Path
from typing import Any

from lbguard.core.addr import format_ip
from lbguard.core.model import MAX_MARK, MAX_TARGETS
from lbguard.service.state_file import (
    INVALID,
    addresses_of,
    opened_directory,
    read_private,
    reason_of,
    replace_file,
)
from lbguard.sources.kubernetes.compose import Memory
from lbguard.sources.kubernetes.identifiers import RememberedStream, RememberedTarget
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.service.identifier_file")

FORMAT = "lbguard-identifiers-1"


class IdentifierFile:
    """One file of identifiers. Nothing here raises.

    Args:
        path: of the file.
        whose: what the identifiers are of: those of other objects are not used.
    """

    def __init__(self, path: Path, whose: str) -> None:
        self.path = path
        self._whose = whose
        self._refused = False
        self._lock = threading.Lock()

    def load(self) -> Memory:
        """Return what an earlier run kept; empty when there is nothing usable."""
        try:
            with opened_directory(self.path) as directory:
                document = json.loads(read_private(self.path.name, directory))
            if document["format"] != FORMAT:
                raise ValueError(f"not {FORMAT}")
            if document["whose"] != self._whose:
                _log.info("identifiers of other objects are not used", extra=fields(path=str(self.path)))
                return {}
            return {_text(name): _stream(name, **row) for name, row in document["streams"].items()}
        except FileNotFoundError:
            return {}
        except (*INVALID, AttributeError) as error:
            _log.warning(
                "identifiers of an earlier run are ignored: targets may get others",
                extra=fields(path=str(self.path), reason=reason_of(error)),
            )
            return {}

    def save(self, memory: Memory) -> bool:
        """Replace the file; return whether that was possible."""
        content = {
            "format": FORMAT,
            "whose": self._whose,
            "streams": {name: _row(kept) for name, kept in memory.items()},
        }
        try:
            with self._lock, opened_directory(self.path) as directory:
                replace_file(self.path.name, directory, json.dumps(content).encode())
            self._refused = False
            return True
        except OSError as error:
            if not self._refused:
                self._refused = True
                _log.warning(
                    "identifiers cannot be written: after a restart, targets may get others",
                    extra=fields(
                        path=str(self.path),
                        reason=reason_of(error),
                        remedy="make its directory writable for lbguard, or set kubernetes.identifiers to another path",
                    ),
                )
            return False


def _row(kept: RememberedStream) -> dict[str, object]:
    return {
        "offset": kept.offset,
        "size": kept.size,
        "targets": [[each.identifier, each.key, [*map(format_ip, each.ips)], each.draining] for each in kept.targets],
        "resting": dict(kept.resting),
    }


def _stream(name: str, *, offset: Any, size: Any, targets: Any, resting: Any) -> RememberedStream:
    return RememberedStream(
        offset=_number(offset, MAX_MARK),
        size=_number(size, MAX_TARGETS),
        targets=tuple(_target(name, *row) for row in targets),
        resting={_text(key): _number(number, MAX_TARGETS) for key, number in resting.items()},
    )


def _target(name: str, identifier: Any, key: Any, ips: Any, draining: Any) -> RememberedTarget:
    return RememberedTarget(
        key=_text(key),
        identifier=_number(identifier, MAX_TARGETS),
        ips=addresses_of(name, identifier, ips),
        draining=draining is True,
    )


def _number(value: Any, highest: int) -> int:
    if type(value) is not int or not 0 <= value <= highest:
        raise ValueError("a number of another form")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name of another form")
    return value
