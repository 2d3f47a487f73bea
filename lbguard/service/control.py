"""Commands of operators on their way to the core: each is answered after its result was written to a file."""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from lbguard.api.commands import Outcome
from lbguard.core.addr import Ip
from lbguard.core.effects import OverrideAnswered
from lbguard.core.engine_state import EngineState
from lbguard.core.events import Event, OpenOverride, OverrideRequested
from lbguard.core.model import Override, TargetKey, TargetState
from lbguard.service.override_file import OverrideFile
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.service.control")

_LOOK_EVERY_S = 1.0
_Remembered = dict[TargetKey, tuple[Override, tuple[Ip, ...]]]


class OperatorControl:
    """Passes commands to the engine, and keeps the file of overrides equal to the engine's.

    `requests` counts the commands by action and outcome (`done`, or the reason of the refusal).
    """

    def __init__(self, engine: EngineState, post: Callable[[Sequence[Event]], None], file: OverrideFile) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self._engine = engine
        self._post = post
        self._file = file
        self._tickets = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[OverrideAnswered]] = {}
        self._written: _Remembered | None = None
        self._lock = asyncio.Lock()

    def load(self, now: float, *, go_on: bool) -> tuple[OpenOverride, ...]:
        """Return the overrides that an earlier run left open; if they are not to go on, forget them."""
        if go_on:
            return self._file.load(now)
        self._file.save((), now)
        return ()

    async def request(self, event: OverrideRequested) -> Outcome:
        """Let the core decide on a command, and write down what is in force then."""
        ticket = next(self._tickets)
        answered: asyncio.Future[OverrideAnswered] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = answered
        try:
            self._post([replace(event, ticket=ticket)])
            answer = await answered
        finally:
            self._waiting.pop(ticket, None)
        self.requests[event.action.value, answer.refused or "done"] += 1
        _log.info(
            "command of an operator",
            extra=fields(
                command=event.action.value,
                targets=[str(key) for key in event.targets],
                who=event.who,
                reason=event.reason,
                duration_s=event.duration_s,
                force=event.force,
                refused=answer.refused,
            ),
        )
        problem = "" if answer.refused else await self._write()
        return Outcome(answer=answer, not_remembered=problem)

    def state(self, key: TargetKey) -> TargetState | None:
        """Return the present state of a target; None: it is gone."""
        target = self._engine.target(key)
        return target.state if target else None

    def answered(self, effect: OverrideAnswered) -> None:
        """Take the core's answer; its request may have ended already."""
        waiting = self._waiting.get(effect.ticket)
        if waiting is not None and not waiting.done():
            waiting.set_result(effect)

    async def keep(self) -> None:
        """Write the file again whenever an override ended or changed, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            # Before the first list, the engine's overrides are those of the file.
            if self._engine.running and self._in_force() != self._written:
                await self._write()

    async def _write(self) -> str:
        async with self._lock:
            now = time.monotonic()
            overrides, in_force = self._engine.open_overrides(now), self._in_force()
            problem = await asyncio.to_thread(self._file.save, overrides, now)
            self._written = in_force
            return problem

    def _in_force(self) -> _Remembered:
        overrides = self._engine.overrides()
        return {
            key: (overrides[key], each.ips)
            for each in self._engine.open_overrides(0.0)
            if (key := TargetKey(each.stream, each.identifier)) in overrides
        }
