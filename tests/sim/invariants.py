"""What has to hold after every step, whatever goes wrong, judged against the oracle in `belief.py`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lbguard.core import effects as fx
from lbguard.core.addr import Ip, is_link_local
from lbguard.core.engine_state import TargetView
from lbguard.core.events import (
    Event,
    HoldsRemembered,
    KernelOutOfSync,
    KernelSnapshot,
    OpenHold,
    SettingsChanged,
    SourceSnapshot,
    Stalled,
    VerdictReported,
)
from lbguard.core.model import (
    ROUTE_PROTOCOL,
    SOFT,
    Action,
    Condition,
    Decision,
    LinkKey,
    ManualAction,
    Route,
    RouteKind,
    Rule,
    TargetKey,
    TargetState,
)
from lbguard.core.observation import LOOK_S
from lbguard.core.status import Prediction
from tests.unit.core.consistency import check_consistency, opinion_count

if TYPE_CHECKING:
    from tests.sim.world import World

EPSILON_S = 1e-6
REPAIR_TIME_S = 0.5
"""After sync is regained, what came back unseen is being repaired for this long; no deadline withdraws meanwhile."""
_ORDER = list(Condition)
_ADDS = (Action.ADMIT, Action.ADOPT, Action.READMIT)
_BROKEN = (TargetState.HELD, TargetState.FROZEN)
_TAKES = (Action.WITHDRAW, Action.TAKE_OUT, Action.REMOVE)
_AT_A_MOMENT = (
    Action.WITHDRAW,
    Action.WITHDRAW_FAMILY,
    Action.FREEZE,
    Action.PARDON,
    Action.READMIT,
    Action.HOLD,
    Action.REMOVE,
    Action.KEEP,
)


@dataclass(slots=True)
class Loss:
    """A loss as the oracle saw it.

    `cause`: what is wrong now. `window_s`: how long it is tolerated at least: the window of the cause, but a cause that
    is milder than the one before is progress, and progress never shortens it. `longest_s`: the longest window so far.
    `healing_until`, `healed_until`: until when a repair is said to take, now and at the longest so far.
    `began` is never changed; `since` leaves out what could not be seen, and what an earlier guard saw lies before it.
    """

    began: float
    since: float
    cause: Condition
    window_s: float
    longest_s: float
    healing_until: float
    healed_until: float


class Watch:
    """Follows one engine from its start. Every check raises AssertionError."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._outdated: set[Route] = set()
        self._listed: dict[int, tuple[Ip, ...]] = {}
        self._losses: dict[TargetKey, Loss] = {}
        self._losses_of_gone: dict[TargetKey, Loss] = {}
        self._frozen: dict[TargetKey, float] = {}
        self._regained = 0
        self._regained_at = float("-inf")
        self._states: dict[TargetKey, TargetState] = {}
        self._admitted: dict[str, set[int]] = {}
        self._softly_out: dict[str, set[int]] = {}
        self._set_down: set[LinkKey] = set()
        self._set_up: set[LinkKey] = set()
        self._calm_since: dict[str, float] = {}
        self._calm_before: dict[str, float] = {}
        self._blind: list[tuple[float, float]] = []
        self._lost_sight_at = float("-inf")
        self._remembered: dict[TargetKey, OpenHold] = {}
        self._froze_at: dict[TargetKey, float] = {}
        self._inherited: dict[TargetKey, float] = {}
        self._idle_turns = 0
        self._foreseen: dict[TargetKey, Prediction] = {}
        self._last_decision = self._last_decision_before = 0.0
        self.announced_at: dict[tuple[int, bytes, Ip], float] = {}

    # After a decision

    def foresee(self) -> None:
        """Note what is predicted for this very moment, before the decision that it is about."""
        now = self._world.now
        due = self._world.engine.predictions(now).items()
        self._foreseen = {key: what for key, what in due if what.at is not None and what.at <= now}

    def _check_foreseen(self, effects: Iterable[fx.Effect]) -> None:
        """What a deadline brought is what was predicted, in every stream of which nothing else was decided."""
        foreseen, self._foreseen = self._foreseen, {}
        done: dict[TargetKey, Decision] = {}
        for effect in effects:
            if isinstance(effect, fx.Record):
                # What follows from a decision at once, such as the removal of a withdrawn target that drained, is not
                # foreseen.
                done.setdefault(effect.decision.target, effect.decision)
        # A path may change in the same decision: a lease ends at that moment too.
        surprised = {key.stream for key, d in done.items() if key not in foreseen or d.action not in _AT_A_MOMENT}
        for key, what in foreseen.items():
            if key.stream not in surprised and self._world.engine.running:
                action = done[key].action if key in done else Action.STAY
                assert action is what.action, f"{key}: predicted {what}, and it became {action}"
                self._world.foreseen[action] += 1

    def after_decision(self, effects: Iterable[fx.Effect]) -> None:
        world, engine = self._world, self._world.engine
        self._check_foreseen(effects)
        self._idle_turns = self._idle_turns + 1 if world.now == self._last_decision else 0
        self._last_decision_before, self._last_decision = self._last_decision, world.now
        assert self._idle_turns < 50, "the engine turns without time passing"
        assert world.kernel.foreign() == world.kernel.others or not world.running, "something foreign was touched"
        self._follow_losses()
        for effect in effects:
            if isinstance(effect, fx.Record):
                self._follow_record(effect)
        streams, targets = engine.streams(), engine.targets()
        for stream in streams:
            if self._is_mass(stream.broken, stream.admitted):
                since = self._calm_since.pop(stream.spec.name, None)
                if since is not None:
                    self._calm_before[stream.spec.name] = since
            else:
                self._calm_since.setdefault(stream.spec.name, world.now)
        states = {target.key: target.state for target in targets}
        told = {key: self._states.get(key, TargetState.PENDING) for key in states}
        assert states == told, "the records tell another story"
        assert self._states.keys() <= states.keys(), "the records tell of targets that are gone"
        if engine.running:
            adopted = {stream.spec.name for stream in streams if stream.adopted}
            for target in targets:
                if target.key.stream in adopted:
                    self._check_target(target)
        for target in targets:
            if target.state is TargetState.HELD and target.open_ended:
                assert self._one_family_lost(target), f"{target.key} is held without end"
        check_consistency(engine)
        self._check_owners()

    def _is_mass(self, broken: int, admitted: int) -> bool:
        return broken > 1 and broken > self._world.config.freeze.threshold * admitted

    # What is told

    def told(self, event: Event) -> None:
        """Take note of times in which the guard could not look, and of holds that are handed over to it."""
        world, now = self._world, self._world.now
        match event:
            case HoldsRemembered(holds=holds):
                self._remembered = {TargetKey(hold.stream, hold.identifier): hold for hold in holds}
            case SourceSnapshot(streams=streams):
                self._listed |= {stream.mark(t.identifier): t.ips for stream in streams for t in stream.targets}
            case KernelOutOfSync() if world.engine.in_sync:
                self._lost_sight_at = now
            case KernelSnapshot() if self._lost_sight_at > -math.inf and not world.engine.in_sync:
                self._was_blind(now - self._lost_sight_at)
            case Stalled(duration_s=duration_s) if world.engine.in_sync:
                self._was_blind(duration_s)
            case SettingsChanged():
                # Each loss has the new window now, counted from its beginning.
                grace = world.config.grace
                for loss in self._losses.values():
                    loss.window_s = min(grace.by_cause_s.get(loss.cause, grace.window_s), grace.max_s)
                    loss.longest_s = max(loss.longest_s, loss.window_s)

    def _was_blind(self, duration_s: float) -> None:
        now = self._world.now
        self._blind.append((now - duration_s, now))
        unseen_s = max(0.0, duration_s - LOOK_S)
        for loss in self._losses.values():
            shift_s = min(unseen_s, now - loss.began)
            loss.since += shift_s
            loss.healing_until += shift_s
            loss.healed_until += shift_s
        for times in (self._frozen, self._calm_since, self._calm_before):
            for key in times:
                times[key] += unseen_s  # type: ignore[index]

    def after_timer(self, at: float | None) -> None:
        engine, now = self._world.engine, self._world.now
        if engine.running and engine.in_sync:
            for key in self._states:
                target = engine.target(key)
                if target is not None and target.state in (TargetState.HELD, TargetState.FROZEN):
                    if self._one_family_lost(target):
                        continue
                    assert at is not None, f"{key} is {target.state} and nothing will end it"
        assert at is None or at < now + 1e6

    def _judgement(self, target: TargetView) -> Condition:
        down = frozenset(ip for ip in target.paths if self._said_down(ip))
        return self._world.belief.target(target.mark, tuple(target.paths), down)

    def _one_family_lost(self, target: TargetView) -> bool:
        down = frozenset(ip for ip in target.paths if self._said_down(ip))
        pardoned = self._world.now < target.pardoned_until
        return self._world.belief.one_family_lost(target.mark, tuple(target.paths), down, pardoned=pardoned)

    def _said_down(self, ip: Ip) -> bool:
        """Tell whether an address is down by somebody's word that neither a reporter nor the kernel contradicts."""
        world, now = self._world, self._world.now
        ours = world.belief.our_end(ip)
        if ours is None:
            return False
        of_target, of_link = world.hearsay.down(ip, now), world.hearsay.down(ours, now)
        if not (of_target or of_link):
            return False
        proof_at = world.belief.proof_at(ip, packets=not of_target)
        return now >= proof_at + world.config.evidence.veto_window_s

    def _healing_until(self, target: TargetView) -> float:
        world, hearsay = self._world, self._world.hearsay
        return max(
            (
                max(hearsay.healing_until(ip, world.now), hearsay.healing_until(path.lb_ip, world.now))
                for ip, path in target.paths.items()
                if path.condition is not Condition.OK
            ),
            default=-math.inf,
        )

    def reported(self, event: VerdictReported, effects: Iterable[fx.Effect]) -> None:
        """A verdict was handed in: what came out of order is dropped by name, and the state is bounded."""
        world = self._world
        [answer] = [effect for effect in effects if isinstance(effect, fx.VerdictAnswered)]
        opinions = opinion_count(world.engine)
        assert opinions <= world.config.evidence.opinions_max
        if answer.reason == "state_full":
            assert opinions == world.config.evidence.opinions_max
            return
        in_order = world.hearsay.told(event, world.now)
        assert (answer.reason == "") is in_order, f"{event} was answered {answer.reason!r}"

    def _follow_losses(self) -> None:
        """Bring the losses up to what the oracle believes now, before the engine's records are looked at."""
        world = self._world
        engine = world.engine
        alive = set()
        adopted = {stream.spec.name for stream in engine.streams() if stream.adopted}
        for target in engine.targets():
            alive.add(target.key)
            if not (engine.running and target.key.stream in adopted):
                continue
            condition = self._judgement(target)
            if condition is Condition.OK or self._one_family_lost(target):
                self._losses.pop(target.key, None)
                self._inherited.pop(target.key, None)
                if self._remembered.get(target.key) and self._remembered[target.key].cause not in SOFT:
                    del self._remembered[target.key]
                continue
            cause = condition if condition in SOFT else self._named_cause(target)
            grace = world.config.grace
            window_s = min(grace.by_cause_s.get(cause, grace.window_s), grace.max_s)
            loss = self._losses.get(target.key)
            healing = self._healing_until(target)
            if loss is None:
                now = world.now
                self._losses[target.key] = Loss(now, now, cause, window_s, window_s, healing, healing)
                continue
            loss.healing_until, loss.healed_until = healing, max(loss.healed_until, healing)
            milder = _ORDER.index(cause) > _ORDER.index(loss.cause)
            loss.window_s = max(loss.window_s, window_s) if milder else window_s
            loss.cause, loss.longest_s = cause, max(loss.longest_s, window_s)
        # Of a target that is gone the records of this decision are checked still.
        self._losses_of_gone = {key: self._losses.pop(key) for key in self._losses.keys() - alive}

    def _named_cause(self, target: TargetView) -> Condition:
        """Return the engine's own name for what is wrong: the oracle does not tell the ways of having no link apart."""
        hard = [p.condition for p in target.paths.values() if p.condition not in (*SOFT, Condition.OK)]
        return min(hard, key=_ORDER.index, default=Condition.NO_LINK)

    def _follow_record(self, record: fx.Record) -> None:
        world, d = self._world, record.decision
        assert self._last_decision_before <= d.at <= world.now
        assert self._states.get(d.target, TargetState.PENDING) == d.state_from, f"{d} starts from another state"
        admitted = self._admitted.setdefault(d.target.stream, set())
        if d.action in _ADDS:
            admitted.add(d.target.identifier)
        elif d.action in _TAKES:
            admitted.discard(d.target.identifier)
        if d.action is Action.HOLD:
            self._follow_hold(record)
        if d.action is Action.WITHDRAW:
            self._check_withdrawal(record)
        if d.action is Action.WITHDRAW_FAMILY:
            self._check_family_withdrawal(record)
        softly_out = self._softly_out.setdefault(d.target.stream, set())
        softly_out.discard(d.target.identifier)
        if d.action is Action.WITHDRAW and d.cause in SOFT:
            assert admitted, f"{d.target}: soft evidence emptied the stream"
            softly_out.add(d.target.identifier)
            most = world.config.soft_budget * (len(admitted) + len(softly_out))
            assert len(softly_out) <= most, f"{d.target}: soft evidence took {len(softly_out)}, {most} are allowed"
        if d.state_to is None:
            self._states.pop(d.target, None)
            self._frozen.pop(d.target, None)
            self._losses.pop(d.target, None)
            return
        self._states[d.target] = d.state_to
        if d.state_to is not TargetState.FROZEN:
            self._frozen.pop(d.target, None)
        elif d.state_from is not TargetState.FROZEN:
            self._check_window(d.target, self._losses[d.target])
            self._frozen[d.target] = self._froze_at.pop(d.target, world.now)
            states = [state for key, state in self._states.items() if key.stream == d.target.stream]
            assert sum(state in _BROKEN for state in states) > 1, f"{d.target} is frozen alone"

    def _follow_hold(self, record: fx.Record) -> None:
        """A hold that an earlier guard had begun goes on: no window is given twice."""
        d, now = record.decision, self._world.now
        self._froze_at.pop(d.target, None)
        target = self._world.engine.target(d.target)
        if target is not None and target.since == now and self._one_family_lost(target):
            return  # the memory of families: unit/core/test_engine_holds.py
        hold = self._remembered.pop(d.target, None)
        if target is None or target.since != now:
            return
        spent_s = now - target.lost_at
        # A hold of one family says nothing of the loss of all: in one life that begins anew as well.
        if hold is None or hold.lost or set(hold.ips) != target.paths.keys():
            assert spent_s < EPSILON_S, f"{d.target} is held since before its loss"
            return
        applied = abs(spent_s - hold.broken_s) < EPSILON_S
        # Soft evidence is waited for only so long; what is a soft loss now may have healed before it was seen.
        assert applied or (hold.cause in SOFT and spent_s < EPSILON_S), f"{d.target} gets its window again: {hold}"
        if applied:
            loss = self._losses[d.target]
            loss.since -= spent_s
            self._inherited[d.target] = spent_s
            if hold.frozen_s is not None:
                self._froze_at[d.target] = now - hold.frozen_s

    def _check_withdrawal(self, record: fx.Record) -> None:
        world, d = self._world, record.decision
        assert world.belief.in_sync, f"{d.target} was withdrawn while out of sync"
        loss = self._losses.get(d.target) or self._losses_of_gone.get(d.target)
        assert loss is not None, f"{d.target} was withdrawn although a path forwards"
        if d.state_from is TargetState.HELD:
            self._check_window(d.target, loss)
            states = Counter(state for key, state in self._states.items() if key.stream == d.target.stream)
            broken = states[TargetState.HELD] + states[TargetState.FROZEN] - self._halved(d.target.stream)
            mass = self._is_mass(
                broken,
                states[TargetState.HELD]
                + states[TargetState.FROZEN]
                + states[TargetState.ACTIVE]
                + states[TargetState.DRAINING],
            )
            limit_passed = world.now >= self._froze_at.get(d.target, math.inf) + world.config.freeze.limit_s - EPSILON_S
            assert not mass or limit_passed, f"{d.target} was withdrawn although {broken} are broken"
            return
        grace, limit_s = world.config.grace, world.config.freeze.limit_s
        one_more_s = min(grace.window_s, grace.max_s, *grace.by_cause_s.values())
        assert (
            world.now >= self._frozen[d.target] + limit_s - EPSILON_S
            or world.now >= self._over_since(d.target.stream) + one_more_s - EPSILON_S
        ), f"{d.target} was withdrawn in the middle of a mass failure"

    def _halved(self, stream: str) -> int:
        """Return how many targets are held for one family alone: the other was withdrawn, and nothing is waited for."""
        held = [t for t in self._world.engine.targets() if t.key.stream == stream and t.state is TargetState.HELD]
        return sum(
            any(path.withdrawn for path in target.paths.values())
            and all(path.withdrawn or path.condition in (*SOFT, Condition.OK) for path in target.paths.values())
            and self._one_family_lost(target)
            for target in held
        )

    def _check_family_withdrawal(self, record: fx.Record) -> None:
        """Only a family that is lost is withdrawn alone, after its window; the other forwards."""
        world, d = self._world, record.decision
        target = world.engine.target(d.target)
        assert world.belief.in_sync, f"a family of {d.target} was withdrawn while out of sync"
        assert world.config.affinity
        assert d.state_to is TargetState.HELD
        assert target is not None
        for evidence in d.evidence:
            lost = evidence.condition is not Condition.OK and evidence.condition not in SOFT
            assert evidence.withdrawn <= (evidence.condition is not Condition.OK)
            assert evidence.withdrawn or not lost
        assert self._one_family_lost(target), f"{d.target} lost a family that is not lost"
        grace = world.config.grace
        shortest_s = min(grace.window_s, grace.max_s, *grace.by_cause_s.values())
        blind_s = sum(max(0.0, end - max(begin, target.since)) for begin, end in self._blind)
        spent_s = world.now - min(target.lost_at, target.since)
        assert spent_s + blind_s >= shortest_s - EPSILON_S, f"{d.target} lost a family after {spent_s:.3f}s"

    def _over_since(self, name: str) -> float:
        """Return since when the stream has known no mass failure, but for one that ends in this very decision."""
        return self._calm_since.get(name, self._calm_before.get(name, math.inf))

    def _check_window(self, key: TargetKey, loss: Loss) -> None:
        # What was seen of the loss, without any of the moments that are moved: by this guard and by those before it.
        now = self._world.now
        blind_s = sum(max(0.0, end - max(begin, loss.began) - LOOK_S) for begin, end in self._blind)
        seen_s = now - loss.began - blind_s + self._inherited.get(key, 0.0)
        looks_s = LOOK_S * sum(end > loss.began for _, end in self._blind)
        assert seen_s >= loss.window_s - looks_s - EPSILON_S, f"{key} was seen broken for {seen_s:.3f}s only"
        assert self._world.now >= loss.since + loss.window_s - EPSILON_S, (
            f"{key} ran out of time {self._world.now - loss.since:.3f}s after the loss, its window is {loss.window_s}s"
        )
        repaired_by = min(loss.healing_until, loss.since + self._world.config.grace.max_s)
        assert self._world.now >= repaired_by - EPSILON_S, f"{key} ran out of time while it was being repaired"

    def _check_target(self, target: TargetView) -> None:
        world, state = self._world, target.state
        condition, now = self._judgement(target), self._world.now
        if target.draining and state in (TargetState.PENDING, TargetState.WITHDRAWN):
            return
        if target.override is not None and target.override.action is ManualAction.WITHDRAW:
            return  # `manual.py` checks these
        held_by_hand = target.override is not None and target.override.action is ManualAction.HOLD
        believed_ok = {TargetState.DRAINING if target.draining else TargetState.ACTIVE, TargetState.WITHDRAWN}
        if condition is Condition.OK:
            assert state in believed_ok, f"{target.key} has a good path and is {state}"
            assert state is not TargetState.WITHDRAWN or target.waiting, f"{target.key} is out and waits for nothing"
        elif not (condition in SOFT and now < target.pardoned_until):
            well = state in (TargetState.ACTIVE, TargetState.DRAINING)
            assert not well, f"{target.key} is {state}, its path is {condition}"
        if world.belief.regained != self._regained:
            self._regained, self._regained_at = world.belief.regained, now
        if condition is not Condition.OK and self._one_family_lost(target):
            assert state is not TargetState.FROZEN, f"{target.key} is frozen although a path forwards"
            return
        if not world.belief.in_sync or now < self._regained_at + REPAIR_TIME_S + EPSILON_S or held_by_hand:
            return
        config = world.config
        if state is TargetState.HELD:
            frozen_before = self._froze_at.get(target.key, -math.inf) + config.freeze.limit_s
            bound = max(target.lost_at + config.grace.max_s, frozen_before)
            assert now < bound, f"{target.key} is held past the bound"
            loss = self._losses[target.key]
            inherited = target.key in self._inherited
            if not config.grace.adaptive and not inherited and abs(target.lost_at - loss.since) < EPSILON_S:
                bound = max(loss.since + loss.longest_s, loss.healed_until)
                assert now < bound + EPSILON_S, f"{target.key} is held past every window"
        if state is TargetState.FROZEN:
            assert now < self._frozen[target.key] + config.freeze.limit_s, f"{target.key} is frozen past the limit"
            grace = config.grace
            longest_s = grace.max_s if grace.adaptive else max(grace.window_s, *grace.by_cause_s.values(), 0.0)
            end = self._calm_since.get(target.key.stream, math.inf) + min(longest_s, grace.max_s)
            assert now < end + EPSILON_S, f"{target.key} is frozen although the mass failure is over"

    def _check_owners(self) -> None:
        engine, belief = self._world.engine, self._world.belief
        for ip in {ip for target in engine.targets() for ip in target.paths}:
            believed = belief.owner(ip)
            assert engine.owner_of(ip) == (believed.seen.ifindex if believed else None), f"owner of {ip.hex()}"

    # As effects are carried out

    def announced(self, effect: fx.Announce) -> None:
        for ip in effect.addresses:
            assert not is_link_local(ip)
            held = self._world.belief.holds(effect.link.ifindex, effect.mac, ip)
            assert held, f"{effect.ifname} announces {ip.hex()}, which it does not hold"
            self.announced_at[effect.link.ifindex, effect.mac, ip] = self._world.now

    def set_down(self, effect: fx.SetLinkDown) -> None:
        belief = self._world.belief
        assert effect.link not in self._set_down, f"{effect.ifname} is set down twice"
        self._set_down.add(effect.link)
        assert self._world.config.superseded_link_down
        assert belief.superseded(effect.link.ifindex), f"{effect.ifname} is set down and is still the newest"
        through = [route for route in belief.routes.values() if route.oif == effect.link.ifindex]
        assert not through, f"{effect.ifname} is set down under {through}"
        assert belief.answered(effect.link.ifindex), (
            f"{effect.ifname} is set down and no target answered the newer link"
        )

    def set_up(self, effect: fx.SetLinkUp) -> None:
        assert effect.link in self._set_down, f"{effect.ifname} is set up and was never set down"
        self._set_up.add(effect.link)
        assert self._set_up <= self._set_down

    def flushing(self, ifindex: int, ip: Ip) -> None:
        """What somebody made, and the guard was told of, is not flushed."""
        assert not self._world.belief.made_by_somebody(ifindex, ip), f"the entry of {ip.hex()} is somebody's"

    def touched(self, entries: Iterable[tuple[int, Ip]]) -> None:
        for ifindex, ip in entries:
            assert self._world.may_touch(ip), f"the neighbour entry of {ip.hex()} is nobody's"
            made = self._world.belief.made_by_somebody(ifindex, ip)
            assert not made, f"the neighbour entry of {ip.hex()} is somebody's"

    def committing(self, effect: fx.CommitTables) -> None:
        for table in effect.tables:
            assert table.active <= table.registered

    def asking_for_routes(self, effect: fx.ProgramRoutes) -> None:
        """A route goes when its target does, or when it leads to an address that the target has no more.

        The latter may be asked for again, unheard of so far, when the target has gone as well.
        """
        for route in effect.put:
            other = self._world.belief.foreign.get((route.table, route.ipv4, route.metric))
            assert other is None, f"{route} is asked for where {other} stands"
        self._outdated.difference_update(effect.put)
        for route in effect.delete:
            key = self._world.engine.target_by_mark(route.table)
            target = self._world.engine.target(key) if key else None
            # One that drained may have gone in this very decision.
            ips: Iterable[Ip] = self._listed.get(route.table, ()) if target is None else target.paths
            if route.kind is RouteKind.UNICAST and route.gateway not in ips:
                self._outdated.add(route)
            elif route not in self._outdated:
                self._check_unused(route.table)

    def deleting_route(self, route: Route) -> None:
        assert route.protocol == ROUTE_PROTOCOL
        if route.kind is RouteKind.BLACKHOLE:
            self._check_unused(route.table)

    def deleting_rule(self, rule: Rule) -> None:
        assert rule.protocol == ROUTE_PROTOCOL
        self._check_unused(rule.mark)

    def _check_unused(self, mark: int) -> None:
        assert mark not in self._world.distributor.marks_in_use(), f"packets with mark {mark} have no route any more"
