from dataclasses import replace

import pytest

from lbguard.core.model import Action, Condition, ManualAction, Override, TargetState
from lbguard.core.status import AffinityStatus, PathStatus, Prediction
from lbguard.telemetry.sentences import time_of_day
from lbguard.telemetry.target_story import new_connections, target_story
from tests.unit.examples import affinity, decision, parking, path, target


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
    assert "by the clock" not in story
    later = time_of_day(1_700_000_002.5, 1_700_000_000.0)
    assert f"That is decided at {later}, by" in target_story(held, 100.0, recent, wall_time=1_700_000_000.0)
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


def test_a_target_that_was_added_says_when_the_table_gets_it() -> None:
    story = target_story(target(commit_at=103.2), 100.0, [])
    assert "The table gets it in 3.2 s (fwmark and route table 5001): flows that are seen before stay with" in story
    assert "receives traffic" not in story


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


def test_a_target_that_left_the_list_says_until_when_it_drains_and_what_ends_it_sooner() -> None:
    leaving = target(
        state=TargetState.DRAINING,
        paths=(path(steered=True),),
        prediction=Prediction(action=Action.REMOVE, at=112.0),
        draining=True,
        unlisted=True,
    )
    story = target_story(leaving, 100.0, [], affinity=affinity())
    assert "stream-a/1 has been draining for 10.0 s: its connections go on." in story
    assert "It still receives traffic" in story
    assert "New IPv4 connections are given to another target at once." in story
    assert "The source no longer lists it." in story
    assert "It is removed in 12.0 s at the latest; sooner if it gets no packet for drain.idle" in story


def test_a_target_listed_as_draining_has_no_end() -> None:
    drained = target(
        state=TargetState.DRAINING,
        paths=(path(steered=True),),
        prediction=Prediction(action=Action.STAY),
        draining=True,
    )
    story = target_story(drained, 100.0, [], affinity=affinity())
    assert "It drains for as long as the source lists it as draining." in story


def test_a_draining_target_gets_new_connections_where_no_other_is_well() -> None:
    alone = target(state=TargetState.DRAINING, prediction=Prediction(action=Action.STAY), draining=True)
    story = target_story(alone, 100.0, [], affinity=affinity())
    assert "New IPv4 connections still go to it: no other target of the stream has a good IPv4 path." in story


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (TargetState.PENDING, "The source lists it as draining, so it is not admitted."),
        (TargetState.WITHDRAWN, "The source lists it as draining, so it is not re-admitted."),
        (TargetState.HELD, "The source lists it as draining: it drains on when its path is back."),
    ],
)
def test_a_drain_of_a_target_in_another_state_is_told(state: TargetState, words: str) -> None:
    assert words in target_story(target(state=state, cause="no_link", draining=True), 100.0, [], affinity=affinity())


def test_a_family_that_is_held_says_until_when() -> None:
    lost = path("fd00:1::10", "no_link", "", steered=True)
    held = target(
        state=TargetState.HELD,
        cause="no_link",
        paths=(path(), lost),
        prediction=Prediction(action=Action.WITHDRAW_FAMILY, at=102.5),
    )
    story = target_story(held, 100.0, [], affinity=affinity())
    assert "IPv6 is withdrawn in 2.5 s unless its path comes back; the target stays for its other family." in story
    assert "New IPv6 connections are given to another target at once." in story
    assert "New IPv4" not in story


def test_a_family_that_is_withdrawn_says_which_one_serves() -> None:
    lost = path("fd00:1::10", "no_link", "", withdrawn=True, steered=True)
    held = target(
        state=TargetState.HELD, cause="no_link", paths=(path(), lost), prediction=Prediction(action=Action.HOLD)
    )
    story = target_story(held, 100.0, [], affinity=affinity())
    assert "IPv6 is withdrawn; IPv4 serves." in story
    assert "both families are one entry" not in story


def test_a_lost_family_in_a_mass_failure_says_what_it_waits_for() -> None:
    lost = path("fd00:1::10", "no_link", "", steered=True)
    prediction = Prediction(action=Action.HOLD, until=140.0, why=MOST)
    held = target(state=TargetState.HELD, cause="no_link", paths=(path(), lost), prediction=prediction)
    story = target_story(held, 100.0, [], affinity=affinity())
    assert "IPv6 is withdrawn after at most 40.0 s more (freeze.limit), or one grace window after" in story
    assert f"unless its path comes back: {MOST}, more than freeze.threshold allows." in story


@pytest.mark.parametrize(
    ("status", "steered", "word", "sentence"),
    [
        (affinity(), True, "elsewhere", "New IPv4 connections are given to another target at once."),
        (affinity(), False, "wait", "wait for the path: no other target of the stream has a good IPv4 path."),
        (affinity(in_force=False, problem="no nft"), True, "wait", "flow affinity is not in force (no nft)."),
        (None, False, "wait", "New IPv4 connections wait for the path."),
    ],
)
def test_new_connections_of_a_held_target(
    status: AffinityStatus | None, steered: bool, word: str, sentence: str
) -> None:
    lost = path(condition="link_down", steered=steered)
    held = target(state=TargetState.HELD, cause="link_down", paths=(lost,))
    assert new_connections(held, lost, status) == word
    assert sentence in target_story(held, 100.0, [], affinity=status)


def test_new_connections_of_a_target_with_soft_evidence_still_go_to_it() -> None:
    silent = path(condition="neighbor_failed")
    held = target(state=TargetState.HELD, cause="neighbor_failed", paths=(silent,))
    assert new_connections(held, silent, None) == ""
    assert "New IPv4 connections still go to it." in target_story(held, 100.0, [])


def test_a_target_outside_of_the_table_gets_no_new_connection_from_it() -> None:
    lost = path(condition="no_link", steered=True)
    out = target(state=TargetState.WITHDRAWN, cause="no_link", paths=(lost,))
    assert new_connections(out, lost, affinity()) == ""
    assert "New IPv4" not in target_story(out, 100.0, [], affinity=affinity())


def test_a_held_target_says_what_is_kept_since_when_and_what_will_happen() -> None:
    lost = path(condition="no_link", ifname="")
    held = target(2, TargetState.HELD, cause="no_link", paths=(lost, path("fd00:1::10")))
    story = target_story(held, 100.0, [], parking=parking())
    assert "Kept: 12 IPv4 packets, 12 KiB, the oldest for 2.5 s; given back when the path is repaired" in story
    assert "dropped when the target is withdrawn, or after 15.0 s." in story
    assert "IPv6 packets" not in story


def test_a_repaired_target_says_that_its_packets_are_given_back() -> None:
    story = target_story(target(2), 100.0, [], parking=parking(packets=1, given_back=True))
    assert "Kept: 1 IPv4 packet, 1 KiB, the oldest for 2.5 s; being given back." in story


@pytest.mark.parametrize(("problem", "why"), [("no such device", "no such device"), ("", "starting")])
def test_a_held_target_says_that_nothing_is_kept(problem: str, why: str) -> None:
    lost = path(condition="no_link", ifname="")
    held = target(2, TargetState.HELD, cause="no_link", paths=(lost,))
    words = f"Its IPv4 packets are dropped: parking is not in force ({why})."
    assert words in target_story(held, 100.0, [], parking=parking(in_force=False, problem=problem, packets=0))
    assert "dropped" not in target_story(target(2), 100.0, [], parking=parking(in_force=False, packets=0))


def test_parking_that_is_off_or_keeps_nothing_is_not_mentioned() -> None:
    for status in (None, parking(packets=0)):
        assert "kept" not in target_story(target(2), 100.0, [], parking=status)


ORDER = Override(action=ManualAction.WITHDRAW, since=100.0, until=700.0, who="anna", reason="rack 7")


@pytest.mark.parametrize(
    ("state", "action", "what"),
    [
        (TargetState.WITHDRAWN, ManualAction.WITHDRAW, "anna withdrew it by hand"),
        (TargetState.ACTIVE, ManualAction.HOLD, "anna holds it by hand"),
        (TargetState.DRAINING, ManualAction.DRAIN, "anna drains it by hand"),
        (TargetState.PENDING, ManualAction.HOLD, "It is not in the table, and is admitted by the usual rules first."),
        (TargetState.WITHDRAWN, ManualAction.WITHDRAW, "It is not admitted before."),
    ],
)
def test_a_story_says_how_to_end_what_an_operator_ordered(state: TargetState, action: ManualAction, what: str) -> None:
    overridden = replace(target(1, state), override=replace(ORDER, action=action), draining=state == "draining")
    story = target_story(overridden, 160.0, [])
    assert what in story
    assert "since 1m: rack 7. That ends in 9m; `lbguard release stream-a/1` ends it now." in story
    assert "The source" not in story


def test_a_newline_in_a_name_makes_no_sentence() -> None:
    forged = path(condition="link_down", ifname="lb\nstream-a/1 has been active")
    story = target_story(target(state=TargetState.HELD, cause="link_down", paths=(forged,)), 100.0, [])
    assert not [line for line in story.splitlines() if line.startswith("stream-a/1 has been active")]
