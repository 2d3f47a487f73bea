import dataclasses

from prometheus_client import CollectorRegistry, generate_latest

from lbguard.core.model import Action, TargetKey, TargetState
from lbguard.telemetry.metrics.target_timeline import STATE_CODES, TargetTimeline
from tests.unit.examples import decision


def scrape(timeline: TargetTimeline) -> list[str]:
    registry = CollectorRegistry()
    registry.register(timeline)
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def test_the_numbers_are_those_of_the_dashboards() -> None:
    assert {str(state): code for state, code in STATE_CODES.items()} == {
        "pending": 0,
        "active": 1,
        "held": 2,
        "frozen": 3,
        "withdrawn": 4,
    }


def test_every_series_says_where_it_is_from() -> None:
    timeline = TargetTimeline({"trench": "red", "conduit": "lb"})
    assert scrape(timeline) == []
    held = dataclasses.replace(decision(Action.HOLD), target=TargetKey("s", 7), state_to=TargetState.HELD)
    timeline.record(held)
    labels = '{conduit="lb",identifier="7",stream="s",trench="red"}'
    assert scrape(timeline) == [f"lbguard_target_state_code{labels} 2.0", f"lbguard_target_losses_total{labels} 1.0"]


def test_only_the_stream_that_left_is_forgotten() -> None:
    timeline = TargetTimeline({})
    for key in (TargetKey("a", 1), TargetKey("b", 1)):
        timeline.record(dataclasses.replace(decision(Action.ADMIT), target=key, state_to=TargetState.ACTIVE))
    timeline.forget_stream("a")
    assert [line for line in scrape(timeline) if 'stream="a"' in line] == []
    assert len([line for line in scrape(timeline) if 'stream="b"' in line]) == 2
