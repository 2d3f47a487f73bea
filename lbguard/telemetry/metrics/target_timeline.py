"""History of each target for the timelines of dashboards: its state, and how often its path was lost.

Both follow the decisions, so they cost nothing while nothing happens. A state that came and went between two scrapes is
not seen in the state, but in the count of losses.
"""

from collections.abc import Iterable, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lbguard.core.model import Action, Decision, TargetKey, TargetState

STATE_CODES = {state: code for code, state in enumerate(TargetState)}
"""The numbers by which states are exported, in the order of the vocabulary."""

TIMELINE_LABELS = ("stream", "identifier")

STATE, LOSSES = "lbguard_target_state_code", "lbguard_target_losses_total"

TIMELINE_METRICS = {
    STATE: (
        "gauge",
        "State of a target: 1 active, 2 held, 3 frozen, 4 withdrawn; a target that was never admitted has none.",
    ),
    LOSSES: ("counter", "Times that the path of a target broke while it was admitted."),
}
"""Kinds and help texts by name."""


class TargetTimeline(Collector):
    """Exports state and losses of every target that was admitted. `place`: labels that every series has."""

    def __init__(self, place: Mapping[str, str]) -> None:
        self._place = dict(place)
        self._targets: dict[TargetKey, tuple[int, int]] = {}

    def record(self, decision: Decision) -> None:
        """Record a decision."""
        if decision.state_to is None:
            self._targets.pop(decision.target, None)
            return
        _, losses = self._targets.get(decision.target, (0, 0))
        self._targets[decision.target] = STATE_CODES[decision.state_to], losses + (decision.action is Action.HOLD)

    def forget_stream(self, name: str) -> None:
        """Forget the targets of a stream."""
        for key in [key for key in self._targets if key.stream == name]:
            del self._targets[key]

    def collect(self) -> Iterable[Metric]:
        """Return both metrics; called by the thread that serves a scrape."""
        targets = list(self._targets.items())
        labels = (*self._place, *TIMELINE_LABELS)
        state = GaugeMetricFamily(STATE, TIMELINE_METRICS[STATE][1], labels=labels)
        losses = CounterMetricFamily(LOSSES, TIMELINE_METRICS[LOSSES][1], labels=labels)
        for key, (code, count) in targets:
            values = (*self._place.values(), key.stream, str(key.identifier))
            state.add_metric(values, code)
            losses.add_metric(values, count)
        yield state
        yield losses
