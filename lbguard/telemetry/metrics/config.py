"""Metrics of the settings file."""

from lbguard.telemetry.metrics.families import MetricFamilies

CONFIG_OUTCOMES = ("applied", "unchanged", "refused")


class ConfigMetrics:
    """Readings of the settings file, and what became of them."""

    def __init__(self, families: MetricFamilies) -> None:
        self._reloads = families.counter(
            "config_reload",
            "Readings of a changed settings file. applied: live settings changed; unchanged: none did; refused: it is"
            " not valid, and the settings in force stay.",
            "outcome",
        )
        for outcome in CONFIG_OUTCOMES:
            self._reloads.labels(outcome)
        self._refused = families.gauge("config_refused", "1 while the settings file is refused.")
        self._good_at = families.gauge(
            "config_last_good_timestamp_seconds",
            "Time of the last valid reading of the settings file, by the wall clock; 0 without a file.",
        )
        self._waiting = families.gauge(
            "config_restart_needed", "Settings in the settings file that take effect with the next restart only."
        )

    def accepted(self, at: float, *, applied: bool | None = None, waiting: int = 0) -> None:
        """Record a valid file, read at `at` (seconds since the epoch). `applied`: None at the start."""
        if applied is not None:
            self._reloads.labels("applied" if applied else "unchanged").inc()
        self._refused.set(0)
        self._good_at.set(at)
        self._waiting.set(waiting)

    def refused(self) -> None:
        """Record a file that cannot be used."""
        self._reloads.labels("refused").inc()
        self._refused.set(1)
