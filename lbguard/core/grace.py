"""Waiting times of targets: the grace window before a withdrawal, and flap damping before a re-admission.

A window has a cause and an upper bound, and may follow the durations of past heals in the same subnet. Damping is a
penalty per target (after RFC 2439): each loss adds one, and it decays with a half-life. It delays only re-admissions.
The first recovery never waits: one loss gives a penalty of at most one, and only the part above one adds a delay.
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
    """Computes deadlines from the moment of loss; in adaptive mode, from the past heal durations of each subnet.

    Heal durations are kept apart by kind of cause: link losses, failed neighbours, verdicts. A cause with a configured
    window keeps that window.
    """

    def __init__(self, config: GraceConfig) -> None:
        self._config = config
        self._heals: dict[tuple[Prefix, Condition | None], dict[int, float]] = {}

    def configure(self, config: GraceConfig) -> None:
        """Use another configuration from now on; what was learned stays."""
        self._config = config

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

        A reported repair moves it to `healing_until`, but never past `max_s` after the loss.
        """
        deadline = max(lost_at + self.window_s(cause, subnet), healing_until)
        return min(deadline, lost_at + self._config.max_s)

    def learn(self, subnet: Prefix | None, cause: Condition, lost_at: float, heal_s: float) -> None:
        """Record how long a path of a subnet took to come back.

        Losses within one second count as one heal, with the longest of their durations: a lost link breaks all its
        targets at once, and they must not outweigh earlier links.
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
    """Return the kind of cause that heals are grouped by: each soft cause alone, all hard causes (None) together."""
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
