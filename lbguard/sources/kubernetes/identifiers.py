"""Identifiers of the targets of a Service, which has none: stable, and the lowest one that is free. Pure.

The identifier of a target that left rests: the target may still drain under it, and its connections would reach the
next one. A target that returns gets its own identifier back, as long as no other has it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lbguard.core.addr import Ip


@dataclass(frozen=True, slots=True, kw_only=True)
class RememberedTarget:
    """A target of an earlier list, by its key. `draining`: as it was listed."""

    key: str
    identifier: int
    ips: tuple[Ip, ...]
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RememberedStream:
    """Marks and targets of a stream in an earlier list. `resting`: the identifiers of targets that left, by key."""

    offset: int
    size: int
    targets: tuple[RememberedTarget, ...] = ()
    resting: Mapping[str, int] = field(default_factory=dict)


class IdentifierAllocator:
    """Identifiers of one stream. Times are seconds of one monotonic clock.

    Args:
        identifiers: those that there are.
        given: by key, from an earlier run.
        resting: of targets that left, by key; they rest from the first `assign` on.
    """

    def __init__(
        self, identifiers: range, given: Mapping[str, int] | None = None, resting: Mapping[str, int] | None = None
    ) -> None:
        self._identifiers = identifiers
        self._given = {key: number for key, number in (given or {}).items() if number in identifiers}
        self._left: dict[str, int] = {key: number for key, number in (resting or {}).items() if number in identifiers}
        self._free_at: dict[int, float] = {}

    @property
    def resting(self) -> Mapping[str, int]:
        """Return the identifiers of targets that left and have not been given to others, by key."""
        return dict(self._left)

    def assign(self, wanted: Iterable[str], now: float, rest_s: float) -> dict[str, int]:
        """Return an identifier for each target, as far as they go.

        Args:
            wanted: the keys of all targets; new ones get identifiers in this order.
            now: the time.
            rest_s: how long the identifier of a target that left rests. It is used earlier only when no other is left.
        """
        keys = dict.fromkeys(wanted)
        for key in [key for key in self._given if key not in keys]:
            self._left[key] = self._given.pop(key)
            self._free_at[self._left[key]] = now + rest_s
        for number in self._left.values():
            self._free_at.setdefault(number, now + rest_s)
        taken = set(self._given.values())
        new = [key for key in keys if key not in self._given]
        for key in [key for key in new if key in self._left]:
            self._give(key, self._left[key], taken)
        for key in new:
            if key not in self._given:
                free = self._choose(taken, now)
                if free is not None:
                    self._give(key, free, taken)
        return {key: self._given[key] for key in keys if key in self._given}

    def _give(self, key: str, number: int, taken: set[int]) -> None:
        self._given[key] = number
        taken.add(number)
        self._left = {left: other for left, other in self._left.items() if other != number}
        self._free_at.pop(number, None)

    def _choose(self, taken: set[int], now: float) -> int | None:
        """Return the lowest free identifier that does not rest, else the one that rests longest; None: none is free."""
        free = [number for number in self._identifiers if number not in taken]
        rested = next((number for number in free if self._free_at.get(number, now) <= now), None)
        return rested if rested is not None else min(free, key=lambda number: self._free_at[number], default=None)
