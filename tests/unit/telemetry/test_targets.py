"""Series of each target."""

import dataclasses

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from lbguard.core.model import Action, TargetKey, TargetState
from lbguard.telemetry.metrics.targets import STATE_CODES, TargetPackets, TargetTimeline
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
    assert len(scraped.series()) == 4


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
