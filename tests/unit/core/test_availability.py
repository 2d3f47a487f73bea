"""Availability by a quorum of targets, with hysteresis."""

from dataclasses import replace

import pytest

from lbguard.core import effects as fx
from lbguard.core.config import Amount, EngineConfig
from lbguard.core.model import StreamSpec, TargetSpec
from tests.unit.core.harness import STREAM, Guard, ipv4_of

CONFIG = EngineConfig(neighbor_probe_interval_s=0.0, solicit_neighbors=False, availability_grace_s=0.0)
TARGETS = 4


def guarded(quorum: Amount, hysteresis: Amount | None = None, *, grace_s: float = 0.0) -> Guard:
    """Targets 1 to 4, each behind a proxy and a link of its own."""
    config = replace(
        CONFIG,
        availability_quorum=quorum,
        availability_hysteresis=hysteresis or Amount(),
        availability_grace_s=grace_s,
    )
    guard = Guard(config, targets=0)
    for number in range(2, TARGETS + 1):
        guard.link(number, proxy=number - 1)
    targets = tuple(TargetSpec(identifier=i, ips=(ipv4_of(i, i - 1),)) for i in range(1, TARGETS + 1))
    guard.source(StreamSpec(name=STREAM, targets=targets))
    return guard


def lose(guard: Guard, number: int) -> list[tuple[bool, str]]:
    guard.unlink(number)
    return told(guard)


def heal(guard: Guard, number: int) -> list[tuple[bool, str]]:
    guard.link(number, proxy=number - 1)
    return told(guard)


def told(guard: Guard) -> list[tuple[bool, str]]:
    return [(effect.available, effect.reason) for effect in guard.of(fx.SetAvailability)]


@pytest.mark.parametrize(
    ("quorum", "losses"),
    [
        (Amount(count=1), 4),
        (Amount(count=2), 3),
        (Amount(share=0.5), 3),
        (Amount(share=0.51), 2),
        (Amount(share=1.0), 1),
        (Amount(count=4), 1),
        (Amount(count=100), 1),
        (Amount(), 4),
    ],
)
def test_a_stream_is_unavailable_below_its_quorum(quorum: Amount, losses: int) -> None:
    guard = guarded(quorum)
    reason = "no_usable_path" if losses == TARGETS else "below_quorum"
    for number in range(1, losses):
        assert lose(guard, number) == []
    assert lose(guard, losses) == [(False, reason)]
    assert heal(guard, losses) == [(True, "ok")]


@pytest.mark.parametrize(("hysteresis", "more"), [(Amount(count=1), 1), (Amount(share=0.5), 2), (Amount(count=9), 2)])
def test_a_stream_that_flaps_around_its_quorum_makes_one_transition(hysteresis: Amount, more: int) -> None:
    guard = guarded(Amount(count=2), hysteresis)
    for number in (1, 2):
        assert lose(guard, number) == []
    assert lose(guard, 3) == [(False, "below_quorum")]
    for _ in range(5):
        assert heal(guard, 3) == []
        assert lose(guard, 3) == []
    heals = [heal(guard, number) for number in (3, 2, 1)]
    assert [answer == [(True, "ok")] for answer in heals] == [number == more for number in range(3)]


def test_hysteresis_never_asks_for_more_than_all_targets() -> None:
    guard = guarded(Amount(share=1.0), Amount(count=3))
    assert lose(guard, 1) == [(False, "below_quorum")]
    assert heal(guard, 1) == [(True, "ok")]


def test_a_loss_that_is_short_is_not_told() -> None:
    guard = guarded(Amount(count=4), grace_s=1.0)
    assert lose(guard, 1) == []
    guard.wait(0.5)
    assert heal(guard, 1) == []
    guard.wait(5.0)
    assert told(guard) == []


def test_fewer_listed_targets_lower_a_share_and_cap_a_number() -> None:
    guard = guarded(Amount(share=0.75))
    assert lose(guard, 4) == []
    assert lose(guard, 3) == [(False, "below_quorum")]
    guard.source(
        StreamSpec(name=STREAM, targets=tuple(TargetSpec(identifier=i, ips=(ipv4_of(i, i - 1),)) for i in (1, 2)))
    )
    assert told(guard) == [(True, "ok")]
