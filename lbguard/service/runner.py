"""Loop of the service: drains the inbox, decides once, dispatches the effects, arms one timer."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, assert_never

from lbguard.api.verdicts.queue import VERDICTS_WAITING_MAX
from lbguard.core.effects import (
    Announce,
    AttachStream,
    CommitTables,
    Effect,
    FlushNeighbors,
    ForgetStream,
    Ignored,
    NeighborMoved,
    OverrideAnswered,
    ParkPackets,
    ProbeNeighbors,
    ProgramRoutes,
    ProgramRules,
    PruneStreams,
    Record,
    ResolveNeighbors,
    SetAvailability,
    SetLinkDown,
    SetLinkUp,
    SolicitNeighbors,
    SteerFlows,
    TuneLink,
    VerdictAnswered,
)
from lbguard.core.engine import Engine
from lbguard.core.events import Event, KernelOutOfSync, KernelSnapshot, Stalled, VerdictReported
from lbguard.core.observation import LOOK_S
from lbguard.service.actuators import DistributorEffect, KernelEffect, NeighborEffect, WorkQueue

_BATCH = 4096
_VERDICTS_PER_ROUND = 256
_REPORTS_PER_ROUND = 64
_REPORT_ROUNDS = 16
_NEWS_WAIT_S = 1.0
_LOOK_EVERY_S = 0.2
"""Below the limit of an observation gap (`LOOK_S`), so that a healthy loop never counts as stalled."""


class EventReports(Protocol):
    """Receiver of decisions and results: logs, metrics, explanation."""

    def reported(self, effect: Record | Ignored | NeighborMoved | SetAvailability, now: float) -> None:
        """Record a decision or a result; it may be older than `now`, the moment of the call."""

    def performed(self, effect: Effect) -> None:
        """Record an effect that was dispatched."""

    def stepped(self, events: int, lag_s: float, duration_s: float) -> None:
        """Record one round: number of events, waiting time of the oldest, and duration."""

    def stalled(self, duration_s: float) -> None:
        """Record that the loop did not run for `duration_s`."""


class Runner:
    """Owns the inbox and the engine's clock. Everything happens in the event loop's thread.

    The inbox is bounded for external events: when `inbox_limit` events wait, further kernel changes are dropped, the
    engine is marked out of sync, and `resync` is called for a new full view. Verdicts have a separate inbox, of which
    each round applies a few after everything else: a flood of verdicts does not delay the kernel's events.

    `caught_up` returns whether every message of the kernel was posted.

    The runner runs at least every `LOOK_S`. When it is late, the process was stopped or the loop was blocked: the
    engine receives the duration, and decides only after the waiting events were read.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        announce: Callable[[Announce | SolicitNeighbors], None],
        kernel: WorkQueue[KernelEffect],
        neighbors: WorkQueue[NeighborEffect],
        distributor: WorkQueue[DistributorEffect],
        event_reporter: EventReports,
        affinity: WorkQueue[SteerFlows] | None = None,
        park: Callable[[ParkPackets], None] = lambda effect: None,
        resync: Callable[[str], None],
        caught_up: Callable[[], bool] = lambda: True,
        answer: Callable[[VerdictAnswered], None] = lambda answer: None,
        answer_operator: Callable[[OverrideAnswered], None] = lambda answer: None,
        inbox_limit: int = 65_536,
        verdicts_limit: int = VERDICTS_WAITING_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.inbox_dropped = 0
        self._announce = announce
        self._kernel = kernel
        self._neighbors = neighbors
        self._distributor = distributor
        self._affinity = affinity
        self._park = park
        self._event_reporter = event_reporter
        self._resync = resync
        self._caught_up = caught_up
        self._answer = answer
        self._answer_operator = answer_operator
        self._inbox_limit = inbox_limit
        self._verdicts_limit = verdicts_limit
        self._verdicts: deque[VerdictReported] = deque()
        self._clock = clock
        self._inbox: deque[tuple[Event, float]] = deque()
        self._unreported: deque[Record | Ignored | NeighborMoved | SetAvailability] = deque()
        self._overflowed = False
        self._looked_at = math.inf
        self._reading_until = -math.inf
        self._wake = asyncio.Event()

    @property
    def inbox_depth(self) -> int:
        """Return the number of waiting events."""
        return len(self._inbox)

    def post(self, events: Sequence[Event]) -> None:
        """Add results and the source's events; the engine's own requests bound them."""
        now = self._clock()
        self._inbox.extend((event, now) for event in events)
        self._wake.set()

    def post_kernel(self, events: Sequence[Event], received_at: float) -> None:
        """Add the mirror's events, as far as there is room."""
        for event in events:
            if self._overflowed and not isinstance(event, KernelSnapshot):
                self.inbox_dropped += 1
            elif len(self._inbox) >= self._inbox_limit and not isinstance(event, KernelSnapshot | KernelOutOfSync):
                self._overflowed = True
                self.inbox_dropped += 1
                self._inbox.append((KernelOutOfSync(reason="inbox_full"), received_at))
                self._resync("inbox_full")
            else:
                self._overflowed = False
                self._inbox.append((event, received_at))
        self._wake.set()

    def post_verdict(self, event: VerdictReported) -> bool:
        """Add a verdict; false when too many wait already."""
        if len(self._verdicts) >= self._verdicts_limit:
            return False
        self._verdicts.append(event)
        self._wake.set()
        return True

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await self._sleep()
            await self._step()
            # Readers and queues get their turn between two rounds, even with a full inbox.
            await asyncio.sleep(0)
            # A share of the waiting reports, so that a flood does not make them grow without bound.
            self._report(max(_REPORTS_PER_ROUND, len(self._unreported) // _REPORT_ROUNDS))

    async def _sleep(self) -> None:
        if self._inbox or self._verdicts or self._unreported:
            return
        self._wake.clear()
        now = self._clock()
        deadline = self.engine.next_deadline(now)
        wait_s = _LOOK_EVERY_S if deadline is None else min(_LOOK_EVERY_S, max(0.0, deadline - now))
        timer = asyncio.get_running_loop().call_later(wait_s, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    async def _step(self) -> None:
        started = self._clock()
        self._look(started)
        oldest = self._inbox[0][1] if self._inbox else started
        count = min(len(self._inbox), _BATCH)
        for _ in range(count):
            event, _ = self._inbox.popleft()
            for effect in self.engine.observe(event, started):
                self._perform(effect)
        for _ in range(min(len(self._verdicts), _VERDICTS_PER_ROUND)):
            for effect in self.engine.observe(self._verdicts.popleft(), started):
                self._perform(effect)
        repairs = self.engine.repair(started)
        for effect in repairs:
            self._perform(effect)
        if any(isinstance(effect, ProgramRoutes) for effect in repairs):
            # The kernel gets the routes now; evaluating a thousand targets takes as long as programming them.
            await asyncio.sleep(0)
        if not self._behind(started):
            for effect in self.engine.decide(started):
                self._perform(effect)
        if count:
            self._event_reporter.stepped(count, started - oldest, self._clock() - started)

    def _look(self, now: float) -> None:
        """Record the time, and report a stall to the engine if the loop did not run for too long."""
        gap_s = now - self._looked_at
        self._looked_at = now
        if gap_s > LOOK_S:
            self._reading_until = now + _NEWS_WAIT_S
            self.engine.observe(Stalled(duration_s=gap_s), now)
            self._event_reporter.stalled(gap_s)

    def _behind(self, now: float) -> bool:
        """Return whether events still wait, in the inbox or in the kernel, that may cancel a due decision.

        That matters when a withdrawal is due, and after a stall. Then this round decides nothing. An endless flood
        delays decisions for a bounded time.
        """
        if now < self._reading_until:
            if self._inbox or not self._caught_up():
                return True
            self._reading_until = -math.inf
        deadline = self.engine.next_target_deadline()
        if deadline is None or not deadline <= now < deadline + _NEWS_WAIT_S:
            return False
        return bool(self._inbox) or not self._caught_up()

    def flush(self) -> None:
        """Report all waiting decisions: the service ends."""
        self._report(len(self._unreported))

    def _report(self, count: int) -> None:
        """Report decisions, a few at a time: a thousand log lines must not delay the next event."""
        for _ in range(min(count, len(self._unreported))):
            self._event_reporter.reported(self._unreported.popleft(), self._clock())

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Record() | Ignored() | NeighborMoved() | SetAvailability():
                self._unreported.append(effect)
                return
            case VerdictAnswered():
                self._answer(effect)
                return
            case OverrideAnswered():
                self._answer_operator(effect)
                return
            case Announce() | SolicitNeighbors():
                self._announce(effect)
            case ProgramRoutes() | ProgramRules() | SetLinkDown() | SetLinkUp():
                self._kernel.put(effect)
            case FlushNeighbors() | ResolveNeighbors() | ProbeNeighbors() | TuneLink():
                self._neighbors.put(effect, droppable=isinstance(effect, ProbeNeighbors))
            case AttachStream() | CommitTables() | ForgetStream() | PruneStreams():
                self._distributor.put(effect)
            case SteerFlows():
                if self._affinity is not None:
                    self._affinity.put(effect)
            case ParkPackets():
                self._park(effect)
            case _:
                assert_never(effect)
        self._event_reporter.performed(effect)
