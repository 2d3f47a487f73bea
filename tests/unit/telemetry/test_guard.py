import dataclasses
import time

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lbguard.core.effects import FlushNeighbors, Ignored, NeighborMoved, ProbeNeighbors, Record, ResolveNeighbors
from lbguard.core.model import Action, TargetKey
from lbguard.telemetry.metrics.guard import Metrics, list_metrics
from lbguard.telemetry.metrics.interface_counts import LinkLabels
from tests.unit.examples import IPV4, decision, guard_status
from tests.unit.scraper import Scraper


class Scraped(Scraper):
    """Metrics, and what a scraper reads of them."""

    def __init__(self, place: dict[str, str] | None = None) -> None:
        super().__init__()
        self.metrics = Metrics(self.registry, place)


@pytest.fixture
def scraped() -> Scraped:
    return Scraped()


def test_two_registries_do_not_meet(scraped: Scraped) -> None:
    other = Scraped()
    scraped.metrics.record_effect(Record(decision=decision(Action.HOLD)))
    assert scraped.value("decisions_total", action="hold") == 1
    assert other.value("decisions_total", action="hold") == 0


def test_the_place_stands_at_every_target_and_link() -> None:
    place = {"trench": "t", "conduit": "c"}
    scraped = Scraped(place)
    scraped.metrics.packets.record({TargetKey("stream-a", 1): (5, 500)}, {})
    scraped.metrics.record_effect(Record(decision=decision(Action.HOLD)))
    scraped.metrics.interfaces.follow((LinkLabels("lo", "00:00:00:00:00:00", ""),))
    found = [dict(labels) for _, labels in scraped.series() if {"identifier", "interface_name"} & dict(labels).keys()]
    assert len(found) == 4 + 2 + 8
    assert all(labels.items() >= place.items() for labels in found)


def test_what_is_known_follows_the_status(scraped: Scraped) -> None:
    scraped.metrics.record_status(guard_status())
    assert (scraped.value("kernel_in_sync"), scraped.value("source_ok")) == (1, 1)
    assert scraped.value("stream_available", stream="stream-a") == 1
    scraped.metrics.record_status(dataclasses.replace(guard_status(), streams=(), in_sync=False, source_ok=False))
    assert (scraped.value("kernel_in_sync"), scraped.value("source_ok")) == (0, 0)
    assert scraped.value("stream_available", stream="stream-a") is None


def test_why_it_is_not_ready(scraped: Scraped) -> None:
    scraped.metrics.record_readiness("tables_not_read: stream-a, stream-b")
    assert scraped.value("not_ready", reason="tables_not_read") == 1
    assert scraped.value("not_ready", reason="source_not_read") == 0
    beat = scraped.value("heartbeat_timestamp_seconds")
    assert beat is not None
    assert abs(beat - time.time()) < 60
    scraped.metrics.record_readiness("")
    assert scraped.value("not_ready", reason="tables_not_read") == 0


def test_effects_are_counted_by_what_they_touch(scraped: Scraped) -> None:
    entries = ((1, IPV4), (2, IPV4))
    scraped.metrics.record_effect(FlushNeighbors(entries=entries))
    scraped.metrics.record_effect(ResolveNeighbors(entries=entries))
    scraped.metrics.record_effect(ProbeNeighbors(entries=entries[:1]))
    scraped.metrics.record_effect(NeighborMoved(ifindex=1, ip=IPV4, old_mac=b"\0" * 6, new_mac=b"\1" * 6))
    scraped.metrics.record_effect(Ignored(reason="late_delete", count=3))
    names = ("neighbor_flushes", "neighbor_resolves", "neighbor_probes", "neighbor_mac_changes")
    assert [scraped.value(f"{name}_total") for name in names] == [2, 2, 1, 1]
    assert scraped.value("events_ignored_total", reason="late_delete") == 3


def test_counts_of_the_adapters_are_followed(scraped: Scraped) -> None:
    for sent in (2, 5):
        scraped.metrics.record_announcer({"arp_request": sent}, {"not_owned": 1}, {"ENETDOWN": 1})
        scraped.metrics.record_inbox_dropped(sent * 10)
        scraped.metrics.record_mirror(sent, {"overrun": sent}, {"foreign_sender": 4})
    assert scraped.value("announcements_total", kind="arp_request") == 5
    assert scraped.value("announcements_suppressed_total", reason="not_owned") == 1
    assert scraped.value("announcement_errors_total", error="ENETDOWN") == 1
    assert scraped.value("inbox_dropped_total") == 50
    assert scraped.value("kernel_overruns_total") == 5
    assert scraped.value("kernel_resyncs_total", reason="overrun") == 5
    assert scraped.value("kernel_messages_ignored_total", reason="foreign_sender") == 4


def test_what_a_registry_counts(scraped: Scraped) -> None:
    scraped.metrics.record_source(sessions=1, losses=0, waiting=3, skipped={"bad_address": 2}, lost_at=7.0)
    assert scraped.value("source_lost_timestamp_seconds") == 7
    scraped.metrics.record_source(sessions=2, losses=1, waiting=0, skipped={"bad_address": 2, "no_identifier": 1})
    assert scraped.value("source_sessions_total") == 2
    assert scraped.value("source_losses_total") == 1
    assert scraped.value("source_removals_waiting") == 0
    assert scraped.value("source_lost_timestamp_seconds") == 0
    assert scraped.value("source_entries_skipped_total", reason="bad_address") == 2


def test_calls_of_the_interposer_are_followed(scraped: Scraped) -> None:
    for held in (2, 5):
        scraped.metrics.record_interposer({("deactivate", "held"): held, ("activate", "admitted"): 3})
    assert scraped.value("interposer_calls_total", command="deactivate", outcome="held") == 5
    assert scraped.value("interposer_calls_total", command="activate", outcome="admitted") == 3


def test_counts_of_the_verdict_service_are_followed(scraped: Scraped) -> None:
    assert scraped.value("verdicts_received_total", state="healing") == 0
    for count in (1, 3):
        scraped.metrics.record_verdicts(
            received={"down": count},
            ignored={"late": count * 2},
            denied={"peer_not_allowed": count * 3},
            limited={"max_subjects": count * 4},
            invalid=count * 5,
            replaced=count * 6,
        )
    scraped.metrics.record_reporters(streams=2, reporters=3, subjects=40)
    assert scraped.value("verdicts_received_total", state="down") == 3
    assert scraped.value("verdicts_ignored_total", reason="late") == 6
    assert scraped.value("verdict_requests_denied_total", reason="peer_not_allowed") == 9
    assert scraped.value("verdict_requests_limited_total", limit="max_subjects") == 12
    assert scraped.value("verdict_requests_invalid_total") == 15
    assert scraped.value("verdict_streams_replaced_total") == 18
    names = ("verdict_streams", "verdict_reporters", "verdict_subjects")
    assert [scraped.value(name) for name in names] == [2, 3, 40]


def test_a_turn_of_the_loop(scraped: Scraped) -> None:
    scraped.metrics.record_step(duration_s=0.001, lags_s=[0.002, 0.004])
    scraped.metrics.follow_inbox(lambda: 9)
    scraped.metrics.record_failures(
        routes=["ENETDOWN: Network is down", "a sentence, not a name"], neighbors=["ENODEV"]
    )
    assert scraped.value("event_lag_seconds_count") == 2
    assert scraped.value("inbox_depth") == 9
    assert scraped.value("route_errors_total", error="ENETDOWN") == 1
    assert scraped.value("route_errors_total", error="other") == 1
    assert scraped.value("neighbor_errors_total", error="ENODEV") == 1


def test_the_list_for_the_docs_is_what_is_exported(scraped: Scraped) -> None:
    text = generate_latest(scraped.registry).decode()
    exported = {
        (family.name + ("_total" if family.type == "counter" else ""), family.type)
        for family in text_string_to_metric_families(text)
        if family.name.startswith("lbguard_")
    }
    listed = list_metrics()
    assert {(spec.name, spec.kind) for spec in listed} == exported
    assert all(spec.help.endswith(".") for spec in listed)
