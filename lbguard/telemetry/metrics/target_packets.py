"""Packets and bytes of every target, as counters that survive a kernel counter that starts again."""

from collections.abc import Iterable, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from lbguard.core.model import TargetKey
from lbguard.telemetry.metrics.families import MetricSpec
from lbguard.telemetry.metrics.foreign_counts import ForeignCounts

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
        help="Packets to a target that were dropped while it was held with a broken path.",
    ),
    MetricSpec(
        name="lbguard_held_bytes_total",
        kind="counter",
        labels=("stream", "identifier"),
        help="Bytes (with IP header) of the packets dropped while held.",
    ),
)


class TargetPackets(Collector):
    """Totals per target, kept in one dictionary: cheaper than a metric object for each of 10,000 targets.

    `place`: labels that every series has (trench, conduit).
    """

    def __init__(self, place: Mapping[str, str]) -> None:
        self._place = dict(place)
        self._counts = ForeignCounts()
        self._totals: dict[TargetKey, tuple[int, int, int, int]] = {}

    def collect(self) -> Iterable[Metric]:
        """Return the four counters; called by the thread that serves a scrape."""
        totals = list(self._totals.items())
        for column, spec in enumerate(PACKET_SPECS):
            family = CounterMetricFamily(spec.name, spec.help, labels=(*self._place, *spec.labels))
            for key, values in totals:
                family.add_metric((*self._place.values(), key.stream, str(key.identifier)), values[column])
            yield family

    def record(self, hits: Mapping[TargetKey, tuple[int, int]], held: Mapping[TargetKey, tuple[int, int]]) -> None:
        """Record readings (packets, bytes) per target. Targets without a reading lose their series.

        Args:
            hits: kernel counts of the packets that the distributor gave to each target.
            held: packets dropped while held.
        """
        totals: dict[TargetKey, tuple[int, int, int, int]] = {}
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
        gone = self._totals.keys() - totals.keys()
        for key in gone:
            for column in range(len(PACKET_SPECS)):
                self._counts.forget((key, column))
        self._totals = totals
