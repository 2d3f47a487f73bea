"""Overrides: targets that an operator drains, holds or withdraws, each until a moment that is known at its beginning.

- DRAIN: the target gets no new flow; its connections go on. It needs flow affinity.
- HOLD: no evidence takes the target out of the table. A target that is not in it is admitted by the usual rules first.
- WITHDRAW: the target is taken out of the table at once, and is not admitted.
- RELEASE ends each of them, and so does its end. The usual rules apply from then on.

A request is carried out as a whole or refused as a whole. Without `force`, no drain or withdrawal may leave a stream
without an active target that gets new flows; that is decided when it is requested. An override belongs to an identifier
of a stream and its addresses: it applies again to a target that leaves the list and comes back, and to none with other
addresses. It survives a restart, and its time runs on meanwhile.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lbguard.core.addr import Ip
from lbguard.core.config import EngineConfig
from lbguard.core.deadlines import Deadlines
from lbguard.core.effects import OverrideAnswered
from lbguard.core.events import OpenOverride, OverrideRequested
from lbguard.core.lifecycle import MANUAL_CAUSES, Lifecycle
from lbguard.core.model import Action, ManualAction, Override, TargetKey, TargetState
from lbguard.core.state import Stream, Target

RELEASED, EXPIRED, OTHER_TARGET = "manual_released", "manual_expired", "manual_other_target"
ENDS = (RELEASED, EXPIRED, OTHER_TARGET)
"""Causes of the end of an override; OTHER_TARGET: the identifier has other addresses now."""

NOT_CARRIED_OUT = "not_carried_out"
NOT_READY = "not_ready"
NEEDS_AFFINITY = "needs_affinity"
UNKNOWN = "target_unknown"
UNLISTED = "target_unlisted"
WOULD_EMPTY = "would_empty_stream"
REFUSALS = (NOT_CARRIED_OUT, NOT_READY, NEEDS_AFFINITY, UNKNOWN, UNLISTED, WOULD_EMPTY)
"""Reasons for which a request is refused."""

_TAKES_FLOWS_AWAY = (ManualAction.DRAIN, ManualAction.WITHDRAW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An override and the addresses of its target."""

    override: Override
    ips: tuple[Ip, ...]


class ManualControl:
    """The overrides in force, by target; also of targets that are not listed at present.

    `seen_until` returns up to which moment the state of the kernel is known.
    """

    def __init__(self, config: EngineConfig, life: Lifecycle, seen_until: Callable[[float], float]) -> None:
        self._config = config
        self._life = life
        self._seen_until = seen_until
        self._orders: dict[TargetKey, Order] = {}
        self._ends: Deadlines[TargetKey] = Deadlines()

    def request(self, event: OverrideRequested, streams: Mapping[str, Stream], now: float) -> OverrideAnswered:
        """Carry a request out, or refuse it; see `OverrideAnswered`."""
        found: dict[TargetKey, tuple[Stream, Target]] = {}
        unknown = []
        for key in event.targets:
            stream = streams.get(key.stream)
            target = stream.targets.get(key.identifier) if stream else None
            if stream is None or target is None:
                unknown.append(key)
            else:
                found[key] = stream, target
        refused, concerns = self._refusal(event, found, unknown)
        if refused:
            return OverrideAnswered(ticket=event.ticket, refused=refused, concerns=tuple(concerns))
        changed = []
        for key, (stream, target) in found.items():
            if event.action is not ManualAction.RELEASE:
                override = Override(
                    action=event.action, since=now, until=now + event.duration_s, who=event.who, reason=event.reason
                )
                self._begin(stream, target, override, now)
            elif target.override is not None:
                self._end(stream, target, RELEASED, now)
            else:
                continue
            changed.append(key)
        return OverrideAnswered(ticket=event.ticket, changed=tuple(changed))

    def _refusal(
        self, event: OverrideRequested, found: Mapping[TargetKey, tuple[Stream, Target]], unknown: Iterable[TargetKey]
    ) -> tuple[str, list[str]]:
        """Return the reason for which a request is refused (empty: it is not), and what it concerns."""
        if not self._config.owns_paths:
            return NOT_CARRIED_OUT, []
        if absent := [str(key) for key in unknown]:
            return UNKNOWN, absent
        if waiting := {stream.spec.name: None for stream, _ in found.values() if not stream.adopted}:
            return NOT_READY, list(waiting)
        if event.action is ManualAction.RELEASE:
            return "", []
        if event.action is ManualAction.DRAIN and not self._config.affinity:
            return NEEDS_AFFINITY, []
        if leaving := [str(key) for key, (_, target) in found.items() if target.unlisted]:
            return UNLISTED, leaving
        if event.action in _TAKES_FLOWS_AWAY and not event.force:
            concerned = {stream.spec.name: stream for stream, _ in found.values()}
            emptied = [name for name, stream in concerned.items() if not _left(stream, found)]
            if emptied:
                return WOULD_EMPTY, emptied
        return "", []

    def remember(self, overrides: Iterable[OpenOverride], now: float) -> None:
        """Adopt the overrides that an earlier run left open; each applies when its target is listed."""
        if not self._config.owns_paths:
            return
        for each in overrides:
            if each.left_s <= 0 or (each.action is ManualAction.DRAIN and not self._config.affinity):
                continue
            override = Override(
                action=each.action,
                since=now - each.age_s,
                until=now + each.left_s,
                who=each.who,
                reason=each.reason,
            )
            self._set(TargetKey(each.stream, each.identifier), Order(override=override, ips=each.ips))

    def listed(self, target: Target) -> None:
        """Apply an override to a target that is listed now; a target with other addresses has none."""
        order = self._orders.get(target.key)
        if order is None:
            return
        if not set(order.ips) & target.paths.keys():
            self._forget(target.key)
            return
        target.override = order.override
        target.draining = target.draining or order.override.action is ManualAction.DRAIN

    def addresses_changed(self, stream: Stream, target: Target, now: float) -> None:
        """End the override of a target that has none of its addresses any more."""
        order = self._orders.get(target.key)
        if order is None:
            return
        if set(order.ips) & target.paths.keys():
            self._orders[target.key] = Order(override=order.override, ips=tuple(target.paths))
        else:
            self._end(stream, target, OTHER_TARGET, now)

    def expire(self, streams: Mapping[str, Stream], now: float) -> list[Target]:
        """End the overrides whose time is over; return their targets."""
        ended = []
        for key in self._ends.pop_due(now):
            stream = streams.get(key.stream)
            target = stream.targets.get(key.identifier) if stream else None
            if stream is None or target is None:
                self._forget(key)
            else:
                self._end(stream, target, EXPIRED, now)
                ended.append(target)
        return ended

    def next(self) -> float | None:
        """Return when the next override ends."""
        return self._ends.next()

    def in_force(self) -> dict[TargetKey, Override]:
        """Return the overrides, also of targets that are not listed at present."""
        return {key: order.override for key, order in self._orders.items()}

    def open_overrides(self, now: float) -> tuple[OpenOverride, ...]:
        """Return the overrides that a later run continues."""
        return tuple(
            OpenOverride(
                stream=key.stream,
                identifier=key.identifier,
                ips=order.ips,
                action=order.override.action,
                age_s=max(0.0, now - order.override.since),
                left_s=max(0.0, order.override.until - now),
                who=order.override.who,
                reason=order.override.reason,
            )
            for key, order in self._orders.items()
        )

    def _set(self, key: TargetKey, order: Order) -> None:
        self._orders[key] = order
        self._ends.set(key, order.override.until)

    def _forget(self, key: TargetKey) -> None:
        self._orders.pop(key, None)
        self._ends.cancel(key)

    def _begin(self, stream: Stream, target: Target, override: Override, now: float) -> None:
        """Put an override in the place of an earlier one, if there is one."""
        before, target.override = target.override, override
        self._set(target.key, Order(override=override, ips=tuple(target.paths)))
        cause = MANUAL_CAUSES[override.action]
        self._life.note(target, Action.OVERRIDE, cause, now, override)
        if before is not None and (before.action is not override.action or before.action is ManualAction.HOLD):
            self._undo(stream, target, before, cause, now)
        if override.action is ManualAction.DRAIN:
            self._life.drain(stream, target, now)
        elif override.action is ManualAction.WITHDRAW:
            self._life.take_out(stream, target, now)

    def _end(self, stream: Stream, target: Target, cause: str, now: float) -> None:
        before, target.override = target.override, None
        self._forget(target.key)
        if before is not None:
            if before.action is ManualAction.HOLD:
                self._life.holds.keep_no_longer(target, self._seen_until(now))
            self._life.note(target, Action.RELEASE, cause, now, before)
            self._undo(stream, target, before, cause, now)

    def _undo(self, stream: Stream, target: Target, before: Override, cause: str, now: float) -> None:
        """Undo what an override did; the target is judged by the usual rules next."""
        match before.action:
            case ManualAction.DRAIN if target.source_drains or target.unlisted:
                pass
            case ManualAction.DRAIN if target.overridden(ManualAction.WITHDRAW):
                # It leaves the table next: it gets no new flow in between.
                self._life.forget_drain(stream, target)
            case ManualAction.DRAIN:
                self._life.resume(stream, target, now, reason=cause)
            case ManualAction.HOLD:
                self._life.holds.keep_no_longer(target, self._seen_until(now))
            case ManualAction.WITHDRAW:
                self._life.take_back(target, now)


def _left(stream: Stream, taken: Mapping[TargetKey, object]) -> int:
    """Return how many targets of a stream still get new flows when some are taken away."""
    return sum(target.state is TargetState.ACTIVE and target.key not in taken for target in stream.targets.values())
