"""What `explain` says of open and new connections, until when, and of what would change it."""

from dataclasses import replace

import pytest

from lbguard.core.model import Action, ManualAction, Override, TargetState
from lbguard.core.status import AffinityStatus, PathStatus, Prediction, TargetStatus
from lbguard.telemetry.outlook import connections_outlook
from tests.unit.examples import affinity, path, target

RESET = "another target gets their packets, and answers with a reset"
LOST = path(condition="no_link", ifname="")
LOST_V6 = path("fd00:1::10", "no_link", "")
V6 = path("fd00:1::10")
IN_2_S = Prediction(action=Action.WITHDRAW, at=102.0)


def held(*paths: PathStatus, prediction: Prediction | None = IN_2_S, cause: str = "no_link") -> TargetStatus:
    return target(state=TargetState.HELD, cause=cause, paths=paths or (LOST,), prediction=prediction)


def outlook(status: TargetStatus, flows: AffinityStatus | None = None) -> list[str]:
    return connections_outlook(status, 100.0, flows)


def test_an_active_target_serves_all() -> None:
    assert outlook(target()) == ["New and open connections go to it."]


@pytest.mark.parametrize(
    ("status", "first"),
    [
        (held(), f"is back; in 2.0 s {RESET}."),
        (held(LOST, LOST_V6), "Open IPv4 and IPv6 connections wait, and go on with their next retransmission"),
        (
            held(prediction=Prediction(action=Action.FREEZE, at=102.0, until=162.0, why="2 of 2 are broken")),
            f"is back; in 62.0 s at the latest {RESET}.",
        ),
        (
            held(LOST_V6, prediction=Prediction(action=Action.WITHDRAW_FAMILY, at=102.0)),
            f"connections wait, and go on with their next retransmission when the path is back; in 2.0 s {RESET}.",
        ),
        (
            held(LOST_V6, prediction=Prediction(action=Action.HOLD, why="IPv6 is lost, IPv4 is ok")),
            "when the path is back; they wait without an end while the other family is ok.",
        ),
        (
            held(path(condition="neighbor_failed"), prediction=Prediction(action=Action.PARDON, at=102.0, until=130.0)),
            "Packets of open IPv4 connections still go to it.",
        ),
        (
            held(path("fd00:1::10", "no_link", "", withdrawn=True), prediction=Prediction(action=Action.HOLD)),
            f"Open IPv6 connections were given up: {RESET}.",
        ),
        (
            target(
                state=TargetState.FROZEN,
                paths=(LOST,),
                prediction=Prediction(action=Action.WITHDRAW, at=130.0, why="2 of 2"),
            ),
            f"is back; in 30.0 s at the latest {RESET}.",
        ),
        (
            target(state=TargetState.DRAINING, prediction=Prediction(action=Action.REMOVE, at=112.0), draining=True),
            f"Open IPv4 connections go on; in 12.0 s at the latest {RESET}.",
        ),
        (target(state=TargetState.DRAINING, draining=True), "Open IPv4 connections go on."),
        (target(state=TargetState.PENDING), "New connections go to other targets until it is admitted."),
        (
            target(state=TargetState.WITHDRAWN),
            "New connections go to other targets. Another target gets the packets of open ones, and resets them.",
        ),
    ],
)
def test_what_connections_get_and_until_when(status: TargetStatus, first: str) -> None:
    assert outlook(status)[0].endswith(first) or outlook(status)[0].startswith(first)


def test_the_good_family_of_a_held_target_goes_on() -> None:
    both = outlook(held(LOST, V6, prediction=Prediction(action=Action.WITHDRAW_FAMILY, at=102.0)))
    assert any(line.startswith("Open IPv4 connections wait") and "in 2.0 s" in line for line in both)
    assert "Open IPv6 connections go on." in both


def test_a_readmission_resets_what_began_meanwhile_unless_flows_are_remembered() -> None:
    out = target(state=TargetState.WITHDRAWN, cause="no_link", paths=(LOST,))
    assert "When it is re-admitted, it resets those that began meanwhile in its part of the table." in outlook(out)
    assert "With affinity.mode incident or all, its re-admission would reset no connection." in outlook(out)
    assert "Connections that began elsewhere meanwhile stay there when it is re-admitted." in outlook(out, affinity())
    refused = outlook(out, affinity(in_force=False, problem="no nft"))
    assert any("resets those that began meanwhile" in line for line in refused)
    assert not any("affinity.mode" in line for line in refused), "it is on already; its fault is told elsewhere"


@pytest.mark.parametrize(
    ("status", "first"),
    [
        (held(), "is back; in 2.0 s no target gets their packets, because the table has no other."),
        (
            target(state=TargetState.WITHDRAWN),
            "No target gets packets of new or open connections: the table has none of the stream.",
        ),
        (
            target(state=TargetState.PENDING),
            "No target gets packets of new or open connections: the table has none of the stream.",
        ),
    ],
)
def test_the_only_target_of_a_stream_is_not_said_to_have_others(status: TargetStatus, first: str) -> None:
    said = connections_outlook(status, 100.0, affinity(), alone=True)
    assert said[0].endswith(first)
    assert not any("another target" in line or "other targets" in line for line in said)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (held(), "To change how long it is held: grace.window;"),
        (held(cause="neighbor_failed"), "To change how long it is held: grace.neighbor_window (unset: grace.window);"),
        (held(cause="verdict_down"), "To change how long it is held: grace.verdict_window (unset: grace.window);"),
        (target(state=TargetState.FROZEN, paths=(LOST,)), "To change how long it is frozen: freeze.limit;"),
        (
            target(state=TargetState.WITHDRAWN, prediction=Prediction(action=Action.READMIT, at=101.0)),
            "To change how long the re-admission waits: damping.step",
        ),
        (target(state=TargetState.DRAINING, unlisted=True), "To end the drain: list the target again."),
        (
            target(state=TargetState.DRAINING, draining=True),
            "To end the drain: list the target without draining: true.",
        ),
        (held(), "With affinity.mode incident or all, new connections would not wait for it."),
    ],
)
def test_what_would_change_it(status: TargetStatus, words: str) -> None:
    assert any(line.startswith(words) for line in outlook(status))


def test_with_affinity_in_force_nothing_is_advertised() -> None:
    assert not any("affinity.mode" in line for line in outlook(held(), affinity()))


def test_what_an_operator_ordered_is_not_changed_by_settings() -> None:
    given = Override(action=ManualAction.HOLD, since=90.0, until=200.0)
    assert not any(line.startswith("To change how long") for line in outlook(replace(held(), override=given)))
