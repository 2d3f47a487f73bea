"""Builds the values of `status.py` from the engine's state, with the predictions in them.

A prediction applies the future deadlines and ends of drains to a copy of the streams' counts. `Lifecycle.due` gives the
input of each deadline, as in the real decision, and `Stream.move` keeps the counts. So a prediction holds as long as no
path and no list changes.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from enum import IntEnum
from typing import TYPE_CHECKING

from lbguard.core.addr import Ip, format_ip, format_mac, is_ipv4
from lbguard.core.config import EngineConfig
from lbguard.core.fsm import TRANSITIONS, Input
from lbguard.core.lifecycle import MANUAL_CAUSES, Lifecycle
from lbguard.core.link import Link
from lbguard.core.model import (
    SOFT,
    Action,
    Condition,
    ConnectionSubject,
    LinkSubject,
    ManualAction,
    Subject,
    TargetKey,
    TargetState,
    TargetSubject,
    VerdictState,
)
from lbguard.core.opinions import Opinion, Source
from lbguard.core.state import Path, Stream, Target
from lbguard.core.status import (
    FamilyStatus,
    GuardStatus,
    LinkStatus,
    PathStatus,
    Prediction,
    StreamStatus,
    TargetStatus,
    VerdictStatus,
)

if TYPE_CHECKING:
    from lbguard.core.engine_state import EngineState


def predict(
    config: EngineConfig,
    life: Lifecycle,
    streams: Iterable[Stream],
    now: float,
    held_up: str,
    acts_at: Callable[[Target, float], float],
) -> dict[TargetKey, Prediction]:
    """Return the next action for every target with a pending deadline. Changes nothing.

    Args:
        config: the engine's.
        life: keeps the deadlines and gives their inputs.
        streams: all streams.
        now: the engine's clock, seconds.
        held_up: why no deadline takes effect at present; empty: they do.
        acts_at: returns when a target's deadline takes effect, at or after a moment.
    """
    by_name = {stream.spec.name: stream for stream in streams}
    targets = {target.key: target for stream in by_name.values() for target in stream.targets.values()}
    found = {key: what for key, target in targets.items() if (what := _without_deadline(config, target, now))}
    copies = {
        name: replace(stream, counts=Counter(stream.counts), targets=dict(stream.targets))
        for name, stream in by_name.items()
    }
    # A target may have a deadline and the end of a drain: the first one is predicted, the second one counts for others.
    moved: dict[TargetKey, Target] = {}
    timed: set[TargetKey] = set()
    for at, kind, key in _moments(life, targets, now, acts_at):
        stream, target = copies[key.stream], moved.setdefault(key, copy.copy(targets[key]))
        if key.identifier not in stream.targets:
            continue
        if kind is _Timer.DEADLINE and held_up:
            what = Prediction(action=Action.STAY, why=held_up)
        else:
            what = _HAPPENS[kind](config, life, stream, target, at)
        if what is not None and key not in timed:
            found[key] = what
            if what.at is not None:
                timed.add(key)
    return found


class _Timer(IntEnum):
    """Timers of a target, in the order in which those of one moment take effect."""

    PARDON = 0
    DEADLINE = 1
    DRAIN = 2


def _moments(
    life: Lifecycle, targets: Mapping[TargetKey, Target], now: float, acts_at: Callable[[Target, float], float]
) -> list[tuple[float, _Timer, TargetKey]]:
    """Return all deadlines and ends of pardons and drains, in the order in which they take effect."""
    moments = [(max(at, now), _Timer.PARDON, key) for at, key in life.pardons.in_order() if key in targets]
    moments += [
        (acts_at(targets[key], max(at, now)), _Timer.DEADLINE, key)
        for at, key in life.deadlines.in_order()
        if key in targets
    ]
    moments += [(max(at, now), _Timer.DRAIN, key) for at, key in life.drains.in_order() if key in targets]
    return sorted(moments, key=lambda moment: moment[:2])


def _at_end_of_pardon(
    config: EngineConfig, life: Lifecycle, stream: Stream, target: Target, at: float
) -> Prediction | None:
    if target.state not in (TargetState.ACTIVE, TargetState.DRAINING) or target.judge(math.inf) is Condition.OK:
        return None
    stream.move(target, TargetState.HELD, at)
    return Prediction(action=Action.HOLD, at=at)


def _at_end_of_drain(
    config: EngineConfig, life: Lifecycle, stream: Stream, target: Target, at: float
) -> Prediction | None:
    stream.move(target, None, at)
    return Prediction(action=Action.REMOVE, at=at)


def _at_deadline(config: EngineConfig, life: Lifecycle, stream: Stream, target: Target, at: float) -> Prediction | None:
    """Return the action of a deadline, and apply it to the copy of the stream; None: nothing is decided."""
    what = life.due(stream, target, at)
    broken = f"{stream.broken} of {stream.admitted} targets are broken"
    if what is Input.PATH_PARTIAL:
        # Its deadline is dropped, or, in a mass failure, set again.
        limit = target.lost_at + config.freeze.limit_s
        return Prediction(action=Action.HOLD, until=limit, why=broken) if life.holds.family_waits(target) else None
    state, action = TRANSITIONS[target.state, what]
    why = ""
    until = None
    if action in (Action.FREEZE, Action.PARDON):
        # A freeze that an earlier run began continues.
        until = (min(at, target.frozen_at) if action is Action.FREEZE else at) + config.freeze.limit_s
    elif action is Action.KEEP and target.override is not None:
        return Prediction(action=action, at=at, until=target.override.until)
    if what is Input.DEADLINE_MASS or (target.state is TargetState.FROZEN and stream.mass_failure(config)):
        why = broken
        if action is Action.STAY:
            until = target.frozen_at + config.freeze.limit_s
    elif what is Input.DEADLINE_VETOED:
        why = "soft evidence would withdraw too much of the stream"
    if action is Action.WITHDRAW_FAMILY:
        stream.halve(target, halved=True)
    if state is not target.state:
        # A target that is not listed any more is removed as soon as it is withdrawn.
        stream.move(target, None if target.unlisted and state is TargetState.WITHDRAWN else state, at)
    return Prediction(action=action, at=at, until=until, why=why)


_HAPPENS: dict[_Timer, Callable[[EngineConfig, Lifecycle, Stream, Target, float], Prediction | None]] = {
    _Timer.PARDON: _at_end_of_pardon,
    _Timer.DEADLINE: _at_deadline,
    _Timer.DRAIN: _at_end_of_drain,
}


_ENDS_WITH_OVERRIDE = (TargetState.PENDING, TargetState.WITHDRAWN, TargetState.DRAINING)


def _without_deadline(config: EngineConfig, target: Target, now: float) -> Prediction | None:
    by_hand = target.overridden(ManualAction.WITHDRAW) or (
        target.overridden(ManualAction.DRAIN) and not (target.source_drains or target.unlisted)
    )
    if by_hand and target.override is not None and target.state in _ENDS_WITH_OVERRIDE:
        return Prediction(action=Action.RELEASE, at=max(now, target.override.until))
    match target.state:
        case TargetState.PENDING if not target.draining:
            return Prediction(action=Action.ADMIT)
        case TargetState.HELD if target.partial:
            return Prediction(action=Action.HOLD, why=_families(target))
        case TargetState.DRAINING:
            return Prediction(action=Action.STAY)
        case TargetState.WITHDRAWN if not target.waiting and not target.draining:
            return Prediction(action=Action.READMIT, wait_s=target.penalty.wait_s(config.damping, now))
    return None


def _families(target: Target) -> str:
    """Name the lost and the working family of a target."""
    hard = {
        ip for ip, path in target.paths.items() if path.condition is not Condition.OK and path.condition not in SOFT
    }
    lost, well = (
        " and ".join("IPv4" if is_ipv4(ip) else "IPv6" for ip in target.paths if (ip in hard) is wanted)
        for wanted in (True, False)
    )
    return f"{lost} is lost, {well} is ok"


SHOWN = 8
"""Number of opinions shown for each end of a path: one address may have thousands."""


_TARGETS_A_PART = 32


def build_status(engine: EngineState, now: float, *, detail: bool = True) -> GuardStatus:
    """Return the state at one moment; without `detail` no targets and no links."""
    status = None
    for status in status_in_parts(engine, now, detail=detail):  # noqa: B007 (the last one counts)
        pass
    assert status is not None
    return status


def status_in_parts(engine: EngineState, now: float, *, detail: bool = True) -> Iterator[GuardStatus | None]:
    """Build the state a few targets at a time: yield None after each part, and the state last.

    A thousand targets with ten verdicts each take longer than the event of a lost link may wait. Each target is
    reported as it is at its turn, everything else as at the beginning.
    """
    streams = list(engine.stream_registry.streams.values())
    links = engine.view.links.values() if detail else ()
    expected = engine.predictions(now) if detail else {}
    whole = GuardStatus(
        now=now,
        observe=not engine.config.owns_paths,
        in_sync=engine.in_sync,
        sync_reason=engine.sync_reason,
        source_ok=not engine.source_reason,
        source_reason=engine.source_reason,
        streams=tuple(_stream(engine, stream) for stream in streams),
        targets=(),
        links=tuple(_link(engine, link) for link in links if engine.view.faces_targets(link)),
    )
    targets = [target for stream in streams for target in stream.targets.values()] if detail else []
    built: list[TargetStatus] = []
    for first in range(0, len(targets), _TARGETS_A_PART):
        part = targets[first : first + _TARGETS_A_PART]
        for target in part:
            if engine.stream_registry.target(target.key) is target:
                # A prediction from before the change of state is out of date.
                following = expected.get(target.key) if target.since <= now else None
                built.append(_target(engine, target, now, following))
        yield None
    yield replace(whole, targets=tuple(built))


def _stream(engine: EngineState, stream: Stream) -> StreamStatus:
    available, reason = engine.availability.get(stream.spec.name)
    return StreamStatus(
        name=stream.spec.name,
        max_targets=stream.spec.max_targets,
        identifier_offset=stream.spec.identifier_offset,
        available=bool(available),
        availability_reason=reason,
        mass_failure=stream.mass_failure(engine.config),
        counts={state: stream.counts[state] for state in TargetState},
        table_committed=stream.committed == stream.desired_pair(),
        families=_families_of(stream),
        commit_at=stream.learn_until,
    )


def _families_of(stream: Stream) -> tuple[FamilyStatus, ...]:
    held: Counter[bool] = Counter()
    withdrawn: Counter[bool] = Counter()
    for target in stream.targets.values() if stream.held else ():
        if target.state in (TargetState.HELD, TargetState.FROZEN):
            for ip, path in target.paths.items():
                if path.condition is not Condition.OK:
                    # Once the other family is lost too, the target is held as a whole.
                    alone = path.withdrawn and target.partial
                    (withdrawn if alone else held)[is_ipv4(ip)] += 1
    return tuple(FamilyStatus(ipv4=ipv4, held=held[ipv4], withdrawn=withdrawn[ipv4]) for ipv4 in (True, False))


def _target(engine: EngineState, target: Target, now: float, expected: Prediction | None) -> TargetStatus:
    settled = target.state in (TargetState.ACTIVE, TargetState.DRAINING)
    cause = "" if settled else "damped" if target.waiting else target.cause.value
    if target.overridden(ManualAction.WITHDRAW):
        cause = MANUAL_CAUSES[ManualAction.WITHDRAW]
    return TargetStatus(
        stream=target.key.stream,
        identifier=target.key.identifier,
        mark=target.mark,
        state=target.state,
        cause=cause,
        since=target.since,
        deadline=engine.life.ends_at(target.key),
        penalty=target.penalty.current(engine.config.damping, now),
        paths=tuple(_path(engine, target, ip, path) for ip, path in target.paths.items()),
        prediction=expected,
        draining=target.draining,
        unlisted=target.unlisted,
        commit_at=engine.stream_registry.streams[target.key.stream].commit_at(target),
        override=target.override,
    )


def _path(engine: EngineState, target: Target, ip: Ip, path: Path) -> PathStatus:
    link = engine.view.links.get(path.link.ifindex) if path.link else None
    if link is not None and link.key != path.link:
        link = None
    neighbor = link.neighbors.get(ip) if link else None
    found, left_out = _opinions(engine, ip, path)
    return PathStatus(
        ip=format_ip(ip),
        condition=path.condition.value,
        ifname=link.name if link else "",
        ifindex=link.ifindex if link else 0,
        neighbor=neighbor.state.name.lower() if neighbor else "",
        mac=format_mac(neighbor.mac) if neighbor and neighbor.mac else "",
        verdict=path.verdict,
        withdrawn=path.withdrawn,
        steered=engine.affinity.avoids(target, ipv4=is_ipv4(ip)),
        verdicts=_verdicts(engine, found, path),
        verdicts_left_out=left_out,
    )


def _opinions(engine: EngineState, ip: Ip, path: Path) -> tuple[dict[Source, Opinion], int]:
    """Return the opinions on both ends of a path that are shown, and the number of the others."""
    opinions = engine.paths.verdict_fusion.opinions
    of_link, of_target = opinions.of(path.lb_ip, SHOWN), opinions.of(ip, SHOWN)
    count = opinions.count(path.lb_ip) + opinions.count(ip)
    return {**of_link, **of_target}, count - len(of_link) - len(of_target)


def _verdicts(engine: EngineState, found: dict[Source, Opinion], path: Path) -> tuple[VerdictStatus, ...]:
    opinions = engine.paths.verdict_fusion.opinions
    return tuple(
        VerdictStatus(
            reporter=source.reporter,
            subject=_subject(source.subject),
            state=opinion.verdict.state,
            weight=_weight(opinions.weight(opinion), opinion, path),
            at=opinion.received_at,
            expires_at=opinion.received_at + opinion.verdict.lease_s,
        )
        for source, opinion in found.items()
    )


def _weight(weight: str, opinion: Opinion, path: Path) -> str:
    down = opinion.verdict.state is VerdictState.DOWN
    return "vetoed" if down and weight == "counts" and path.verdict == "down_vetoed" else weight


def _subject(subject: Subject) -> str:
    match subject:
        case LinkSubject():
            return f"link {format_ip(subject.lb_ip)} - {format_ip(subject.proxy_ip)}"
        case TargetSubject():
            return f"target {format_ip(subject.ip)}"
        case ConnectionSubject():
            return f"connection {subject.id}"


def _link(engine: EngineState, link: Link) -> LinkStatus:
    owns = any(owner is link for owner in engine.view.owners.values())
    role = "owner" if owns else "superseded" if engine.view.superseded(link) else "unusable"
    return LinkStatus(
        name=link.name,
        ifindex=link.ifindex,
        generation=link.key.generation,
        up=link.up,
        mac=format_mac(link.mac),
        addresses=tuple(str(address) for address in link.addresses),
        role=role,
    )
