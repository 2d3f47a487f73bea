"""Slot tables of streams: how many slots, and so how many connections, get another target."""

from collections.abc import Mapping
from typing import NamedTuple

from lbguard.core.model import StreamSpec
from lbguard.distributor.maglev import (
    NO_TARGET,
    ImplicitPermutations,
    TableCalculator,
    TableKind,
    largest_prime_at_most,
)

_TABLES_KEPT = 64


class Pair(NamedTuple):
    """The registered and the active identifiers of a table."""

    registered: frozenset[int]
    active: frozenset[int]


class Moved(NamedTuple):
    """Slots that change their target, by the identifier that they had, and the number of all slots."""

    by_owner: Mapping[int, int]
    slots: int

    @property
    def total(self) -> int:
        """Return how many slots change their target."""
        return sum(self.by_owner.values())


class Slots:
    """Slot tables of streams, and the slots that differ between two of them."""

    def __init__(self, kind: TableKind) -> None:
        self.kind = kind
        self._sizes: dict[str, int] = {}
        self._calculators: dict[tuple[str, int], TableCalculator] = {}
        self._tables: dict[tuple[str, int, Pair], list[int]] = {}

    def learn_size(self, stream: str, slots: int) -> None:
        """Record a table's real size, from a recorded commit."""
        if slots > 0:
            self._sizes[stream] = slots

    def moved(self, stream: StreamSpec, before: Pair, after: Pair) -> Moved:
        """Return the slots that change their target between two tables. A slot without a target has no connections."""
        size = self._size(stream.name, stream.max_targets)
        by_owner: dict[int, int] = {}
        if before != after:
            one, other = self._table(stream, size, before), self._table(stream, size, after)
            for a, b in zip(one, other, strict=True):
                if a != b and a != NO_TARGET:
                    owner = stream.first_identifier + a
                    by_owner[owner] = by_owner.get(owner, 0) + 1
        return Moved(by_owner, size)

    def _size(self, stream: str, max_targets: int) -> int:
        known = self._sizes.get(stream, 0)
        return largest_prime_at_most(max(known or 100 * max_targets, 3))

    def _table(self, stream: StreamSpec, size: int, pair: Pair) -> list[int]:
        key = (stream.name, size, pair)
        table = self._tables.get(key)
        if table is None:
            calculator = self._calculators.get((stream.name, size))
            if calculator is None:
                calculator = TableCalculator(ImplicitPermutations(stream.name, size), self.kind)
                self._calculators[stream.name, size] = calculator
            if len(self._tables) >= _TABLES_KEPT:
                self._tables.pop(next(iter(self._tables)))
            table = calculator.table(set(map(stream.index, pair.registered)), set(map(stream.index, pair.active)))
            self._tables[key] = table
        return table
