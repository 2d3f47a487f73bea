from dataclasses import replace

import pytest

from lbguard.core.model import Action, Condition, Evidence, ManualAction, Override
from lbguard.telemetry.sentences import decision_sentence, seconds
from tests.unit.examples import IPV4, IPV6, decision


def test_a_hold_says_what_is_missing_and_what_comes_next() -> None:
    assert decision_sentence(decision(Action.HOLD, deadline=103.0)) == (
        "hold stream-a/1: no_link (172.16.1.10), the grace window ends in 3.0 s"
    )


def test_only_the_broken_paths_are_evidence_of_a_loss() -> None:
    evidence = (
        Evidence(ip=IPV4, condition=Condition.OK, ifname="lb-a"),
        Evidence(ip=IPV6, condition=Condition.NEIGHBOR_FAILED, ifname="lb-a", detail="3 probes unanswered"),
    )
    sentence = decision_sentence(decision(Action.HOLD, cause="no_link", deadline=101.0, evidence=evidence))
    assert "(neighbor_failed fd00:1::10 via lb-a, 3 probes unanswered)" in sentence
    assert "172.16.1.10" not in sentence


@pytest.mark.parametrize(
    ("action", "deadline", "duration_s", "ending"),
    [
        (Action.REVISE, 110.0, None, "the grace window ends in 10.0 s"),
        (Action.REVISE, None, None, "held without a deadline because another path of it is ok"),
        (Action.FREEZE, 160.0, 3.0, "withdrawal suppressed for at most 60.0 s because too many targets broke at once"),
        (Action.FREEZE, None, 3.0, "withdrawal suppressed because too many targets broke at once"),
        (Action.WAIT, 102.0, None, "re-admit in 2.0 s if the path stays"),
        (Action.RECOVER, None, 0.62, "path back after 0.6 s"),
        (Action.WITHDRAW, None, 3.0, "held for 3.0 s"),
        (Action.READMIT, None, 0.05, "50.0 ms after it broke or was taken out"),
        (Action.PARDON, None, 3.0, "evidence ignored because it would withdraw too much of the stream"),
        (Action.RELAPSE, None, 1.0, "path broke again before it was re-admitted"),
        (Action.ADMIT, None, None, "no_link (172.16.1.10)"),
        (Action.REMOVE, None, None, "no_link (172.16.1.10), a lost path ends the drain"),
        (Action.DRAIN, 130.0, None, "no new connections, removed in 30.0 s at the latest"),
        (Action.DRAIN, None, None, "no new connections for as long as the source lists it as draining"),
        (Action.RESUME, None, None, "new connections again"),
    ],
)
def test_every_action_has_its_own_ending(
    action: Action, deadline: float | None, duration_s: float | None, ending: str
) -> None:
    sentence = decision_sentence(decision(action, deadline=deadline, duration_s=duration_s))
    assert sentence.startswith(f"{action.value} stream-a/1: no_link")
    assert sentence.endswith(ending)


def test_short_times_are_told_in_milliseconds() -> None:
    assert [seconds(value) for value in (0.0, 0.0123, 0.1, 12.34)] == ["0.0 s", "12.3 ms", "0.1 s", "12.3 s"]


@pytest.mark.parametrize(
    ("cause", "ending"),
    [
        ("source", "source"),
        ("drain_window", "drain_window, the drain window is over"),
        ("drain_idle", "drain_idle, no packet came for drain.idle"),
        ("link_down", "link_down, a lost path ends the drain"),
        ("identifier_used_again", "the source lists another target by its identifier"),
        ("address_used_again", "the source lists another target with its address"),
    ],
)
def test_a_removal_says_what_ended_the_drain(cause: str, ending: str) -> None:
    assert decision_sentence(decision(Action.REMOVE, cause=cause, evidence=())).endswith(ending)


def test_a_withdrawn_family_is_named_in_its_decision() -> None:
    evidence = (
        Evidence(ip=IPV4, condition=Condition.OK, ifname="lb-a"),
        Evidence(ip=IPV6, condition=Condition.NO_LINK, withdrawn=True),
    )
    sentence = decision_sentence(decision(Action.WITHDRAW_FAMILY, evidence=evidence))
    assert sentence == (
        "withdraw_family stream-a/1: no_link (fd00:1::10), IPv6 is withdrawn, the target stays in the table for its"
        " other family"
    )


ORDER = Override(action=ManualAction.WITHDRAW, since=100.0, until=700.0, who="anna", reason="rack 7")


@pytest.mark.parametrize(
    ("action", "cause", "at", "sentence"),
    [
        (Action.OVERRIDE, "manual_withdraw", 100.0, "manual_withdraw for 10m by anna (rack 7)"),
        (Action.TAKE_OUT, "manual_withdraw", 100.0, "manual_withdraw, out of the table at once"),
        (
            Action.KEEP,
            "manual_hold",
            200.0,
            "manual_hold, its deadline passed and it stays in the table for 8m20s more",
        ),
        (
            Action.RELEASE,
            "manual_released",
            160.0,
            "manual_released, an operator released it, withdraw by anna (rack 7) 1m ago",
        ),
        (
            Action.RELEASE,
            "manual_expired",
            700.0,
            "manual_expired, its time is over, withdraw by anna (rack 7) 10m ago",
        ),
    ],
)
def test_a_decision_says_who_ordered_it_why_and_until_when(
    action: Action, cause: str, at: float, sentence: str
) -> None:
    told = decision_sentence(replace(decision(action, cause=cause, at=at), override=ORDER))
    assert told == f"{action} stream-a/1: {sentence}"
