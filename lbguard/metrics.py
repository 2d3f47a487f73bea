"""Every metric of lbguard, in one class that takes a registry. Importing this module registers nothing.

Labels are bounded: streams and targets come from the source and leave with it; every other label is one of the named
reasons of the code, and a value that does not look like one is counted as `other`.
"""

import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from lbguard import __version__
from lbguard.core.effects import (
    Effect,
    FlushNeighbors,
    Ignored,
    NeighborMoved,
    ProbeNeighbors,
    Record,
    ResolveNeighbors,
)
from lbguard.core.model import Action, Condition, Decision, TargetKey, TargetState, VerdictState
from lbguard.core.status import GuardStatus
from lbguard.interface_counts import INTERFACE_LABELS, INTERFACE_METRICS, InterfaceTotals
from lbguard.target_timeline import TIMELINE_LABELS, TIMELINE_METRICS, TargetTimeline

_OUTAGE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120)
_WORK_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_REASON = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")

UNREADY_REASONS = ("kernel_not_in_sync", "source_not_read", "tables_not_read")
"""Why the service may not be ready, by name (`Daemon.unready_reason`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """One metric as it is documented. `name` is the exported one; `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class CommitOutcome(Protocol):
    """What a distributor says of one stream's commit (`CommitResult` of the distributors)."""

    @property
    def stream(self) -> str:
        """Name of the stream."""

    @property
    def slots_changed(self) -> int:
        """How many slots got another target."""

    @property
    def duration_s(self) -> float:
        """How long it took, seconds."""

    @property
    def error(self) -> str:
        """Empty on success."""


def reason_label(text: str) -> str:
    """Return a named reason as a label value, without the words after its colon (`ENODEV: No such device`).

    Anything that is not one word of code becomes `other`.
    """
    name = text.partition(":")[0]
    return name if _REASON.fullmatch(name) else "other"


class _Readings:
    """Turns readings of a foreign ever-growing count into increments; a smaller reading means it began again at 0."""

    def __init__(self) -> None:
        self._last: dict[object, int] = {}

    def grown(self, key: object, reading: int) -> int:
        last = self._last.get(key, 0)
        self._last[key] = reading
        return reading - last if reading >= last else reading

    def forget(self, key: object) -> None:
        self._last.pop(key, None)


_PACKET_SPECS = (
    MetricSpec(
        name="lbguard_target_packets_total",
        kind="counter",
        labels=("stream", "identifier"),
        help="Packets that the distributor gave to a target, held ones included.",
    ),
    MetricSpec(
        name="lbguard_target_bytes_total",
        kind="counter",
        labels=("stream", "identifier"),
        help="Bytes (with IP header) of the packets that the distributor gave to a target.",
    ),
    MetricSpec(
        name="lbguard_held_packets_total",
        kind="counter",
        labels=("stream", "identifier"),
        help="Packets to a target that met the fallback because its path was broken: what holding it cost.",
    ),
    MetricSpec(
        name="lbguard_held_bytes_total",
        kind="counter",
        labels=("stream", "identifier"),
        help="Bytes (with IP header) of the packets that met the fallback.",
    ),
)


class _PacketTotals(Collector):
    """Per-target totals, kept in one dictionary: cheaper than a metric object for each of 10,000 targets."""

    def __init__(self, place: Mapping[str, str]) -> None:
        self._place = dict(place)
        self.totals: dict[TargetKey, tuple[int, int, int, int]] = {}

    def collect(self) -> Iterable[Metric]:
        """Return the four counters; called by the thread that serves a scrape."""
        totals = list(self.totals.items())
        for column, spec in enumerate(_PACKET_SPECS):
            family = CounterMetricFamily(spec.name, spec.help, labels=(*self._place, *spec.labels))
            for key, values in totals:
                family.add_metric((*self._place.values(), key.stream, str(key.identifier)), values[column])
            yield family


class Metrics:
    """All metrics. The `record_*` methods take domain values and belong to one thread; scraping may be another.

    Args:
        registry: where they are registered.
        place: labels for the counters of targets and links (trench, conduit), where the source knows them.
    """

    def __init__(self, registry: CollectorRegistry, place: Mapping[str, str] | None = None) -> None:
        # The `_created` series double the number of counters and nothing here reads them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        self.specs: list[MetricSpec] = []
        self._readings = _Readings()
        self._packets = _PacketTotals(place or {})
        self.interfaces = InterfaceTotals(place or {})
        self._timeline = TargetTimeline(place or {})
        self._streams: set[str] = set()
        self._lost_for: dict[TargetKey, str] = {}
        self._define_decisions()
        self._define_repair()
        self._define_kernel()
        self._define_work()
        self._define_verdicts()
        registry.register(self._packets)
        self.specs += _PACKET_SPECS
        registry.register(self.interfaces)
        self.specs += [
            MetricSpec(name=name, kind="counter", labels=INTERFACE_LABELS, help=help_text)
            for name, help_text in INTERFACE_METRICS.items()
        ]
        registry.register(self._timeline)
        self.specs += [
            MetricSpec(name=name, kind=kind, labels=TIMELINE_LABELS, help=help_text)
            for name, (kind, help_text) in TIMELINE_METRICS.items()
        ]
        ProcessCollector(registry=registry)

    def _define_decisions(self) -> None:
        build = self._gauge("build_info", "1, with the version of lbguard and Python as labels.", "version", "python")
        build.labels(__version__, platform.python_version()).set(1)
        self.target_states = self._gauge("target_states", "Targets in each state.", "stream", "state")
        self.stream_available = self._gauge(
            "stream_available", "1 while this load balancer has a forwarding path for the stream.", "stream"
        )
        self.stream_mass_failure = self._gauge(
            "stream_mass_failure", "1 while so many targets of the stream are broken that deadlines freeze.", "stream"
        )
        self.decisions = self._counter("decisions", "Decisions by what they did.", "action")
        for action in Action:
            self.decisions.labels(action)
        self.holds = self._counter("holds", "Holds begun: an admitted target's path broke.", "stream", "cause")
        self.recoveries = self._counter(
            "recoveries", "Holds and freezes that ended well: the path came back.", "stream"
        )
        self.withdrawals = self._counter(
            "withdrawals", "Targets withdrawn because their path did not come back.", "stream", "cause"
        )
        self.freezes = self._counter("freezes", "Targets frozen: their deadline passed in a mass failure.", "stream")
        self.readmissions = self._counter("readmissions", "Withdrawn targets that were admitted again.", "stream")
        self.hold_duration = self._histogram(
            "hold_duration_seconds", "How long holds lasted, from the loss to recovery or withdrawal.", _OUTAGE_BUCKETS
        )
        self.heal_duration = self._histogram(
            "heal_duration_seconds",
            "How long paths took to come back, from the loss; of withdrawn targets the damping delay is part of it.",
            _OUTAGE_BUCKETS,
            "cause",
        )

    def _define_repair(self) -> None:
        self.announcements = self._counter("announcements", "Gratuitous ARP and NA frames sent, by form.", "kind")
        self.announcements_suppressed = self._counter(
            "announcements_suppressed", "Announcements not sent, by reason.", "reason"
        )
        self.announcement_errors = self._counter(
            "announcement_errors", "Announcements that the kernel refused, by errno name.", "error"
        )
        self.neighbor_flushes = self._counter("neighbor_flushes", "Neighbour entries flushed.")
        self.neighbor_resolves = self._counter("neighbor_resolves", "Neighbour entries resolved on our demand.")
        self.neighbor_probes = self._counter("neighbor_probes", "Neighbour entries verified on our demand.")
        self.neighbor_mac_changes = self._counter(
            "neighbor_mac_changes", "Neighbour entries of targets whose link-layer address changed."
        )
        self.neighbor_errors = self._counter(
            "neighbor_errors", "Neighbour operations that the kernel refused, by reason.", "error"
        )
        self.route_errors = self._counter(
            "route_errors", "Route and rule changes that the kernel refused, by reason.", "error"
        )

    def _define_kernel(self) -> None:
        self.not_ready = self._gauge("not_ready", "1 while the service is not ready, by reason.", "reason")
        self.heartbeat = self._gauge(
            "heartbeat_timestamp_seconds", "When the loop last brought the gauges up to date, by the wall clock."
        )
        self.kernel_in_sync = self._gauge("kernel_in_sync", "1 while the mirror of the kernel is complete.")
        self.source_ok = self._gauge("source_ok", "1 while the source of targets can be read.")
        self.source_sessions = self._counter("source_sessions", "Times a registry began to answer.")
        self.source_losses = self._counter("source_losses", "Times a registry was lost.")
        self.source_removals_waiting = self._gauge(
            "source_removals_waiting",
            "Entries that a registry no longer lists after a loss, and that are kept for now.",
        )
        self.source_entries_skipped = self._counter(
            "source_entries_skipped", "Entries of a registry that cannot be used, by reason.", "reason"
        )
        self.interposer_calls = self._counter(
            "interposer_calls",
            "Calls of nfqlb that the load balancer made, by command and by what became of them.",
            "command",
            "outcome",
        )
        self.mesh_events = self._counter(
            "mesh_events", "Events of a network service manager, by kind (list, update, delete).", "kind"
        )
        self.mesh_neighbors_outdated = self._counter(
            "mesh_neighbors_outdated", "Target addresses whose entries a network service manager's event outdated."
        )
        self.mesh_losses = self._counter("mesh_losses", "Times a network service manager was lost.")
        self.event_lag = self._histogram(
            "event_lag_seconds", "From receiving an event to the decision about it.", _WORK_BUCKETS
        )
        self.inbox_depth = self._gauge("inbox_depth", "Events waiting for the engine.")
        self.inbox_dropped = self._counter(
            "inbox_dropped", "Events dropped because the inbox was full; the kernel is read again after that."
        )
        self.kernel_overruns = self._counter("kernel_overruns", "Times the kernel dropped messages meant for us.")
        self.kernel_resyncs = self._counter("kernel_resyncs", "Full reads of the kernel's state, by reason.", "reason")
        self.kernel_messages_ignored = self._counter(
            "kernel_messages_ignored", "Kernel messages that were not used, by reason.", "reason"
        )
        self.events_ignored = self._counter("events_ignored", "Events that changed nothing, by reason.", "reason")

    def _define_work(self) -> None:
        self.commit_duration = self._histogram(
            "commit_duration_seconds", "How long commits to the distributor took, per stream's table.", _WORK_BUCKETS
        )
        self.commit_errors = self._counter("commit_errors", "Commits that did not take effect.", "stream")
        self.slots_changed = self._counter("slots_changed", "Slots of the table given to another target.", "stream")
        self.recording_entries = self._counter("recording_entries", "Entries taken for the recording.")
        self.recording_bytes = self._counter("recording_bytes", "Bytes written to recordings.")
        self.recording_dropped = self._counter(
            "recording_dropped", "Entries missing in recordings, by reason; a new file begins after the gap.", "reason"
        )
        self.engine_step = self._histogram(
            "engine_step_seconds", "How long the engine thought about one batch of events.", _WORK_BUCKETS
        )

    def _define_verdicts(self) -> None:
        self.verdicts_received = self._counter(
            "verdicts_received", "Verdicts that were let in, by what they say.", "state"
        )
        for state in VerdictState:
            self.verdicts_received.labels(state)
        self.verdicts_ignored = self._counter(
            "verdicts_ignored", "Verdicts let in that changed nothing, by reason.", "reason"
        )
        self.verdict_requests_denied = self._counter(
            "verdict_requests_denied", "Requests and streams that the policy refused, by reason.", "reason"
        )
        self.verdict_requests_limited = self._counter(
            "verdict_requests_limited", "Requests and streams refused because of a limit, by its setting.", "limit"
        )
        self.verdict_requests_invalid = self._counter(
            "verdict_requests_invalid", "Requests refused because a field was wrong."
        )
        self.verdict_streams_replaced = self._counter(
            "verdict_streams_replaced", "Streams ended because their reporter opened a newer one."
        )
        self.verdict_streams = self._gauge("verdict_streams", "Streams of reports that are open.")
        self.verdict_reporters = self._gauge("verdict_reporters", "Reporters whose limits are being counted.")
        self.verdict_subjects = self._gauge(
            "verdict_subjects", "Subjects of running verdicts; ones that just ran out may be among them."
        )

    def record_decision(self, decision: Decision) -> None:
        """Count a decision and what it ended."""
        stream, cause = decision.target.stream, reason_label(decision.cause)
        self._timeline.record(decision)
        self.decisions.labels(decision.action).inc()
        match decision.action:
            case Action.HOLD:
                self.holds.labels(stream, cause).inc()
            case Action.RECOVER:
                self.recoveries.labels(stream).inc()
                self._observe_hold(decision)
                self._observe_heal(decision, cause)
            case Action.FREEZE:
                self.freezes.labels(stream).inc()
            case Action.WITHDRAW:
                self.withdrawals.labels(stream, cause).inc()
                self._observe_hold(decision)
                self._lost_for[decision.target] = cause
            case Action.READMIT:
                self.readmissions.labels(stream).inc()
                self._observe_heal(decision, self._lost_for.pop(decision.target, "other"))
            case Action.REMOVE | Action.FORGET:
                self._lost_for.pop(decision.target, None)

    def record_effect(self, effect: Effect) -> None:
        """Count what an effect asks for; effects that have no metric of their own are no error."""
        match effect:
            case Record(decision=decision):
                self.record_decision(decision)
            case FlushNeighbors(entries=entries):
                self.neighbor_flushes.inc(len(entries))
            case ResolveNeighbors(entries=entries):
                self.neighbor_resolves.inc(len(entries))
            case ProbeNeighbors(entries=entries):
                self.neighbor_probes.inc(len(entries))
            case NeighborMoved():
                self.neighbor_mac_changes.inc()
            case Ignored(reason=reason, count=count):
                self.events_ignored.labels(reason_label(reason)).inc(count)

    def record_status(self, status: GuardStatus) -> None:
        """Show the state of the moment; streams and targets that are gone lose their series."""
        self.kernel_in_sync.set(status.in_sync)
        self.source_ok.set(status.source_ok)
        present = {stream.name for stream in status.streams}
        for name in self._streams - present:
            self._forget_stream(name)
        for stream in status.streams:
            for state in TargetState:
                self.target_states.labels(stream.name, state).set(stream.counts.get(state, 0))
            self.stream_available.labels(stream.name).set(stream.available)
            self.stream_mass_failure.labels(stream.name).set(stream.mass_failure)
            if stream.name not in self._streams:
                self._begin_stream(stream.name)
        self._streams = present

    def record_readiness(self, unready: str) -> None:
        """Show why the service is not ready (empty: it is), and that its loop goes on."""
        named = reason_label(unready)
        for reason in UNREADY_REASONS:
            self.not_ready.labels(reason).set(reason == named)
        self.heartbeat.set_to_current_time()

    def record_commits(self, results: Iterable[CommitOutcome]) -> None:
        """Count the outcome of a commit, one result per stream."""
        for result in results:
            if result.error:
                self.commit_errors.labels(result.stream).inc()
            else:
                self.commit_duration.observe(result.duration_s)
                self.slots_changed.labels(result.stream).inc(result.slots_changed)

    def record_packets(
        self, hits: Mapping[TargetKey, tuple[int, int]], held: Mapping[TargetKey, tuple[int, int]]
    ) -> None:
        """Take readings (packets, bytes) per target. Targets without a reading lose their series.

        Args:
            hits: what the distributor gave to each target, as the kernel counts it now.
            held: what met the fallback.
        """
        totals: dict[TargetKey, tuple[int, int, int, int]] = {}
        for key in hits.keys() | held.keys():
            now = (*hits.get(key, (0, 0)), *held.get(key, (0, 0)))
            before = self._packets.totals.get(key, (0, 0, 0, 0))
            grown = [self._readings.grown((key, column), reading) for column, reading in enumerate(now)]
            totals[key] = (
                before[0] + grown[0],
                before[1] + grown[1],
                before[2] + grown[2],
                before[3] + grown[3],
            )
        gone = self._packets.totals.keys() - totals.keys()
        for key in gone:
            for column in range(len(_PACKET_SPECS)):
                self._readings.forget((key, column))
        self._packets.totals = totals

    def record_interposer(self, calls: Mapping[tuple[str, str], int]) -> None:
        """Take the interposer's own counts of calls, by command and outcome, which only grow."""
        for key, reading in calls.items():
            self.interposer_calls.labels(*key).inc(self._readings.grown(("interposer", *key), reading))

    def record_announcer(
        self, sent: Mapping[str, int], suppressed: Mapping[str, int], errors: Mapping[str, int]
    ) -> None:
        """Take the announcer's own counts, which only grow."""
        self._follow(self.announcements, "kind", sent)
        self._follow(self.announcements_suppressed, "reason", suppressed)
        self._follow(self.announcement_errors, "error", errors)

    def record_mirror(self, overruns: int, resyncs: Mapping[str, int], ignored: Mapping[str, int]) -> None:
        """Take the mirror's own counts, which only grow."""
        self.kernel_overruns.inc(self._readings.grown("overruns", overruns))
        self._follow(self.kernel_resyncs, "resyncs", resyncs)
        self._follow(self.kernel_messages_ignored, "ignored", ignored)

    def record_source(self, *, sessions: int, losses: int, waiting: int, skipped: Mapping[str, int]) -> None:
        """Take a registry's own counts; all but `waiting` only grow."""
        self.source_sessions.inc(self._readings.grown("source_sessions", sessions))
        self.source_losses.inc(self._readings.grown("source_losses", losses))
        self.source_removals_waiting.set(waiting)
        self._follow(self.source_entries_skipped, "skipped", skipped)

    def record_mesh(self, events: Mapping[str, int], *, outdated: int, losses: int) -> None:
        """Take the counts of what a network service manager told, which only grow."""
        self._follow(self.mesh_events, "mesh_events", events)
        self.mesh_neighbors_outdated.inc(self._readings.grown("mesh_neighbors_outdated", outdated))
        self.mesh_losses.inc(self._readings.grown("mesh_losses", losses))

    def record_recording(self, *, entries: int, written_bytes: int, dropped: Mapping[str, int]) -> None:
        """Take the recorder's own counts, which only grow."""
        self.recording_entries.inc(self._readings.grown("recording_entries", entries))
        self.recording_bytes.inc(self._readings.grown("recording_bytes", written_bytes))
        self._follow(self.recording_dropped, "recording_dropped", dropped)

    def record_inbox_dropped(self, total: int) -> None:
        """Take the runner's own count of dropped events, which only grows."""
        self.inbox_dropped.inc(self._readings.grown("inbox_dropped", total))

    def record_verdicts(
        self,
        *,
        received: Mapping[str, int],
        ignored: Mapping[str, int],
        denied: Mapping[str, int],
        limited: Mapping[str, int],
        invalid: int,
        replaced: int,
    ) -> None:
        """Take the verdict service's own counts, which only grow."""
        self._follow(self.verdicts_received, "verdicts_received", received)
        self._follow(self.verdicts_ignored, "verdicts_ignored", ignored)
        self._follow(self.verdict_requests_denied, "verdicts_denied", denied)
        self._follow(self.verdict_requests_limited, "verdicts_limited", limited)
        self.verdict_requests_invalid.inc(self._readings.grown("verdicts_invalid", invalid))
        self.verdict_streams_replaced.inc(self._readings.grown("verdicts_replaced", replaced))

    def record_reporters(self, *, streams: int, reporters: int, subjects: int) -> None:
        """Show how much the verdict service holds now."""
        self.verdict_streams.set(streams)
        self.verdict_reporters.set(reporters)
        self.verdict_subjects.set(subjects)

    def record_failures(self, *, routes: Sequence[str] = (), neighbors: Sequence[str] = ()) -> None:
        """Count refused kernel operations by their named reasons."""
        for reason in routes:
            self.route_errors.labels(reason_label(reason)).inc()
        for reason in neighbors:
            self.neighbor_errors.labels(reason_label(reason)).inc()

    def record_step(self, *, duration_s: float, lags_s: Iterable[float] = (), inbox_depth: int = 0) -> None:
        """Note one turn of the loop.

        Args:
            duration_s: how long the engine took.
            lags_s: for each batch of events, from receiving it to the decision.
            inbox_depth: events left waiting.
        """
        self.engine_step.observe(duration_s)
        self.inbox_depth.set(inbox_depth)
        for lag_s in lags_s:
            self.event_lag.observe(lag_s)

    def _observe_hold(self, decision: Decision) -> None:
        if decision.duration_s is not None:
            self.hold_duration.observe(decision.duration_s)

    def _observe_heal(self, decision: Decision, cause: str) -> None:
        if decision.duration_s is not None:
            self.heal_duration.labels(cause).observe(decision.duration_s)

    def _follow(self, counter: Counter, name: str, readings: Mapping[str, int]) -> None:
        for value, reading in readings.items():
            counter.labels(reason_label(value)).inc(self._readings.grown((name, value), reading))

    def _begin_stream(self, name: str) -> None:
        # A counter that appears with its first increment hides that increment from rate(), so it appears with 0.
        for counter in (self.recoveries, self.freezes, self.readmissions, self.commit_errors, self.slots_changed):
            counter.labels(name)
        for cause in Condition:
            if cause is not Condition.OK:
                self.holds.labels(name, cause)
                self.withdrawals.labels(name, cause)

    def _forget_stream(self, name: str) -> None:
        for metric in (
            self.target_states,
            self.stream_available,
            self.stream_mass_failure,
            self.holds,
            self.recoveries,
            self.withdrawals,
            self.freezes,
            self.readmissions,
            self.commit_errors,
            self.slots_changed,
        ):
            metric.remove_by_labels({"stream": name})
        self._lost_for = {key: cause for key, cause in self._lost_for.items() if key.stream != name}
        self._timeline.forget_stream(name)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        self._note(f"{name}_total", "counter", labels, help_text)
        return Counter(f"lbguard_{name}", help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        self._note(name, "gauge", labels, help_text)
        return Gauge(f"lbguard_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        self._note(name, "histogram", labels, help_text)
        return Histogram(f"lbguard_{name}", help_text, labels, buckets=buckets, registry=self.registry)

    def _note(self, name: str, kind: str, labels: tuple[str, ...], help_text: str) -> None:
        self.specs.append(MetricSpec(name=f"lbguard_{name}", kind=kind, labels=labels, help=help_text))


def list_metrics() -> tuple[MetricSpec, ...]:
    """Return what there is to document, by name."""
    return tuple(sorted(Metrics(CollectorRegistry()).specs, key=lambda spec: spec.name))
