"""Definitions of lbguard's metrics, in one class that takes a registry. Importing this module registers nothing.

Series with a lifetime are in separate modules: those of streams in `streams.py`, of targets in `targets.py`, of links
in `interface_counts.py`; those of flow affinity in `affinity.py`, and of parking in `parking.py`.

Labels are bounded: streams and targets come from the source, and their series end with them; every other label is one
of the named reasons of the code, and any other value is counted as `other`.
"""

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, ProcessCollector

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
from lbguard.core.model import VerdictState
from lbguard.core.status import GuardStatus
from lbguard.telemetry.metrics.affinity import AffinityMetrics
from lbguard.telemetry.metrics.config import ConfigMetrics
from lbguard.telemetry.metrics.control import ControlMetrics
from lbguard.telemetry.metrics.families import WORK_BUCKETS, ForeignCounts, MetricFamilies, MetricSpec, reason_label
from lbguard.telemetry.metrics.interface_counts import INTERFACE_LABELS, INTERFACE_METRICS, InterfaceTotals
from lbguard.telemetry.metrics.parking import ParkingMetrics
from lbguard.telemetry.metrics.streams import StreamMetrics
from lbguard.telemetry.metrics.targets import PACKET_SPECS, STREAM_SPECS, PerTarget, TargetPackets

UNREADY_REASONS = (
    "calls_not_taken",
    "kernel_not_in_sync",
    "not_available",
    "socket_not_served",
    "source_not_read",
    "stopping",
    "tables_not_read",
)
"""Reasons for which the service is not ready (`ServiceParts.unready_reason`, `gate_reason`)."""


class Metrics:
    """All metrics of lbguard. One thread calls the `record_*` methods, with domain values; another may scrape.

    Args:
        registry: the registry of the metrics.
        place: labels for the counters of targets and links (trench, conduit), if the source knows them.
        per_target: the targets that have series of their own.
    """

    def __init__(
        self, registry: CollectorRegistry, place: Mapping[str, str] | None = None, per_target: PerTarget = "all"
    ) -> None:
        families = MetricFamilies(registry)
        self.registry = registry
        self.specs = families.specs
        self._counts = ForeignCounts()
        build = families.gauge(
            "build_info", "1, with the version of lbguard and Python as labels.", "version", "python"
        )
        build.labels(__version__, platform.python_version()).set(1)
        self.streams = StreamMetrics(families, place or {}, per_target)
        self.affinity = AffinityMetrics(families)
        self.parking = ParkingMetrics(families)
        self.config = ConfigMetrics(families)
        self._define_repair(families)
        self._define_kernel(families)
        self._define_work(families)
        self._define_verdicts(families)
        self.control = ControlMetrics(families)
        self.packets = TargetPackets(place or {}, self.streams.shows)
        families.add(self.packets, (*PACKET_SPECS, *STREAM_SPECS))
        self.interfaces = InterfaceTotals(place or {})
        families.add(
            self.interfaces,
            [
                MetricSpec(name=name, kind="counter", labels=INTERFACE_LABELS, help=help_text)
                for name, help_text in INTERFACE_METRICS.items()
            ],
        )
        ProcessCollector(registry=registry)

    def _define_repair(self, families: MetricFamilies) -> None:
        self.announcements = families.counter("announcements", "Gratuitous ARP and NA frames sent, by form.", "kind")
        self.announcements_suppressed = families.counter(
            "announcements_suppressed", "Announcements not sent, by reason.", "reason"
        )
        self.announcement_errors = families.counter(
            "announcement_errors", "Announcements that the kernel refused, by errno name.", "error"
        )
        self.neighbor_flushes = families.counter("neighbor_flushes", "Neighbour entries that lbguard flushed.")
        self.neighbor_resolves = families.counter("neighbor_resolves", "Neighbour entries that lbguard resolved.")
        self.neighbor_probes = families.counter("neighbor_probes", "Neighbour entries that lbguard verified.")
        self.neighbor_mac_changes = families.counter(
            "neighbor_mac_changes", "Neighbour entries of targets whose link-layer address changed."
        )
        self.neighbor_errors = families.counter(
            "neighbor_errors", "Neighbour operations that the kernel refused, by reason.", "error"
        )
        self.route_errors = families.counter(
            "route_errors", "Route and rule changes that the kernel refused, by reason.", "error"
        )

    def _define_kernel(self, families: MetricFamilies) -> None:
        self.not_ready = families.gauge("not_ready", "1 while the service is not ready, by reason.", "reason")
        self.heartbeat = families.gauge(
            "heartbeat_timestamp_seconds", "Time of the last update of the gauges by the event loop, by the wall clock."
        )
        self.kernel_in_sync = families.gauge(
            "kernel_in_sync", "1 while lbguard's copy of the kernel's state is complete."
        )
        self.source_ok = families.gauge("source_ok", "1 while the source of targets can be read.")
        self.source_sessions = families.counter(
            "source_sessions", "Times that a registry or API server began to answer."
        )
        self.source_losses = families.counter(
            "source_losses", "Times that the connection to a registry or API server was lost."
        )
        self.source_lost = families.gauge(
            "source_lost_timestamp_seconds",
            "Time since when a registry or API server gives no usable list, by the wall clock; 0: it does.",
        )
        self.source_removals_waiting = families.gauge(
            "source_removals_waiting",
            "Entries that a registry or API server no longer lists and that lbguard keeps for now.",
        )
        self.source_entries_skipped = families.counter(
            "source_entries_skipped", "Entries of a registry or of an object that cannot be used, by reason.", "reason"
        )
        self.interposer_calls = families.counter(
            "interposer_calls",
            "Calls of nfqlb by the load balancer, by command and outcome.",
            "command",
            "outcome",
        )
        self.mesh_events = families.counter(
            "mesh_events", "Events of a network service manager, by kind (list, update, delete).", "kind"
        )
        self.mesh_neighbors_outdated = families.counter(
            "mesh_neighbors_outdated",
            "Target addresses whose neighbour entries became outdated by an event of a network service manager.",
        )
        self.mesh_losses = families.counter(
            "mesh_losses", "Times that the connection to a network service manager was lost."
        )
        self.event_lag = families.histogram(
            "event_lag_seconds", "Time from the reception of an event to the decision about it.", WORK_BUCKETS
        )
        self.inbox_depth = families.gauge("inbox_depth", "Events waiting for the engine.")
        self.inbox_dropped = families.counter(
            "inbox_dropped",
            "Events dropped because the inbox was full; the kernel's whole state is read again after that.",
        )
        self.kernel_overruns = families.counter("kernel_overruns", "Times that the kernel dropped messages to lbguard.")
        self.kernel_resyncs = families.counter(
            "kernel_resyncs", "Full reads of the kernel's state, by reason.", "reason"
        )
        self.kernel_messages_ignored = families.counter(
            "kernel_messages_ignored", "Kernel messages that were ignored, by reason.", "reason"
        )
        self.events_ignored = families.counter("events_ignored", "Events that changed nothing, by reason.", "reason")

    def _define_work(self, families: MetricFamilies) -> None:
        self.recording_entries = families.counter("recording_entries", "Entries put into the queue of the recording.")
        self.recording_bytes = families.counter("recording_bytes", "Bytes written to recordings.")
        self.recording_dropped = families.counter(
            "recording_dropped", "Entries missing in recordings, by reason; a new file begins after the gap.", "reason"
        )
        self.engine_step = families.histogram(
            "engine_step_seconds", "Time to decide about one batch of events.", WORK_BUCKETS
        )
        self.stalled_seconds = families.counter(
            "stalled_seconds", "Seconds in which the process was stopped or held up and handled no events."
        )

    def _define_verdicts(self, families: MetricFamilies) -> None:
        self.verdicts_received = families.counter("verdicts_received", "Accepted verdicts, by state.", "state")
        for state in VerdictState:
            self.verdicts_received.labels(state)
        self.verdicts_ignored = families.counter(
            "verdicts_ignored", "Accepted verdicts that changed nothing, by reason.", "reason"
        )
        self.verdict_requests_denied = families.counter(
            "verdict_requests_denied", "Requests and streams that the policy refused, by reason.", "reason"
        )
        self.verdict_requests_limited = families.counter(
            "verdict_requests_limited",
            "Requests and streams refused because of a limit, by the limit's setting.",
            "limit",
        )
        self.verdict_requests_invalid = families.counter(
            "verdict_requests_invalid", "Requests refused because a field was wrong."
        )
        self.verdict_streams_replaced = families.counter(
            "verdict_streams_replaced", "Streams ended because their reporter opened a newer one."
        )
        self.verdict_streams = families.gauge("verdict_streams", "Open streams of reports.")
        self.verdict_reporters = families.gauge("verdict_reporters", "Reporters with counted limits.")
        self.verdict_subjects = families.gauge(
            "verdict_subjects", "Subjects of current verdicts; subjects of verdicts that just ran out may be included."
        )

    def record_effect(self, effect: Effect) -> None:
        """Count an effect; effects without a metric are ignored."""
        match effect:
            case Record(decision=decision):
                self.streams.record_decision(decision)
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
        self.streams.record_states(status.streams)

    def record_readiness(self, unready: str) -> None:
        """Set the reason why the service is not ready (empty: it is ready), and the heartbeat of its loop."""
        named = reason_label(unready)
        for reason in UNREADY_REASONS:
            self.not_ready.labels(reason).set(reason == named)
        self.heartbeat.set_to_current_time()

    def record_interposer(self, calls: Mapping[tuple[str, str], int]) -> None:
        """Record the interposer's counts of calls, by command and outcome, which only grow."""
        for key, reading in calls.items():
            self.interposer_calls.labels(*key).inc(self._counts.grown(("interposer", *key), reading))

    def record_announcer(
        self, sent: Mapping[str, int], suppressed: Mapping[str, int], errors: Mapping[str, int]
    ) -> None:
        """Record the announcer's counts, which only grow."""
        self._follow(self.announcements, "kind", sent)
        self._follow(self.announcements_suppressed, "reason", suppressed)
        self._follow(self.announcement_errors, "error", errors)

    def record_mirror(self, overruns: int, resyncs: Mapping[str, int], ignored: Mapping[str, int]) -> None:
        """Record the mirror's counts, which only grow."""
        self.kernel_overruns.inc(self._counts.grown("overruns", overruns))
        self._follow(self.kernel_resyncs, "resyncs", resyncs)
        self._follow(self.kernel_messages_ignored, "ignored", ignored)

    def record_source(
        self, *, sessions: int, losses: int, waiting: int, skipped: Mapping[str, int], lost_at: float = 0.0
    ) -> None:
        """Record the counts of a registry or API server; all but `waiting` and `lost_at` only grow."""
        self.source_sessions.inc(self._counts.grown("source_sessions", sessions))
        self.source_losses.inc(self._counts.grown("source_losses", losses))
        self.source_removals_waiting.set(waiting)
        self.source_lost.set(lost_at)
        self._follow(self.source_entries_skipped, "skipped", skipped)

    def record_mesh(self, events: Mapping[str, int], *, outdated: int, losses: int) -> None:
        """Record the counts of a network service manager's events, which only grow."""
        self._follow(self.mesh_events, "mesh_events", events)
        self.mesh_neighbors_outdated.inc(self._counts.grown("mesh_neighbors_outdated", outdated))
        self.mesh_losses.inc(self._counts.grown("mesh_losses", losses))

    def record_recording(self, *, entries: int, written_bytes: int, dropped: Mapping[str, int]) -> None:
        """Record the recorder's counts, which only grow."""
        self.recording_entries.inc(self._counts.grown("recording_entries", entries))
        self.recording_bytes.inc(self._counts.grown("recording_bytes", written_bytes))
        self._follow(self.recording_dropped, "recording_dropped", dropped)

    def record_inbox_dropped(self, total: int) -> None:
        """Record the runner's count of dropped events, which only grows."""
        self.inbox_dropped.inc(self._counts.grown("inbox_dropped", total))

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
        """Record the verdict service's counts, which only grow."""
        self._follow(self.verdicts_received, "verdicts_received", received)
        self._follow(self.verdicts_ignored, "verdicts_ignored", ignored)
        self._follow(self.verdict_requests_denied, "verdicts_denied", denied)
        self._follow(self.verdict_requests_limited, "verdicts_limited", limited)
        self.verdict_requests_invalid.inc(self._counts.grown("verdicts_invalid", invalid))
        self.verdict_streams_replaced.inc(self._counts.grown("verdicts_replaced", replaced))

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

    def follow_inbox(self, depth: Callable[[], int]) -> None:
        """Show how many events wait at the moment of a scrape; `depth` is called by the thread that serves it."""
        self.inbox_depth.set_function(depth)

    def record_step(self, *, duration_s: float, lags_s: Iterable[float] = ()) -> None:
        """Record one turn of the loop.

        Args:
            duration_s: how long the engine took.
            lags_s: for each batch of events, from receiving it to the decision.
        """
        self.engine_step.observe(duration_s)
        for lag_s in lags_s:
            self.event_lag.observe(lag_s)

    def record_stall(self, duration_s: float) -> None:
        """Count a time in which the loop did not run."""
        self.stalled_seconds.inc(duration_s)

    def _follow(self, counter: Counter, name: str, readings: Mapping[str, int]) -> None:
        for value, reading in readings.items():
            counter.labels(reason_label(value)).inc(self._counts.grown((name, value), reading))


def list_metrics() -> tuple[MetricSpec, ...]:
    """Return the specifications of all metrics, by name."""
    return tuple(sorted(Metrics(CollectorRegistry()).specs, key=lambda spec: spec.name))
