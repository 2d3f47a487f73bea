"""Monitor of a set of connections, which emits a verdict on each from the running asyncio loop.

`step` does all work. A `PollTimer` calls it when something is due or when replies wait, at most once a tick: it reads
replies, judges ended rounds, and sends due pings. The state of a connection is a `Watch`. The call that removes a
connection or changes its addresses also marks the watch closed and removes its tokens, so later replies cannot become a
verdict.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from lbguard.core.addr import is_ipv4
from lbguard.core.model import Verdict, VerdictState
from lbguard.probe.connections import Connection
from lbguard.probe.datapath import ProbeCounters
from lbguard.probe.exchange import (
    Exchange,
    OpenSocket,
    PollTimer,
    Wheel,
    next_start,
    ping_offset_s,
    spread_starts,
    tick_s,
)
from lbguard.probe.failure_detector import DetectorSettings, FailureDetector, make_judge, outcome
from lbguard.probe.icmp import IcmpSocket
from lbguard.probe.watch import ANSWERING, Watch

Emit = Callable[[Verdict], None]
Clock = Callable[[], float]
JudgeFactory = Callable[[DetectorSettings, Sequence[bool], float], FailureDetector]

_JUDGE: Final = -1
_CHECK: Final = -2


_Due = tuple[Watch, int, int]
"""An item of the wheel: a connection, the number of its round, and which ping, or _JUDGE, or _CHECK."""


class Monitor:
    """Monitor that pings every pair of its connections and emits verdicts.

    All methods belong to the thread of the event loop. The constructor opens the sockets, in the network namespace of
    the calling thread. `emit` is called in line and must neither block nor raise; it may call `set_connections`.

    Args:
        settings: intervals of pings, and rules for replies.
        emit: takes each verdict.
        clock: seconds, monotonic.
        open_socket: opens the socket of a family; a family that the kernel does not have gets none.
        first_generation: verdicts carry generations above this. The default, the time of day in milliseconds, makes
            those of a monitor that was started again newer than those it gave before, unless the clock was set back;
            then the reporter raises them.
        seed: of the jitter.
        judge_of: makes the failure detector of a connection.

    Raises:
        OSError: no socket of either family can be opened.
    """

    def __init__(
        self,
        settings: DetectorSettings,
        emit: Emit,
        clock: Clock = time.monotonic,
        *,
        open_socket: OpenSocket = IcmpSocket,
        first_generation: int | None = None,
        seed: int | None = None,
        judge_of: JudgeFactory = make_judge,
    ) -> None:
        self.counters = ProbeCounters()
        self._settings = settings
        self._make_judge = judge_of
        self._emit = emit
        self._clock = clock
        self._generation = max(0, time.time_ns() // 1_000_000) if first_generation is None else first_generation
        self._exchange = Exchange(open_socket, self.counters, clock)
        self._watches: dict[str, Watch] = {}
        self._tick_s = tick_s(settings.round_s / settings.pings)
        self._wheel: Wheel[_Due] = Wheel(self._tick_s)
        self._chance = random.Random(seed).random
        self._outbox: deque[tuple[Watch, Verdict]] = deque()
        self._delivering = False
        self._pulse = PollTimer(self.step, self._wheel.next, clock, self._tick_s)

    def set_connections(self, connections: Sequence[Connection]) -> None:
        """Monitor exactly these connections, matched by id with the previous ones.

        A connection that is no longer listed gets one ENDED verdict, in line, and no other one. A changed connection is
        monitored with its new addresses at once, in a new generation.

        Raises:
            ValueError: two connections have one id; nothing was changed.
        """
        listed = {connection.id: connection for connection in connections}
        if len(listed) != len(connections):
            raise ValueError("two connections have one id")
        now = self._clock()
        ended = [watch for id_, watch in self._watches.items() if id_ not in listed]
        new, changed = [], []
        for id_, connection in listed.items():
            watch = self._watches.get(id_)
            if watch is None:
                new.append(connection)
            elif watch.connection != connection:
                changed.append((watch, connection))
            else:
                watch.connection = connection  # the addresses in a ConnectionSubject do not take part in comparisons
        for watch in ended:
            del self._watches[watch.connection.id]
            self._close(watch, now)
        for watch, connection in changed:
            self._follow_change(watch, connection, now)
        for connection, start in zip(new, spread_starts(len(new), self._settings.interval_s, now), strict=True):
            self._begin(connection, start, now)
        self._deliver()
        self._pulse.arm()

    def _begin(self, connection: Connection, start: float, now: float, new_mac: bytes = b"") -> None:
        self._generation += 1
        families = [is_ipv4(pair.source) for pair in connection.pairs]
        watch = Watch(connection, self._generation, self._make_judge(self._settings, families, start))
        watch.new_mac = new_mac
        self._exchange.join(watch)
        self._watches[connection.id] = watch
        if connection.healing_s > 0:
            self._heal(watch, now)
        else:
            self._begin_round(watch, start, fast=False)

    def _heal(self, watch: Watch, now: float) -> None:
        """Report at once that the mesh heals a connection; the rounds show when it is over."""
        if watch.connection.healing_s <= 0:
            watch.healing_until = None
            return
        watch.healing_until = now + watch.connection.healing_s
        self._say(watch, VerdictState.HEALING, now)
        self._begin_round(watch, now, fast=False)  # what was answered before does not contradict

    def _follow_change(self, watch: Watch, connection: Connection, now: float) -> None:
        old = watch.connection
        if replace(old, healing_s=connection.healing_s) == connection:
            watch.connection = connection
            self._heal(watch, now)
            return
        if old.subject == connection.subject:
            self._forget(watch)
        else:
            self._close(watch, now)
        made_anew = bool(old.mac and connection.mac and old.mac != connection.mac)
        self._begin(connection, now, now, connection.mac if made_anew or watch.new_mac == connection.mac else b"")

    def _forget(self, watch: Watch) -> None:
        watch.closed = True
        self._exchange.leave(watch)

    def _close(self, watch: Watch, now: float) -> None:
        self._forget(watch)
        self._say(watch, VerdictState.ENDED, now)

    def _say(self, watch: Watch, state: VerdictState, now: float) -> None:
        """Queue a verdict; `_deliver` hands it out."""
        if state is VerdictState.DOWN and watch.healing_until is not None and now < watch.healing_until:
            state = VerdictState.HEALING
        if state is not watch.state:
            self.counters.changes[state] += 1
            watch.state = state
        watch.sequence += 1
        verdict = Verdict(
            subject=watch.connection.subject,
            state=state,
            generation=watch.generation,
            sequence=watch.sequence,
            lease_s=self._settings.lease,
            heal_s=watch.healing_until - now if state is VerdictState.HEALING and watch.healing_until else 0.0,
            evidence=watch.evidence(now),
            new_mac=watch.new_mac,
        )
        self._outbox.append((watch, verdict))

    def _deliver(self) -> None:
        """Emit the waiting verdicts, in order. The receiver may change the connections, so each is checked again."""
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._outbox:
                watch, verdict = self._outbox.popleft()
                if not watch.closed or verdict.state is VerdictState.ENDED:
                    self._emit(verdict)
        finally:
            self._delivering = False

    async def run(self) -> None:
        """Probe until cancelled; then close the sockets. No verdicts are emitted at the end: leases run out."""
        try:
            await self._pulse.run(self._exchange.descriptors())
        finally:
            self.close()

    def close(self) -> None:
        """Close the sockets; for a monitor that is not run (again)."""
        self._exchange.close()

    def next_due(self) -> float | None:
        """Return the next time at which `step` has work, if any."""
        return self._wheel.next()

    def step(self) -> None:
        """Read the replies that wait, judge the rounds that ended, send the pings that are due."""
        now = self._clock()
        for watch in self._exchange.receive():
            self._end_early(watch, now)
        for planned, items in self._wheel.pop_due(now):
            lag_s = now - planned
            pings = 0
            for watch, number, what in items:
                if watch.closed or watch.round != number:
                    continue
                if watch.judge.wants_replies and lag_s > watch.late_limit_s:
                    watch.judge.excuse(now)
                if what == _CHECK:
                    self._check(watch, now)
                elif what == _JUDGE:
                    self._end_round(watch, now)
                else:
                    pings += len(watch.pairs)
                    self._ping(watch, what, lag_s, now)
            if pings:
                self.counters.lag.add(lag_s, pings)
        self._exchange.send(now)

    def _begin_round(self, watch: Watch, at: float, *, fast: bool) -> None:
        settings, judge = self._settings, watch.judge
        duration_s = settings.doubt_round_s if fast else settings.round_s
        self.counters.doubts += fast and not watch.fast
        watch.begin_round(at, duration_s, settings.pings)
        watch.fast = fast
        watch.may_doubt = judge.tests_again and not fast and watch.measured in ANSWERING
        watch.eager = (judge.tests_again or judge.wants_replies) and (fast or watch.measured is not VerdictState.UP)
        first = at + ping_offset_s(0, watch.spacing_s, self._chance())
        self._wheel.add(first, (watch, watch.round, 0))

    def _ping(self, watch: Watch, number: int, lag_s: float, now: float) -> None:
        if lag_s > watch.late_limit_s:
            watch.untested = True
            if lag_s > self._settings.round_s:
                # After a long time without CPU, overdue rounds are skipped, so that not all are pinged at once.
                if self._judge(watch, now, complete=True):
                    self._begin_round(watch, next_start(watch.started, self._settings.interval_s, now), fast=False)
                return
        elif number and watch.may_doubt and watch.silent() and not watch.untested:
            # It answered until now: it is tested at once, and faster.
            self._begin_round(watch, now, fast=True)
            return
        if number == 0 and watch.connection.ifname:
            self._exchange.follow_link(watch)
        self._exchange.queue(watch)
        number += 1
        if number < self._settings.pings:
            following = watch.started + ping_offset_s(number, watch.spacing_s, self._chance())
            self._wheel.add(following, (watch, watch.round, number))
        else:
            self._wheel.add(watch.deadline, (watch, watch.round, _JUDGE))
        if watch.judge.wants_replies:
            down_at = watch.judge.down_at()
            if down_at is not None and now < down_at < watch.deadline:
                self._wheel.add(down_at, (watch, watch.round, _CHECK))

    def _end_early(self, watch: Watch, now: float) -> None:
        """End a round that its replies already decide."""
        if watch.closed or not watch.eager:
            return
        if watch.judge.wants_replies:
            self._check(watch, now)
        elif watch.answered() and self._judge(watch, now, complete=False):
            # Pings continue at their usual pace: a wait for the end of the interval would leave a gap without pings.
            self._begin_round(watch, now + self._settings.round_s / self._settings.pings, fast=False)

    def _end_round(self, watch: Watch, now: float) -> None:
        if watch.untested:
            watch.judge.excuse(now)
        silent = watch.judge.tests_again and watch.silent()
        if not self._judge(watch, now, complete=True):
            return
        if silent and not watch.untested and watch.measured in ANSWERING:
            self._begin_round(watch, now, fast=True)
        else:
            self._begin_round(watch, next_start(watch.started, self._settings.interval_s, now), fast=False)

    def _check(self, watch: Watch, now: float) -> None:
        """Judge a connection in the middle of a round, by the time since the last reply."""
        measured = watch.judge.judge((), now)
        if measured is not None and measured is not watch.measured:
            watch.measured = measured
            self._say(watch, measured, now)
            self._deliver()

    def _judge(self, watch: Watch, now: float, *, complete: bool) -> bool:
        """Judge the running round; return whether the connection is still followed as it was.

        `complete`: the round ended in its time, so the silence of a pair may count.
        """
        rounds = watch.family_rounds(complete=complete)
        if complete and any(family.silent for family in rounds) and self._exchange.lost_replies(watch.started):
            watch.untested = True
            rounds = watch.family_rounds(complete=True)
        if complete:
            self.counters.rounds[outcome(rounds)] += 1
        measured = watch.judge.judge(rounds, now)
        if measured is not None:
            watch.measured = measured
            # A first round without replies does not make a connection DOWN, but does not renew UP either.
            if measured is VerdictState.DOWN or any(family.silent < family.pairs for family in rounds):
                self._say(watch, measured, now)
                self._deliver()
        return not watch.closed
