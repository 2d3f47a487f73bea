"""Metrics of parking."""

from collections.abc import Mapping

from lbguard.telemetry.metrics.families import ForeignCounts, MetricFamilies, reason_label

_AGE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60)


class ParkingMetrics:
    """Packets that are kept, given back and dropped."""

    def __init__(self, families: MetricFamilies) -> None:
        self._counts = ForeignCounts()
        self.in_force = families.gauge("parking_in_force", "1 while packets of held targets are kept.")
        self.packets_max = families.gauge("parking_packets_max", "Setting parking.packets; 0: parking is off.")
        self.packets = families.gauge("parking_packets", "Packets that are kept now.")
        self.bytes = families.gauge("parking_bytes", "Memory that the kept packets count for, in bytes.")
        self.parked = families.counter("parking_packets_parked", "Packets that were kept.")
        self.given_back = families.counter("parking_packets_given_back", "Kept packets that were sent to their target.")
        self.unreachables = families.counter(
            "parking_unreachables_sent",
            "ICMP errors that tell a target to repeat at once what it sent while its path was broken.",
        )
        self.dropped = families.counter(
            "parking_packets_dropped", "Packets on the parking link that were dropped, by reason.", "reason"
        )
        self.age = families.histogram(
            "parking_seconds", "Time for which a packet was kept before it was given back.", _AGE_BUCKETS
        )

    def record(
        self,
        *,
        packets: int,
        bytes_used: int,
        parked: int,
        given_back: int,
        unreachables: int,
        dropped: Mapping[str, int],
    ) -> None:
        """Record a reading: what is kept now, and counts that only grow."""
        self.packets.set(packets)
        self.bytes.set(bytes_used)
        self.parked.inc(self._counts.grown("parked", parked))
        self.given_back.inc(self._counts.grown("given_back", given_back))
        self.unreachables.inc(self._counts.grown("unreachables", unreachables))
        for reason, count in dropped.items():
            self.dropped.labels(reason_label(reason)).inc(self._counts.grown(("dropped", reason), count))
