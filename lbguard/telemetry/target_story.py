"""Sentences about a target's state and what happens next, for `lbguard explain`."""

from collections.abc import Sequence

from lbguard.core.model import ADMITTED, SOFT, Action, Condition, Decision, ManualAction, TargetState
from lbguard.core.status import AffinityStatus, ParkingStatus, PathStatus, Prediction, TargetStatus, VerdictStatus
from lbguard.printable import printable
from lbguard.telemetry.sentences import families, family_of, seconds, span, time_of_day

_WHAT_HELPS = {
    Condition.NO_LINK: "no link reaches the subnet of {ip}; it comes back when the mesh re-creates the link",
    Condition.LINK_DOWN: "the link to {ip} is down or has no carrier",
    Condition.NO_ADDRESS: "the link to {ip} has no address in its subnet",
    Condition.ADDRESS_TENTATIVE: "the address of the link to {ip} is still tentative (duplicate detection)",
    Condition.ROUTE_MISSING: "the route to {ip} is not in the kernel: it was refused, or a foreign route has its "
    "table and metric",
    Condition.VERDICT_DOWN: "a proxy reports that {ip} does not answer",
    Condition.NEIGHBOR_FAILED: "{ip} does not answer neighbour solicitations",
}


_WEIGHTS = {
    "counts": "it counts",
    "unconfirmed": "it does not count yet (unconfirmed): not enough reports say so",
    "contradicted": "it does not count (contradicted): another reporter gets through",
    "vetoed": "it does not count (vetoed): the neighbour just answered, or packets arrive",
}


_DONE_BY_HAND = {
    ManualAction.DRAIN: "drains it by hand",
    ManualAction.HOLD: "holds it by hand",
    ManualAction.WITHDRAW: "withdrew it by hand",
}


def _path_sentence(path: PathStatus) -> str:
    neighbor = f", neighbour {path.neighbor} at {path.mac}" if path.mac and path.mac != "-" else ""
    if path.condition == Condition.OK:
        return f"The path to {path.ip} is ok (via {path.ifname}{neighbor})."
    helps = _WHAT_HELPS.get(Condition(path.condition)) if path.condition in set(Condition) else None
    reason = helps.format(ip=path.ip) if helps else f"condition {path.condition}"
    via = f" via {path.ifname}" if path.ifname else ""
    return f"The path to {path.ip} is broken{via}: {path.condition} - {reason}{neighbor}."


def new_connections(target: TargetStatus, path: PathStatus, affinity: AffinityStatus | None) -> str:
    """Return what new connections get that the table gives to a path: `elsewhere`, `wait`, or empty (the path).

    Args:
        target: the path's target.
        path: the path.
        affinity: flow affinity; None: it is off.
    """
    if target.state not in ADMITTED:
        return ""
    if path.steered and affinity is not None and affinity.in_force:
        return "elsewhere"
    return "wait" if path.condition not in (Condition.OK, *SOFT) else ""


def _new_connections_sentence(target: TargetStatus, path: PathStatus, affinity: AffinityStatus | None) -> str:
    """Return what new connections get; empty: the path, as usual."""
    what, family = new_connections(target, path, affinity), family_of(path.ip)
    if what == "elsewhere":
        return f"New {family} connections are given to another target at once."
    avoided = path.condition != Condition.OK or target.draining
    if target.state not in ADMITTED or not avoided:
        return ""
    follow = "wait for the path" if what == "wait" else "still go to it"
    if affinity is None:
        return f"New {family} connections {follow}."
    if path.steered:
        return f"New {family} connections {follow}: flow affinity is not in force ({affinity.problem or 'starting'})."
    return f"New {family} connections {follow}: no other target of the stream has a good {family} path."


def _parked_sentence(target: TargetStatus, path: PathStatus, parking: ParkingStatus | None, now: float) -> str:
    """Return what happens to the packets of a path that is broken or was a moment ago; empty: nothing special."""
    if parking is None:
        return ""
    family = family_of(path.ip)
    if not parking.in_force:
        broken = target.state in ADMITTED and path.condition != Condition.OK
        why = parking.problem or "starting"
        return f"Its {family} packets are dropped: parking is not in force ({why})." if broken else ""
    kept = parking.of(target.mark, ipv4=":" not in path.ip)
    if kept is None:
        return ""
    packets = f"{kept.packets} {family} {'packet' if kept.packets == 1 else 'packets'}"
    opening = f"Kept: {packets}, {kept.memory_bytes / 1024:.0f} KiB, the oldest for {seconds(now - kept.since)}"
    if kept.given_back:
        return f"{opening}; being given back."
    return (
        f"{opening}; given back when the path is repaired and the neighbour answers, dropped when the target is"
        f" withdrawn, or after {seconds(parking.max_age_s)}."
    )


def _added_sentence(target: TargetStatus, now: float) -> str:
    """Return when the table gets a target that was added to the list; empty: it does not wait for that."""
    if target.commit_at is None:
        return ""
    return (
        f"The table gets it in {seconds(max(0.0, target.commit_at - now))} (fwmark and route table {target.mark}):"
        " flows that are seen before stay with their targets (affinity.learn)."
    )


def _override_sentence(target: TargetStatus, now: float) -> str:
    """Return what an operator ordered, when it ends, and how to end it now; empty: nothing."""
    override = target.override
    if override is None:
        return ""
    who, done = override.who or "An operator", _DONE_BY_HAND.get(override.action, str(override.action))
    why = f": {override.reason}" if override.reason else ""
    means = ""
    if override.action is ManualAction.HOLD and target.state not in ADMITTED:
        means = " It is not in the table, and is admitted by the usual rules first."
    elif override.action is ManualAction.WITHDRAW:
        means = " It is not admitted before."
    return (
        f"{who} {done} since {span(now - override.since)}{why}. That ends in {span(override.until - now)}; `lbguard"
        f" release {target.stream}/{target.identifier}` ends it now.{means}"
    )


def _drain_sentence(target: TargetStatus) -> str:
    """Return what a drain means for a target that does not simply drain; empty: it does, or is not to be drained."""
    by_hand = target.override is not None and target.override.action is ManualAction.DRAIN
    if not target.draining or (by_hand and not target.unlisted):
        return ""
    match target.state:
        case TargetState.DRAINING:
            return "The source no longer lists it." if target.unlisted else "The source lists it as draining."
        case TargetState.PENDING:
            return "The source lists it as draining, so it is not admitted."
        case TargetState.WITHDRAWN:
            return "The source lists it as draining, so it is not re-admitted."
        case _:
            whose = "The source no longer lists it" if target.unlisted else "The source lists it as draining"
            return f"{whose}: it drains on when its path is back."


def _verdict_sentence(verdict: VerdictStatus, now: float) -> str:
    age, left = seconds(max(0.0, now - verdict.at)), seconds(max(0.0, verdict.expires_at - now))
    return (
        f"{verdict.reporter} reports {verdict.state.upper()} for {verdict.subject}, {age} ago, valid for {left} more;"
        f" {_WEIGHTS.get(verdict.weight, verdict.weight)}."
    )


def _one_family_sentence(target: TargetStatus, why: str, span: str) -> str:
    """Return how a target is held that lost one family: without an end, or (`span`) while many targets are broken."""
    out = [path.ip for path in target.paths if path.withdrawn]
    if out:
        serves = families(path.ip for path in target.paths if not path.withdrawn)
        return (
            f"{families(out)} is withdrawn; {serves} serves. {families(out)} gets connections again as soon as its"
            f" path is ok. When {serves} is lost too, the grace window begins."
        )
    if span:
        lost = families(path.ip for path in target.paths if path.condition != Condition.OK)
        return (
            f"{lost} is withdrawn after at most {span} more (freeze.limit), or one grace window after the mass failure"
            f" ends, if that is sooner, unless its path comes back: {why}, more than freeze.threshold allows."
        )
    return (
        f"It is held without a deadline: {why}, and both families are one entry of the table, so withdrawing it"
        " would break the healthy connections. Connections of the lost family to it may get no answer"
        " until that path is back. When the other path breaks too, the grace window begins."
    )


def _prediction_sentence(target: TargetStatus, prediction: Prediction, now: float) -> str:
    """Return the next decision, and the condition for it."""
    at, until, why = prediction.at, prediction.until, prediction.why
    left = "" if at is None else seconds(max(0.0, at - now))
    span = "" if until is None else seconds(max(0.0, until - (now if at is None else max(at, now))))
    text = ""
    match prediction.action:
        case Action.KEEP:
            text = f"In {left} its grace window ends, and it stays in the table for {span} more, until its hold ends."
        case Action.RELEASE if target.state is TargetState.DRAINING:
            text = "Then it gets new connections again."
        case Action.RELEASE:
            text = "Then the usual rules apply: it is admitted when all its paths are ok."
        case Action.WITHDRAW if why:
            sooner = "one grace window after the mass failure ends, if that is sooner"
            text = f"It is withdrawn in {left} (freeze.limit), or {sooner}, unless the path comes back."
        case Action.WITHDRAW:
            text = f"It is withdrawn in {left} unless the path comes back."
        case Action.FREEZE:
            text = (
                f"In {left} it is frozen, not withdrawn, for at most {span} unless the path comes back: {why}, more"
                " than freeze.threshold allows. It would be withdrawn if fewer were broken then."
            )
        case Action.PARDON:
            text = (
                f"In {left} it is made active again, and the evidence is ignored for {span}, unless the path comes"
                f" back: {why} (evidence.soft_budget)."
            )
        case Action.STAY if at is not None:
            text = f"It stays frozen, for at most {span} after the next {left}, unless the path comes back: {why}."
        case Action.WITHDRAW_FAMILY:
            lost = families(path.ip for path in target.paths if path.condition != Condition.OK and not path.withdrawn)
            text = f"{lost} is withdrawn in {left} unless its path comes back; the target stays for its other family."
        case Action.HOLD if at is None:
            text = _one_family_sentence(target, why, span)
        case Action.REMOVE:
            text = (
                f"It is removed in {left} at the latest; sooner if it gets no packet for drain.idle, if its path"
                " breaks, or if the source lists another target by its identifier or address."
            )
        case Action.STAY if target.state is TargetState.DRAINING:
            text = "It drains for as long as the source lists it as draining."
        case Action.STAY:
            text = f"Its deadline has no effect while {why}."
        case Action.HOLD:
            text = f"The evidence against it is ignored for {left} more; it is held if the evidence persists then."
        case Action.READMIT if at is not None:
            text = f"It is re-admitted in {left} if the path stays."
        case Action.READMIT if prediction.wait_s > 0:
            text = f"It is re-admitted at most {seconds(prediction.wait_s)} after all its paths are ok (damping)."
        case Action.READMIT:
            text = "It is re-admitted as soon as all its paths are ok."
        case Action.ADMIT:
            text = "It is admitted as soon as all its paths are ok."
    return text


def target_story(
    target: TargetStatus,
    now: float,
    recent: Sequence[tuple[Decision, float]],
    *,
    observe: bool = False,
    affinity: AffinityStatus | None = None,
    parking: ParkingStatus | None = None,
    wall_time: float | None = None,
) -> str:
    """Return in a few sentences, one a line, a target's state, the reason for it, and what happens next.

    Args:
        target: its status.
        now: the engine's clock at that status, seconds.
        recent: its last decisions with wall time, oldest first.
        observe: no decision is carried out.
        affinity: flow affinity; None: it is off.
        parking: parking; None: it is off.
        wall_time: the moment `now` by the wall clock, seconds since the epoch; None: unknown.
    """
    name, age = f"{target.stream}/{target.identifier}", seconds(max(0.0, now - target.since))
    if observe:
        would = "receive traffic" if target.state in ADMITTED else "receive no traffic"
        table = f"No decision is carried out in this mode; in mode enforce it would {would}"
    else:
        table = "It still receives traffic" if target.state in ADMITTED else "It receives no traffic"
    opening = {
        TargetState.PENDING: f"{name} has been pending for {age}: it was never admitted.",
        TargetState.ACTIVE: f"{name} has been active for {age}.",
        TargetState.HELD: f"{name} has been held for {age} because of {target.cause}.",
        TargetState.FROZEN: (
            f"{name} has been frozen for {age} because of {target.cause}: too many targets broke at once."
        ),
        TargetState.WITHDRAWN: f"{name} has been withdrawn for {age} because of {target.cause}.",
        TargetState.DRAINING: f"{name} has been draining for {age}: its connections go on.",
    }[target.state]
    story = [opening, _added_sentence(target, now) or f"{table} (fwmark and route table {target.mark})."]
    for path in target.paths:
        story.append(_path_sentence(path))
        if not observe:
            story.append(_new_connections_sentence(target, path, affinity))
            story.append(_parked_sentence(target, path, parking, now))
        story += [_verdict_sentence(verdict, now) for verdict in path.verdicts]
        if path.verdicts_left_out:
            story.append(f"{path.verdicts_left_out} more verdicts concern this path.")
    story.append(_override_sentence(target, now))
    story.append(_drain_sentence(target))
    if target.prediction is not None:
        story.append(_prediction_sentence(target, target.prediction, now))
        if target.prediction.at is not None and wall_time is not None:
            at = time_of_day(wall_time + max(0.0, target.prediction.at - now), wall_time)
            story.append(f"That is decided at {at}, by the clock of the service.")
    # Each loss adds one, which decays; only the part above one delays a re-admission.
    if target.penalty > 1:
        story.append(
            f"Its flap penalty is {target.penalty:.2f}: the part above 1 delays a re-admission (damping.step)."
        )
    losses = sum(decision.action is Action.HOLD for decision, _ in recent)
    if losses and len(recent) > 1:
        kept = sum(decision.action is Action.RECOVER for decision, _ in recent)
        out = sum(decision.action is Action.WITHDRAW for decision, _ in recent)
        what = "one was a hold" if losses == 1 else f"{losses} were holds"
        story.append(f"Of its last {len(recent)} decisions, {what}; {kept} ended in recovery, {out} in withdrawal.")
    # Names of reporters and links come from outside: a newline in one must not look like a sentence.
    return "\n".join(printable(sentence) for sentence in story if sentence)
