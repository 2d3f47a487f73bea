"""Metrics of flow affinity."""

from collections.abc import Mapping

from lbguard.telemetry.metrics.families import ForeignCounts, MetricFamilies


class AffinityMetrics:
    """Fill of the flow maps, and what was done with flows."""

    def __init__(self, families: MetricFamilies) -> None:
        self._counts = ForeignCounts()
        self.in_force = families.gauge("affinity_in_force", "1 while the kernel holds the rules of flow affinity.")
        self.flows = families.gauge("affinity_flows", "Flows that are remembered.", "protocol", "family")
        self.flows_max = families.gauge("affinity_flows_max", "Flows that each map has room for; 0 without affinity.")
        self.steered = families.counter(
            "affinity_steered", "New flows given to another target because theirs was cut off or to be avoided."
        )
        self.remembered = families.counter(
            "affinity_remembered",
            "Flows remembered with the table's target: new ones, and observed ones before a change of the list.",
            "reason",
        )
        self.orphaned = families.counter(
            "affinity_orphaned", "Packets of flows that fell back because their target was withdrawn or removed."
        )
        self.refused = families.counter(
            "affinity_refused", "Packets whose flow was not remembered, because the map was full."
        )
        self.errors = families.counter(
            "affinity_errors", "Times that nftables refused the rules of flow affinity, or could not be read."
        )
        self.mended = families.counter(
            "affinity_mended", "Times that lbguard wrote the table again after others changed it."
        )

    def record(
        self,
        flows: Mapping[tuple[str, int], int],
        *,
        steered: int,
        learned: int,
        observed: int,
        orphaned: int,
        refused: int,
    ) -> None:
        """Record a reading: entries by protocol and family (4 or 6), and counts that only grow."""
        for (protocol, family), count in flows.items():
            self.flows.labels(protocol, f"ipv{family}").set(count)
        for counter, name, reading in (
            (self.steered, "steered", steered),
            (self.remembered.labels("new"), "learned", learned),
            (self.remembered.labels("observed"), "observed", observed),
            (self.orphaned, "orphaned", orphaned),
            (self.refused, "refused", refused),
        ):
            counter.inc(self._counts.grown(name, reading))
