"""Metrics of operators' commands."""

from collections import Counter
from collections.abc import Iterable, Mapping

from lbguard.core.manual import REFUSALS
from lbguard.core.model import ManualAction, Override, TargetKey
from lbguard.telemetry.metrics.families import ForeignCounts, MetricFamilies, reason_label

_WITH_AN_END = (ManualAction.DRAIN, ManualAction.HOLD, ManualAction.WITHDRAW)
DONE = "done"


class ControlMetrics:
    """Targets under an override, and commands."""

    def __init__(self, families: MetricFamilies) -> None:
        self._counts = ForeignCounts()
        self._present: set[str] = set()
        self.overrides = families.gauge(
            "overrides", "Targets that an operator drains, holds or withdraws now, by action.", "stream", "action"
        )
        self.commands = families.counter(
            "override_commands", "Commands of operators, by action and outcome.", "action", "outcome"
        )
        for action in ManualAction:
            for outcome in (DONE, *REFUSALS):
                self.commands.labels(action, outcome)

    def record(
        self, streams: Iterable[str], overrides: Mapping[TargetKey, Override], commands: Mapping[tuple[str, str], int]
    ) -> None:
        """Show the overrides in force, and count the commands, whose counts only grow."""
        present = set(streams)
        for name in self._present - present:
            self.overrides.remove_by_labels({"stream": name})
        self._present = present
        counts = Counter((key.stream, override.action) for key, override in overrides.items())
        for name in present:
            for action in _WITH_AN_END:
                self.overrides.labels(name, action).set(counts[name, action])
        for (action_name, outcome), count in commands.items():
            grown = self._counts.grown((action_name, outcome), count)
            self.commands.labels(action_name, reason_label(outcome)).inc(grown)
