import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.distributor.maglev import (
    NO_TARGET,
    ImplicitPermutations,
    Permutations,
    TableCalculator,
    TableKind,
    largest_prime_at_most,
    maglev,
    table_digest,
)

PRIMES = [3, 7, 31, 101, 211, 499]


@dataclass(frozen=True)
class Rows:
    """Permutations written out, of any shape: the rule must not depend on rows being arithmetic."""

    rows: Sequence[Sequence[int]]

    @property
    def size(self) -> int:
        return len(self.rows[0])

    def row(self, index: int) -> Sequence[int]:
        return self.rows[index]


@dataclass(frozen=True)
class Setup:
    rows: Rows
    registered: frozenset[int]
    before: frozenset[int]
    after: frozenset[int]


def shuffled_rows(seed: int, count: int, size: int) -> Rows:
    chance = random.Random(seed)
    return Rows([chance.sample(range(size), size) for _ in range(count)])


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    size = draw(st.sampled_from(PRIMES))
    count = draw(st.integers(1, min(size, 12)))
    rows = shuffled_rows(draw(st.integers(0, 2**32)), count, size)
    indexes = st.integers(0, count - 1)
    registered = draw(st.frozensets(indexes, min_size=1))
    among = st.frozensets(st.sampled_from(sorted(registered)))
    return Setup(rows, registered, draw(among), draw(among))


def turn_taking(rows: Sequence[Sequence[int]], active: Set[int]) -> list[int]:
    """nfqlb's populate, spelled out with its counters: the reference that the package is compared with."""
    size = len(rows[0])
    lookup = [-1] * size
    if not active:
        return lookup
    position = [0] * len(rows)
    filled = 0
    while True:
        for index in range(len(rows)):
            if index not in active:
                continue
            slot = rows[index][position[index]]
            while lookup[slot] >= 0:
                position[index] += 1
                slot = rows[index][position[index]]
            lookup[slot] = index
            position[index] += 1
            filled += 1
            if filled == size:
                return lookup


def order_of(slot: int, registered: Set[int]) -> list[int]:
    """The order in which a slot looks for an active target, spelled out from the description of the rule."""
    prime = max(registered) + 1
    while prime < 2 or any(prime % divisor == 0 for divisor in range(2, prime)):
        prime += 1
    shifts = min(prime, 1 + 500 // prime)
    digest = hashlib.shake_128(b"anchored").digest(8 * slot + 8)
    number = int.from_bytes(digest[8 * slot :], "little") % (prime * shifts * (prime - 1))
    start, shift, step = number % prime, number // prime % shifts, number // prime // shifts + 1
    reciprocal = {place: next((x for x in range(prime) if place * x % prime == 1), 0) for place in range(prime)}
    return [(reciprocal[(start + turn * step) % prime] + shift) % prime for turn in range(prime)]


def anchored_by_the_book(setup: Setup, active: Set[int]) -> list[int]:
    home = turn_taking(setup.rows.rows, setup.registered)
    return [
        next((index for index in [owner, *order_of(slot, setup.registered)] if index in active), -1)
        for slot, owner in enumerate(home)
    ]


def extremes(table: Sequence[int], active: Set[int]) -> tuple[float, float]:
    """The fewest and the most slots of an active target, over the mean."""
    counts = Counter(table)
    mean = len(table) / len(active)
    return min(counts[index] for index in active) / mean, max(counts[index] for index in active) / mean


@given(setups())
def test_maglev_is_the_rule_of_nfqlb(setup: Setup) -> None:
    assert maglev(setup.rows, setup.before) == turn_taking(setup.rows.rows, setup.before)


def test_maglev_by_hand() -> None:
    rows = Rows([[0, 1, 2, 3, 4], [0, 2, 4, 1, 3], [4, 3, 2, 1, 0]])
    # Turns: 0 takes 0; 1 finds 0 taken and takes 2; 2 takes 4; 0 takes 1; 1 finds 4 and 1 taken and takes 3.
    assert maglev(rows, {0, 1, 2}) == [0, 0, 1, 1, 2]
    assert maglev(rows, {2}) == [2, 2, 2, 2, 2]


def anchored(rows: Permutations, registered: Set[int], active: Set[int]) -> list[int]:
    return TableCalculator(rows, TableKind.ANCHORED).table(registered, active)


def test_anchored_by_hand() -> None:
    """Worked out by hand from `printf anchored | openssl dgst -shake128 -xoflen 40`.

    A release that changed these orders would move slots when load balancers are upgraded one by one.
    """
    rows = Rows([[0, 1, 2, 3, 4], [0, 2, 4, 1, 3], [4, 3, 2, 1, 0]])
    # Of the words modulo 18, slot 2 has 14: start 2, shift 1, step 2: its order is 0, 2, 1. Slot 3 has 12: 1, 0, 2.
    assert anchored(rows, {0, 1, 2}, {0, 2}) == [0, 0, 0, 0, 2]
    # Slot 0 has 0: 0, 1, 2. Slot 1 has 7: 0, 1, 2. Slot 4 has 17: 1, 0, 2.
    assert anchored(rows, {0, 1, 2}, {1, 2}) == [1, 1, 1, 1, 2]
    assert anchored(rows, {0, 1, 2}, {0, 1}) == [0, 0, 1, 1, 1]


@given(setups())
def test_anchored_follows_the_description(setup: Setup) -> None:
    assert anchored(setup.rows, setup.registered, setup.before) == anchored_by_the_book(setup, setup.before)


@given(setups())
def test_anchored_is_maglev_when_all_registered_are_active(setup: Setup) -> None:
    assert anchored(setup.rows, setup.registered, setup.registered) == turn_taking(setup.rows.rows, setup.registered)


@given(setups())
def test_nothing_moves_between_two_targets_that_are_active_before_and_after(setup: Setup) -> None:
    first = anchored(setup.rows, setup.registered, setup.before)
    second = anchored(setup.rows, setup.registered, setup.after)
    for old, new in zip(first, second, strict=True):
        # The owner has left (or there was none), or a target that has come takes the slot.
        assert old == new or old not in setup.after or new not in setup.before


@given(setups(), st.sampled_from(TableKind))
def test_every_slot_goes_to_an_active_target_or_to_nobody(setup: Setup, kind: TableKind) -> None:
    table = TableCalculator(setup.rows, kind).table(setup.registered, setup.before)
    assert len(table) == setup.rows.size
    assert set(table) <= (setup.before or {NO_TARGET})


@given(setups())
def test_load_differs_by_one_slot_in_maglev(setup: Setup) -> None:
    if setup.before:
        counts = Counter(maglev(setup.rows, setup.before))
        assert max(counts.values()) - min(counts[index] for index in setup.before) <= 1


@pytest.mark.parametrize(
    ("out", "fewest", "most"), [(1, 0.95, 1.15), (10, 0.85, 1.25), (50, 0.75, 1.3), (90, 0.8, 1.25), (97, 0.85, 1.15)]
)
def test_balance_at_full_size(out: int, fewest: float, most: float) -> None:
    """Some margin above what many more seeds showed; a run of neighbours must be as good as targets here and there."""
    permutations = ImplicitPermutations("stream-1", 9973)
    calculator = TableCalculator(permutations, TableKind.ANCHORED)
    everyone = frozenset(range(100))
    scattered = frozenset(random.Random(1).sample(range(100), out))
    run = frozenset((30 + index) % 100 for index in range(out))
    every_second = frozenset(index * 2 % 100 for index in range(min(out, 50)))
    for withdrawn in (scattered, run, every_second):
        active = everyone - withdrawn
        low, high = extremes(calculator.table(everyone, active), active)
        assert fewest < low
        assert high < most


def test_neighbours_do_not_inherit_from_a_run_of_withdrawn() -> None:
    """With many slots, chance evens out, and what remains is bias of the orders.

    Walks with steps of equal length over the bare indexes fail this: the edges get half as much again as the others.
    """
    calculator = TableCalculator(ImplicitPermutations("stream", 99991), TableKind.ANCHORED)
    everyone, active = frozenset(range(100)), frozenset(range(25, 75))
    home = calculator.table(everyone, everyone)
    gained = Counter(new for old, new in zip(home, calculator.table(everyone, active), strict=True) if old != new)
    mean = gained.total() / len(active)
    for index in active:
        assert 0.8 < gained[index] / mean < 1.2


@given(setups(), st.sampled_from(TableKind), st.randoms(use_true_random=False))
def test_the_table_does_not_depend_on_history(setup: Setup, kind: TableKind, chance: random.Random) -> None:
    travelled = TableCalculator(setup.rows, kind)
    everyone = sorted(setup.registered)
    for _ in range(4):
        registered = frozenset(chance.sample(everyone, chance.randint(1, len(everyone))))
        active = frozenset(chance.sample(everyone, chance.randint(0, len(everyone))))
        travelled.table(registered, active)
    fresh = TableCalculator(setup.rows, kind)
    assert travelled.table(setup.registered, setup.before) == fresh.table(setup.registered, setup.before)


def test_what_a_caller_does_to_a_table_does_not_reach_the_next_one() -> None:
    calculator = TableCalculator(shuffled_rows(1, 4, 31), TableKind.ANCHORED)
    first = calculator.table({0, 1, 2, 3}, {0, 1, 2, 3})
    kept = list(first)
    first[:] = [99] * 31
    assert calculator.table({0, 1, 2, 3}, {0, 1, 2, 3}) == kept


def test_an_active_target_counts_as_registered() -> None:
    rows = shuffled_rows(1, 4, 31)
    assert anchored(rows, {0, 1}, {0, 3}) == anchored(rows, {0, 1, 3}, {0, 3})


@pytest.mark.parametrize("kind", TableKind)
def test_no_active_target_leaves_every_slot_empty(kind: TableKind) -> None:
    calculator = TableCalculator(ImplicitPermutations("s", 101), kind)
    assert calculator.table({1, 2, 3}, set()) == [-1] * 101
    assert calculator.table(set(), set()) == [-1] * 101


@pytest.mark.parametrize("row", [[0] * 7, [1, 2, 3], [7, 8, 9, 10, 11, 12, 13]])
def test_rows_that_are_no_permutation_are_refused(row: list[int]) -> None:
    with pytest.raises(ValueError, match="not permutations"):
        maglev(Rows([list(range(7)), row]), {0, 1})


@given(st.text(max_size=8), st.integers(0, 1000), st.sampled_from(PRIMES))
def test_an_implicit_row_is_an_arithmetic_permutation(seed: str, index: int, size: int) -> None:
    row = list(ImplicitPermutations(seed, size).row(index))
    assert sorted(row) == list(range(size))
    steps = {(after - before) % size for before, after in itertools.pairwise(row)}
    assert len(steps) == 1


def test_implicit_rows_are_the_same_everywhere() -> None:
    """A release that changed these rows would move nearly every slot when load balancers are upgraded one by one."""
    permutations = ImplicitPermutations("stream-a", 9973)
    # From the digest that `printf 'stream-a\0003' | b2sum -l 128` prints.
    offset, skip = 5851, 2037
    assert list(permutations.row(3))[:3] == [offset, (offset + skip) % 9973, (offset + 2 * skip) % 9973]


def test_implicit_rows_differ_by_seed_and_index() -> None:
    heads = {tuple(list(ImplicitPermutations(seed, 9973).row(i))[:2]) for seed in ("a", "b") for i in range(50)}
    assert len(heads) == 100


@pytest.mark.parametrize("size", [-1, 0, 1, 2, 4, 10000])
def test_implicit_rows_need_a_prime(size: int) -> None:
    with pytest.raises(ValueError, match="prime"):
        ImplicitPermutations("s", size)


@pytest.mark.parametrize(
    ("number", "prime"), [(2, 2), (3, 3), (4, 3), (25, 23), (100, 97), (10000, 9973), (100_000, 99991)]
)
def test_largest_prime_at_most(number: int, prime: int) -> None:
    assert largest_prime_at_most(number) == prime


@pytest.mark.parametrize("number", [1, 0, -5])
def test_there_is_no_prime_below_two(number: int) -> None:
    with pytest.raises(ValueError, match="no prime"):
        largest_prime_at_most(number)


def test_equal_tables_have_an_equal_digest_that_a_metric_holds_exactly() -> None:
    calculator = TableCalculator(ImplicitPermutations("a", 97), TableKind.ANCHORED)
    whole = calculator.table({0, 1, 2}, {0, 1, 2})
    digests = [table_digest(calculator.table({0, 1, 2}, active)) for active in ({0, 1, 2}, {0, 1}, {0, 2}, set())]
    assert len(set(digests)) == len(digests)
    again = TableCalculator(ImplicitPermutations("a", 97), TableKind.ANCHORED).table({0, 1, 2}, {0, 1, 2})
    assert table_digest(again) == digests[0] == table_digest(tuple(whole))
    assert all(0 <= digest < 2**48 and int(float(digest)) == digest for digest in digests)
    # Of every version and machine: dashboards compare them.
    assert table_digest([0, 1, NO_TARGET]) == 16049534956311
