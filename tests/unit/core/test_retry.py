from lbguard.core.retry import Retries


def test_the_delay_doubles_with_each_failure_in_a_row_up_to_the_bound() -> None:
    retries: Retries[str] = Retries(0.1, 1.0)
    delays = []
    for _ in range(6):
        retries.failed("a", 10.0)
        at = retries.next()
        assert at is not None
        delays.append(round(at - 10.0, 6))
        assert retries.waiting("a")
        assert retries.pop_due(at) == ["a"]
        assert not retries.waiting("a")
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_success_starts_over_and_cancels_what_is_planned() -> None:
    retries: Retries[str] = Retries(0.1, 1.0)
    retries.failed("a", 0.0)
    retries.failed("a", 0.0)
    retries.succeeded("a")
    assert retries.next() is None
    retries.failed("a", 5.0)
    assert retries.next() == 5.1


def test_keys_do_not_share_their_failures() -> None:
    retries: Retries[str] = Retries(0.1, 1.0)
    retries.failed("a", 0.0)
    retries.failed("a", 0.0)
    retries.failed("b", 0.0)
    assert retries.pop_due(0.1) == ["b"]
    assert retries.pop_due(0.19) == []
    assert retries.pop_due(0.2) == ["a"]


def test_failing_for_ever_overflows_nothing() -> None:
    retries: Retries[str] = Retries(0.1, 5.0)
    for _ in range(5000):
        retries.failed("a", 0.0)
    assert retries.next() == 5.0
