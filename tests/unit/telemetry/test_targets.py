"""Series of each target."""

import dataclasses
import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from lbguard.core.model import Action, TargetKey, TargetState
from lbguard.telemetry.metrics.targets import STATE_CODES, PerTarget, TargetPackets, TargetTimeline
from tests.unit.examples import decision
from tests.unit.scraper import Scraper

KEY = TargetKey("stream-a", 1)


class Scraped(Scraper):
    """Packets of targets, and what a scraper reads of them."""

    def __init__(self, **place: str) -> None:
        super().__init__()
        self.packets = TargetPackets(place)
        self.registry.register(self.packets)


def test_packets_survive_a_counter_that_starts_again() -> None:
    scraped = Scraped()
    for packets in (100, 150, 20):
        scraped.packets.record({KEY: (packets, packets * 10)}, {KEY: (packets // 10, packets)})
    labels = {"stream": "stream-a", "identifier": "1"}
    assert scraped.value("target_packets_total", **labels) == 170
    assert scraped.value("target_bytes_total", **labels) == 1700
    assert scraped.value("held_packets_total", **labels) == 17
    assert scraped.value("held_bytes_total", **labels) == 170
    scraped.packets.record({}, {})
    assert scraped.value("target_packets_total", **labels) is None
    scraped.packets.record({KEY: (5, 50)}, {})
    assert scraped.value("target_packets_total", **labels) == 5


@pytest.mark.parametrize("place", [{}, {"trench": "t", "conduit": "c"}])
def test_the_place_stands_at_targets_only_where_it_is_known(place: dict[str, str]) -> None:
    scraped = Scraped(**place)
    for packets in (5, 7):
        scraped.packets.record({KEY: (packets, packets * 100)}, {})
    assert scraped.value("target_packets_total", **place, stream="stream-a", identifier="1") == 7
    assert scraped.value("stream_packets_total", **place, stream="stream-a") == 7
    assert len(scraped.series()) == 6


def test_sums_of_streams_survive_targets_that_leave_and_counters_that_start_again() -> None:
    scraped = Scraped()
    other, elsewhere = TargetKey("stream-a", 2), TargetKey("stream-b", 1)
    scraped.packets.record({KEY: (100, 0), other: (10, 0), elsewhere: (1, 0)}, {KEY: (4, 0)})
    scraped.packets.record({KEY: (20, 0)}, {KEY: (5, 0)})
    assert scraped.value("stream_packets_total", stream="stream-a") == 130
    assert scraped.value("stream_held_packets_total", stream="stream-a") == 5
    assert scraped.value("stream_packets_total", stream="stream-b") is None
    scraped.packets.record({}, {})
    assert scraped.value("stream_packets_total", stream="stream-a") is None


@pytest.mark.parametrize(("per_target", "shown"), [("off", set()), ("active", {"1"}), ("all", {"1", "2"})])
def test_which_targets_have_series_of_their_own(per_target: PerTarget, shown: set[str]) -> None:
    registry = CollectorRegistry()
    timeline = TargetTimeline({}, per_target)
    packets = TargetPackets({}, timeline.shows)
    registry.register(timeline)
    registry.register(packets)
    other = TargetKey("stream-a", 2)
    for key in (KEY, other):
        admitted = decision(Action.ADMIT)
        timeline.record(dataclasses.replace(admitted, target=key, state_to=TargetState.ACTIVE))
    timeline.record(decision(Action.HOLD))
    # It keeps its series when the path is back: its losses count.
    timeline.record(dataclasses.replace(decision(Action.RECOVER), state_to=TargetState.ACTIVE))
    packets.record({KEY: (5, 50), other: (7, 70)}, {})
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    single = [line for line in lines if "identifier" in line]
    assert {match for line in single for match in re.findall(r'identifier="(\d+)"', line)} == shown
    assert len(single) == 6 * len(shown)
    assert 'lbguard_stream_packets_total{stream="stream-a"} 12.0' in lines


def test_a_target_that_is_gone_has_no_series_where_only_losses_show() -> None:
    timeline = TargetTimeline({}, "active")
    assert not timeline.shows(KEY)
    timeline.record(decision(Action.HOLD))
    assert timeline.shows(KEY)
    timeline.record(dataclasses.replace(decision(Action.REMOVE), state_to=None))
    assert not timeline.shows(KEY)


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
        "draining": 5,
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
