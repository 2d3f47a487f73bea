"""Mutable state of the engine: targets with their paths, and streams with their counts."""

import math
from collections import Counter
from dataclasses import dataclass, field

from lbguard.core.addr import Ip, Prefix
from lbguard.core.config import EngineConfig
from lbguard.core.grace import Penalty
from lbguard.core.model import (
    ADMITTED,
    SOFT,
    Condition,
    LinkKey,
    ManualAction,
    Override,
    StreamSpec,
    StreamTable,
    TargetKey,
    TargetSpec,
    TargetState,
)

BAD_TO_GOOD = {condition: rank for rank, condition in enumerate(Condition)}
"""The rank of a condition: higher is milder."""

_MASS_AT_LEAST = 2


@dataclass(slots=True)
class Path:
    """One path (target, IP): its condition, the link that owned it last, and the subnet that decided.

    `lb_ip`: our address at this end of the link. `verdict`: the fused opinion of reporters, in one word.
    `healing_until`: the end of the time to wait for a reported repair. `withdrawn`: the target is HELD for another
    family, and this one was withdrawn alone. `unanswered`: the neighbour's last resolution failed, or it did not answer
    yet on a link that arrived a moment ago; new flows go elsewhere meanwhile, for that costs nothing. `unresolved`: it
    has not answered on a link that arrived, or did not when it was resolved last. `silent`: the latter. Both are kept
    with parking only.
    """

    condition: Condition = Condition.NO_LINK
    link: LinkKey | None = None
    subnet: Prefix | None = None
    lb_ip: Ip = b""
    verdict: str = ""
    healing_until: float = float("-inf")
    withdrawn: bool = False
    unanswered: bool = False
    unresolved: bool = False
    silent: bool = False

    @property
    def lost(self) -> bool:
        """Return whether it is lost, by more than soft evidence."""
        return self.condition is not Condition.OK and self.condition not in SOFT


@dataclass(slots=True, eq=False)
class Target:
    """One target of a stream.

    `lost_at`, `lost_to`: when and by which condition the current loss began (HELD, FROZEN, WITHDRAWN); `cause`: the
    latest condition. `lost_in`: the subnet in which it began, until it has healed. `spared_until`: the deadline is not
    before this moment, which a worse cause before this one allowed. `frozen_at`: when the freeze of the current loss
    began, infinity without one; `thawed_at`: when the mass failure ended, infinity before. A time without observation
    moves these moments by its length. `partial`: one path is lost and another forwards. `open_ended`: HELD without
    a deadline, because of that. `waiting`: WITHDRAWN with a good path, damped since `waiting_since`.
    `healing_until`: the end of the repair that last moved the deadline. `pardoned_until`: until then soft evidence
    against the target is ignored. `draining`: it gets no new flow, because the source says so or no longer lists it
    (`unlisted`). `halved`: HELD for one family, since the other was withdrawn alone; nothing more is waited for, so
    it does not count as broken. `source_drains`: the source lists it as draining. `override`: what an operator ordered.
    `kept`: the current loss has outlasted its deadline, by an operator's hold.
    """

    key: TargetKey
    mark: int
    paths: dict[Ip, Path]
    state: TargetState = TargetState.PENDING
    since: float = 0.0
    cause: Condition = Condition.NO_LINK
    lost_to: Condition = Condition.NO_LINK
    soft: bool = False
    lost_at: float = 0.0
    lost_in: Prefix | None = None
    spared_until: float = 0.0
    frozen_at: float = math.inf
    thawed_at: float = math.inf
    partial: bool = False
    open_ended: bool = False
    waiting: bool = False
    waiting_since: float = 0.0
    healing_until: float = float("-inf")
    pardoned_until: float = float("-inf")
    penalty: Penalty = field(default_factory=Penalty)
    draining: bool = False
    unlisted: bool = False
    halved: bool = False
    source_drains: bool = False
    override: Override | None = None
    kept: bool = False

    def overridden(self, action: ManualAction) -> bool:
        """Return whether an operator ordered this."""
        return self.override is not None and self.override.action is action

    def judge(self, now: float) -> Condition:
        """Return OK, or the worst condition that makes the target broken.

        A hard condition of any path breaks the target. Soft conditions break it only when every path has one (the
        families corroborate each other) and the target was not pardoned.
        """
        conditions = [path.condition for path in self.paths.values()]
        if not conditions:
            return Condition.NO_LINK
        if conditions.count(Condition.OK) == len(conditions):
            return Condition.OK
        hard = [c for c in conditions if c is not Condition.OK and c not in SOFT]
        if hard:
            return min(hard, key=BAD_TO_GOOD.__getitem__)
        if all(c in SOFT for c in conditions) and now >= self.pardoned_until:
            return min(conditions, key=BAD_TO_GOOD.__getitem__)
        return Condition.OK

    def forwards(self, now: float) -> bool:
        """Return whether any path forwards: it is good, or has only soft evidence against it that is ignored."""
        pardoned = now < self.pardoned_until
        return any(p.condition is Condition.OK or (pardoned and p.condition in SOFT) for p in self.paths.values())

    def cut_off(self, now: float) -> bool:
        """Return whether no path forwards, by more than soft evidence."""
        return not self.forwards(now) and self.judge(now) not in SOFT

    def families_lost(self) -> list[Path]:
        """Return the paths that are lost, by more than soft evidence, and not withdrawn yet."""
        return [path for path in self.paths.values() if path.lost and not path.withdrawn]

    def lost_alone(self) -> frozenset[Ip]:
        """Return the addresses whose paths are lost while another path forwards; empty: none does, or none is lost."""
        return frozenset([ip for ip, path in self.paths.items() if path.lost] if self.partial else ())

    @property
    def usable(self) -> bool:
        """Return whether it gets new traffic: it is active, and evidence of failure, if any, is ignored."""
        return self.state is TargetState.ACTIVE and self.judge(math.inf) is Condition.OK

    @property
    def froze(self) -> bool:
        """Return whether the current loss was frozen."""
        return self.frozen_at < math.inf

    def healing_end(self) -> float:
        """Return until when to wait for a reported repair of any broken path."""
        broken = (path.healing_until for path in self.paths.values() if path.condition is not Condition.OK)
        return max(broken, default=float("-inf"))

    def lost_subnet(self) -> Prefix | None:
        """Return the subnet of the path in the worst condition: heal durations are kept per subnet."""
        worst = min(self.paths.values(), key=lambda path: BAD_TO_GOOD[path.condition], default=None)
        return worst.subnet if worst else None


@dataclass(slots=True, eq=False)
class Stream:
    """One stream: its targets by identifier, counts by state, the distributor's state, and availability.

    `active_seen`: the identifiers read back from the distributor, None until it was read. `committed`, `in_flight`:
    the (registered, active) pair that the distributor confirmed last, and the one being committed. `learn_until`: a
    change of the registered targets is not committed before, so that the flows which it moves are seen and remembered.
    `serves_since`: when its first targets were committed; minus infinity for a table that was there at the start.
    `halved`: the number of such targets.
    """

    spec: StreamSpec
    targets: dict[int, Target] = field(default_factory=dict)
    counts: Counter[TargetState] = field(default_factory=Counter)
    soft_withdrawn: int = 0
    active_seen: frozenset[int] | None = None
    adopted: bool = False
    removed: bool = False
    committed: tuple[frozenset[int], frozenset[int]] | None = None
    in_flight: tuple[frozenset[int], frozenset[int]] | None = None
    learn_until: float | None = None
    serves_since: float = float("-inf")
    halved: int = 0
    available: bool | None = None
    was_mass: bool = False

    @property
    def admitted(self) -> int:
        """Return the number of targets in the distributor."""
        return sum(self.counts[state] for state in ADMITTED)

    @property
    def broken(self) -> int:
        """Return the number of admitted targets that are broken: it may turn out that they are to be withdrawn."""
        return self.held - self.halved

    @property
    def held(self) -> int:
        """Return the number of targets that are held or frozen."""
        return self.counts[TargetState.HELD] + self.counts[TargetState.FROZEN]

    def mass_failure(self, config: EngineConfig) -> bool:
        """Return whether so many targets are broken at once that the fault is probably on this node.

        One broken target is never a mass failure: its own fault cannot be distinguished from this node's, and a freeze
        would protect no other target.
        """
        return self.broken >= _MASS_AT_LEAST and self.broken > config.freeze.threshold * self.admitted

    def soft_withdrawal_allowed(self, config: EngineConfig) -> bool:
        """Return whether one more target may be withdrawn on soft evidence alone.

        Never the last one, and at most `soft_budget` of the targets that would be admitted without such withdrawals.
        """
        base = self.admitted + self.soft_withdrawn
        return self.admitted > 1 and self.soft_withdrawn + 1 <= config.soft_budget * base

    def move(self, target: Target, state: TargetState | None, now: float) -> None:
        """Change the state of a target (None: remove it from the stream) and update the counts."""
        self.counts[target.state] -= 1
        if target.state is TargetState.WITHDRAWN and target.soft:
            self.soft_withdrawn -= 1
        if state is not TargetState.HELD:
            self.halve(target, halved=False)
        if state is None:
            del self.targets[target.key.identifier]
            return
        target.state = state
        target.since = now
        self.counts[state] += 1
        if state is TargetState.WITHDRAWN and target.soft:
            self.soft_withdrawn += 1

    def halve(self, target: Target, *, halved: bool) -> None:
        """Record whether a target is held for one family alone."""
        self.halved += halved - target.halved
        target.halved = halved

    def add(self, spec: TargetSpec, now: float) -> Target:
        """Register a target, PENDING."""
        key = TargetKey(self.spec.name, spec.identifier)
        target = Target(key, self.spec.mark(spec.identifier), {ip: Path() for ip in spec.ips}, since=now)
        self.targets[spec.identifier] = target
        self.counts[target.state] += 1
        return target

    def desired_pair(self) -> tuple[frozenset[int], frozenset[int]]:
        """Return the registered and the active identifiers that the distributor should hold."""
        active = frozenset(i for i, target in self.targets.items() if target.state in ADMITTED)
        return frozenset(self.targets), active

    def commit_at(self, target: Target) -> float | None:
        """Return when the table gets an admitted target that was added to the list; None: it does not wait for that."""
        if self.committed is None or target.state not in ADMITTED or target.key.identifier in self.committed[0]:
            return None
        return self.learn_until

    def table(self, pair: tuple[frozenset[int], frozenset[int]]) -> StreamTable:
        """Return the desired table of the stream."""
        return StreamTable(stream=self.spec, registered=pair[0], active=pair[1])
