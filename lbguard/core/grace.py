"""Durations of waiting: grace windows before a withdrawal, flap damping before a re-admission.

A window has a cause and an upper bound, and may follow the durations of past heals in the same subnet. Damping is a
penalty that each loss raises by one and time halves (the idea of RFC 2439, for targets). Only re-admission waits for
it. The first recovery never waits: one loss is a penalty of at most one, and only the part above one costs time.
"""

import math
from dataclasses import dataclass

from lbguard.core.addr import Prefix
from lbguard.core.config import DampingConfig, GraceConfig
from lbguard.core.model import SOFT, Condition

_SAMPLES_KEPT = 64
_SAMPLES_NEEDED = 5
_KINDS_KEPT = 4096


class Grace:
    """Computes deadlines from the moment of loss; in adaptive mode it learns from the heal durations of each subnet.

    Losses of a link teach nothing about failed neighbours, nor about verdicts. A cause whose window is set keeps it.
    """

    def __init__(self, config: GraceConfig) -> None:
        self._config = config
        self._heals: dict[tuple[Prefix, Condition | None], dict[int, float]] = {}

    def window_s(self, cause: Condition, subnet: Prefix | None) -> float:
        """Return the grace window for a cause, in seconds."""
        config = self._config
        window = config.by_cause_s.get(cause)
        if window is None:
            window = config.window_s
            heals = self._heals.get((subnet, _kind(cause))) if config.adaptive and subnet else None
            if heals and len(heals) >= _SAMPLES_NEEDED:
                rank = math.ceil(config.adaptive_quantile * len(heals)) - 1
                window = max(window, sorted(heals.values())[max(rank, 0)])
        return min(window, config.max_s)

    def deadline(
        self, lost_at: float, cause: Condition, subnet: Prefix | None, healing_until: float = float("-inf")
    ) -> float:
        """Return the moment at which a target lost at `lost_at` is withdrawn.

        A repair that is said to be under way moves it to `healing_until`, but never past `max_s` after the loss.
        """
        deadline = max(lost_at + self.window_s(cause, subnet), healing_until)
        return min(deadline, lost_at + self._config.max_s)

    def learn(self, subnet: Prefix | None, cause: Condition, lost_at: float, heal_s: float) -> None:
        """Note how long a path of a subnet took to come back.

        What was lost within one second counts as one heal, which took as long as the slowest of it: a link takes all
        its targets along, and they must not outvote the links before it.
        """
        if not self._config.adaptive or subnet is None:
            return
        kind = subnet, _kind(cause)
        if kind not in self._heals and len(self._heals) >= _KINDS_KEPT:
            self._heals.pop(next(iter(self._heals)))
        heals = self._heals.setdefault(kind, {})
        second = math.floor(lost_at)
        heals[second] = max(heals.get(second, 0.0), heal_s)
        if len(heals) > _SAMPLES_KEPT:
            heals.pop(next(iter(heals)))


def _kind(cause: Condition) -> Condition | None:
    """Return what heals are compared by: each soft cause has its own, what the kernel says is of one kind."""
    return cause if cause in SOFT else None


@dataclass(slots=True)
class Penalty:
    """The penalty of one target: its value at a moment (seconds)."""

    value: float = 0.0
    at: float = 0.0

    def current(self, config: DampingConfig, now: float) -> float:
        """Return the decayed penalty."""
        if self.value == 0.0:
            return 0.0
        return float(self.value * 0.5 ** ((now - self.at) / config.half_life_s))

    def add_loss(self, config: DampingConfig, now: float) -> None:
        """Raise the penalty by one."""
        self.value = self.current(config, now) + 1.0
        self.at = now

    def wait_s(self, config: DampingConfig, now: float) -> float:
        """Return how long a re-admission has to wait now, in seconds, at most `max_s`."""
        return max(0.0, min(config.max_s, config.step_s * (self.current(config, now) - 1.0)))
