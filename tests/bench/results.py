"""Rows of results, and the statistics in them."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

Say = Callable[[str], None]
"""Tells whoever watches what is being measured now."""


class Scale(StrEnum):
    """How much is measured: everything, less, or just enough to see that it works."""

    FULL = "full"
    QUICK = "quick"
    SMOKE = "smoke"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is told of repeated measurements, all in one unit."""

    count: int
    median: float
    p95: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """Summarise at least one sample; p95 is the smallest sample that 95 % of them do not exceed."""
        ordered = sorted(samples)
        rank = max(0, math.ceil(0.95 * len(ordered)) - 1)
        return cls(
            count=len(ordered),
            median=statistics.median(ordered),
            p95=ordered[rank],
            low=ordered[0],
            high=ordered[-1],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: what was measured beside what, and what is wanted.

    `aim` is the most that `measured` may be (the least with `at_least`); None: nothing was promised. `reference` was
    measured in the same run. `details` go into the JSON only.
    """

    benchmark: str
    what: str
    unit: str
    measured: float
    p95: float | None = None
    repetitions: int = 1
    aim: float | None = None
    at_least: bool = False
    reference: float | None = None
    reference_what: str = ""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, benchmark: str, what: str, unit: str, samples: Sequence[float], **more: Any) -> Self:
        """Make a row of the median of samples."""
        summary = Summary.of(samples)
        return cls(
            benchmark=benchmark,
            what=what,
            unit=unit,
            measured=summary.median,
            p95=summary.p95,
            repetitions=summary.count,
            **more,
        )

    @property
    def ratio(self) -> float | None:
        """Return how many times the reference was measured."""
        return self.measured / self.reference if self.reference else None

    @property
    def met(self) -> bool | None:
        """Return whether the aim was reached; None without one."""
        if self.aim is None:
            return None
        return self.measured >= self.aim if self.at_least else self.measured <= self.aim

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return dataclasses.asdict(self) | {"ratio": self.ratio, "met": self.met}
