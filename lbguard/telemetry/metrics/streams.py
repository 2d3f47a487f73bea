"""Metrics of decisions and table changes of each stream. Series leave with their stream."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lbguard.core.model import Action, Condition, Decision, TargetKey, TargetState
from lbguard.core.status import StreamStatus
from lbguard.telemetry.metrics.families import WORK_BUCKETS, MetricFamilies, MetricSpec, reason_label
from lbguard.telemetry.metrics.targets import TIMELINE_LABELS, TIMELINE_METRICS, PerTarget, TargetTimeline

_OUTAGE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120)


STATES, AVAILABLE, MASS_FAILURE = "lbguard_target_states", "lbguard_stream_available", "lbguard_stream_mass_failure"
FAMILIES = "lbguard_target_families"

STATE_SPECS = (
    MetricSpec(name=STATES, kind="gauge", labels=("stream", "state"), help="Targets in each state."),
    MetricSpec(
        name=AVAILABLE,
        kind="gauge",
        labels=("stream",),
        help="1 while this load balancer has a forwarding path for the stream.",
    ),
    MetricSpec(
        name=MASS_FAILURE,
        kind="gauge",
        labels=("stream",),
        help="1 while so many targets of the stream are broken that withdrawals are suppressed.",
    ),
    MetricSpec(
        name=FAMILIES,
        kind="gauge",
        labels=("stream", "family", "state"),
        help="Targets in the table whose path of a family is broken: held, or withdrawn alone (with flow affinity).",
    ),
)


class StreamStates(Collector):
    """Gauges of the streams, read from their latest status when they are scraped."""

    def __init__(self) -> None:
        self.streams: Sequence[StreamStatus] = ()

    def collect(self) -> Iterable[Metric]:
        """Return the gauges; called by the thread that serves a scrape."""
        streams = self.streams
        states, available, mass_failure, families = (
            GaugeMetricFamily(spec.name, spec.help, labels=spec.labels) for spec in STATE_SPECS
        )
        for stream in streams:
            for state in TargetState:
                states.add_metric((stream.name, state), stream.counts.get(state, 0))
            available.add_metric((stream.name,), stream.available)
            mass_failure.add_metric((stream.name,), stream.mass_failure)
            for family in stream.families:
                name = "ipv4" if family.ipv4 else "ipv6"
                families.add_metric((stream.name, name, "held"), family.held)
                families.add_metric((stream.name, name, "withdrawn"), family.withdrawn)
        yield from (states, available, mass_failure, families)


_EXEMPLAR_MAX = 128
"""Characters of an exemplar's names and values together (OpenMetrics 1.0)."""


def exemplar_of(decision: Decision, trace: str) -> dict[str, str]:
    """Return what leads from an observation to its decision: target, sequence and trace, as far as there is room."""
    exemplar: dict[str, str] = {}
    named = {"trace_id": trace, "sequence": str(decision.sequence), "target": str(decision.target)}
    room = _EXEMPLAR_MAX
    for name, value in named.items():
        room -= len(name) + len(value)
        if value and room >= 0:
            exemplar[name] = value
    return exemplar


class CommitOutcome(Protocol):
    """Outcome of one stream's commit (`CommitResult` of the distributors)."""

    @property
    def stream(self) -> str:
        """Name of the stream."""

    @property
    def slots_changed(self) -> int:
        """Return the number of slots that got another target."""

    @property
    def duration_s(self) -> float:
        """Return the duration of the commit, seconds."""

    @property
    def error(self) -> str:
        """Empty on success."""

    @property
    def digest(self) -> int | None:
        """Return the digest of the table; None when it is not known."""


class StreamMetrics:
    """Metrics of decisions, commits and the states of targets. The methods belong to one thread.

    Args:
        families: where they are declared.
        place: labels that every series of a single target has (trench, conduit).
        per_target: the targets that have series of their own.
    """

    def __init__(self, families: MetricFamilies, place: Mapping[str, str], per_target: PerTarget = "all") -> None:
        self._present: set[str] = set()
        self._exemplar: dict[str, str] = {}
        self._lost_for: dict[TargetKey, str] = {}
        self._family_lost: set[TargetKey] = set()
        self._taken_out: set[TargetKey] = set()
        self._states = StreamStates()
        families.add(self._states, STATE_SPECS)
        self._define_decisions(families)
        self._define_commits(families)
        self._timeline = TargetTimeline(place, per_target)
        families.add(
            self._timeline,
            [
                MetricSpec(name=name, kind=kind, labels=TIMELINE_LABELS, help=help_text)
                for name, (kind, help_text) in TIMELINE_METRICS.items()
            ],
        )

    def _define_decisions(self, families: MetricFamilies) -> None:
        self.decisions = families.counter("decisions", "Decisions by action.", "action")
        for action in Action:
            self.decisions.labels(action)
        self.holds = families.counter(
            "holds", "Holds begun because an admitted target's path broke.", "stream", "cause"
        )
        self.recoveries = families.counter(
            "recoveries", "Holds and freezes that ended because the path came back.", "stream"
        )
        self.withdrawals = families.counter(
            "withdrawals", "Targets withdrawn because their path did not come back.", "stream", "cause"
        )
        self.family_withdrawals = families.counter(
            "family_withdrawals",
            "Families withdrawn alone because their path did not come back; the target serves the other family.",
            "stream",
            "cause",
        )
        self.freezes = families.counter(
            "freezes", "Targets frozen: their deadline passed during a mass failure.", "stream"
        )
        self.readmissions = families.counter("readmissions", "Withdrawn targets that were admitted again.", "stream")
        self.hold_duration = families.histogram(
            "hold_duration_seconds", "Duration of holds, from the loss to recovery or withdrawal.", _OUTAGE_BUCKETS
        )
        self.heal_duration = families.histogram(
            "heal_duration_seconds",
            "Time from the loss of a path to its return; for withdrawn targets the damping delay is included.",
            _OUTAGE_BUCKETS,
            "cause",
        )

    def _define_commits(self, families: MetricFamilies) -> None:
        self.commit_duration = families.histogram(
            "commit_duration_seconds", "Duration of commits to the distributor, per stream's table.", WORK_BUCKETS
        )
        self.commit_errors = families.counter("commit_errors", "Commits that did not take effect.", "stream")
        self.slots_changed = families.counter("slots_changed", "Slots of the table given to another target.", "stream")
        self.table_digest = families.gauge(
            "stream_table_digest",
            "Digest of the stream's table, 48 bits: load balancers that spread packets alike have the same number.",
            "stream",
        )

    def record_decision(self, decision: Decision, trace: str = "") -> None:
        """Count a decision and the hold or freeze that it ended.

        Args:
            decision: the decision.
            trace: identifier of its trace, for the exemplars of histograms; empty: it has none.
        """
        self._exemplar = exemplar_of(decision, trace)
        stream, cause = decision.target.stream, reason_label(decision.cause)
        self._timeline.record(decision)
        self.decisions.labels(decision.action).inc()
        match decision.action:
            case Action.HOLD:
                self.holds.labels(stream, cause).inc()
            case Action.RECOVER if decision.target in self._family_lost:
                # Its hold ended as the family was withdrawn.
                self._family_lost.discard(decision.target)
                self._observe_heal(decision, cause)
            case Action.RECOVER:
                self.recoveries.labels(stream).inc()
                self._observe_hold(decision)
                self._observe_heal(decision, cause)
            case Action.WITHDRAW_FAMILY:
                self.family_withdrawals.labels(stream, cause).inc()
                self._family_lost.add(decision.target)
                self._observe_hold(decision)
            case Action.FREEZE:
                self.freezes.labels(stream).inc()
            case Action.WITHDRAW:
                self.withdrawals.labels(stream, cause).inc()
                self._observe_hold(decision)
                self._lost_for[decision.target] = cause
                self._family_lost.discard(decision.target)
            case Action.READMIT:
                self.readmissions.labels(stream).inc()
                if decision.target in self._taken_out:
                    # An operator had withdrawn it: nothing healed.
                    self._taken_out.discard(decision.target)
                else:
                    self._observe_heal(decision, self._lost_for.pop(decision.target, "other"))
            case Action.TAKE_OUT:
                self._lost_for.pop(decision.target, None)
                self._family_lost.discard(decision.target)
                self._taken_out.add(decision.target)
            case Action.REMOVE | Action.FORGET:
                self._taken_out.discard(decision.target)
                self._lost_for.pop(decision.target, None)
                self._family_lost.discard(decision.target)

    def shows(self, key: TargetKey) -> bool:
        """Tell whether a target has series of its own."""
        return self._timeline.shows(key)

    def record_states(self, streams: Sequence[StreamStatus]) -> None:
        """Show the state of the moment; streams that are gone lose their series."""
        self._states.streams = streams
        present = {stream.name for stream in streams}
        for name in self._present - present:
            self._forget_stream(name)
        for stream in streams:
            if stream.name not in self._present:
                self._begin_stream(stream.name)
        self._present = present

    def record_commits(self, results: Iterable[CommitOutcome]) -> None:
        """Count the outcome of a commit, one result per stream."""
        for result in results:
            if result.error:
                self.commit_errors.labels(result.stream).inc()
            else:
                self.commit_duration.observe(result.duration_s)
                self.slots_changed.labels(result.stream).inc(result.slots_changed)
                if result.digest is not None:
                    self.table_digest.labels(result.stream).set(result.digest)

    def _observe_hold(self, decision: Decision) -> None:
        if decision.duration_s is not None:
            self.hold_duration.observe(decision.duration_s, self._exemplar)

    def _observe_heal(self, decision: Decision, cause: str) -> None:
        if decision.duration_s is not None:
            self.heal_duration.labels(cause).observe(decision.duration_s, self._exemplar)

    def _begin_stream(self, name: str) -> None:
        # A counter that appears with its first increment hides that increment from rate(), so it appears with 0.
        for counter in (self.recoveries, self.freezes, self.readmissions, self.commit_errors, self.slots_changed):
            counter.labels(name)
        for cause in Condition:
            if cause is not Condition.OK:
                self.holds.labels(name, cause)
                self.withdrawals.labels(name, cause)
                self.family_withdrawals.labels(name, cause)

    def _forget_stream(self, name: str) -> None:
        for metric in (
            self.holds,
            self.recoveries,
            self.withdrawals,
            self.family_withdrawals,
            self.freezes,
            self.readmissions,
            self.commit_errors,
            self.slots_changed,
            self.table_digest,
        ):
            metric.remove_by_labels({"stream": name})
        self._lost_for = {key: cause for key, cause in self._lost_for.items() if key.stream != name}
        self._family_lost = {key for key in self._family_lost if key.stream != name}
        self._taken_out = {key for key in self._taken_out if key.stream != name}
        self._timeline.forget_stream(name)
