"""Runs with flow affinity: clients open connections all the time, and no decision may break one.

All that is random here comes from a generator of its own, so a run is the same as that of its seed without affinity.
"""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lbguard.core import effects as fx
from lbguard.core.addr import Ip, is_ipv4
from lbguard.core.engine_state import TargetView
from lbguard.core.events import CommitDone, Event, TargetsIdle
from lbguard.core.model import (
    ADMITTED,
    SOFT,
    Action,
    Condition,
    ManualAction,
    StreamSteering,
    TargetKey,
    TargetState,
)
from tests.sim.flows import Flow, SimAffinity
from tests.sim.world import World

FLOWS_MAX = 80
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class AffinityProfile:
    """What may happen in one run.

    `refusals`: nftables refuses at times. `flushes`: others remove the table. `learn_s`, `drain_window_s`: as in
    `EngineConfig`. `drain_idle_s`: a drain without packets ends after this. `drains`: the source lists targets as
    draining.
    """

    max_flows: int
    idle_s: float
    every_flow: bool
    refusals: bool
    flushes: bool
    learn_s: float = 0.0
    drain_window_s: float = 0.0
    drain_idle_s: float = 3.0
    drains: bool = False


def random_profile(rng: random.Random) -> AffinityProfile:
    """Return one of many kinds of runs."""
    return AffinityProfile(
        max_flows=rng.choice((5, 40, 10_000, 10_000)),
        idle_s=rng.choice((20.0, 900.0)),
        every_flow=rng.random() < 0.2,
        refusals=rng.random() < 0.3,
        flushes=rng.random() < 0.2,
        learn_s=rng.choice((0.0, 0.5, 2.0)),
        drain_window_s=rng.choice((0.0, 1.0, 6.0)),
        drain_idle_s=rng.choice((1.0, 3.0)),
        drains=rng.random() < 0.5,
    )


class AffinityWorld(World):
    """A world with clients, in which the guard steers flows."""

    def __init__(self, seed: int, kind: AffinityProfile | None = None) -> None:
        self.chance = random.Random(f"flows {seed}")
        self.kind = kind or random_profile(self.chance)
        self.flows: list[Flow] = []
        self.lost_at: dict[tuple[int, bool], float] = {}
        self.born = 0
        self.moved = 0
        self.drained: Counter[str] = Counter()
        self._draining: set[tuple[str, int]] = set()
        self._emitted: dict[str, StreamSteering] = {}
        super().__init__(seed)
        self.affinity = SimAffinity(
            self.kernel, self.distributor, self.kind.max_flows, self.kind.idle_s, self.kind.every_flow
        )
        self.after(0.05, self._clients)
        self.after(1.0, self._change_drains)

    # The guard's side

    def start_guard(self) -> None:
        self.config = replace(
            self.config, affinity=True, learn_s=self.kind.learn_s, drain_window_s=self.kind.drain_window_s
        )
        self._left_at: dict[TargetKey, float] = {}
        self._desired: dict[str, StreamSteering] = {}
        self._applying = False
        super().start_guard()
        self._look_after_table()

    def _carry_out(self, effects: list[fx.Effect]) -> None:
        self._carry_records(effects)
        for effect in effects:
            if isinstance(effect, fx.SteerFlows):
                for name in effect.gone:
                    self._desired.pop(name, None)
                    self._emitted.pop(name, None)
                changed = {each.stream: each for each in effect.streams}
                self._desired |= changed
                self._emitted |= changed
                self._apply_soon(self.chance.choice((0.0, 0.001, 0.02)))
        super()._carry_out(effects)

    def _apply_soon(self, delay_s: float) -> None:
        if not self._applying:
            self._applying = True
            self.guards(delay_s, self._apply)

    def _apply(self) -> None:
        self._applying = False
        if self.kind.refusals and not self.calm and self.chance.random() < 0.2:
            self.say("nftables refuses")
            self._apply_soon(RETRY_S)
            return
        self.affinity.apply(self._desired)

    def _look_after_table(self) -> None:
        """Each second the keeper looks whether others changed the table, and which draining targets are idle."""
        self.guards(1.0, self._look_after_table)
        idle = self.affinity.idle(self.now, self.kind.drain_idle_s) if self._desired else ()
        if idle:
            self.deliver(TargetsIdle(marks=idle))
        if self._desired and self.affinity.streams is None:
            self._apply_soon(0.0)

    def followed(self) -> set[Ip]:
        """Return the target addresses that the engine follows: those of draining targets are not listed."""
        return self._told_streams | {ip for target in self.engine.targets() for ip in target.paths}

    def take_in(self, event: Event) -> None:
        super().take_in(event)
        self.belief.forget_others()

    def _decide(self) -> None:
        reading = self.now < self._reading_until
        super()._decide()
        if reading:
            return
        self.belief.forget_others()
        if not self.engine.running:
            return
        # Whoever is out of the table, or of the list, breaks his own flows.
        kept = {target.mark: target for target in self.engine.targets()}
        unadopted = {stream.spec.name for stream in self.engine.streams() if not stream.adopted}
        for mark in self._marks():
            target = kept.get(mark)
            lost = target is None or (target.state not in ADMITTED and target.key.stream not in unadopted)
            for ipv4 in (True, False):
                if lost or (target is not None and _is_withdrawn(target, ipv4)):
                    self.lost_at[mark, ipv4] = self.now
        self._check_drains(kept.values())

    def _check_drains(self, targets: Iterable[TargetView]) -> None:
        """A target that left the list is gone when its window ends or its path is lost."""
        unlisted = {target.key: target for target in targets if target.unlisted}
        self._left_at = {key: self._left_at.get(key, self.now) for key in unlisted}
        for key, target in unlisted.items():
            assert self.now < self._left_at[key] + self.config.drain_window_s, f"{key} drains beyond its window"
            hard = [p for p in target.paths.values() if p.condition is not Condition.OK and p.condition not in SOFT]
            assert len(hard) < len(target.paths), f"{key} is lost, and drains on"
            assert target.state is not TargetState.WITHDRAWN, f"{key} is withdrawn, and drains on"

    def _carry_records(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fx.Record):
                decision = effect.decision
                self.drained[decision.cause if decision.action is Action.REMOVE else decision.action.value] += 1

    def _behind(self) -> set[str]:
        """Return the streams whose affinity in the kernel is not what the guard desires."""
        held = self.affinity.streams or {}
        names = self._emitted.keys() | held.keys()
        return {name for name in names if held.get(name) != self._emitted.get(name)}

    # The list and the tables: what moves flows that are not remembered

    def list_targets(self, name: str, targets: dict[int, tuple[bytes, ...]]) -> None:
        before = self.streams.get(name)
        super().list_targets(name, targets)
        self._mark_draining(name)
        after = self.streams[name]
        if before is None or not before.targets:
            self._excuse(name, "the stream ended and is back", all_of_them=True)
        else:
            old = {each.identifier: each.ips for each in before.targets}
            new = {each.identifier: each.ips for each in after.targets}
            changed = [after.mark(i) for i in old if new.get(i, old[i]) != old[i]]
            self.lost_at.update({(mark, ipv4): self.now for mark in changed for ipv4 in (True, False)})

    def _mark_draining(self, name: str) -> None:
        spec = self.streams[name]
        targets = [replace(each, draining=(name, each.identifier) in self._draining) for each in spec.targets]
        self.streams[name] = replace(spec, targets=tuple(targets))

    def _change_drains(self) -> None:
        """The source lists a target as draining, or as one of the others again; in the end none drains."""
        self.after(self.chance.choice((0.5, 2.0, 5.0)), self._change_drains)
        names = sorted(name for name in self.streams if self.streams[name].targets)
        before = set(self._draining)
        if self.calm:
            self._draining.clear()
        elif self.kind.drains and names:
            name = self.chance.choice(names)
            self._draining ^= {(name, self.chance.choice(self.streams[name].targets).identifier)}
        if before != self._draining:
            for name in names:
                self._mark_draining(name)
            self.say(f"draining: {sorted(self._draining)}")
            self.tell_source()

    def _commit(self, effect: fx.CommitTables) -> list[Event]:
        before = {name: table.registered for name, table in self.distributor.tables.items()}
        results = super()._commit(effect)
        for result in results:
            if isinstance(result, CommitDone) and before.get(result.stream) != result.registered:
                self._excuse(result.stream, "the list changed")
        return results

    def lose_table(self, name: str) -> None:
        super().lose_table(name)
        self._excuse(name, "somebody replaced the table")

    def _excuse(self, stream: str, reason: str, *, all_of_them: bool = False) -> None:
        """Flows that are not remembered may move, since what they are chosen by changed for a reason of its own."""
        for flow in self.flows:
            if flow.stream == stream and (all_of_them or flow not in self.affinity.entries):
                flow.excused = flow.excused or reason

    # The clients' side

    def _marks(self) -> set[int]:
        return {spec.mark(i) for spec in self.streams.values() for i in range(1, spec.max_targets + 1)}

    def _clients(self) -> None:
        self.after(self.chance.choice((0.01, 0.05, 0.1, 0.4)), self._clients)
        chance, affinity = self.chance, self.affinity
        for flow in [flow for flow in affinity.entries if affinity.entries[flow].until <= self.now]:
            del affinity.entries[flow]
            flow.excused = flow.excused or "it was idle, or ended"
        if self.kind.flushes and not self.calm and chance.random() < 0.01:
            self.say("somebody flushes the ruleset")
            affinity.flush()
            for name in self.streams:
                self._excuse(name, "somebody flushed the ruleset", all_of_them=True)
        self.flows = [flow for flow in self.flows if not flow.closed or flow in affinity.entries][-FLOWS_MAX:]
        affinity.entries = {flow: entry for flow, entry in affinity.entries.items() if flow in set(self.flows)}
        for name in sorted(self.streams):
            for _ in range(chance.randint(0, 2)):
                self._open(name)
        for flow in chance.sample(self.flows, min(len(self.flows), 20)):
            self._send(flow)
        assert len(affinity.entries) <= affinity.max_flows, "the map holds more than its bound"

    def _open(self, name: str) -> None:
        chance = self.chance
        flow = Flow(chance.getrandbits(30), name, chance.random() < 0.5, chance.random() < 0.2, self.now)
        before = self.affinity.chosen(flow)
        home = self.affinity.packet(flow, self.now, begins=True)
        if not home:
            return
        self._check_newcomer(flow, before, home)
        if self.affinity.cut_off(home, flow.ipv4):
            # Nobody answers. The client tries again, and may find the entry of the first time.
            home = self.affinity.packet(flow, self.now, begins=True)
            self.affinity.entries.pop(flow, None)
            return
        flow.home = home
        if flow not in self.affinity.entries:
            behind = name in self._behind() or self.affinity.streams is None
            full = len(self.affinity.entries) >= self.affinity.max_flows
            flow.excused = "affinity was behind" if behind else "the map was full" if full else ""
        elif name in self._behind() and not self._serves(name, home, ipv4=flow.ipv4):
            # nftables refuses what the guard desires, so the kernel gave the flow to a target that is withdrawn.
            flow.excused = "affinity was behind"
        self.flows.append(flow)
        self.born += 1

    def _serves(self, name: str, mark: int, *, ipv4: bool) -> bool:
        """Return whether the guard desires that a target serves flows of a family."""
        desired = self._emitted.get(name)
        return desired is not None and mark in (desired.ipv4 if ipv4 else desired.ipv6).served

    def _taken_out(self, mark: int) -> bool:
        """Return whether an operator withdraws the target of a mark: until the commit the kernel gives it new flows."""
        taken = (t.override for t in self.engine.targets() if t.mark == mark and t.state not in ADMITTED)
        return any(override is not None and override.action is ManualAction.WITHDRAW for override in taken)

    def _send(self, flow: Flow) -> None:
        affinity = self.affinity
        if flow.stream not in self.streams:
            flow.closed = True
            return
        remembered = flow in affinity.entries
        began = flow.udp and not remembered
        mark = affinity.packet(flow, self.now, ends=self.chance.random() < 0.02)
        if mark in (flow.home, 0) or flow.closed:
            return
        self.moved += 1
        own = self.lost_at.get((flow.home, flow.ipv4), float("-inf")) >= flow.born or self._taken_out(flow.home)
        excused = own or flow.excused or began
        assert excused, (
            f"{'a remembered' if remembered else 'a'} flow of {flow.home} born at {flow.born:.4f} went to {mark}:"
            f" {flow}, {affinity.streams and affinity.streams.get(flow.stream)}, table {self._table(flow)}"
        )
        assert not remembered or own or flow.excused, f"a remembered flow of {flow.home} went to {mark}: {flow}"
        # Another target resets it.
        flow.closed = True
        affinity.entries.pop(flow, None)

    def _table(self, flow: Flow) -> object:
        table = self.distributor.tables.get(flow.stream)
        return table and (table.registered, table.active)

    def _check_newcomer(self, flow: Flow, before: int, home: int) -> None:
        """No new flow goes to a target that is known as cut off while another is well."""
        affinity = self.affinity
        steering = affinity.steering_of(before)
        if steering is None:
            return
        family = steering.ipv4 if flow.ipv4 else steering.ipv6
        reachable = [mark for mark in family.healthy if not affinity.cut_off(mark, flow.ipv4)]
        if reachable and len(reachable) == len(family.healthy):
            assert not affinity.cut_off(home, flow.ipv4), f"{flow} waits for {home}, and {reachable} are well"
        if flow.stream in self._behind() or not self.running or len(affinity.entries) >= affinity.max_flows:
            return
        engine = self.engine
        if not engine.running or self._decision_due or self._stalled_since is not None:
            return
        targets = {target.mark: target for target in engine.targets() if target.key.stream == flow.stream}
        stream = next(stream for stream in engine.streams() if stream.spec.name == flow.stream)
        well = [m for m, t in targets.items() if (t.state in ADMITTED or not stream.adopted) and _is_well(t, flow.ipv4)]
        if well and home in targets:
            assert home in well, (
                f"{flow} went to {home}, which lbguard knows as cut off, and {well} are well: {steering}"
            )


def _is_well(target: TargetView, ipv4: bool) -> bool:
    conditions = [path.condition for ip, path in target.paths.items() if is_ipv4(ip) is ipv4]
    return bool(conditions) and not target.draining and all(condition is Condition.OK for condition in conditions)


def _is_withdrawn(target: TargetView, ipv4: bool) -> bool:
    return any(path.withdrawn for ip, path in target.paths.items() if is_ipv4(ip) is ipv4)
