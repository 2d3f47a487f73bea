"""Cost of one set of values: holds, withdrawals, packets in the fallback, connections moved; traffic rates for it."""

from collections.abc import Callable
from dataclasses import dataclass

from lbguard.core.model import Action, Decision, StreamTable, TargetKey
from lbguard.distributor.maglev import (
    NO_TARGET,
    ImplicitPermutations,
    TableCalculator,
    TableKind,
    largest_prime_at_most,
)

_ENDS_TROUBLE = frozenset({Action.RECOVER, Action.READMIT, Action.ADMIT, Action.ADOPT, Action.PARDON})


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
        elif decision.action is Action.HOLD:
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


_TABLES_KEPT = 64


@dataclass(slots=True, kw_only=True)
class Loss:
    """One loss of a target. `share`: its part of the stream's slots then; `rate`: packets a second, if counted.

    `ended_at`: when it left the table or recovered. `back_at`: when its path was back, however late.
    """

    target: TargetKey
    cause: str
    lost_at: float
    share: float
    rate: float | None
    ended_at: float | None = None
    back_at: float | None = None
    outcome: str = ""

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
    `frozen`: losses whose withdrawal a mass failure suppressed. `vain_s`: hold time of targets that were then
    withdrawn. `fallback`: packets dropped while held, None without counters. `moved`: connections moved to another
    target, per 1000 of the stream (withdrawals and re-admissions, summed over streams). `stalled_s`: seconds that
    connections waited, per 1000. `total_s`: `stalled_s` plus `moved` times the cost of a broken connection, in
    connection-seconds.
    """

    losses: int
    in_time: int
    withdrawn: int
    in_vain: int
    too_soon: int
    frozen: int
    unfinished: int
    vain_s: float
    held_s: float
    fallback: int | None
    slots_moved: int
    moved: float
    stalled_s: float
    total_s: float


class Slots:
    """Slot tables of streams, and how many slots differ between two of them."""

    def __init__(self, kind: TableKind) -> None:
        self.kind = kind
        self._sizes: dict[str, int] = {}
        self._calculators: dict[tuple[str, int], TableCalculator] = {}
        self._tables: dict[tuple[str, int, frozenset[int], frozenset[int]], list[int]] = {}

    def learn_size(self, stream: str, slots: int) -> None:
        """Record a table's real size, from a recorded commit."""
        if slots > 0:
            self._sizes[stream] = slots

    def moved(
        self, stream: str, max_targets: int, registered: frozenset[int], before: frozenset[int], after: frozenset[int]
    ) -> tuple[int, int]:
        """Return how many slots change their target between two active sets, and how many slots there are."""
        size = self._size(stream, max_targets)
        one, other = self._table(stream, size, registered, before), self._table(stream, size, registered, after)
        return sum(a != b and a != NO_TARGET for a, b in zip(one, other, strict=True)), size

    def _size(self, stream: str, max_targets: int) -> int:
        known = self._sizes.get(stream, 0)
        return largest_prime_at_most(max(known or 100 * max_targets, 3))

    def _table(self, stream: str, size: int, registered: frozenset[int], active: frozenset[int]) -> list[int]:
        key = (stream, size, registered, active)
        table = self._tables.get(key)
        if table is None:
            calculator = self._calculators.get((stream, size))
            if calculator is None:
                calculator = TableCalculator(ImplicitPermutations(stream, size), self.kind)
                self._calculators[stream, size] = calculator
            if len(self._tables) >= _TABLES_KEPT:
                self._tables.pop(next(iter(self._tables)))
            table = calculator.table({i - 1 for i in registered}, {i - 1 for i in active})
            self._tables[key] = table
        return table


class CostAccount:
    """Follows the decisions and commits of one engine."""

    def __init__(
        self, slots: Slots, rate: Callable[[TargetKey], float | None], share: Callable[[TargetKey], float]
    ) -> None:
        """Set the sources of slot tables, of a target's packet rate and of its share of the stream."""
        self._slots = slots
        self._rate = rate
        self._share = share
        self.losses: list[Loss] = []
        self._open: dict[TargetKey, Loss] = {}
        self._frozen = 0
        self._slots_moved = 0
        self._moved = 0.0

    def decided(self, decision: Decision) -> None:
        """Record a decision."""
        key, at = decision.target, decision.at
        loss = self._open.get(key)
        match decision.action:
            case Action.HOLD:
                opened = Loss(
                    target=key, cause=decision.cause, lost_at=at, share=self._share(key), rate=self._rate(key)
                )
                self._open[key] = opened
                self.losses.append(opened)
            case Action.FREEZE:
                self._frozen += 1
            case Action.RECOVER | Action.PARDON if loss is not None:
                loss.ended_at = loss.back_at = at
                self._close(key, "in_time")
            case Action.WITHDRAW if loss is not None:
                loss.ended_at, loss.outcome = at, "withdrawn"
            case Action.WAIT | Action.READMIT if loss is not None:
                loss.back_at = at if loss.back_at is None else loss.back_at
                if decision.action is Action.READMIT:
                    self._close(key, "withdrawn")
            case Action.REMOVE | Action.FORGET if loss is not None:
                loss.ended_at = at if loss.ended_at is None else loss.ended_at
                self._close(key, loss.outcome or "removed")

    def committed(self, table: StreamTable, registered: frozenset[int], active: frozenset[int], at: float) -> None:
        """Record a commit; slots moved by changes of the source do not count."""
        if table.registered == registered and active and table.active != active:
            name, targets = table.stream.name, table.stream.max_targets
            moved, size = self._slots.moved(name, targets, registered, active, table.active)
            self._slots_moved += moved
            self._moved += moved / size

    def interrupted(self, at: float) -> None:
        """Record the end of the engine: open holds are not followed further."""
        for key, loss in list(self._open.items()):
            loss.ended_at = at if loss.ended_at is None else loss.ended_at
            self._close(key, loss.outcome or "unfinished")

    def cost(self, broken_cost_s: float) -> Cost:
        """Return the sums, after `interrupted`; a broken connection costs `broken_cost_s` seconds of waiting."""
        held = [(loss, loss.held_s) for loss in self.losses]
        withdrawn = [(loss, held_s) for loss, held_s in held if loss.outcome == "withdrawn"]
        # Where the first reading came after the loss, what came later has to do.
        rates = [(self._rate(loss.target) if loss.rate is None else loss.rate, held_s) for loss, held_s in held]
        known = [rate * held_s for rate, held_s in rates if rate is not None]
        stalled_s = 1000 * sum(loss.share * held_s for loss, held_s in held)
        in_time = sum(loss.outcome == "in_time" for loss in self.losses)
        too_soon = sum(loss.back_at is not None for loss, _ in withdrawn)
        return Cost(
            losses=len(self.losses),
            in_time=in_time,
            withdrawn=len(withdrawn),
            in_vain=len(withdrawn) - too_soon,
            too_soon=too_soon,
            frozen=self._frozen,
            unfinished=len(self.losses) - in_time - len(withdrawn),
            vain_s=sum(held_s for _, held_s in withdrawn),
            held_s=sum(held_s for _, held_s in held),
            fallback=round(sum(known)) if known else None,
            slots_moved=self._slots_moved,
            moved=1000 * self._moved,
            stalled_s=stalled_s,
            total_s=stalled_s + 1000 * self._moved * broken_cost_s,
        )

    def _close(self, key: TargetKey, outcome: str) -> None:
        self._open.pop(key).outcome = outcome
