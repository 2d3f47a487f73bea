"""Flap damping: a penalty that each loss raises by one and time halves (the idea of RFC 2439, for targets).

Only re-admission waits. The first recovery never does: one loss is a penalty of at most one, and only what exceeds one
costs time.
"""

from dataclasses import dataclass

from lbguard.core.config import DampingConfig


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
