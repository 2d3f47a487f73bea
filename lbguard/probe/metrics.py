"""Metrics of `lbguard probe`. Importing this module registers nothing.

A scrape reads the monitor's counts from another thread: they are plain numbers that only grow, so a reading is at most
a moment old. Loss is 1 - replies / pings.
"""

import platform
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from lbguard import __version__
from lbguard.api.verdicts.queue import IGNORED_REASONS
from lbguard.core.model import VerdictState
from lbguard.probe.datapath import Histogram, ProbeCounters
from lbguard.telemetry.metrics.families import MetricFamilies, MetricSpec, reason_label


def _spec(name: str, kind: str, help_text: str, *labels: str) -> MetricSpec:
    return MetricSpec(name=f"lbguard_probe_{name}", kind=kind, labels=labels, help=help_text)


_ROUNDS = _spec("rounds_total", "counter", "Judged rounds, by outcome.", "outcome")
_CHANGES = _spec(
    "verdict_changes_total", "counter", "Verdicts that changed the state of a connection, by the new state.", "state"
)
_PINGS = _spec("pings_total", "counter", "Pings sent.", "family")
_REPLIES = _spec("replies_total", "counter", "Replies that arrived in time; loss is 1 - replies / pings.", "family")
_LATE = _spec("late_replies_total", "counter", "Replies that arrived after the end of their round.", "family")
_STRAY = _spec("stray_replies_total", "counter", "Replies to pings of closed or changed connections, and duplicates.")
_ERRORS = _spec("send_errors_total", "counter", "Pings that could not be sent, by errno name.", "error")
_DOUBTS = _spec("doubts_total", "counter", "Rounds shortened to re-check a connection that stopped answering.")
_OVERFLOWS = _spec("overflows_total", "counter", "Packets that the kernel dropped because they were not read in time.")
_RTT = _spec("round_trip_seconds", "histogram", "Round-trip times.", "family")
_LAG = _spec("send_lag_seconds", "histogram", "Delay of pings behind their scheduled time.")

_BY_COUNTERS = (_ROUNDS, _CHANGES, _PINGS, _REPLIES, _LATE, _STRAY, _ERRORS, _DOUBTS, _OVERFLOWS, _RTT, _LAG)


class _MonitorCollector(Collector):
    def __init__(self, counters: ProbeCounters) -> None:
        self._counters = counters

    def collect(self) -> Iterable[Metric]:
        """Return the monitor's counts; called by the thread that serves a scrape."""
        counters = self._counters
        changes = {str(state): counters.changes.get(state, 0) for state in VerdictState}
        yield _counter(_ROUNDS, dict(counters.rounds))
        yield _counter(_CHANGES, changes)
        for spec, by_family in (
            (_PINGS, counters.pings),
            (_REPLIES, counters.replies),
            (_LATE, counters.late_replies),
        ):
            yield _counter(spec, {_family(ipv4): by_family.get(ipv4, 0) for ipv4 in (True, False)})
        yield _counter(_ERRORS, {reason_label(error): count for error, count in list(counters.send_errors.items())})
        yield _single(_STRAY, counters.stray_replies)
        yield _single(_DOUBTS, counters.doubts)
        yield _single(_OVERFLOWS, counters.overflows)
        rtt = HistogramMetricFamily(_RTT.name, _RTT.help, labels=_RTT.labels)
        for ipv4, histogram in counters.rtt.items():
            rtt.add_metric((_family(ipv4),), _buckets(histogram), histogram.sum_s)
        yield rtt
        lag = HistogramMetricFamily(_LAG.name, _LAG.help)
        lag.add_metric((), _buckets(counters.lag), counters.lag.sum_s)
        yield lag


def _family(ipv4: bool) -> str:
    return "ipv4" if ipv4 else "ipv6"


def _counter(spec: MetricSpec, values: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(spec.name, spec.help, labels=spec.labels)
    for label, value in values.items():
        family.add_metric((label,), value)
    return family


def _single(spec: MetricSpec, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(spec.name, spec.help, value=value)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return upper bounds with cumulative counts, as Prometheus wants them."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([*map(str, histogram.bounds_s), "+Inf"], list(histogram.counts), strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


class ProbeMetrics:
    """All metrics of the probe. The methods belong to one thread; scraping may be another."""

    def __init__(self, registry: CollectorRegistry, counters: ProbeCounters) -> None:
        families = MetricFamilies(registry, "lbguard_probe")
        self.registry = registry
        self.specs = families.specs
        families.add(_MonitorCollector(counters), _BY_COUNTERS)
        build = Gauge(
            "lbguard_build_info",
            "1, with the version of lbguard and Python as labels.",
            ("version", "python"),
            registry=registry,
        )
        build.labels(__version__, platform.python_version()).set(1)
        self.source_ok = families.gauge("source_ok", "1 while the source of connections can be read.")
        self.connections = families.gauge("connections", "Monitored connections.")
        self.left_out = families.gauge("connections_left_out", "Connections of the source that cannot be monitored.")
        self.verdicts = families.gauge("verdicts", "Connections by current verdict.", "state")
        self._connected = families.gauge("report_connected", "1 while the load balancer answers reports.", "to")
        self._sent = families.counter("reports", "Verdicts that a load balancer answered, renewals included.", "to")
        self._ignored = families.counter(
            "reports_ignored", "Verdicts that changed nothing, by the load balancer's answer.", "reason"
        )
        # A series that appears with its first increment hides that one from rate().
        for reason in IGNORED_REASONS:
            self._ignored.labels(reason)
        self._failures = families.counter(
            "report_failures", "Streams that could not be opened, broke or were refused.", "to"
        )
        self._refused = families.counter(
            "reports_refused", "Verdicts that were refused; they are not sent again until they change.", "to"
        )
        self._dropped = families.counter("reports_dropped", "Verdicts dropped: too many subjects.", "to")
        ProcessCollector(registry=registry)

    def source(self, *, ok: bool) -> None:
        """Set whether the source can be read."""
        self.source_ok.set(ok)

    def listed(self, connections: int, left_out: int) -> None:
        """Set the number of connections that the source lists."""
        self.connections.set(connections)
        self.left_out.set(left_out)

    def standing(self, states: Mapping[VerdictState, int]) -> None:
        """Set the number of connections in each state."""
        for state in VerdictState:
            if state is not VerdictState.ENDED:
                self.verdicts.labels(state).set(states.get(state, 0))

    def report_stream(self, to: str, *, connected: bool) -> None:
        """Set whether a load balancer answers."""
        self._connected.labels(to).set(connected)
        for counter in (self._sent, self._failures, self._refused, self._dropped):
            counter.labels(to)

    def forget_report_stream(self, to: str) -> None:
        """Remove the series of a load balancer that gets no reports any more."""
        for metric in (self._connected, self._sent, self._failures, self._refused, self._dropped):
            metric.remove_by_labels({"to": to})

    def report_answered(self, to: str, sent: int, ignored: Sequence[str]) -> None:
        """Count the answer to a request."""
        self._sent.labels(to).inc(sent)
        for reason in ignored:
            self._ignored.labels(reason_label(reason)).inc()

    def report_failed(self, to: str) -> None:
        """Count a stream that broke or could not be made."""
        self._failures.labels(to).inc()

    def report_refused(self, to: str) -> None:
        """Count a verdict that is kept back because it was refused."""
        self._refused.labels(to).inc()

    def report_dropped(self, to: str) -> None:
        """Count a verdict for which there was no room."""
        self._dropped.labels(to).inc()


def list_probe_metrics() -> tuple[MetricSpec, ...]:
    """Return the specifications of all metrics, by name."""
    return tuple(sorted(ProbeMetrics(CollectorRegistry(), ProbeCounters()).specs, key=lambda spec: spec.name))
