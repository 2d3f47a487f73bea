import pytest

from lbguard.core.model import Action, Condition, Evidence, TargetState
from lbguard.core.status import PathStatus, Prediction
from lbguard.telemetry.sentences import decision_sentence, seconds, target_story
from tests.unit.examples import IPV4, IPV6, decision, path, target


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
        (Action.READMIT, None, 0.05, "50.0 ms after the loss"),
        (Action.PARDON, None, 3.0, "evidence ignored because it would withdraw too much of the stream"),
        (Action.RELAPSE, None, 1.0, "path broke again before it was re-admitted"),
        (Action.ADMIT, None, None, "no_link (172.16.1.10)"),
        (Action.REMOVE, None, None, "no_link (172.16.1.10)"),
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


def test_the_story_of_a_held_target() -> None:
    held = target(
        state=TargetState.HELD,
        cause="no_link",
        deadline=102.5,
        penalty=1.5,
        paths=(path(condition="no_link", ifname=""), path("fd00:1::10")),
        prediction=Prediction(action=Action.WITHDRAW, at=102.5),
    )
    recent = [(decision(Action.HOLD), 1.0), (decision(Action.RECOVER), 2.0), (decision(Action.HOLD), 3.0)]
    story = target_story(held, 100.0, recent)
    assert "stream-a/1 has been held for 10.0 s because of no_link." in story
    assert "It still receives traffic (fwmark and route table 5001)." in story
    assert "The path to 172.16.1.10 is broken: no_link - no link reaches the subnet of 172.16.1.10" in story
    assert "The path to fd00:1::10 is ok (via lb-a, neighbour reachable at 02:00:00:00:00:01)." in story
    assert "It is withdrawn in 2.5 s unless the path comes back." in story
    assert "Its flap penalty is 1.50: the part above 1 delays a re-admission (damping.step)." in story
    assert "Of its last 3 decisions, 2 were holds; 1 ended in recovery, 0 in withdrawal." in story


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (TargetState.PENDING, "It receives no traffic"),
        (TargetState.ACTIVE, "has been active for 10.0 s"),
        (TargetState.FROZEN, "has been frozen for 10.0 s because of link_down: too many targets broke at once"),
        (TargetState.WITHDRAWN, "has been withdrawn for 10.0 s because of link_down"),
    ],
)
def test_every_state_has_a_story(state: TargetState, words: str) -> None:
    assert words in target_story(target(state=state, cause="link_down"), 100.0, [])


MOST = "6 of 10 targets are broken"


@pytest.mark.parametrize(
    ("state", "prediction", "words"),
    [
        ("held", Prediction(action=Action.WITHDRAW, at=102.0), "withdrawn in 2.0 s unless the path comes back."),
        (
            "held",
            Prediction(action=Action.FREEZE, at=102.0, until=162.0, why=MOST),
            f"In 2.0 s it is frozen, not withdrawn, for at most 60.0 s unless the path comes back: {MOST}, more",
        ),
        (
            "held",
            Prediction(action=Action.PARDON, at=102.0, until=162.0, why="soft evidence would withdraw too much"),
            "In 2.0 s it is made active again, and the evidence is ignored for 60.0 s, unless the path comes back",
        ),
        (
            "held",
            Prediction(action=Action.HOLD, why="IPv6 is lost, IPv4 is ok"),
            "It is held without a deadline: IPv6 is lost, IPv4 is ok, and both families are one entry of the table",
        ),
        (
            "held",
            Prediction(action=Action.HOLD, until=140.0, why=MOST),
            f"The lost family is withdrawn after 40.0 s more (freeze.limit), or one grace window after the mass failure"
            f" ends, if that is sooner, unless its path comes back: {MOST}",
        ),
        (
            "frozen",
            Prediction(action=Action.WITHDRAW, at=130.0, why=MOST),
            "It is withdrawn in 30.0 s (freeze.limit), or one grace window after the mass failure ends",
        ),
        (
            "frozen",
            Prediction(action=Action.STAY, at=101.0, until=130.0, why=MOST),
            f"It stays frozen, for at most 29.0 s after the next 1.0 s, unless the path comes back: {MOST}.",
        ),
        ("active", Prediction(action=Action.HOLD, at=130.0), "The evidence against it is ignored for 30.0 s more"),
        ("withdrawn", Prediction(action=Action.READMIT, at=101.0), "It is re-admitted in 1.0 s if the path stays."),
        ("withdrawn", Prediction(action=Action.READMIT), "It is re-admitted as soon as all its paths are ok."),
        ("withdrawn", Prediction(action=Action.READMIT, wait_s=4.0), "at most 4.0 s after all its paths are ok"),
        ("pending", Prediction(action=Action.ADMIT), "It is admitted as soon as all its paths are ok."),
    ],
)
def test_every_prediction_has_a_sentence(state: str, prediction: Prediction, words: str) -> None:
    waiting = target(state=TargetState(state), cause="no_link", prediction=prediction)
    assert words in target_story(waiting, 100.0, [])


def test_a_deadline_that_is_held_up_is_no_promise() -> None:
    held_up = Prediction(action=Action.STAY, why="the view of the kernel is not in sync (overrun)")
    story = target_story(target(state=TargetState.HELD, deadline=102.0, prediction=held_up), 100.0, [])
    assert "Its deadline has no effect while the view of the kernel is not in sync (overrun)." in story


def test_a_mode_that_carries_nothing_out_says_so() -> None:
    story = target_story(target(state=TargetState.WITHDRAWN), 100.0, [], observe=True)
    assert "No decision is carried out in this mode; in mode enforce it would receive no traffic" in story


@pytest.mark.parametrize("condition", [*(str(item) for item in Condition), "something_new"])
def test_every_condition_can_be_told(condition: str) -> None:
    broken = PathStatus(ip="10.0.0.1", condition=condition, ifname="lb-a", ifindex=1, neighbor="", mac="-")
    assert "The path to 10.0.0.1 is" in target_story(target(paths=(broken,)), 100.0, [])


def test_a_penalty_is_told_only_where_it_makes_a_difference() -> None:
    once = target_story(target(state=TargetState.WITHDRAWN, penalty=0.9), 100.0, [(decision(Action.HOLD), 1.0)])
    assert "penalty" not in once
    assert "Of its last" not in once
    twice = [(decision(Action.HOLD), 1.0), (decision(Action.WITHDRAW), 2.0)]
    told = target_story(target(state=TargetState.WITHDRAWN), 100.0, twice)
    assert "Of its last 2 decisions, one was a hold; 0 ended in recovery, 1 in withdrawal." in told
    often = target_story(target(state=TargetState.WITHDRAWN, penalty=2.5), 100.0, [])
    assert "flap penalty is 2.50" in often
