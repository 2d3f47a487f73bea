"""Builds the values of `status.py` from the engine's state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from lbguard.core.addr import Ip, format_ip, format_mac
from lbguard.core.link import Link
from lbguard.core.model import ConnectionSubject, LinkSubject, Subject, TargetState, TargetSubject, VerdictState
from lbguard.core.opinions import Opinion, Source
from lbguard.core.state import Path, Stream, Target
from lbguard.core.status import (
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
    )


def _target(engine: EngineState, target: Target, now: float, expected: Prediction | None) -> TargetStatus:
    settled = target.state is TargetState.ACTIVE
    return TargetStatus(
        stream=target.key.stream,
        identifier=target.key.identifier,
        mark=target.mark,
        state=target.state,
        cause="" if settled else "damped" if target.waiting else target.cause.value,
        since=target.since,
        deadline=engine.life.deadlines.get(target.key),
        penalty=target.penalty.current(engine.config.damping, now),
        paths=tuple(_path(engine, ip, path) for ip, path in target.paths.items()),
        prediction=expected,
    )


def _path(engine: EngineState, ip: Ip, path: Path) -> PathStatus:
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
