"""File of the operators' overrides beside the API's socket, `<socket>.overrides`, so that they survive a restart.

It is written before a command is answered, and whenever the overrides change, and removed with the last one. It is
valid for the same boot and network namespace; the time of an override runs on while lbguard does not run. A file with
any error is ignored, with a line in the log.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lbguard.core.addr import format_ip
from lbguard.core.events import OpenOverride
from lbguard.core.model import ManualAction
from lbguard.service.state_file import INVALID, StateFile, addresses_of, reason_of, seconds_of
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.service.override_file")

FORMAT = "lbguard-overrides-1"


class OverrideFile:
    """One file of overrides; the clock is the monotonic one. Nothing here raises."""

    def __init__(self, socket: Path) -> None:
        self.path = socket.with_name(f"{socket.name}.overrides")
        self._file = StateFile(self.path, FORMAT)

    def load(self, now: float) -> tuple[OpenOverride, ...]:
        """Return the overrides that an earlier run left open; empty when there are none or the file is not valid."""
        try:
            document, age_s = self._file.read(now)
            if age_s is None:
                _log.info("overrides of another boot or namespace are ignored", extra=fields(path=str(self.path)))
                return ()
            overrides = [_override(*row, passed_s=age_s) for row in document["overrides"]]
            return tuple(override for override in overrides if override.left_s > 0)
        except FileNotFoundError:
            return ()
        except INVALID as error:
            _log.warning(
                "overrides of an earlier run are ignored: their targets are back under the usual rules",
                extra=fields(path=str(self.path), reason=reason_of(error)),
            )
            return ()

    def save(self, overrides: Sequence[OpenOverride], now: float) -> str:
        """Replace the file, or remove it when there are no overrides; return why that failed (empty: it did not)."""
        rows = [
            [
                each.stream,
                each.identifier,
                [format_ip(ip) for ip in each.ips],
                each.action.value,
                each.age_s,
                each.left_s,
                each.who,
                each.reason,
            ]
            for each in overrides
        ]
        try:
            self._file.write({"overrides": rows} if rows else None, now)
            return ""
        except OSError as error:
            _log.warning(
                "overrides cannot be written: a restart forgets them",
                extra=fields(
                    path=str(self.path),
                    reason=reason_of(error),
                    remedy="make the directory of the socket writable for lbguard",
                ),
            )
            return f"{self.path} cannot be written: {reason_of(error)}"


def _override(
    stream: Any,
    identifier: Any,
    ips: Any,
    action: Any,
    age_s: Any,
    left_s: Any,
    who: Any,
    reason: Any,
    *,
    passed_s: float,
) -> OpenOverride:
    if not (isinstance(who, str) and isinstance(reason, str)) or action == ManualAction.RELEASE:
        raise TypeError("an override of another form")
    return OpenOverride(
        stream=stream,
        identifier=identifier,
        ips=addresses_of(stream, identifier, ips),
        action=ManualAction(action),
        age_s=seconds_of(age_s) + passed_s,
        left_s=max(0.0, seconds_of(left_s) - passed_s),
        who=who,
        reason=reason,
    )
