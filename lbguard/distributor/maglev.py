"""The slot tables: which target answers for which slot of a stream.

A table has M slots. Each target index 0..N-1 owns a *row*, a permutation of the slots in its order of preference. The
targets take turns, ascending by index, and each takes the first slot of its row that is still free, until no slot is
left (Maglev, NSDI 2016, section 3.4; nfqlb's `maglevdyn.c` does the same). Equal rows and equal sets of targets give
equal tables, so load balancers that share nothing agree with one another.

Two tables are made from that one rule:

- `maglev`: the turn-taking over the active targets, as stock nfqlb does it. Withdrawing one target also moves some
  slots between the others.
- `anchored`: the turn-taking over all *registered* targets gives every slot its home; then the slots whose home is
  inactive, and only those, are dealt to the active targets by the same turn-taking.

What holds for `anchored`:

- it depends on the registered and the active set alone, not on the way that led there;
- with every registered target active it is the maglev table;
- a target that stays active keeps every slot whose home it is, whoever else is withdrawn or re-admitted. Only slots
  whose home is inactive, before or after, can change hands; so, out of the full table, withdrawing any set moves no
  slot of the others, and re-admitting it moves none either. While some targets are out, withdrawing further ones deals
  the slots of all of them anew, because a rule without memory cannot know who had borrowed which;
- the slot counts of two active targets differ by at most 2 (by at most 1 in a maglev table), for any N, M and rows:
  each of the two deals hands every target the same number of slots, give or take one.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import Protocol

NO_TARGET = -1
"""What a slot holds when no target answers for it."""


class TableKind(StrEnum):
    """How the slots are dealt; see the head of this module."""

    ANCHORED = "anchored"
    MAGLEV = "maglev"


class Permutations(Protocol):
    """The rows of a stream's targets."""

    @property
    def size(self) -> int:
        """The number of slots, M: the length of every row."""

    def row(self, index: int) -> Iterable[int]:
        """Return the slots 0..M-1 in the order of preference of a target, from the start."""


class ImplicitPermutations:
    """Rows that follow from a seed, so that every load balancer with the same seed has the same ones.

    The row of an index is `offset, offset + skip, offset + 2 * skip, ...` modulo M; it meets every slot because M is
    prime. Nothing is stored: offset and skip are drawn from a BLAKE2b digest of seed and index.
    """

    def __init__(self, seed: str, size: int) -> None:
        """Set the seed (such as the stream's name) and the number of slots.

        Raises:
            ValueError: `size` is no prime above 2.
        """
        if size < 3 or largest_prime_at_most(size) != size:
            raise ValueError(f"a table of {size} slots: a prime above 2 is needed")
        self.seed = seed
        self._size = size

    @property
    def size(self) -> int:
        """The number of slots, M."""
        return self._size

    def row(self, index: int) -> Iterator[int]:
        """Return the M slots in the order of preference of a target."""
        digest = hashlib.blake2b(f"{self.seed}\0{index}".encode(), digest_size=16).digest()
        offset = int.from_bytes(digest[:8], "big") % self._size
        skip = int.from_bytes(digest[8:], "big") % (self._size - 1) + 1
        # `size.__rmod__(x)` is `x % size` without a Python frame for each slot.
        return itertools.islice(map(self._size.__rmod__, itertools.count(offset, skip)), self._size)


def maglev(permutations: Permutations, active: Iterable[int]) -> list[int]:
    """Return the table of stock nfqlb: the target index of every slot, all NO_TARGET when nobody is active.

    Raises:
        ValueError: a row is no permutation of the slots.
    """
    size = permutations.size
    table = [NO_TARGET] * size
    _deal(permutations, sorted(active), table, range(size))
    return table


def anchored(permutations: Permutations, registered: Iterable[int], active: Iterable[int]) -> list[int]:
    """Return the table in which every active target keeps its home slots; see the head of this module.

    An active index that is not registered counts as registered.

    Raises:
        ValueError: a row is no permutation of the slots.
    """
    admitted = frozenset(active)
    return _anchor(permutations, maglev(permutations, admitted.union(registered)), admitted)


class TableCalculator:
    """Computes the tables of one stream; remembers the base table, so that a change costs only the slots it moves."""

    def __init__(self, permutations: Permutations, kind: TableKind) -> None:
        self.kind = kind
        self._permutations = permutations
        self._registered: frozenset[int] = frozenset()
        self._base: list[int] = []

    def table(self, registered: AbstractSet[int], active: AbstractSet[int]) -> list[int]:
        """Return a new table (the target index of every slot) for sets of target indexes.

        Raises:
            ValueError: a row is no permutation of the slots.
        """
        if self.kind is TableKind.MAGLEV:
            return maglev(self._permutations, active)
        everyone = frozenset(registered | active)
        if not self._base or everyone != self._registered:
            self._base = maglev(self._permutations, everyone)
            self._registered = everyone
        return _anchor(self._permutations, self._base, frozenset(active))


def largest_prime_at_most(number: int) -> int:
    """Return the largest prime that is not above a number.

    Raises:
        ValueError: there is none (the number is below 2).
    """
    for candidate in range(number, 1, -1):
        if all(candidate % divisor for divisor in range(2, int(candidate**0.5) + 1)):
            return candidate
    raise ValueError(f"there is no prime at or below {number}")


def _anchor(permutations: Permutations, base: list[int], active: frozenset[int]) -> list[int]:
    """Deal the slots of a base table whose home is not active; the base table itself stays as it is."""
    table = list(base)
    homeless = [slot for slot, index in enumerate(base) if index not in active]
    for slot in homeless:
        table[slot] = NO_TARGET
    _deal(permutations, sorted(active), table, homeless)
    return table


def _deal(permutations: Permutations, takers: Sequence[int], table: list[int], slots: Sequence[int]) -> None:
    """Let the takers, in this order and by turns, each take the first of `slots` in its row that is still free."""
    if not takers or not slots:
        return
    free = bytearray(permutations.size)
    for slot in slots:
        free[slot] = 1
    # A row is consumed as it goes: a slot once passed over is taken, and no slot becomes free again. `filter` looks at
    # `free` at the moment it is asked, which is what makes it "the next free slot", and it does so at C speed.
    turns = [(index, filter(free.__getitem__, permutations.row(index)).__next__) for index in takers]
    rounds, rest = divmod(len(slots), len(turns))
    try:
        for turn in itertools.chain(itertools.repeat(turns, rounds), [turns[:rest]]):
            for index, take in turn:
                slot = take()
                table[slot] = index
                free[slot] = 0
    except (StopIteration, IndexError) as error:
        raise ValueError(f"the rows of {permutations.size} slots are no permutations") from error
