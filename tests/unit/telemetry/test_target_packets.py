import pytest

from lbguard.core.model import TargetKey
from lbguard.telemetry.metrics.target_packets import TargetPackets
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
