"""Slot tables: computation of the target of every slot of a stream (Maglev hashing).

A table has M slots. Each target index 0..N-1 owns a *row*, a permutation of the slots in its order of preference. The
targets take turns, ascending by index, and each takes the first slot of its row that is still free, until no slot is
left (Maglev, NSDI 2016, section 3.4; nfqlb's `maglevdyn.c` does the same). Equal rows and equal sets of targets give
equal tables, so load balancers agree without communication.

Two tables are made from it:

- `maglev`: the turn-taking over the active targets, as stock nfqlb does it. Withdrawing one target also moves some
  slots between the others.
- `anchored`: the turn-taking over all *registered* targets gives every slot its home. A slot whose home is inactive
  goes to the first active target in the slot's own order. That order depends on the number of the slot (and on a prime
  above the highest registered index), not on the active targets.

Properties of `anchored`:

- it depends on the registered and the active set alone, not on their history;
- with every registered target active it is the maglev table;
- between any two active sets, a slot moves only if its target has become inactive, or to a target that has become
  active: one earlier in the slot's order, or its home. No slot ever moves between two targets that are active before
  and after, whatever the number of inactive ones. Assigning the slots of the inactive by turns would be better balanced
  (counts that differ by 2 at most), and would move 0.5 to 1.5 % of the slots between unchanged targets when another one
  becomes inactive;
- the slots of the inactive are spread over the active as if at random, also for consecutive indexes. With 100 targets
  and 9973 slots, an active target has this share of the mean (extremes over 100 tables, 10 withdrawn sets on each
  scattered and 10 of consecutive indexes): 1 out 0.98 to 1.07, 10 out 0.89 to 1.18, 50 out 0.81 to 1.25, 90 out 0.85 to
  1.18. More slots per target reduce the spread. In a maglev table the counts differ by 1 at most.
"""

import functools
import hashlib
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import Protocol

NO_TARGET = -1
"""Value of a slot without a target."""

_DIGEST_BYTES = 6

_RINGS = 500
"""Approximate number of rings for the orders of the slots: more rings spread better, and share less of a walk."""


class TableKind(StrEnum):
    """Method of filling the slots; see the head of this module."""

    ANCHORED = "anchored"
    MAGLEV = "maglev"


class Permutations(Protocol):
    """The rows of a stream's targets."""

    @property
    def size(self) -> int:
        """The number of slots, M: the length of every row."""

    def row(self, index: int) -> Iterable[int]:
        """Return the slots 0..M-1 in the order of preference of a target."""


class ImplicitPermutations:
    """Rows that follow from a seed, so that every load balancer with the same seed has the same ones.

    The row of an index is `offset, offset + skip, offset + 2 * skip, ...` modulo M; it contains every slot because M is
    prime. Nothing is stored: offset and skip are drawn from a BLAKE2b digest of seed and index.
    """

    def __init__(self, seed: str, size: int) -> None:
        """Set the seed (such as the stream's name) and the number of slots.

        Raises:
            ValueError: `size` is not a prime above 2.
        """
        if size < 3 or not _is_prime(size):
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
    """Return the table of stock nfqlb: the target index of every slot, all NO_TARGET when none is active.

    Raises:
        ValueError: a row is no permutation of the slots.
    """
    size = permutations.size
    table = [NO_TARGET] * size
    takers = sorted(active)
    if not takers:
        return table
    if len(takers) == 1:
        return takers * size
    free = bytearray(b"\1") * size
    # Each row is consumed once: a skipped slot is taken, and no slot becomes free again. `filter` reads `free` when the
    # next item is requested, so it yields the next free slot, at C speed.
    turns = [(index, filter(free.__getitem__, permutations.row(index)).__next__) for index in takers]
    rounds, rest = divmod(size, len(turns))
    try:
        for turn in itertools.chain(itertools.repeat(turns, rounds), [turns[:rest]]):
            for index, take in turn:
                slot = take()
                table[slot] = index
                free[slot] = 0
    except (StopIteration, IndexError) as error:
        raise ValueError(f"the rows of {size} slots are not permutations") from error
    return table


class TableCalculator:
    """Computes the tables of one stream; keeps the base table, so that a change costs only the slots that it moves."""

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
        return _adopt(self._base, everyone, frozenset(active))


def table_digest(indexes: Sequence[int]) -> int:
    """Return a number of 48 bits for a table: load balancers that spread packets alike have the same one.

    A metric holds it exactly. It does not depend on the marks, which may differ between load balancers.
    """
    digest = hashlib.blake2b(struct.pack(f"<{len(indexes)}i", *indexes), digest_size=_DIGEST_BYTES)
    return int.from_bytes(digest.digest(), "big")


def largest_prime_at_most(number: int) -> int:
    """Return the largest prime that is at most a number.

    Raises:
        ValueError: there is none (the number is below 2).
    """
    for candidate in range(number, 1, -1):
        if _is_prime(candidate):
            return candidate
    raise ValueError(f"there is no prime at or below {number}")


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _adopt(base: list[int], registered: frozenset[int], active: frozenset[int]) -> list[int]:
    """Return a base table in which each slot of an inactive target goes to the first active one of the slot's order.

    With P the smallest prime above every registered index, the order of a slot is the P numbers

        (1 / (start + j * step) + shift) modulo P        for j = 0, 1, ... P-1, where 1 / 0 is 0,

    of which those that are not an active index are skipped. `start`, `step` (not 0) and `shift` (one of a few) are
    digits of the slot's own number, so an order depends on the registered set only by P. The reciprocal makes it the
    sequence of an explicit inversive generator (Eichenauer-Herrmann 1993). The bare
    `start + j * step` is double hashing: with half of the targets inactive, a target beside a run of them would get 1.5
    times as many of their slots as the others, for as long as the run is inactive.
    """
    if not active:
        return [NO_TARGET] * len(base)
    if active == registered:
        return list(base)
    prime = next(filter(_is_prime, itertools.count(max(registered) + 1)))
    shifts = min(prime, 1 + _RINGS // prime)
    reciprocals = [pow(number, -1, prime) if number else 0 for number in range(prime)]
    # The value at each place of a ring, for every shift: an active index, or NO_TARGET.
    shifted = [[(number + shift) % prime for number in reciprocals] for shift in range(shifts)]
    stations = [[index if index in active else NO_TARGET for index in indexes] for indexes in shifted]
    # Slots with equal step and shift use the same ring. The end of a walk is recorded at every place it passed, so all
    # walks together visit each place once; otherwise they would be long when few targets are active.
    rings: list[list[int]] = [[]] * (shifts * (prime - 1))
    orders = len(rings) * prime
    numbers = _slot_numbers(len(base))
    table = list(base)
    for slot, home in enumerate(base):
        if home in active:
            continue
        ring, place = divmod(numbers[slot] % orders, prime)
        owners = rings[ring]
        if not owners:
            owners = rings[ring] = stations[ring % shifts].copy()
        owner = owners[place]
        if owner == NO_TARGET:
            step = ring // shifts + 1
            passed = []
            while (owner := owners[place]) < 0:
                passed.append(place)
                place = (place + step) % prime
            for place in passed:
                owners[place] = owner
        table[slot] = owner
    return table


@functools.lru_cache(maxsize=8)
def _slot_numbers(size: int) -> tuple[int, ...]:
    """Return a 64-bit number for each slot: the little-endian words that SHAKE128 makes of `anchored`."""
    return struct.unpack(f"<{size}Q", hashlib.shake_128(b"anchored").digest(8 * size))
