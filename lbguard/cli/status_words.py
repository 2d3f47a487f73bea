"""Words and colours for a status, shared by `lbguard status` and `lbguard top`."""

from rich.text import Text

from lbguard.core.model import Action, Condition, TargetState
from lbguard.core.status import (
    AffinityStatus,
    GuardStatus,
    ParkingStatus,
    PathStatus,
    SettingsFileStatus,
    StreamStatus,
    TargetStatus,
)
from lbguard.telemetry.sentences import family_of, seconds, time_of_day
from lbguard.telemetry.target_story import new_connections

NOT_YET = "starting"
"""The engine's reason before the first state of the kernel, or of the source."""

TROUBLE_FIRST = [
    TargetState.WITHDRAWN,
    TargetState.FROZEN,
    TargetState.HELD,
    TargetState.PENDING,
    TargetState.DRAINING,
    TargetState.ACTIVE,
]
STATE_COLOURS = {
    TargetState.WITHDRAWN: "red",
    TargetState.FROZEN: "blue",
    TargetState.HELD: "yellow",
    TargetState.PENDING: "dim",
    TargetState.DRAINING: "cyan",
    TargetState.ACTIVE: "green",
}


_THEN = {
    Action.WITHDRAW: "withdrawn",
    Action.FREEZE: "frozen",
    Action.STAY: "frozen",
    Action.PARDON: "pardoned",
    Action.READMIT: "active",
    Action.HOLD: "held",
    Action.REMOVE: "removed",
    Action.KEEP: "kept",
    Action.RELEASE: "released",
}
_FULL = 0.9
"""A map of flows with more than this share in use is shown as almost full; the alert has the same limit."""


def until(target: TargetStatus, clock: float) -> str:
    """Return how long a target's state lasts if nothing changes; empty: that is not a matter of time."""
    prediction = target.prediction
    at = prediction.at if prediction is not None else target.deadline
    if at is None and prediction is None:
        at = target.commit_at
    if at is None:
        return "no end" if prediction is not None and prediction.action in (Action.STAY, Action.HOLD) else ""
    return f"in {seconds(at - clock)}" if at > clock else "now"


def then(target: TargetStatus) -> str:
    """Return in one word the result of the deadline."""
    prediction = target.prediction
    if prediction is None and target.commit_at is not None:
        return "in the table"
    if prediction is None or prediction.at is None:
        return ""
    if prediction.action is Action.WITHDRAW_FAMILY:
        lost = {family_of(path.ip) for path in target.paths if path.condition != Condition.OK and not path.withdrawn}
        return f"{'/'.join(sorted(lost))} withdrawn"
    return _THEN.get(prediction.action, str(prediction.action))


def headline(status: GuardStatus) -> Text:
    """Return one line about the service as a whole; `settings_file_notes` says more about the settings file."""
    parts, style = headline_parts(status, in_full=False)
    return Text(" · ".join(parts), style)


def headline_parts(status: GuardStatus, *, in_full: bool = True) -> tuple[list[str], str]:
    """Return what is to say about the service as a whole, and its style; `in_full`: with refused settings."""
    mode = "observing: no decision is carried out" if status.observe else "enforcing"
    sync = "kernel in sync" if status.in_sync else f"KERNEL OUT OF SYNC ({status.sync_reason}), nothing is withdrawn"
    source = "source ok" if status.source_ok else f"SOURCE LOST ({status.source_reason}), the last list stays"
    if not status.source_ok and not status.streams:
        source = f"NO TARGETS ({status.source_reason}), waiting for a list"
    if status.sync_reason == NOT_YET:
        sync = "kernel not read yet"
    if status.source_reason == NOT_YET:
        source = "source not read yet"
    affinity, well = _affinity(status.affinity)
    parking, parks = _parking(status.parking)
    settings = _settings_file(status, in_full=in_full)
    refused = status.settings_file is not None and bool(status.settings_file.problem)
    parts = [part for part in (mode, sync, source, affinity, parking, settings) if part]
    good = status.in_sync and status.source_ok and well and parks and not refused
    return parts, "" if good else "bold yellow"


def _settings_file(status: GuardStatus, *, in_full: bool) -> str:
    """Return the state of the settings file in a few words; empty: there is nothing to say."""
    file = status.settings_file
    if file is None:
        return ""
    if file.problem:
        why = f" ({file.problem})" if in_full else ""
        return f"SETTINGS FILE REFUSED for {_refused_for(file, status)}{why}, the settings in force stay"
    count = len(file.waiting)
    return f"{count} {'setting waits' if count == 1 else 'settings wait'} for a restart" if count else ""


def _refused_for(file: SettingsFileStatus, status: GuardStatus) -> str:
    return age(status.now - (status.now if file.refused_since is None else file.refused_since))


def settings_file_notes(status: GuardStatus) -> list[str]:
    """Return sentences about a settings file that is refused, and about settings that wait for a restart."""
    file = status.settings_file
    if file is None:
        return []
    notes = []
    if file.problem:
        since = "" if file.refused_since is None else clock_time(status, file.refused_since)
        notes.append(
            f"The settings file is refused {f'since {since}' if since else f'for {_refused_for(file, status)}'}:"
            f" {file.problem}"
        )
        notes.append("The settings in force stay. A restart of lbguard would fail with this file.")
    notes += [
        f"With the next restart: {each.name} {each.running or '-'} -> {each.wanted or '-'}" for each in file.waiting
    ]
    return notes


def clock_time(status: GuardStatus, moment: float) -> str:
    """Return a moment of the engine's clock as local time, such as `14:03:07 CET`; empty: it is not known."""
    if status.wall_time is None:
        return ""
    return time_of_day(status.wall_time + moment - status.now, status.wall_time)


def _parking(parking: ParkingStatus | None) -> tuple[str, bool]:
    """Return parking in a few words (empty: it is off), and whether it is well."""
    if parking is None:
        return "", True
    if not parking.in_force:
        return (f"PARKING NOT IN FORCE ({parking.problem})" if parking.problem else "parking starting", False)
    if parking.packets > _FULL * parking.packets_max or parking.memory_bytes > _FULL * parking.bytes_max:
        return f"parking in force, {parking.packets} packets kept, ALMOST FULL", False
    return f"parking in force, {parking.packets} {'packet' if parking.packets == 1 else 'packets'} kept", True


def kept_packets(target: TargetStatus, parking: ParkingStatus | None) -> list[str]:
    """Return for each path how many of its packets are kept; `-`: none."""
    kept = [parking.of(target.mark, ipv4=":" not in path.ip) if parking is not None else None for path in target.paths]
    return ["-" if each is None else str(each.packets) for each in kept]


def _affinity(affinity: AffinityStatus | None) -> tuple[str, bool]:
    """Return flow affinity in a few words (empty: it is off), and whether it is well."""
    if affinity is None:
        return "", True
    if not affinity.in_force:
        return (f"AFFINITY NOT IN FORCE ({affinity.problem})" if affinity.problem else "affinity starting", False)
    flows = sum(each.flows for each in affinity.maps)
    words = f"affinity in force, {flows} {'flow' if flows == 1 else 'flows'} remembered"
    full = [each for each in affinity.maps if each.flows > _FULL * affinity.flows_max]
    names = ", ".join(f"{each.protocol} {'IPv4' if each.ipv4 else 'IPv6'}" for each in full)
    return (f"{words}, MAP ALMOST FULL ({names})", False) if full else (words, True)


def new_flows(target: TargetStatus, affinity: AffinityStatus | None) -> list[str]:
    """Return for each path where its new connections go: `elsewhere`, `wait`, or `-`, the path itself."""
    return [new_connections(target, path, affinity) or "-" for path in target.paths]


def condition(path: PathStatus) -> str:
    """Return the condition of a path, and whether its family was withdrawn alone."""
    return f"{path.condition}, withdrawn" if path.withdrawn else path.condition


def list_change_note(stream: StreamStatus, clock: float) -> str:
    """Return when a change of a stream's list is committed that waits for flows; empty: none waits."""
    if stream.commit_at is None:
        return ""
    return f"list change in {seconds(max(0.0, stream.commit_at - clock))} (affinity.learn)"


def local_vips_note(stream: StreamStatus) -> str:
    """Return which VIPs of a stream are the load balancer's own addresses; empty: none."""
    if not stream.local_vips:
        return ""
    return f"VIP {', '.join(stream.local_vips)} is an address of this machine: no packet to it reaches a target"


def age(age_s: float) -> str:
    """Write how long ago something was, in the unit that suits it."""
    if age_s < 120:
        return seconds(max(0.0, age_s))
    if age_s < 7200:
        return f"{age_s / 60:.0f} min"
    return f"{age_s / 3600:.0f} h" if age_s < 172_800 else f"{age_s / 86_400:.0f} d"
