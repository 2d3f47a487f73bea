import asyncio

from lbguard.api.feeds import DecisionLog, Missed
from lbguard.core.model import TargetKey
from tests.unit.examples import decision


def fill(log: DecisionLog, numbers: range, identifiers: int = 1) -> None:
    for number in numbers:
        log.add(decision(sequence=number, identifier=1 + number % identifiers), wall_time=1000.0 + number)


def sequences(log: DecisionLog, target: TargetKey | None, limit: int) -> list[int]:
    return [logged.decision.sequence for logged in log.last(target, limit)]


def test_the_last_ones_are_kept_oldest_first() -> None:
    log = DecisionLog(overall=5, per_target=2)
    fill(log, range(8), identifiers=2)
    assert sequences(log, None, 100) == [3, 4, 5, 6, 7]
    assert sequences(log, None, 2) == [6, 7]
    assert sequences(log, None, 0) == []
    assert sequences(log, TargetKey("stream-a", 1), 100) == [4, 6]
    assert sequences(log, TargetKey("stream-a", 9), 100) == []
    assert log.last(None, 1)[0].wall_time == 1007.0


def test_targets_that_were_quiet_longest_are_forgotten() -> None:
    log = DecisionLog(targets=2)
    for identifier in (1, 2, 1, 3):
        log.add(decision(identifier=identifier), 0.0)
    kept = [identifier for identifier in (1, 2, 3) if log.last(TargetKey("stream-a", identifier), 1)]
    assert kept == [1, 3]


async def test_a_subscription_gets_what_comes_after_it() -> None:
    log = DecisionLog()
    fill(log, range(3))
    with log.subscribe() as feed:
        fill(log, range(3, 5))
        got = [await anext(feed), await anext(feed)]
        assert [(item.lost, item.logged.decision.sequence) for item in got] == [(0, 3), (0, 4)]
        waiting = asyncio.create_task(take_one(feed))
        await asyncio.sleep(0)
        fill(log, range(5, 6))
        assert (await waiting).logged.decision.sequence == 5


async def take_one(feed: object) -> Missed:
    return await anext(feed)  # type: ignore[no-any-return, call-overload]


async def test_a_slow_reader_loses_the_oldest_and_is_told() -> None:
    log = DecisionLog()
    with log.subscribe(limit=2) as slow, log.subscribe() as fast:
        fill(log, range(5))
        first, second = await anext(slow), await anext(slow)
        assert (first.lost, first.logged.decision.sequence) == (3, 3)
        assert (second.lost, second.logged.decision.sequence) == (0, 4)
        assert (await anext(fast)).logged.decision.sequence == 0


async def test_a_closed_subscription_gets_nothing_more() -> None:
    log = DecisionLog()
    with log.subscribe() as feed:
        pass
    fill(log, range(1))
    assert feed._waiting == type(feed._waiting)()
