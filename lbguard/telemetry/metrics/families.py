"""Declaration of metrics: made in a registry and noted for the documentation; label values are named reasons."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.registry import Collector

_REASON = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")

WORK_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""Buckets of histograms of how long our own work took, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """One metric as it is documented. `name` is the exported one; `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class MetricFamilies:
    """Makes metrics in a registry; `specs` lists them for the documentation.

    Args:
        registry: where they are registered.
        prefix: what every name begins with.
    """

    def __init__(self, registry: CollectorRegistry, prefix: str = "lbguard") -> None:
        # The `_created` series double the number of counters and nothing here reads them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        self.specs: list[MetricSpec] = []
        self._prefix = prefix

    def counter(self, name: str, help_text: str, *labels: str) -> Counter:
        """Make a counter; its exported name ends with `_total`."""
        self._note(f"{name}_total", "counter", labels, help_text)
        return Counter(f"{self._prefix}_{name}", help_text, labels, registry=self.registry)

    def gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        """Make a gauge."""
        self._note(name, "gauge", labels, help_text)
        return Gauge(f"{self._prefix}_{name}", help_text, labels, registry=self.registry)

    def histogram(self, name: str, help_text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        """Make a histogram."""
        self._note(name, "histogram", labels, help_text)
        return Histogram(f"{self._prefix}_{name}", help_text, labels, buckets=buckets, registry=self.registry)

    def add(self, collector: Collector, specs: Iterable[MetricSpec]) -> None:
        """Register a collector, which makes its metrics itself when they are scraped."""
        self.registry.register(collector)
        self.specs += specs

    def _note(self, name: str, kind: str, labels: tuple[str, ...], help_text: str) -> None:
        self.specs.append(MetricSpec(name=f"{self._prefix}_{name}", kind=kind, labels=labels, help=help_text))


def reason_label(text: str) -> str:
    """Return a named reason as a label value, without the words after its colon (`ENODEV: No such device`).

    Anything that is not one word of code becomes `other`.
    """
    name = text.partition(":")[0]
    return name if _REASON.fullmatch(name) else "other"


class ForeignCounts:
    """Converter of readings of a growing foreign count into increments; a smaller reading means a restart at 0."""

    def __init__(self) -> None:
        self._last: dict[object, int] = {}

    def grown(self, key: object, reading: int) -> int:
        """Return by how much a count grew since its last reading."""
        last = self._last.get(key, 0)
        self._last[key] = reading
        return reading - last if reading >= last else reading

    def forget(self, key: object) -> None:
        """Forget a count; its next reading counts from 0."""
        self._last.pop(key, None)
