"""Sentences about decisions, for the log and `lbguard events`, and the phrases that other sentences share."""

import time
from collections.abc import Iterable, Sequence

from lbguard.core.addr import Ip, format_ip, is_ipv4
from lbguard.core.lifecycle import MANUAL_CAUSES
from lbguard.core.manual import EXPIRED, OTHER_TARGET, RELEASED
from lbguard.core.model import Action, Condition, Decision, Evidence, ManualAction, Override

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


def seconds(value: float) -> str:
    """Format a duration for people: one decimal, more digits below a tenth of a second."""
    return f"{value:.1f} s" if value >= 0.1 or value == 0 else f"{value * 1000:.1f} ms"


def time_of_day(wall_time: float, now: float) -> str:
    """Format a moment as local time with its zone: `14:03:07 CET`; with the date where that is not the day of `now`.

    Both are seconds since the epoch.
    """
    local = time.localtime(wall_time)
    same_day = local[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M:%S %Z" if same_day else "%Y-%m-%d %H:%M:%S %Z", local)


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


def families(ips: Iterable[Ip | str]) -> str:
    """Return the names of the addresses' families, joined."""
    return " and ".join(sorted({family_of(ip) for ip in ips}))


def _drain_end(decision: Decision) -> str:
    """Return why a removal ended a drain; empty: it did not."""
    if decision.cause in _REMOVALS:
        return f", {_REMOVALS[decision.cause]}"
    return ", a lost path ends the drain" if decision.cause in set(Condition) else ""


def span(value: float) -> str:
    """Format a longer duration for people, in whole seconds: `9m30s`, `24h`."""
    minutes, rest = divmod(max(0, round(value)), 60)
    hours, minutes = divmod(minutes, 60)
    parts = (f"{number}{unit}" for number, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if number)
    return "".join(parts) or "0s"


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
            tail = f", {families(out)} is withdrawn, the target stays in the table for its other family"
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
            # A loss took it out of the table, or an operator.
            tail = f", {lasted} after it broke or was taken out"
        case Action.PARDON:
            tail = ", evidence ignored because it would withdraw too much of the stream"
        case Action.RELAPSE:
            tail = ", path broke again before it was re-admitted"
    return f"{decision.action} {decision.target}: {decision.cause}{_evidence(decision.evidence, decision.cause)}{tail}"
