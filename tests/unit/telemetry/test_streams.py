import dataclasses

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from lbguard.core.model import Action, TargetKey, TargetState
from lbguard.core.status import FamilyStatus
from lbguard.distributor.base import CommitResult
from lbguard.telemetry.metrics.families import MetricFamilies
from lbguard.telemetry.metrics.streams import StreamMetrics, exemplar_of
from tests.unit.examples import decision, guard_status, target
from tests.unit.scraper import Scraper

KEY = TargetKey("stream-a", 1)


class Scraped(Scraper):
    """Metrics of streams, and what a scraper reads of them."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = StreamMetrics(MetricFamilies(self.registry), {})


@pytest.fixture
def scraped() -> Scraped:
    return Scraped()


def test_a_hold_that_recovers(scraped: Scraped) -> None:
    scraped.metrics.record_decision(decision(Action.HOLD, cause="link_down"))
    scraped.metrics.record_decision(decision(Action.RECOVER, cause="link_down", duration_s=0.6))
    assert scraped.value("holds_total", stream="stream-a", cause="link_down") == 1
    assert scraped.value("recoveries_total", stream="stream-a") == 1
    assert scraped.value("hold_duration_seconds_sum") == pytest.approx(0.6)
    assert scraped.value("heal_duration_seconds_count", cause="link_down") == 1
    assert scraped.value("heal_duration_seconds_bucket", cause="link_down", le="0.5") == 0
    assert scraped.value("heal_duration_seconds_bucket", cause="link_down", le="0.75") == 1


def test_observations_lead_to_their_decisions_and_traces(scraped: Scraped) -> None:
    scraped.metrics.record_decision(decision(Action.HOLD, cause="link_down"))
    trace = "0123456789abcdef0123456789abcdef"
    scraped.metrics.record_decision(decision(Action.RECOVER, cause="link_down", duration_s=0.6, sequence=7), trace)
    page = openmetrics.generate_latest(scraped.registry).decode()  # type: ignore[no-untyped-call]
    for name in ("hold", "heal"):
        (line,) = [text for text in page.splitlines() if text.startswith(f"lbguard_{name}_duration") and " # {" in text]
        assert f'# {{sequence="7",target="stream-a/1",trace_id="{trace}"}} 0.6' in line
    assert trace not in generate_latest(scraped.registry).decode(), "the text format has no exemplars"


def test_an_exemplar_has_no_more_characters_than_it_may() -> None:
    far = dataclasses.replace(decision(Action.RECOVER, sequence=7), target=TargetKey("s" * 300, 1))
    assert exemplar_of(far, "f" * 32) == {"trace_id": "f" * 32, "sequence": "7"}
    assert exemplar_of(far, "") == {"sequence": "7"}


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


def test_a_family_withdrawn_alone_ends_its_hold(scraped: Scraped) -> None:
    scraped.metrics.record_decision(decision(Action.HOLD, cause="no_link"))
    scraped.metrics.record_decision(decision(Action.WITHDRAW_FAMILY, cause="no_link", duration_s=3.0))
    scraped.metrics.record_decision(decision(Action.RECOVER, cause="no_link", duration_s=600.0))
    assert scraped.value("family_withdrawals_total", stream="stream-a", cause="no_link") == 1
    assert scraped.value("recoveries_total", stream="stream-a") in (None, 0), "the hold did not save the family"
    assert scraped.value("hold_duration_seconds_sum") == 3.0
    assert scraped.value("heal_duration_seconds_sum", cause="no_link") == 600.0
    scraped.metrics.record_decision(decision(Action.HOLD, cause="no_link"))
    scraped.metrics.record_decision(decision(Action.RECOVER, cause="no_link", duration_s=1.0))
    assert scraped.value("recoveries_total", stream="stream-a") == 1


def test_families_of_targets_say_which_one_is_held_and_which_withdrawn(scraped: Scraped) -> None:
    (stream,) = guard_status(target(1)).streams
    families = (FamilyStatus(ipv4=True, held=2, withdrawn=0), FamilyStatus(ipv4=False, held=1, withdrawn=3))
    scraped.metrics.record_states((dataclasses.replace(stream, families=families),))
    found = {
        (family, state): scraped.value("target_families", stream="stream-a", family=family, state=state)
        for family in ("ipv4", "ipv6")
        for state in ("held", "withdrawn")
    }
    assert found == {("ipv4", "held"): 2, ("ipv4", "withdrawn"): 0, ("ipv6", "held"): 1, ("ipv6", "withdrawn"): 3}


def test_states_follow_the_status_and_leave_with_the_stream(scraped: Scraped) -> None:
    held = target(2, TargetState.HELD)
    scraped.metrics.record_states(guard_status(target(1), held, available=False).streams)
    assert scraped.value("target_states", stream="stream-a", state="active") == 1
    assert scraped.value("target_states", stream="stream-a", state="held") == 1
    assert scraped.value("target_states", stream="stream-a", state="withdrawn") == 0
    assert scraped.value("stream_available", stream="stream-a") == 0
    assert scraped.value("withdrawals_total", stream="stream-a", cause="no_link") == 0
    scraped.metrics.record_decision(decision(Action.HOLD))
    scraped.metrics.record_states(())
    assert not [labels for _, labels in scraped.series() if ("stream", "stream-a") in labels]


def test_each_target_has_its_state_and_its_losses(scraped: Scraped) -> None:
    labels = {"stream": "stream-a", "identifier": "1"}
    for action, state, code, losses in (
        (Action.ADMIT, TargetState.ACTIVE, 1, 0),
        (Action.HOLD, TargetState.HELD, 2, 1),
        (Action.RECOVER, TargetState.ACTIVE, 1, 1),
        (Action.HOLD, TargetState.HELD, 2, 2),
        (Action.FREEZE, TargetState.FROZEN, 3, 2),
        (Action.WITHDRAW, TargetState.WITHDRAWN, 4, 2),
        (Action.READMIT, TargetState.ACTIVE, 1, 2),
        (Action.DRAIN, TargetState.DRAINING, 5, 2),
    ):
        scraped.metrics.record_decision(dataclasses.replace(decision(action), target=KEY, state_to=state))
        assert scraped.value("target_state_code", **labels) == code
        assert scraped.value("target_losses_total", **labels) == losses
    scraped.metrics.record_decision(dataclasses.replace(decision(Action.REMOVE), target=KEY, state_to=None))
    assert scraped.value("target_state_code", **labels) is None
    assert scraped.value("target_losses_total", **labels) is None


def test_the_timeline_of_a_target_leaves_with_its_stream(scraped: Scraped) -> None:
    scraped.metrics.record_states(guard_status(target(1)).streams)
    scraped.metrics.record_decision(dataclasses.replace(decision(Action.HOLD), target=KEY, state_to=TargetState.HELD))
    scraped.metrics.record_states(())
    assert scraped.value("target_state_code", stream="stream-a", identifier="1") is None


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
