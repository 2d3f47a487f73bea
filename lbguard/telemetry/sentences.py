"""Sentences about decisions and states, for the log, `lbguard events` and `lbguard explain`."""

from collections.abc import Iterable, Sequence

from lbguard.core.addr import Ip, format_ip, is_ipv4
from lbguard.core.lifecycle import MANUAL_CAUSES
from lbguard.core.manual import EXPIRED, OTHER_TARGET, RELEASED
from lbguard.core.model import (
    ADMITTED,
    SOFT,
    Action,
    Condition,
    Decision,
    Evidence,
    ManualAction,
    Override,
    TargetState,
)
from lbguard.core.status import AffinityStatus, ParkingStatus, PathStatus, Prediction, TargetStatus, VerdictStatus
from lbguard.printable import printable
from lbguard.settings.notation import format_duration

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


_REMOVALS = {
    "drain_window": "the drain window is over",
    "drain_idle": "no packet came for drain.idle",
    "identifier_used_again": "the source lists another target by its identifier",
    "address_used_again": "the source lists another target with its address",
}
"""Ends of drains, by the cause of the removal; another cause is the condition of a lost path."""


_RELEASES = {
    RELEASED: "an operator released it",
    EXPIRED: "its time is over",
    OTHER_TARGET: "the identifier has other addresses now",
}
_DONE_BY_HAND = {
    ManualAction.DRAIN: "drains it by hand",
    ManualAction.HOLD: "holds it by hand",
    ManualAction.WITHDRAW: "withdrew it by hand",
}


def seconds(value: float) -> str:
    """Format a duration for people: one decimal, more digits below a tenth of a second."""
    return f"{value:.1f} s" if value >= 0.1 or value == 0 else f"{value * 1000:.1f} ms"


def _evidence(evidence: Sequence[Evidence], cause: str) -> str:
    broken = [item for item in evidence if item.condition is not Condition.OK]
    parts = []
    for item in broken or evidence:
        condition = "" if item.condition in {cause, Condition.OK} else f"{item.condition} "
        detail = f", {item.detail}" if item.detail else ""
        detail += f", reporters say {item.verdict}" if item.verdict else ""
        via = f" via {item.ifname}" if item.ifname else ""
        parts.append(f"{condition}{format_ip(item.ip)}{via}{detail}")
    return f" ({'; '.join(parts)})" if parts else ""


def family_of(ip: Ip | str) -> str:
    """Return the name of an address's family."""
    ipv4 = ":" not in ip if isinstance(ip, str) else is_ipv4(ip)
    return "IPv4" if ipv4 else "IPv6"


def _families(ips: Iterable[Ip | str]) -> str:
    return " and ".join(sorted({family_of(ip) for ip in ips}))


def _drain_end(decision: Decision) -> str:
    """Return why a removal ended a drain; empty: it did not."""
    if decision.cause in _REMOVALS:
        return f", {_REMOVALS[decision.cause]}"
    return ", a lost path ends the drain" if decision.cause in set(Condition) else ""


def span(value: float) -> str:
    """Format a longer duration for people, in whole seconds: `9m30s`."""
    return format_duration(max(0.0, round(value)))


def given_by(override: Override) -> str:
    """Return who gave an override and why, each if known: ` by anna (rack 7)`."""
    who = f" by {override.who}" if override.who else ""
    return f"{who} ({override.reason})" if override.reason else who


def _override_tail(decision: Decision) -> str:
    """Return what a decision says about the operator's override behind it."""
    override = decision.override
    if override is None:
        return ""
    match decision.action:
        case Action.OVERRIDE:
            return f" for {span(override.until - override.since)}{given_by(override)}"
        case Action.RELEASE:
            after = span(decision.at - override.since)
            return (
                f", {_RELEASES.get(decision.cause, decision.cause)}, {override.action}{given_by(override)} {after} ago"
            )
        case Action.KEEP:
            return f", its deadline passed and it stays in the table for {span(override.until - decision.at)} more"
        case Action.TAKE_OUT:
            return ", out of the table at once"
    return ""


def decision_sentence(decision: Decision) -> str:
    """Return one sentence about a decision: action, reason and next step."""
    left = None if decision.deadline is None else max(0.0, decision.deadline - decision.at)
    lasted = None if decision.duration_s is None else seconds(decision.duration_s)
    tail = ""
    match decision.action:
        case Action.HOLD | Action.REVISE if left is not None:
            # The decision at the end of the window depends on the number of broken targets at that time.
            tail = f", the grace window ends in {seconds(left)}"
        case Action.HOLD | Action.REVISE:
            tail = ", held without a deadline because another path of it is ok"
        case Action.FREEZE:
            limit = "" if left is None else f" for at most {seconds(left)}"
            tail = f", withdrawal suppressed{limit} because too many targets broke at once"
        case Action.WAIT if left is not None:
            tail = f", re-admit in {seconds(left)} if the path stays"
        case Action.RECOVER if lasted is not None:
            tail = f", path back after {lasted}"
        case Action.WITHDRAW if lasted is not None:
            tail = f", held for {lasted}"
        case Action.WITHDRAW_FAMILY:
            out = [item.ip for item in decision.evidence if item.withdrawn]
            tail = f", {_families(out)} is withdrawn, the target stays in the table for its other family"
        case Action.OVERRIDE | Action.RELEASE | Action.KEEP | Action.TAKE_OUT:
            return f"{decision.action} {decision.target}: {decision.cause}{_override_tail(decision)}"
        case Action.DRAIN if decision.cause == MANUAL_CAUSES[ManualAction.DRAIN]:
            tail = ", no new connections until an operator's drain ends"
        case Action.DRAIN if left is not None:
            tail = f", no new connections, removed in {seconds(left)} at the latest"
        case Action.DRAIN:
            tail = ", no new connections for as long as the source lists it as draining"
        case Action.RESUME:
            tail = ", new connections again"
        case Action.REMOVE:
            tail = _drain_end(decision)
        case Action.READMIT if lasted is not None:
            tail = f", {lasted} after the loss"
        case Action.PARDON:
            tail = ", evidence ignored because it would withdraw too much of the stream"
        case Action.RELAPSE:
            tail = ", path broke again before it was re-admitted"
    return f"{decision.action} {decision.target}: {decision.cause}{_evidence(decision.evidence, decision.cause)}{tail}"


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
        serves = _families(path.ip for path in target.paths if not path.withdrawn)
        return (
            f"{_families(out)} is withdrawn; {serves} serves. {_families(out)} gets connections again as soon as its"
            f" path is ok. When {serves} is lost too, the grace window begins."
        )
    if span:
        lost = _families(path.ip for path in target.paths if path.condition != Condition.OK)
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
            lost = _families(path.ip for path in target.paths if path.condition != Condition.OK and not path.withdrawn)
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
) -> str:
    """Return in a few sentences, one a line, a target's state, the reason for it, and what happens next.

    Args:
        target: its status.
        now: the engine's clock at that status, seconds.
        recent: its last decisions with wall time, oldest first.
        observe: no decision is carried out.
        affinity: flow affinity; None: it is off.
        parking: parking; None: it is off.
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
