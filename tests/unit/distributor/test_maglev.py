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
    TableCalculator,
    TableKind,
    anchored,
    largest_prime_at_most,
    maglev,
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


def spread(table: Sequence[int], active: Set[int]) -> int:
    counts = Counter(table)
    return max(counts[index] for index in active) - min(counts[index] for index in active)


@given(setups())
def test_maglev_is_the_rule_of_nfqlb(setup: Setup) -> None:
    assert maglev(setup.rows, setup.before) == turn_taking(setup.rows.rows, setup.before)


def test_maglev_by_hand() -> None:
    rows = Rows([[0, 1, 2, 3, 4], [0, 2, 4, 1, 3], [4, 3, 2, 1, 0]])
    # Turns: 0 takes 0; 1 finds 0 taken and takes 2; 2 takes 4; 0 takes 1; 1 finds 4 and 1 taken and takes 3.
    assert maglev(rows, {0, 1, 2}) == [0, 0, 1, 1, 2]
    assert maglev(rows, {2}) == [2, 2, 2, 2, 2]


def test_anchored_by_hand() -> None:
    rows = Rows([[0, 1, 2, 3, 4], [0, 2, 4, 1, 3], [4, 3, 2, 1, 0]])
    # Home of 1 are slots 2 and 3. Target 0 is first and prefers 2; target 2 gets 3.
    assert anchored(rows, {0, 1, 2}, {0, 2}) == [0, 0, 0, 2, 2]


@given(setups())
def test_anchored_is_maglev_when_all_registered_are_active(setup: Setup) -> None:
    assert anchored(setup.rows, setup.registered, setup.registered) == turn_taking(setup.rows.rows, setup.registered)


@given(setups())
def test_withdrawing_and_readmitting_any_set_moves_no_slot_of_the_others(setup: Setup) -> None:
    full = anchored(setup.rows, setup.registered, setup.registered)
    reduced = anchored(setup.rows, setup.registered, setup.after)
    for slot, index in enumerate(full):
        if index in setup.after:
            assert reduced[slot] == index


@given(setups())
def test_between_any_two_states_only_slots_whose_home_is_inactive_change_hands(setup: Setup) -> None:
    home = turn_taking(setup.rows.rows, setup.registered)
    first = anchored(setup.rows, setup.registered, setup.before)
    second = anchored(setup.rows, setup.registered, setup.after)
    stayed = setup.before & setup.after
    for slot, index in enumerate(home):
        if index in stayed:
            assert first[slot] == second[slot] == index


@given(setups(), st.sampled_from(TableKind))
def test_every_slot_goes_to_an_active_target_or_to_nobody(setup: Setup, kind: TableKind) -> None:
    table = TableCalculator(setup.rows, kind).table(setup.registered, setup.before)
    assert len(table) == setup.rows.size
    assert set(table) <= (setup.before or {NO_TARGET})


@given(setups())
def test_load_differs_by_one_slot_in_maglev_and_two_in_anchored(setup: Setup) -> None:
    if not setup.before:
        return
    assert spread(maglev(setup.rows, setup.before), setup.before) <= 1
    assert spread(anchored(setup.rows, setup.registered, setup.before), setup.before) <= 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("out", [1, 50, 97])
def test_load_at_full_size(seed: int, out: int) -> None:
    permutations = ImplicitPermutations(f"stream-{seed}", 9973)
    active = frozenset(random.Random(seed).sample(range(100), 100 - out))
    table = anchored(permutations, range(100), active)
    assert set(table) == active
    assert spread(table, active) <= 2


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


@given(setups())
def test_the_calculator_agrees_with_the_functions(setup: Setup) -> None:
    calculator = TableCalculator(setup.rows, TableKind.ANCHORED)
    for active in (setup.before, setup.after):
        assert calculator.table(setup.registered, active) == anchored(setup.rows, setup.registered, active)
    stock = TableCalculator(setup.rows, TableKind.MAGLEV)
    assert stock.table(setup.registered, setup.before) == maglev(setup.rows, setup.before)


def test_what_a_caller_does_to_a_table_does_not_reach_the_next_one() -> None:
    calculator = TableCalculator(shuffled_rows(1, 4, 31), TableKind.ANCHORED)
    first = calculator.table({0, 1, 2, 3}, {0, 1, 2, 3})
    kept = list(first)
    first[:] = [99] * 31
    assert calculator.table({0, 1, 2, 3}, {0, 1, 2, 3}) == kept


def test_an_active_target_counts_as_registered() -> None:
    rows = shuffled_rows(1, 4, 31)
    assert anchored(rows, {0, 1}, {0, 3}) == anchored(rows, {0, 1, 3}, {0, 3})
    calculator = TableCalculator(rows, TableKind.ANCHORED)
    assert calculator.table({0, 1}, {0, 3}) == anchored(rows, {0, 1, 3}, {0, 3})


@pytest.mark.parametrize("kind", TableKind)
def test_no_active_target_leaves_every_slot_empty(kind: TableKind) -> None:
    calculator = TableCalculator(ImplicitPermutations("s", 101), kind)
    assert calculator.table({1, 2, 3}, set()) == [-1] * 101
    assert calculator.table(set(), set()) == [-1] * 101


@pytest.mark.parametrize("row", [[0] * 7, [1, 2, 3], [7, 8, 9, 10, 11, 12, 13]])
def test_rows_that_are_no_permutation_are_refused(row: list[int]) -> None:
    with pytest.raises(ValueError, match="no permutations"):
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
