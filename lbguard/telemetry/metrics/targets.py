"""Series of each target: its state and losses, its packets and bytes. They are made when they are scraped.

State and losses follow the decisions, so they cost nothing while nothing happens. A state that came and went between
two scrapes is not seen in the state, but in the count of losses. Packets and bytes survive a kernel counter that starts
again. Those of a stream are the sums over its targets, also where targets have no series of their own.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lbguard.core.model import Action, Decision, TargetKey, TargetState
from lbguard.telemetry.metrics.families import ForeignCounts, MetricSpec

PerTarget = Literal["off", "active", "all"]
"""Targets with series of their own: none, those from their first loss on, or all."""

PACKET_SPECS = (
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
        help="Packets to a target that met its broken path while it was held: dropped, or kept with parking.",
    ),
    MetricSpec(
        name="lbguard_held_bytes_total",
        kind="counter",
        labels=("stream", "identifier"),
        help="Bytes (with IP header) of the packets that met a broken path while their target was held.",
    ),
)


STREAM_SPECS = (
    MetricSpec(
        name="lbguard_stream_packets_total",
        kind="counter",
        labels=("stream",),
        help="Packets that the distributor gave to the targets of a stream, held ones included.",
    ),
    MetricSpec(
        name="lbguard_stream_held_packets_total",
        kind="counter",
        labels=("stream",),
        help="Packets to targets of a stream that met a broken path while their target was held.",
    ),
)


class TargetPackets(Collector):
    """Totals per target and stream, kept in dictionaries: cheaper than a metric object for each of 10,000 targets.

    `place`: labels that every series has (trench, conduit). `shows`: tells whether a target has series of its own.
    """

    def __init__(self, place: Mapping[str, str], shows: Callable[[TargetKey], bool] = lambda _: True) -> None:
        self._place = dict(place)
        self._shows = shows
        self._counts = ForeignCounts()
        self._totals: dict[TargetKey, tuple[int, int, int, int]] = {}
        self._streams: dict[str, tuple[int, int]] = {}

    def collect(self) -> Iterable[Metric]:
        """Return the counters; called by the thread that serves a scrape."""
        totals = [item for item in list(self._totals.items()) if self._shows(item[0])]
        for column, spec in enumerate(PACKET_SPECS):
            family = CounterMetricFamily(spec.name, spec.help, labels=(*self._place, *spec.labels))
            for key, values in totals:
                family.add_metric((*self._place.values(), key.stream, str(key.identifier)), values[column])
            yield family
        streams = list(self._streams.items())
        for column, spec in enumerate(STREAM_SPECS):
            family = CounterMetricFamily(spec.name, spec.help, labels=(*self._place, *spec.labels))
            for stream, sums in streams:
                family.add_metric((*self._place.values(), stream), sums[column])
            yield family

    def record(self, hits: Mapping[TargetKey, tuple[int, int]], held: Mapping[TargetKey, tuple[int, int]]) -> None:
        """Record readings (packets, bytes) per target. Targets and streams without a reading lose their series.

        Args:
            hits: kernel counts of the packets that the distributor gave to each target.
            held: packets dropped while held.
        """
        totals: dict[TargetKey, tuple[int, int, int, int]] = {}
        streams: dict[str, tuple[int, int]] = {}
        for key in hits.keys() | held.keys():
            now = (*hits.get(key, (0, 0)), *held.get(key, (0, 0)))
            before = self._totals.get(key, (0, 0, 0, 0))
            grown = [self._counts.grown((key, column), reading) for column, reading in enumerate(now)]
            totals[key] = (
                before[0] + grown[0],
                before[1] + grown[1],
                before[2] + grown[2],
                before[3] + grown[3],
            )
            # A target that left takes nothing from the sum of its stream.
            packets, dropped = streams.get(key.stream) or self._streams.get(key.stream, (0, 0))
            streams[key.stream] = packets + grown[0], dropped + grown[2]
        gone = self._totals.keys() - totals.keys()
        for key in gone:
            for column in range(len(PACKET_SPECS)):
                self._counts.forget((key, column))
        self._totals, self._streams = totals, streams


STATE_CODES = {state: code for code, state in enumerate(TargetState)}
"""The numbers by which states are exported, in the order of the vocabulary."""

TIMELINE_LABELS = ("stream", "identifier")

STATE, LOSSES = "lbguard_target_state_code", "lbguard_target_losses_total"

TIMELINE_METRICS = {
    STATE: (
        "gauge",
        "State of a target: 1 active, 2 held, 3 frozen, 4 withdrawn, 5 draining; one that was never admitted has none.",
    ),
    LOSSES: ("counter", "Times that the path of a target broke while it was admitted."),
}
"""Kinds and help texts by name."""


class TargetTimeline(Collector):
    """Exports state and losses of targets that were admitted.

    `place`: labels that every series has. `per_target`: the targets that have series.
    """

    def __init__(self, place: Mapping[str, str], per_target: PerTarget = "all") -> None:
        self._place = dict(place)
        self._per_target = per_target
        self._targets: dict[TargetKey, tuple[int, int]] = {}

    def record(self, decision: Decision) -> None:
        """Record a decision."""
        if decision.state_to is None:
            self._targets.pop(decision.target, None)
            return
        _, losses = self._targets.get(decision.target, (0, 0))
        self._targets[decision.target] = STATE_CODES[decision.state_to], losses + (decision.action is Action.HOLD)

    def shows(self, key: TargetKey) -> bool:
        """Tell whether a target has series of its own, those of its packets included."""
        if self._per_target != "active":
            return self._per_target == "all"
        code, losses = self._targets.get(key, (0, 0))
        return losses > 0 or code > STATE_CODES[TargetState.ACTIVE]

    def forget_stream(self, name: str) -> None:
        """Forget the targets of a stream."""
        for key in [key for key in self._targets if key.stream == name]:
            del self._targets[key]

    def collect(self) -> Iterable[Metric]:
        """Return both metrics; called by the thread that serves a scrape."""
        targets = [item for item in list(self._targets.items()) if self.shows(item[0])]
        labels = (*self._place, *TIMELINE_LABELS)
        state = GaugeMetricFamily(STATE, TIMELINE_METRICS[STATE][1], labels=labels)
        losses = CounterMetricFamily(LOSSES, TIMELINE_METRICS[LOSSES][1], labels=labels)
        for key, (code, count) in targets:
            values = (*self._place.values(), key.stream, str(key.identifier))
            state.add_metric(values, code)
            losses.add_metric(values, count)
        yield state
        yield losses
