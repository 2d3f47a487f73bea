"""What a scraper reads of a registry."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families


class Scraper:
    """A registry, and what a scraper reads of it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def series(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = generate_latest(self.registry).decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.series().get((f"lbguard_{name}", tuple(sorted(labels.items()))))
