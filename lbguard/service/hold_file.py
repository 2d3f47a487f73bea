"""File of open holds and drains beside the API's socket, so that they survive a crash and do not begin again.

It is written while a hold or a drain is open or a subnet is lost that targets were reached by, and removed with the
last one. A later run reads in it that a wider subnet, such as the pod's own network, does not lead to those targets,
and which targets drain that the source no longer lists. It is valid for the same boot and network namespace, and for a
minute: a supervisor restarts the process within that time; after a longer absence a loss may have healed and occurred
again, and forgetting it costs at most one more window. A file with any error is ignored, with a line in the log.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lbguard.core.addr import Ip, Prefix, format_ip, parse_prefix
from lbguard.core.events import OpenDrain, OpenHold
from lbguard.core.model import Condition
from lbguard.service.state_file import INVALID, StateFile, addresses_of, reason_of, seconds_of
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.service.hold_file")

FORMAT = "lbguard-holds-1"
MAX_AGE_S = 60.0
_SAVE_EVERY_S = 0.25
_REFRESH_S = 15.0
"""With lost subnets and drains alone, the file is written at this interval to stay valid."""


class HoldFile:
    """One file of open holds, `<socket>.holds`; the clock is the monotonic one. Nothing here raises.

    `subnets`, `drains`: the lost subnets and the open drains, as last read or written.
    """

    def __init__(self, socket: Path) -> None:
        self.path = socket.with_name(f"{socket.name}.holds")
        self._file = StateFile(self.path, FORMAT)
        self._refused = False
        self.subnets: tuple[Prefix, ...] = ()
        self.drains: tuple[OpenDrain, ...] = ()
        self._saved_at = -math.inf

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
            if (holds or subnets or drains or self._file.present) and not waits:
                held = bool(holds)
                await asyncio.to_thread(self.save, holds, now, subnets, drains)

    def load(self, now: float) -> tuple[OpenHold, ...]:
        """Return the holds that an earlier run left open; empty when there are none or the file is not valid."""
        try:
            return self._holds(*self._file.read(now))
        except FileNotFoundError:
            return ()
        except INVALID as error:
            _log.warning(
                "open holds of an earlier run are ignored", extra=fields(path=str(self.path), reason=reason_of(error))
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
        if not content and not self._file.present:
            return
        self.subnets, self.drains, self._saved_at = subnets, drains, now
        try:
            self._file.write(_content(holds, subnets, drains) if content else None, now)
            self._refused = False
        except OSError as error:
            if not self._refused:
                self._refused = True
                _log.warning(
                    "open holds cannot be written: a restart gives each its whole window again",
                    extra=fields(
                        path=str(self.path),
                        reason=reason_of(error),
                        remedy="make the directory of the socket writable for lbguard",
                    ),
                )

    def _holds(self, document: Any, age_s: float | None) -> tuple[OpenHold, ...]:
        """Return the holds in a document of this age, seconds; None: it is of another boot or namespace.

        Raises:
            ValueError, TypeError, KeyError: the document is damaged.
        """
        if age_s is None or age_s > MAX_AGE_S:
            # That is not a fault: the host booted, the pod was re-created, or lbguard did not run for long.
            _log.info("open holds of an earlier run are too old", extra=fields(path=str(self.path)))
            return ()
        holds = tuple(_hold(*row) for row in document["holds"])
        # The time of a drain runs on while lbguard does not.
        drains = tuple(_drain(*row, age_s=age_s) for row in document.get("drains", ()))
        self.subnets = tuple(parse_prefix(subnet) for subnet in document["subnets"])
        self.drains = drains
        return holds


def _content(
    holds: Sequence[OpenHold], subnets: tuple[Prefix, ...], drains: tuple[OpenDrain, ...]
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
    return {"holds": rows, "subnets": lost, "drains": draining}


def _whom(drain: OpenDrain) -> tuple[str, int, tuple[Ip, ...]]:
    return drain.stream, drain.identifier, drain.ips


def _drain(stream: Any, identifier: Any, ips: Any, left_s: Any, *, age_s: float) -> OpenDrain:
    left = max(0.0, seconds_of(left_s) - age_s)
    return OpenDrain(stream=stream, identifier=identifier, ips=addresses_of(stream, identifier, ips), left_s=left)


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
        ips=addresses_of(stream, identifier, ips),
        cause=Condition(cause),
        broken_s=seconds_of(broken_s),
        frozen_s=None if frozen_s is None else seconds_of(frozen_s),
        left_s=seconds_of(left_s),
        # Earlier versions did not write them.
        lost=() if lost is None else addresses_of(stream, identifier, lost),
    )
