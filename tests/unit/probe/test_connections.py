import pytest

from lbguard.core.addr import parse_ip
from lbguard.core.model import TargetSubject
from lbguard.probe.connections import Connection, Pair, pairs_of

V4_A, V4_B, V4_C = (parse_ip(f"10.0.0.{n}") for n in (1, 2, 3))
V6_A, V6_B = parse_ip("fd00::1"), parse_ip("fd00::2")


def test_each_source_with_each_destination_of_its_family() -> None:
    assert pairs_of([V4_A, V6_A], [V4_B, V6_B, V4_C]) == (Pair(V4_A, V4_B), Pair(V4_A, V4_C), Pair(V6_A, V6_B))


def test_an_address_that_is_listed_twice_counts_once() -> None:
    assert pairs_of([V4_A, V4_A], [V4_B]) == (Pair(V4_A, V4_B),)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ((), "no address pair"),
        ((Pair(V4_A, V4_B), Pair(V4_A, V4_B)), "twice"),
        ((Pair(V4_A, V6_B),), "one family"),
        ((Pair(b"abc", b"abc"),), "one family"),
    ],
)
def test_what_cannot_be_pinged_is_refused_by_name(pairs: tuple[Pair, ...], words: str) -> None:
    with pytest.raises(ValueError, match=f"'c1'.*{words}"):
        Connection(id="c1", subject=TargetSubject(ip=V4_B), pairs=pairs)
