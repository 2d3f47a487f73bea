from lbguard.core.commits import Availability
from lbguard.core.effects import SetAvailability


def told(effects: list[SetAvailability]) -> list[tuple[str, bool, str]]:
    return [(e.stream, e.available, e.reason) for e in effects]


def test_a_gain_is_told_at_once_and_only_once() -> None:
    availability = Availability(1.0)
    assert availability.get("a") == (None, "starting")
    assert told(availability.update("a", "ok", 0.0)) == [("a", True, "ok")]
    assert told(availability.update("a", "ok", 1.0)) == []


def test_a_loss_is_told_after_the_grace_with_the_latest_reason() -> None:
    availability = Availability(1.0)
    availability.update("a", "ok", 0.0)
    assert told(availability.update("a", "no_usable_path", 10.0)) == []
    assert availability.next() == 11.0
    assert told(availability.update("a", "no_targets", 10.5)) == []
    assert told(availability.expire(10.99)) == []
    assert told(availability.expire(11.0)) == [("a", False, "no_targets")]
    assert availability.next() is None
    assert told(availability.update("a", "no_targets", 12.0)) == []
    assert availability.next() is None


def test_a_loss_that_heals_in_time_is_not_told() -> None:
    availability = Availability(1.0)
    availability.update("a", "ok", 0.0)
    availability.update("a", "no_usable_path", 10.0)
    assert told(availability.update("a", "ok", 10.9)) == []
    assert told(availability.expire(20.0)) == []
    assert availability.get("a") == (True, "ok")


def test_a_stream_that_never_had_a_path_is_told_as_unavailable() -> None:
    availability = Availability(1.0)
    availability.update("a", "no_usable_path", 0.0)
    assert told(availability.expire(1.0)) == [("a", False, "no_usable_path")]


def test_without_grace_a_loss_is_told_at_once() -> None:
    availability = Availability(0.0)
    availability.update("a", "ok", 0.0)
    assert told(availability.update("a", "no_usable_path", 5.0)) == [("a", False, "no_usable_path")]


def test_a_forgotten_stream_is_unknown_again_and_says_nothing_more() -> None:
    availability = Availability(1.0)
    availability.update("a", "ok", 0.0)
    availability.update("a", "no_usable_path", 1.0)
    availability.forget("a")
    assert told(availability.expire(100.0)) == []
    assert availability.get("a") == (None, "starting")
