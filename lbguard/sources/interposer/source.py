"""Source `interposer`: streams and targets from the calls of nfqlb by an unmodified load balancer.

The load balancers of Meridio and of Meridio-2 run `nfqlb` by name, and `deploy/meridio/nfqlb` replaces that program.
The meaning of the calls:

- `init`: a table is created again, by the real program; no target is registered any more.
- `activate`: a target is registered. Its addresses are the gateways of the load balancer's routes in the table of its
  mark, which it adds before. The answer is sent when the core has put the target into the distributor.
- `deactivate`: by Meridio, for a target whose path is broken, or was just now, a failed verification: the target stays,
  and grace applies. Otherwise a removal: when the call returns, the target is out of the distributor, or it drains.
- `delete`: the stream has ended.

Meridio-2 verifies no path, so each of its `deactivate` is a removal. It makes no call when a target's addresses change:
its routes show them.

An `activate` is answered soon, with success also where the target is admitted later. Every other call waits longer for
the core and the distributor, because without an answer of lbguard the real program takes the target out of the table.

A call without an answer goes to the real program and into the file `missed`, from which it is applied as done. So the
registrations follow every call of the load balancer, whichever program carried it out.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lbguard.core.events import CommitDone, CommitFailed, DistributorLost, Event, SourceSnapshot
from lbguard.core.model import TargetKey
from lbguard.sources.flavour import Flavour
from lbguard.sources.interposer.files import SharedFiles
from lbguard.sources.interposer.protocol import (
    Call,
    CallError,
    Command,
    ProtocolError,
    Request,
    Verdict,
    format_answer,
    parse_missed,
    parse_request,
)
from lbguard.sources.interposer.registrations import Core, FoundTable, Gateways, Registrations
from lbguard.sources.interposer.registry import RegistryError, RegistryFile
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.sources.interposer")

_CALLS_AT_ONCE = 512
_TICK_S = 0.1
_RETRY_S = 1.0
_CONFIRM_EVERY = 10
_SWEEP_EVERY = 100
_KERNEL_LOOKS, _KERNEL_LOOK_S = 1000, 0.01
_TURNS_LEAST = 3  # of the loop: the mirror reads, the runner wakes, the runner decides
_TURNS_MAX = 50
_NOBODY = (frozenset[int](), frozenset[int]())


@dataclass(frozen=True, slots=True, kw_only=True)
class InterposerConfig:
    """See `InterposerSettings`. With `passive` every call goes to the real program and is only recorded.

    `flavour`: the load balancer that makes the calls; None: their names show it. `answer_timeout_s` is the time limit
    of `activate`, `removal_timeout_s` that of the other calls.
    """

    directory: Path
    flavour: Flavour | None = None
    answer_timeout_s: float = 0.15
    removal_timeout_s: float = 1.5
    recent_loss_s: float = 1.0
    confirm_timeout_s: float = 15.0
    passive: bool = False


@dataclass(slots=True)
class InterposerCounters:
    """Counters: calls by command and outcome, and unreadable lines by reason. All are bounded."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


class _Answer(NamedTuple):
    """Answer to a call, and its outcome as one word."""

    verdict: Verdict
    outcome: str
    text: str = ""


class InterposerSource:
    """Source that answers the calls and reports the registered targets to the core.

    Args:
        config: directory and time limits.
        emit: receives each new list, in the thread of the event loop.
        core: the source's view of the core.
        routes: the load balancer's routes.
        tables: reads the distributor's tables by stream; called in another thread.
    """

    def __init__(
        self,
        config: InterposerConfig,
        emit: Callable[[SourceSnapshot], None],
        *,
        core: Core,
        routes: Gateways,
        tables: Callable[[], Mapping[str, FoundTable]],
    ) -> None:
        self.counters = InterposerCounters()
        self._shared = SharedFiles(config.directory)
        self.registrations = Registrations(RegistryFile(self._shared.directory), emit, routes)
        self._config = config
        self._core = core
        self._routes = routes
        self._tables = tables
        self._requests, self._answers, self._missed = self._shared.requests, self._shared.answers, self._shared.missed
        self._missed_some = False
        self._refused: set[str] = set()
        self._committed: dict[str, tuple[frozenset[int], frozenset[int]]] = {}
        self._failing: dict[str, str] = {}
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None

    def observe(self, events: Iterable[Event]) -> None:
        """Record the outcome of commits; other events are ignored."""
        news = False
        for event in events:
            match event:
                case CommitDone():
                    self._committed[event.stream] = (event.registered, event.active)
                    self._failing.pop(event.stream, None)
                case CommitFailed():
                    self._failing[event.stream] = event.reason
                case DistributorLost():
                    self._committed.pop(event.stream, None)
                case _:
                    continue
            news = True
        if news:
            self._news.set()
            self._news = asyncio.Event()

    @property
    def problem(self) -> str:
        """Return why no calls can be received; empty: they can."""
        return self._shared.problem

    def reload(self) -> None:
        """Report the list again (SIGHUP)."""
        self.registrations.report(again=True)

    # Life

    async def run(self) -> None:
        """Serve until cancelled; while the shared directory cannot be used, log that and retry."""
        try:
            while not self._shared.put_right():  # noqa: ASYNC110 (no event says when it can be used)
                await asyncio.sleep(_RETRY_S)
            await self._wait_for_kernel()
            self.registrations.load()
            if not self._apply_all_missed():
                _log.warning("too many calls were missed: who is registered is taken from the tables")
                self.registrations.reset()
            self.registrations.compare(await asyncio.to_thread(self._tables))
            self.registrations.report()
            self._shared.put_right(self._listen)
            async with asyncio.TaskGroup() as self._group:
                await self._tick()
        finally:
            self._group = None
            self._stop_listening()
            self._shared.close()

    def _apply_all_missed(self) -> bool:
        try:
            return self._missed.read(self._apply_missed)
        except OSError as error:
            _log.warning("missed calls cannot be read", extra=fields(reason=str(error)))
            return False

    def _listen_again(self) -> None:
        if self._requests.lost:
            self._stop_listening()
            self._listen()
            _log.warning("the FIFO for calls was taken away: made anew")

    def _listen(self) -> None:
        self._requests.open()
        asyncio.get_running_loop().add_reader(self._requests.descriptor, self._on_readable)

    def _stop_listening(self) -> None:
        if self._requests.descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._requests.descriptor)
            self._requests.close()

    async def _wait_for_kernel(self) -> None:
        for _ in range(_KERNEL_LOOKS):
            if self._routes.known:
                return
            await asyncio.sleep(_KERNEL_LOOK_S)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        rounds = 0
        while True:
            await asyncio.sleep(_TICK_S)
            rounds += 1
            self._catch_up_missed()
            changed = self.registrations.resolve()
            changed |= self.registrations.follow_routes(self._lost_lately, loop.time())
            if rounds % _CONFIRM_EVERY == 0:
                limit_s = self._config.confirm_timeout_s
                changed |= self.registrations.drop_unconfirmed(self._core.sound_for_s, limit_s, loop.time())
                self._shared.put_right(self._listen_again)
            if rounds % _SWEEP_EVERY == 0:
                self._answers.sweep()
            if changed:
                self.registrations.report()

    # Calls that went to the real program

    def _catch_up_missed(self) -> None:
        try:
            self._missed.prepare()
            complete = self._missed.read(self._apply_missed)
        except OSError as error:
            self.counters.dropped["missed_unreadable"] += 1
            _log.debug("missed calls cannot be read", extra=fields(reason=str(error)))
            return
        if not complete:
            _log.warning("more calls were missed than are noted: who is registered may be wrong until the next init")
        if self._missed_some:
            self._missed_some = False
            self.registrations.report()

    def _apply_missed(self, line: bytes) -> None:
        try:
            call = parse_missed(line, self._config.flavour)
        except (ProtocolError, CallError) as error:
            self._drop(str(error), line)
            return
        self._missed_some = True
        self.counters.calls[call.command, "missed"] += 1
        self.registrations.apply(call)

    # Calls that wait for an answer

    def _on_readable(self) -> None:
        lines = self._requests.read()
        if lines:
            # Missed calls happened before the waiting requests.
            self._catch_up_missed()
        for line in lines:
            self._begin(line)

    def _begin(self, line: bytes) -> None:
        request: Request | None = None
        try:
            request = parse_request(line, self._config.flavour)
            request_id = request.id
        except ProtocolError as error:
            self._drop(str(error), line)
            return
        except CallError as error:
            request_id = error.request_id
            self._drop(str(error), line)
        way_back = self._answers.open(request_id)
        if way_back is None:
            # The caller was killed, or has run the real program and recorded the call in `missed`.
            self.counters.dropped["caller_gone"] += 1
        elif request is None:
            self._answers.send(way_back, format_answer(Verdict.PASS))
        elif self._group is None or len(self._tasks) >= _CALLS_AT_ONCE:
            # Not an answer of the protocol: the caller records the call in `missed`.
            self.counters.dropped["too_many"] += 1
            self._answers.send(way_back, b"\n")
        else:
            task = self._group.create_task(self._serve(request.call, way_back))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _drop(self, reason: str, line: bytes) -> None:
        self.counters.dropped[reason] += 1
        if reason == "name" and reason not in self._refused:
            # Its targets get no grace, and nothing else says so.
            self._refused.add(reason)
            _log.warning(
                "a memory of nfqlb has a name that is not handled: the real program alone changes it",
                extra=fields(
                    call=line.decode("ascii", "replace"),
                    remedy="names have 1 to 63 letters, digits, '.', '_' and '-'; check interposer.flavour",
                ),
            )

    def _lost_lately(self, key: TargetKey) -> bool:
        return self._core.path_lost(key, self._config.recent_loss_s)

    async def _serve(self, call: Call, way_back: int) -> None:
        config = self._config
        limit_s = config.answer_timeout_s if call.command is Command.ACTIVATE else config.removal_timeout_s
        deadline = asyncio.get_running_loop().time() + limit_s
        sent = False
        try:
            answer = await self._decide(call, deadline)
            self.counters.calls[call.command, answer.outcome] += 1
            self._answers.send(way_back, format_answer(answer.verdict, answer.text))
            sent = True
            with contextlib.suppress(OSError):  # `put_right` tries again and reports it.
                self._answers.offer()
        finally:
            if not sent:
                # The service ends: the caller records the call in `missed`, for the next run.
                self._answers.send(way_back, b"\n")

    async def _decide(self, call: Call, deadline: float) -> _Answer:
        await self._catch_up_core(deadline)
        if not self.registrations.fits(call):
            _log.warning("two memories of one stream", extra=fields(stream=call.stream, second=call.flavour))
            return _Answer(Verdict.PASS, "out_of_place")
        if self._config.passive or not self._core.ready:
            self.registrations.apply(call)
            self.registrations.report()
            return _Answer(Verdict.PASS, "passive" if self._config.passive else "not_ready")
        match call.command:
            case Command.ACTIVATE:
                return await self._activate(call, deadline)
            case Command.DEACTIVATE:
                return await self._deactivate(call, deadline)
            case _:
                return await self._begin_anew(call, deadline)

    async def _activate(self, call: Call, deadline: float) -> _Answer:
        ips = self.registrations.addresses(call)
        if not ips and (not self._core.caught_up or not self.registrations.serves(call.stream)):
            self.registrations.defer(call)
            return _Answer(Verdict.PASS, "address_unknown")
        if not ips:
            # Meridio treats this as a failed activation and retries later, which is correct: without a route, the link
            # was removed between its two steps.
            return _Answer(Verdict.FAIL, "no_route", f"no route to the target in table {call.mark}")
        try:
            if call.stream not in self.registrations.registry.streams:
                await self._learn_room(call)
            self.registrations.register(call, ips)
        except RegistryError as error:
            return self._out_of_place(call, str(error))
        self.registrations.report()

        await self._catch_up_core(deadline)

        def admitted() -> bool:
            return call.identifier in self._committed.get(call.stream, _NOBODY)[1]

        def answered() -> bool:
            # The load balancer activates one target after the other, and must not wait for `affinity.learn` each time.
            return admitted() or self._core.learns(call.stream)

        if await self._wait(call.stream, answered, deadline):
            return _Answer(Verdict.DONE, "admitted" if admitted() else "accepted")
        if call.stream in self._failing:
            return _Answer(Verdict.PASS, "distributor_failed")
        # Not admitted yet, for a reason of the core (damping, a path that is not good yet). It will be admitted later.
        return _Answer(Verdict.DONE, "accepted")

    async def _deactivate(self, call: Call, deadline: float) -> _Answer:
        key = TargetKey(call.stream, call.identifier)
        entry = self.registrations.registry.entry(call.stream, call.identifier)
        if entry is None and self._core.drains(key):
            return _Answer(Verdict.DONE, "draining")
        if entry is None:
            return _Answer(Verdict.PASS, "unknown")
        if call.flavour.verifies_paths and call.stream not in self._failing and self._lost_lately(key):
            entry.confirmed = False
            self.registrations.report()
            _log.info("failed verification: grace applies", extra=fields(target=str(key)))
            return _Answer(Verdict.DONE, "held")
        self.registrations.remove(call)
        self.registrations.report()
        _log.info("target removed by the load balancer", extra=fields(target=str(key)))

        await self._catch_up_core(deadline)

        def removed() -> bool:
            # An inactive target gets no packets; that it is not registered any more is committed later.
            registered, active = self._committed.get(call.stream) or (None, _NOBODY[1])
            learns = self._core.learns(call.stream)
            return registered is not None and call.identifier not in (active if learns else registered | active)

        if await self._wait(call.stream, lambda: self._core.drains(key) or removed(), deadline):
            return _Answer(Verdict.DONE, "removed" if removed() else "draining")
        return _Answer(Verdict.PASS, "not_removed_in_time")

    async def _begin_anew(self, call: Call, deadline: float) -> _Answer:
        """End a stream before the real program re-creates or deletes its memory."""
        served = self.registrations.serves(call.stream)
        self.registrations.end(call)
        if served:
            self._committed.pop(call.stream, None)
            self.registrations.report()
            await self._wait(call.stream, lambda: self._committed.get(call.stream) == _NOBODY, deadline)
        self._failing.pop(call.stream, None)
        self.registrations.begin(call)
        self.registrations.report()
        return _Answer(Verdict.PASS, "ended" if served else "new")

    def _out_of_place(self, call: Call, reason: str) -> _Answer:
        """Answer an impossible activate: a failure where the stream is ours, else pass it to the real program."""
        _log.warning("target not registered", extra=fields(stream=call.stream, mark=call.mark, reason=reason))
        known = self.registrations.registry.streams.get(call.stream)
        if known is None or not self.registrations.serves(call.stream) or call.identifier not in known.identifiers:
            return _Answer(Verdict.PASS, "out_of_place")
        return _Answer(Verdict.FAIL, "refused", reason)

    async def _learn_room(self, call: Call) -> None:
        """Read the size of a table that was created before lbguard started."""
        table = (await asyncio.to_thread(self._tables)).get(call.stream)
        if table is not None and call.stream not in self.registrations.registry.streams:
            self.registrations.registry.begin(call.stream, table.max_targets, call.flavour)

    # Waiting

    async def _catch_up_core(self, deadline: float) -> None:
        """Let the core process the kernel's events from before the call; at most for half of the remaining time."""
        loop = asyncio.get_running_loop()
        latest = (loop.time() + deadline) / 2
        turn = 0
        while loop.time() < latest and not (turn >= _TURNS_LEAST and self._core.caught_up):
            await asyncio.sleep(0 if turn < _TURNS_MAX else 0.002)
            turn += 1

    async def _wait(self, stream: str, test: Callable[[], bool], deadline: float) -> bool:
        """Wait until a commit makes `test` true; false at the deadline or when the distributor fails."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while not test():
                    if stream in self._failing:
                        return False
                    await self._news.wait()
                return True
        return test()
