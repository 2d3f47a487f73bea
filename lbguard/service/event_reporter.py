"""Reporter of decisions and results to the log, the metrics and the decision log."""

import logging
import math
import time
from collections.abc import Callable, Sequence

from lbguard.announce.sender import Announcer, FrameKind, Suppressed
from lbguard.api.feeds import AvailabilityState, DecisionLog
from lbguard.core.addr import format_ip, format_mac
from lbguard.core.effects import Effect, Ignored, NeighborMoved, Record, SetAvailability
from lbguard.core.events import Event, KernelOutOfSync, RouteFailed, RuleFailed, SourceLost, SourceSnapshot
from lbguard.core.model import TargetState
from lbguard.distributor.base import CommitResult
from lbguard.kernel.batches import NeighborFailure
from lbguard.kernel.mirror import MirrorCounters
from lbguard.telemetry.log import fields, log_decision
from lbguard.telemetry.metrics.guard import Metrics
from lbguard.telemetry.tracing import IncidentTracer

_log = logging.getLogger("lbguard.service.event_reporter")

_CLOCK_SET_S = 1.0
"""A wall clock that goes back by less was read late; by more, it was set."""

_STALL_REPORTED_S = 1.0
"""Shorter stalls are in the metrics only."""
_REMIND_S = 30.0
"""Interval of the log message about the input that the service waits for."""

RESYNC_REASONS = ("overrun", "truncated", "dump_timeout", "dump_refused", "dump_interrupted", "inbox_full")
"""Reasons for which the whole state of the kernel is read again (`netlink.mirror`, and the runner's inbox)."""


class EventReporter:
    """Reports what happens in the service to log, metrics and the decision log; see `runner.EventReports`."""

    def __init__(
        self,
        metrics: Metrics,
        decisions: DecisionLog,
        *,
        observe: bool,
        inbox_depth: Callable[[], int],
        availability: AvailabilityState,
        tracer: IncidentTracer | None = None,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._tracer = tracer
        self._on_loss = on_loss
        self._metrics = metrics
        self._decisions = decisions
        self._observe = observe
        metrics.follow_inbox(inbox_depth)
        self._availability = availability
        self._kernel_lost = False
        self._draining_reported = False
        self._dated = (-math.inf, -math.inf)
        self._remind_at = time.monotonic() + _REMIND_S

    def reported(self, effect: Record | Ignored | NeighborMoved | SetAvailability, now: float) -> None:
        """Record an event."""
        if not isinstance(effect, Record):
            self._metrics.record_effect(effect)
        match effect:
            case Record(decision=decision):
                if decision.state_from is TargetState.ACTIVE and decision.state_to is not TargetState.ACTIVE:
                    self._on_loss()
                wall_time = self._date(decision.at, now)
                trace = "" if self._tracer is None else self._tracer.decided(decision, wall_time)
                self._metrics.streams.record_decision(decision, trace)
                self._decisions.add(decision, wall_time)
                log_decision(decision, wall_time, observe=self._observe)
            case SetAvailability():
                self._availability.set(effect.stream, effect.available)
                level = logging.INFO if effect.available else logging.WARNING
                what = "stream available" if effect.available else "stream unavailable"
                _log.log(level, what, extra=fields(stream=effect.stream, reason=effect.reason))
            case Ignored(reason="stream_identity_changed"):
                _log.error(
                    "a stream's marks, size or memory changed in the list",
                    extra=fields(remedy="remove the stream, then list it anew; until then the old values stay"),
                )
            case Ignored(reason="draining_without_affinity") if not self._draining_reported:
                # Each list would say it again.
                self._draining_reported = True
                _log.warning(
                    "targets are listed as draining, but flow affinity is off: they get new connections",
                    extra=fields(
                        targets=effect.count,
                        remedy="set affinity.mode to incident, in mode enforce; or remove the targets from the list",
                    ),
                )
            case NeighborMoved():
                _log.info(
                    "neighbour moved",
                    extra=fields(
                        ip=format_ip(effect.ip),
                        ifindex=effect.ifindex,
                        old_mac=format_mac(effect.old_mac),
                        new_mac=format_mac(effect.new_mac),
                    ),
                )

    def _date(self, at: float, now: float) -> float:
        """Return the wall clock time of a decision; both arguments are of the engine's clock, and `now` is the present.

        Two clocks cannot be read at one moment, so each reading has a small error. Decisions of one moment get one
        date, and later decisions no earlier date, unless the wall clock was set back.
        """
        last_at, last = self._dated
        if at != last_at:
            wall_time = time.time() - (now - at)
            self._dated = at, last if 0 < last - wall_time < _CLOCK_SET_S else wall_time
        return self._dated[1]

    def performed(self, effect: Effect) -> None:
        """Record an effect that was dispatched."""
        self._metrics.record_effect(effect)
        if self._tracer is not None:
            self._tracer.performed(effect, time.time())

    def stepped(self, events: int, lag_s: float, duration_s: float) -> None:
        """Record one round."""
        self._metrics.record_step(duration_s=duration_s, lags_s=(lag_s,))

    def stalled(self, duration_s: float) -> None:
        """Record that the loop did not run for `duration_s`."""
        self._metrics.record_stall(duration_s)
        if duration_s >= _STALL_REPORTED_S:
            _log.warning(
                "stalled: this time counts against no target",
                extra=fields(duration_s=round(duration_s, 3), remedy="give lbguard processor time"),
            )

    def committed(self, result: CommitResult) -> None:
        """Record a commit of one stream."""
        self._metrics.streams.record_commits((result,))
        if self._tracer is not None:
            self._tracer.committed(result, time.time())

    def refused(self, events: Sequence[Event]) -> None:
        """Record the refused kernel operations among the results of one effect, in one log line."""
        refused = [event for event in events if isinstance(event, RouteFailed | RuleFailed)]
        if refused:
            self._metrics.record_failures(routes=[event.reason for event in refused])
            first = refused[0].route if isinstance(refused[0], RouteFailed) else refused[0].rule
            _log.warning("kernel refused", extra=fields(count=len(refused), what=str(first), reason=refused[0].reason))

    def kernel_observed(self, events: Sequence[Event], *, in_sync: bool) -> None:
        """Record the mirror's events that mean that the view of the kernel was lost or is complete again.

        A loss is the last event of a batch, so only that has to be checked.
        """
        if events and isinstance(events[-1], KernelOutOfSync):
            self._kernel_lost = True
            _log.warning("kernel view lost: nothing is withdrawn", extra=fields(reason=events[-1].reason))
        elif self._kernel_lost and in_sync:
            self._kernel_lost = False
            _log.info("kernel view whole again")

    def source_observed(self, event: SourceSnapshot | SourceLost) -> None:
        """Record a new list of targets, or its loss."""
        if isinstance(event, SourceLost):
            _log.error("targets cannot be read: the last list stays in force", extra=fields(reason=event.reason))
        else:
            targets = sum(len(stream.targets) for stream in event.streams)
            _log.info("targets read", extra=fields(streams=len(event.streams), targets=targets))

    def waited(self, unready: str, now: float) -> None:
        """Log periodically the input that the service waits for; empty: it is ready. `now`: monotonic, seconds."""
        if not unready:
            self._remind_at = now + _REMIND_S
        elif now >= self._remind_at:
            self._remind_at = now + _REMIND_S
            _log.warning("not ready: waiting", extra=fields(reason=unready))

    def neighbors_refused(self, failures: Sequence[NeighborFailure]) -> None:
        """Record refused neighbour operations."""
        self._metrics.record_failures(neighbors=[failure.reason for failure in failures])
        # A link that was just removed refuses all its entries; one line reports them.
        _log.debug("neighbour operations refused", extra=fields(count=len(failures), first=failures[0].reason))

    def counted(self, announcer: Announcer | None, mirror: MirrorCounters) -> None:
        """Record the counters of announcer and mirror."""
        # With all names: rate() misses the first increment of a series that appears with it.
        if announcer is not None:
            counters = announcer.counters
            self._metrics.record_announcer(
                {kind.value: counters.sent[kind] for kind in FrameKind},
                {reason.value: counters.suppressed[reason] for reason in Suppressed},
                counters.errors,
            )
        resyncs = {**dict.fromkeys(RESYNC_REASONS, 0), **mirror.resyncs}
        self._metrics.record_mirror(mirror.overruns, resyncs, mirror.ignored)
