"""Sentences about the connections of a target: what open and new ones get, until when, and what would change it."""

from collections.abc import Iterator

from lbguard.core.model import ADMITTED, SOFT, Action, Condition, TargetState
from lbguard.core.status import AffinityStatus, PathStatus, TargetStatus
from lbguard.telemetry.sentences import family_of, seconds

_RESET = "another target gets their packets, and answers with a reset"
_NOWHERE = "no target gets their packets, because the table has no other"


def connections_outlook(
    target: TargetStatus, now: float, affinity: AffinityStatus | None, *, alone: bool = False
) -> list[str]:
    """Return sentences on what the target's connections get, and on what would change it.

    Args:
        target: its status; lbguard carries its decisions out.
        now: the engine's clock at that status, seconds.
        affinity: flow affinity; None: it is off.
        alone: the table has no other target of its stream.
    """
    in_force = affinity is not None and affinity.in_force
    then = _NOWHERE if alone else _RESET
    return [*_connections(target, now, then, in_force=in_force), *_changes(target, affinity)]


def _connections(target: TargetStatus, now: float, then: str, *, in_force: bool) -> Iterator[str]:
    match target.state:
        case TargetState.PENDING | TargetState.WITHDRAWN if then is _NOWHERE:
            yield "No target gets packets of new or open connections: the table has none of the stream."
        case TargetState.PENDING:
            yield "New connections go to other targets until it is admitted."
        case TargetState.WITHDRAWN:
            yield "New connections go to other targets. Another target gets the packets of open ones, and resets them."
            if in_force:
                yield "Connections that began elsewhere meanwhile stay there when it is re-admitted."
            else:
                yield "When it is re-admitted, it resets those that began meanwhile in its part of the table."
        case TargetState.ACTIVE if not target.draining and all(path.condition == Condition.OK for path in target.paths):
            yield "New and open connections go to it."
        case _:
            said: dict[str, list[str]] = {}
            for path in target.paths:
                said.setdefault(_open(target, path, now, then), []).append(family_of(path.ip))
            for sentence, families in said.items():
                yield sentence.format(families=" and ".join(sorted(set(families))))


def _open(target: TargetStatus, path: PathStatus, now: float, then: str) -> str:
    """Return what the open connections of one path get, with a place for the names of its families."""
    if path.withdrawn:
        return f"Open {{families}} connections were given up: {then}."
    end = _end(target, path, now, then)
    if path.condition == Condition.OK:
        return f"Open {{families}} connections go on{end}."
    if path.condition in SOFT:
        return f"Packets of open {{families}} connections still go to it{end}."
    return f"Open {{families}} connections wait, and go on with their next retransmission when the path is back{end}."


def _end(target: TargetStatus, path: PathStatus, now: float, then: str) -> str:
    """Return when a path's open connections are given up if nothing changes, and what happens then; empty: never."""
    prediction = target.prediction
    if prediction is None:
        return ""
    left = "" if prediction.at is None else seconds(max(0.0, prediction.at - now))
    latest = "" if prediction.until is None else seconds(max(0.0, prediction.until - now))
    broken = path.condition != Condition.OK
    match prediction.action:
        case Action.WITHDRAW if not prediction.why:
            return f"; in {left} {then}"
        case Action.KEEP if broken and latest:
            return f"; a command keeps the target for {latest} more"
        case Action.WITHDRAW | Action.REMOVE:
            return f"; in {left} at the latest {then}"
        case Action.WITHDRAW_FAMILY if broken:
            return f"; in {left} {then}"
        case Action.FREEZE | Action.STAY if latest and broken:
            return f"; in {latest} at the latest {then}"
        case Action.HOLD if prediction.at is None and broken and not latest:
            return "; they wait without an end while the other family is ok"
    return ""


def _changes(target: TargetStatus, affinity: AffinityStatus | None) -> Iterator[str]:
    """Return what would change it: settings, and what an operator or a reporter can do."""
    for sentence in (_state_changes(target), _affinity_changes(target, affinity)):
        if sentence:
            yield sentence


def _state_changes(target: TargetStatus) -> str:
    prediction = target.prediction
    if target.override is not None and not target.unlisted:
        return ""  # the sentence about the operator's command says how to end it
    match target.state:
        case TargetState.HELD if prediction is not None and prediction.action is Action.HOLD:
            return ""
        case TargetState.HELD:
            windows = {
                Condition.NEIGHBOR_FAILED: "grace.neighbor_window (unset: grace.window)",
                Condition.VERDICT_DOWN: "grace.verdict_window (unset: grace.window)",
            }
            window = next((text for cause, text in windows.items() if cause == target.cause), "grace.window")
            return (
                f"To change how long it is held: {window}; a verdict HEALING of a reporter moves the end, up to"
                " grace.max after the loss."
            )
        case TargetState.FROZEN:
            return (
                "To change how long it is frozen: freeze.limit; freeze.threshold is the share of broken targets from"
                " which it is."
            )
        case TargetState.WITHDRAWN if prediction is not None and (prediction.at is not None or prediction.wait_s > 0):
            return "To change how long the re-admission waits: damping.step, damping.half_life and damping.max."
        case TargetState.DRAINING if target.unlisted:
            return "To end the drain: list the target again. To change its length: drain.window and drain.idle."
        case TargetState.DRAINING:
            return "To end the drain: list the target without draining: true."
    return ""


def _affinity_changes(target: TargetStatus, affinity: AffinityStatus | None) -> str:
    broken = any(path.condition not in (Condition.OK, *SOFT) for path in target.paths)
    if affinity is not None:
        return ""
    if target.state in ADMITTED and broken:
        return "With affinity.mode incident or all, new connections would not wait for it."
    if target.state is TargetState.WITHDRAWN:
        return "With affinity.mode incident or all, its re-admission would reset no connection."
    return ""
