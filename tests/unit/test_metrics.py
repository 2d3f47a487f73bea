import dataclasses
import time

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lbguard.core.effects import FlushNeighbors, Ignored, NeighborMoved, ProbeNeighbors, Record, ResolveNeighbors
from lbguard.core.model import Action, TargetKey, TargetState
from lbguard.distributor.base import CommitResult
from lbguard.metrics import Metrics, list_metrics, reason_label
from tests.unit.examples import IPV4, decision, guard_status, target

KEY = TargetKey("stream-a", 1)


class Scraped:
    """Metrics, and what a scraper reads of them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)

    def series(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = generate_latest(self.registry).decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.series().get((f"lbguard_{name}", tuple(sorted(labels.items()))))


@pytest.fixture
def scraped() -> Scraped:
    return Scraped()


def test_two_registries_do_not_meet(scraped: Scraped) -> None:
    other = Scraped()
    scraped.metrics.record_decision(decision(Action.HOLD))
    assert scraped.value("decisions_total", action="hold") == 1
    assert other.value("decisions_total", action="hold") == 0


def test_a_hold_that_recovers(scraped: Scraped) -> None:
    scraped.metrics.record_effect(Record(decision=decision(Action.HOLD, cause="link_down")))
    scraped.metrics.record_effect(Record(decision=decision(Action.RECOVER, cause="link_down", duration_s=0.6)))
    assert scraped.value("holds_total", stream="stream-a", cause="link_down") == 1
    assert scraped.value("recoveries_total", stream="stream-a") == 1
    assert scraped.value("hold_duration_seconds_sum") == pytest.approx(0.6)
    assert scraped.value("heal_duration_seconds_count", cause="link_down") == 1
    assert scraped.value("heal_duration_seconds_bucket", cause="link_down", le="0.5") == 0
    assert scraped.value("heal_duration_seconds_bucket", cause="link_down", le="0.75") == 1


def test_a_withdrawal_that_heals_later_keeps_its_cause(scraped: Scraped) -> None:
    scraped.metrics.record_decision(decision(Action.FREEZE))
    scraped.metrics.record_decision(decision(Action.WITHDRAW, cause="no_link", duration_s=3.0))
    scraped.metrics.record_decision(decision(Action.READMIT, cause="damping_over", duration_s=9.0))
    assert scraped.value("freezes_total", stream="stream-a") == 1
    assert scraped.value("withdrawals_total", stream="stream-a", cause="no_link") == 1
    assert scraped.value("readmissions_total", stream="stream-a") == 1
    assert scraped.value("hold_duration_seconds_sum") == 3.0
    assert scraped.value("heal_duration_seconds_sum", cause="no_link") == 9.0
    assert scraped.value("heal_duration_seconds_sum", cause="damping_over") is None


def test_states_follow_the_status_and_leave_with_the_stream(scraped: Scraped) -> None:
    held = target(2, TargetState.HELD)
    scraped.metrics.record_status(guard_status(target(1), held, available=False))
    assert scraped.value("target_states", stream="stream-a", state="active") == 1
    assert scraped.value("target_states", stream="stream-a", state="held") == 1
    assert scraped.value("target_states", stream="stream-a", state="withdrawn") == 0
    assert scraped.value("stream_available", stream="stream-a") == 0
    assert scraped.value("withdrawals_total", stream="stream-a", cause="no_link") == 0
    scraped.metrics.record_decision(decision(Action.HOLD))
    lost = dataclasses.replace(guard_status(), streams=(), in_sync=False, source_ok=False)
    scraped.metrics.record_status(lost)
    assert not [labels for _, labels in scraped.series() if ("stream", "stream-a") in labels]
    assert (scraped.value("kernel_in_sync"), scraped.value("source_ok")) == (0, 0)


def test_each_target_has_its_state_and_its_losses(scraped: Scraped) -> None:
    labels = {"stream": "stream-a", "identifier": "1"}
    for action, state, code, losses in (
        (Action.ADMIT, TargetState.ACTIVE, 1, 0),
        (Action.HOLD, TargetState.HELD, 2, 1),
        (Action.RECOVER, TargetState.ACTIVE, 1, 1),
        (Action.HOLD, TargetState.HELD, 2, 2),
        (Action.FREEZE, TargetState.FROZEN, 3, 2),
        (Action.WITHDRAW, TargetState.WITHDRAWN, 4, 2),
    ):
        scraped.metrics.record_decision(dataclasses.replace(decision(action), target=KEY, state_to=state))
        assert scraped.value("target_state_code", **labels) == code
        assert scraped.value("target_losses_total", **labels) == losses
    scraped.metrics.record_decision(dataclasses.replace(decision(Action.REMOVE), target=KEY, state_to=None))
    assert scraped.value("target_state_code", **labels) is None
    assert scraped.value("target_losses_total", **labels) is None


def test_the_timeline_of_a_target_leaves_with_its_stream(scraped: Scraped) -> None:
    scraped.metrics.record_status(guard_status(target(1)))
    scraped.metrics.record_decision(dataclasses.replace(decision(Action.HOLD), target=KEY, state_to=TargetState.HELD))
    scraped.metrics.record_status(dataclasses.replace(guard_status(), streams=()))
    assert scraped.value("target_state_code", stream="stream-a", identifier="1") is None


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


def test_commits_count_slots_or_errors(scraped: Scraped) -> None:
    scraped.metrics.record_commits(
        [
            CommitResult(stream="a", slots_changed=7, slots_total=100, duration_s=0.002),
            CommitResult(stream="b", error="memory is gone"),
        ]
    )
    assert scraped.value("slots_changed_total", stream="a") == 7
    assert scraped.value("commit_duration_seconds_count") == 1
    assert scraped.value("commit_errors_total", stream="b") == 1


def test_packets_survive_a_counter_that_starts_again(scraped: Scraped) -> None:
    for packets in (100, 150, 20):
        scraped.metrics.record_packets({KEY: (packets, packets * 10)}, {KEY: (packets // 10, packets)})
    labels = {"stream": "stream-a", "identifier": "1"}
    assert scraped.value("target_packets_total", **labels) == 170
    assert scraped.value("target_bytes_total", **labels) == 1700
    assert scraped.value("held_packets_total", **labels) == 17
    assert scraped.value("held_bytes_total", **labels) == 170
    scraped.metrics.record_packets({}, {})
    assert scraped.value("target_packets_total", **labels) is None
    scraped.metrics.record_packets({KEY: (5, 50)}, {})
    assert scraped.value("target_packets_total", **labels) == 5


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
    scraped.metrics.record_step(duration_s=0.001, lags_s=[0.002, 0.004], inbox_depth=9)
    scraped.metrics.record_failures(
        routes=["ENETDOWN: Network is down", "a sentence, not a name"], neighbors=["ENODEV"]
    )
    assert scraped.value("event_lag_seconds_count") == 2
    assert scraped.value("inbox_depth") == 9
    assert scraped.value("route_errors_total", error="ENETDOWN") == 1
    assert scraped.value("route_errors_total", error="other") == 1
    assert scraped.value("neighbor_errors_total", error="ENODEV") == 1


@pytest.mark.parametrize("text", ["", "two words", "a" * 41, "1st", "ümlaut", 'quote"'])
def test_labels_are_words_of_code(text: str) -> None:
    assert reason_label(text) == "other"
    assert reason_label("no_link") == "no_link"


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
