"""Identifiers of the targets of a Service, which has none: stable, and the lowest one that is free. Pure.

The identifier of a target that left rests: the target may still drain under it, and its connections would reach the
next one. A target that returns gets its own identifier back, as long as no other has it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice

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
        self._left = {number: key for key, number in (resting or {}).items() if number in identifiers}
        self._free_at: dict[int, float] = {}

    @property
    def resting(self) -> Mapping[str, int]:
        """Return the identifiers of targets that left and have not been given to others, by key."""
        return {key: number for number, key in self._left.items()}

    def assign(self, wanted: Iterable[str], now: float, rest_s: float) -> dict[str, int]:
        """Return an identifier for each target, as far as they go.

        Args:
            wanted: the keys of all targets; new ones get identifiers in this order.
            now: the time.
            rest_s: how long the identifier of a target that left rests. It is used earlier only when no other is left.
        """
        keys = dict.fromkeys(wanted)
        for key in [key for key in self._given if key not in keys]:
            number = self._given.pop(key)
            self._left[number] = key
            self._free_at[number] = now + rest_s
        for number in self._left:
            self._free_at.setdefault(number, now + rest_s)
        new = [key for key in keys if key not in self._given]
        own = self.resting
        for key in [key for key in new if key in own]:
            self._give(key, own[key])
        rest = [key for key in new if key not in self._given]
        for key, number in zip(rest, list(self._free(len(rest), now)), strict=False):
            self._give(key, number)
        return {key: self._given[key] for key in keys if key in self._given}

    def _give(self, key: str, number: int) -> None:
        self._given[key] = number
        self._left.pop(number, None)
        self._free_at.pop(number, None)

    def _free(self, count: int, now: float) -> Iterator[int]:
        """Return up to so many free identifiers: those that do not rest, the lowest first; then the longest rested."""
        if not count:
            return iter(())
        taken = set(self._given.values())
        rested = (n for n in self._identifiers if n not in taken and self._free_at.get(n, now) <= now)
        resting = (n for n in sorted(self._free_at, key=lambda n: (self._free_at[n], n)) if self._free_at[n] > now)
        return islice(chain(rested, resting), count)
