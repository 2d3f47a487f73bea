"""Cost of one set of values: holds, withdrawals, packets in the fallback, connections moved; traffic rates for it.

`docs/tuning.md` explains the model. Without flow affinity a target is one whole: while it is held, its part of the
stream's connections waits, and each commit that withdraws or re-admits it moves the connections of all slots that
change. With flow affinity

- a family is counted by itself: while one of two families is lost, half of the target's connections wait, and they are
  moved when that family is withdrawn;
- a withdrawal moves the connections of the withdrawn target, and of no other one whose flows are remembered;
- a re-admission moves none: every connection in its slots began during the incident, and is remembered.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from lbguard.core.model import Action, Condition, Decision, Evidence, StreamTable, TargetKey
from lbguard.tuning.slots import Pair, Slots

_ENDS_TROUBLE = frozenset({Action.RECOVER, Action.READMIT, Action.ADMIT, Action.ADOPT, Action.PARDON, Action.RESUME})


@dataclass(slots=True)
class _Counted:
    at: float
    packets: int
    held: int
    rate: float | None = None
    clean: bool = True


class Traffic:
    """Packet rates of targets while nothing was wrong with them, and the measured packets dropped while held."""

    def __init__(self) -> None:
        self.held_packets = 0
        self.counted = False
        self._targets: dict[TargetKey, _Counted] = {}
        self._troubled: dict[TargetKey, None] = {}

    def decided(self, decision: Decision) -> None:
        """Record a decision of the recording: the interval around it does not show the usual traffic."""
        if decision.action in _ENDS_TROUBLE:
            self._troubled.pop(decision.target, None)
        elif decision.action in (Action.HOLD, Action.DRAIN, Action.TAKE_OUT):
            self._troubled[decision.target] = None
        counted = self._targets.get(decision.target)
        if counted is not None:
            counted.clean = False

    def read(self, key: TargetKey, packets: int, held: int, at: float) -> None:
        """Record a reading of a target: packets so far, and those dropped while held."""
        self.counted = True
        before = self._targets.get(key)
        if before is None or packets < before.packets or held < before.held or at <= before.at:
            self._targets[key] = _Counted(at, packets, held, before.rate if before else None)
            return
        self.held_packets += held - before.held
        if before.clean and key not in self._troubled:
            before.rate = (packets - before.packets) / (at - before.at)
        before.at, before.packets, before.held, before.clean = at, packets, held, True

    def forget(self) -> None:
        """Begin a new count: the following counts come from another host, with another clock."""
        self._targets.clear()
        self._troubled.clear()

    def rate(self, key: TargetKey) -> float | None:
        """Return the rate (packets a second) of a target when it was last well; None when that was never counted."""
        counted = self._targets.get(key)
        return counted.rate if counted else None


class Remembered(StrEnum):
    """Flows that the kernel remembers, by the values of `affinity.mode`."""

    NONE = "off"
    INCIDENTS = "incident"
    ALL = "all"


@dataclass(slots=True, kw_only=True)
class Loss:
    """One loss of a target. `share`: its part of the stream's slots then; `rate`: packets a second, if counted.

    `ended_at`: when it left the table or recovered, or its family was withdrawn. `back_at`: when its path was back,
    however late. `part`: the part of its connections whose family is lost and not withdrawn; `fallen`: the part whose
    family was withdrawn. `silent_s`: how long its connections waited, on average over them; `new_waited_s`: the same
    of new connections of the stream. Both are counted up to `counted_at`.
    """

    target: TargetKey
    cause: str
    lost_at: float
    share: float
    rate: float | None
    ended_at: float | None = None
    back_at: float | None = None
    outcome: str = ""
    part: float = 1.0
    fallen: float = 0.0
    silent_s: float = 0.0
    new_waited_s: float = 0.0
    counted_at: float = 0.0

    @property
    def held_s(self) -> float:
        """Return how long it stayed in the table with a broken path, as far as it was followed, seconds."""
        return 0.0 if self.ended_at is None else self.ended_at - self.lost_at

    @property
    def healed_s(self) -> float | None:
        """Return how long the path was away, seconds; None when it did not come back."""
        return None if self.back_at is None else self.back_at - self.lost_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of one set of values over a recording.

    `in_time`: holds that recovered. `withdrawn`: withdrawn targets; of these `in_vain` never came back, `too_soon` did.
    `families`: families withdrawn alone, of which `families_too_soon` came back. `frozen`: losses whose withdrawal a
    mass failure suppressed. `vain_s`: hold time of targets and families that were then withdrawn. `fallback`: packets
    dropped while held, None without counters. `moved`: connections moved to another target, per 1000 of the stream
    (withdrawals and re-admissions, summed over streams). `stalled_s`: seconds that connections waited, per 1000.
    `total_s`: `stalled_s` plus `moved` times the cost of a broken connection, in connection-seconds.

    Not part of `total_s`: `moved_by_list`, connections moved by changes of the list, per 1000; `drains`, targets that
    left the list and drained, of which `drained` were idle at the end; `new_waited_s`, seconds: the new connections
    that a stream gets in this time waited for a held target.
    """

    losses: int
    in_time: int
    withdrawn: int
    in_vain: int
    too_soon: int
    families: int
    families_too_soon: int
    frozen: int
    unfinished: int
    drains: int
    drained: int
    vain_s: float
    held_s: float
    fallback: int | None
    slots_moved: int
    moved: float
    moved_by_list: float
    new_waited_s: float
    stalled_s: float
    total_s: float


class CostAccount:
    """Follows the decisions and commits of one engine."""

    def __init__(
        self,
        slots: Slots,
        rate: Callable[[TargetKey], float | None],
        share: Callable[[TargetKey], float],
        *,
        remembered: Remembered = Remembered.NONE,
        learns: bool = True,
        has_healthy: Callable[[str], bool] = lambda stream: True,
    ) -> None:
        """Set the sources of slot tables, of a target's packet rate and of its share of the stream.

        `learns`: a change of the list waits for the flows that it would move. `has_healthy`: whether a stream has a
        target with every path.
        """
        self._slots = slots
        self._rate = rate
        self._share = share
        self._remembered = remembered
        self._learns = learns
        self._has_healthy = has_healthy
        self.losses: list[Loss] = []
        self._open: dict[TargetKey, Loss] = {}
        self._left: dict[TargetKey, bool] = {}
        self._draining: dict[TargetKey, None] = {}
        self._new_wait: dict[str, bool] = {}
        self._frozen = self._drains = self._drained = 0
        self._slots_moved = 0
        self._moved = 0.0
        self._moved_by_list = 0.0

    def decided(self, decision: Decision) -> None:
        """Record a decision."""
        key, at = decision.target, decision.at
        self._count_waits(key.stream, at)
        self._count_drains(decision)
        loss = self._open.get(key)
        match decision.action:
            case Action.HOLD:
                self._begin(decision)
            case Action.FREEZE:
                self._frozen += 1
            case Action.REVISE if loss is not None:
                self._revised(loss, decision)
            case Action.WITHDRAW_FAMILY if loss is not None:
                self._moved += loss.share * loss.part
                loss.ended_at, loss.outcome = at, "family"
                loss.part, loss.fallen = 0.0, loss.fallen + loss.part
            case Action.RECOVER | Action.PARDON if loss is not None:
                loss.ended_at, loss.back_at = at if loss.ended_at is None else loss.ended_at, at
                self._close(key, loss.outcome or "in_time")
            case Action.WITHDRAW if loss is not None:
                loss.ended_at, loss.outcome, loss.part = at, "withdrawn", 0.0
            case Action.WAIT | Action.READMIT if loss is not None:
                loss.back_at = at if loss.back_at is None else loss.back_at
                if decision.action is Action.READMIT:
                    self._close(key, "withdrawn")
            case Action.REMOVE | Action.FORGET | Action.TAKE_OUT if loss is not None:
                loss.ended_at = at if loss.ended_at is None else loss.ended_at
                self._close(key, loss.outcome or "removed")
        steers = self._remembered is not Remembered.NONE
        self._new_wait[key.stream] = not (steers and self._has_healthy(key.stream))

    def committed(self, table: StreamTable, registered: frozenset[int], active: frozenset[int], at: float) -> None:
        """Record a commit. What a change of the list moves is counted by itself."""
        before, after = Pair(registered, active), Pair(table.registered, table.active)
        if not active:
            return
        if self._remembered is not Remembered.NONE:
            self._committed_with_affinity(table, before, after)
            return
        moved = self._slots.moved(table.stream, before, after)
        if before.registered == after.registered:
            self._slots_moved += moved.total
            self._moved += moved.total / moved.slots
        else:
            self._moved_by_list += moved.total / moved.slots

    def interrupted(self, at: float) -> None:
        """Record the end of the engine: open holds are not followed further."""
        for stream in {key.stream for key in self._open}:
            self._count_waits(stream, at)
        for key, loss in list(self._open.items()):
            loss.ended_at = at if loss.ended_at is None else loss.ended_at
            self._close(key, loss.outcome or "unfinished")
        self._left.clear()
        self._draining.clear()

    def cost(self, broken_cost_s: float) -> Cost:
        """Return the sums, after `interrupted`; a broken connection costs `broken_cost_s` seconds of waiting."""
        withdrawn = [loss for loss in self.losses if loss.outcome == "withdrawn"]
        families = [loss for loss in self.losses if loss.outcome == "family"]
        # Where the first reading came after the loss, what came later has to do.
        rates = [(loss, self._rate(loss.target) if loss.rate is None else loss.rate) for loss in self.losses]
        known = [rate * self._silent_s(loss) for loss, rate in rates if rate is not None]
        stalled_s = 1000 * sum(loss.share * self._silent_s(loss) for loss in self.losses)
        in_time = sum(loss.outcome == "in_time" for loss in self.losses)
        too_soon = sum(loss.back_at is not None for loss in withdrawn)
        return Cost(
            losses=len(self.losses),
            in_time=in_time,
            withdrawn=len(withdrawn),
            in_vain=len(withdrawn) - too_soon,
            too_soon=too_soon,
            families=len(families),
            families_too_soon=sum(loss.back_at is not None for loss in families),
            frozen=self._frozen,
            unfinished=len(self.losses) - in_time - len(withdrawn) - len(families),
            drains=self._drains,
            drained=self._drained,
            vain_s=sum(loss.held_s for loss in (*withdrawn, *families)),
            held_s=sum(loss.held_s for loss in self.losses),
            fallback=round(sum(known)) if known else None,
            slots_moved=self._slots_moved,
            moved=1000 * self._moved,
            moved_by_list=1000 * self._moved_by_list,
            new_waited_s=sum(loss.new_waited_s for loss in self.losses),
            stalled_s=stalled_s,
            total_s=stalled_s + 1000 * self._moved * broken_cost_s,
        )

    # Losses

    def _begin(self, decision: Decision, fallen: float = 0.0) -> None:
        key, at = decision.target, decision.at
        loss = Loss(
            target=key,
            cause=decision.cause,
            lost_at=at,
            share=self._share(key),
            rate=self._rate(key),
            part=_part_lost(decision.evidence),
            fallen=fallen,
            counted_at=at,
        )
        self._open[key] = loss
        self.losses.append(loss)

    def _revised(self, loss: Loss, decision: Decision) -> None:
        """Record which families are lost now; the loss of the other family after a withdrawal is another loss."""
        part = _part_lost(decision.evidence)
        if loss.outcome == "family" and part > 0:
            self._close(decision.target, "family")
            self._begin(decision, loss.fallen)
        else:
            loss.part = part

    def _close(self, key: TargetKey, outcome: str) -> None:
        self._open.pop(key).outcome = outcome

    def _count_waits(self, stream: str, at: float) -> None:
        """Add the time since the last decision on a stream to what its connections waited."""
        for key, loss in self._open.items():
            if key.stream == stream:
                waited_s = loss.part * max(0.0, at - loss.counted_at)
                loss.silent_s += waited_s
                if self._new_wait.get(stream, True):
                    loss.new_waited_s += loss.share * waited_s
                loss.counted_at = at

    def _silent_s(self, loss: Loss) -> float:
        """Return how long the connections of a lost target waited, on average."""
        return loss.held_s if self._remembered is Remembered.NONE else loss.silent_s

    # Changes of the list, and commits with flow affinity

    def _count_drains(self, decision: Decision) -> None:
        key = decision.target
        match decision.action:
            case Action.DRAIN:
                self._drains += key not in self._draining
                self._draining[key] = None
            case Action.RESUME:
                self._draining.pop(key, None)
            case Action.REMOVE | Action.FORGET:
                drained = key in self._draining or decision.cause in _DRAINED
                self._drained += decision.cause == "drain_idle"
                self._draining.pop(key, None)
                self._left[key] = drained
            case Action.ADMIT | Action.ADOPT:
                self._left.pop(key, None)

    def _committed_with_affinity(self, table: StreamTable, before: Pair, after: Pair) -> None:
        """Count, step by step: targets that were withdrawn, targets that left the list, and the rest of its change."""
        name = table.stream.name
        leaving = before.active - after.active
        left = {identifier for identifier in leaving if TargetKey(name, identifier) in self._left}
        without_withdrawn = Pair(before.registered, before.active - (leaving - left))
        slots, moved = self._moved_by_leaving(table, before, without_withdrawn)
        self._slots_moved += slots
        self._moved += moved
        without_left = Pair(before.registered, without_withdrawn.active - left)
        self._moved_by_list += self._moved_by_leaving(table, without_withdrawn, without_left)[1]
        if before.registered != after.registered and not self._learns and self._remembered is not Remembered.ALL:
            moved_slots = self._slots.moved(table.stream, without_left, after)
            self._moved_by_list += moved_slots.total / moved_slots.slots

    def _moved_by_leaving(self, table: StreamTable, before: Pair, after: Pair) -> tuple[int, float]:
        """Return how many slots change as targets leave a table, and the connections moved, a part of the stream.

        Those of the leaving targets are moved, except for those that drained or whose family was withdrawn before.
        Those of other targets (in tables of kind maglev) are moved unless every flow is remembered.
        """
        moved = self._slots.moved(table.stream, before, after)
        slots, connections = 0, 0.0
        for identifier, count in moved.by_owner.items():
            key = TargetKey(table.stream.name, identifier)
            if identifier in after.active:
                part = 0.0 if self._remembered is Remembered.ALL else 1.0
            elif key in self._left:
                part = 0.0 if self._left.pop(key) else 1.0
            else:
                part = 1.0 - self._open[key].fallen if key in self._open else 1.0
            slots += count
            connections += part * count / moved.slots
        return slots, connections


_DRAINED = frozenset({"drain_idle", "drain_window"})
"""Causes of the removal of a target whose drain ended by itself."""


def _part_lost(evidence: Sequence[Evidence]) -> float:
    """Return the part of a target's families that is lost and not withdrawn."""
    lost = sum(item.condition is not Condition.OK and not item.withdrawn for item in evidence)
    return lost / len(evidence) if evidence else 1.0
