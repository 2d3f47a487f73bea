import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.probing import ProbeWheel


def address(number: int) -> bytes:
    return number.to_bytes(4)


def run(wheel: ProbeWheel, start: float, end: float) -> list[tuple[float, bytes]]:
    """Wake the wheel whenever it asks for it; returns what was due when."""
    seen: list[tuple[float, bytes]] = []
    now = start
    while True:
        at = wheel.next(now)
        if at is None or at > end:
            return seen
        now = max(now, at)
        seen += [(now, ip) for ip in wheel.due(now)]


@given(st.sets(st.integers(1, 500), min_size=1, max_size=60))
def test_every_address_is_due_about_once_an_interval(numbers: set[int]) -> None:
    wheel = ProbeWheel(1.0)
    for number in sorted(numbers):
        wheel.add(address(number))
    counts = Counter(ip for _, ip in run(wheel, 100.0, 110.0))
    assert counts.keys() == {address(number) for number in numbers}
    assert set(counts.values()) <= {9, 10, 11}


def test_few_addresses_are_spread_over_the_interval() -> None:
    wheel = ProbeWheel(1.0)
    for number in range(4):
        wheel.add(address(number))
    moments = [at for at, _ in run(wheel, 0.0, 1.0)]
    assert len(moments) == 4
    assert all(later - earlier >= 0.1 - 1e-9 for earlier, later in itertools.pairwise(moments))


def test_many_addresses_make_even_slices() -> None:
    wheel = ProbeWheel(1.0)
    for number in range(1000):
        wheel.add(address(number))
    sizes = Counter(round(at, 6) for at, _ in run(wheel, 0.0, 1.0 + 1e-6))
    assert set(sizes.values()) == {100}


def test_after_a_stall_nothing_is_made_up_for() -> None:
    wheel = ProbeWheel(1.0)
    for number in range(10):
        wheel.add(address(number))
    wheel.next(0.0)
    assert len(run(wheel, 60.0, 60.0)) <= 2


def test_removed_addresses_are_due_no_more_and_an_empty_wheel_asks_for_nothing() -> None:
    wheel = ProbeWheel(1.0)
    wheel.add(address(1))
    wheel.add(address(2))
    wheel.add(address(2))
    wheel.remove(address(1))
    wheel.remove(address(7))
    assert {ip for _, ip in run(wheel, 0.0, 3.0)} == {address(2)}
    wheel.remove(address(2))
    assert wheel.next(4.0) is None


def test_probing_can_be_off() -> None:
    wheel = ProbeWheel(0.0)
    wheel.add(address(1))
    assert wheel.next(0.0) is None
    assert wheel.due(100.0) == []
