"""Replays recordings under several sets of values side by side, weighs them, and recommends one."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lbguard.core.config import EngineConfig
from lbguard.core.events import Event
from lbguard.core.model import Decision, TargetKey
from lbguard.distributor.maglev import TableKind
from lbguard.recording.format import RecordingError
from lbguard.recording.reader import Began, ClockSet, Committed, Decided, Ended, PacketsRead, Told
from lbguard.recording.replay import Continuity, items_of, restore_engine
from lbguard.settings.durations import format_duration, parse_duration
from lbguard.tuning.account import Account, Cost, Loss, Slots
from lbguard.tuning.shell import ModelledShell, beginning_of
from lbguard.tuning.traffic import Traffic
from lbguard.tuning.variants import WINDOW, Variant, candidate_windows, variants_of

SAME_COST = 0.02
"""Costs that differ by no more than this share count as equal: then the shorter window is better."""

FEW_LOSSES = 10

OnRead = Callable[[int], None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One set of values and what it would have cost."""

    variant: Variant
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneReport:
    """What came out. `recommended` is an index into `results`; None when there is nothing to choose by.

    `heals_s`: how long the losses that healed took, ascending. `real`: what was recorded, to hold the model against.
    `settings_changed`: a later run was recorded with other settings than the first.
    """

    results: tuple[Result, ...]
    recommended: int | None
    reasons: tuple[str, ...]
    heals_s: tuple[float, ...]
    lost: int
    real: Cost
    held_packets: int | None
    began: float
    ended: float
    events: int
    broken_cost_s: float
    settings_changed: bool = False


def survey(files: Sequence[Path], on_read: OnRead = None) -> tuple[EngineConfig, list[Loss]]:
    """Read which losses a recording holds, without an engine.

    Raises:
        RecordingError: a file cannot be read, or nothing is in it.
    """
    config: EngineConfig | None = None
    account = Account(Slots(TableKind.ANCHORED), lambda key: None, lambda key: 0.0)
    continuity = Continuity()
    now = 0.0
    for item in items_of(files, on_read):
        if isinstance(item, Began):
            config = config or item.config
            if not continuity.begins(item.header):
                account.interrupted(now)
        elif isinstance(item, Ended):
            continuity.ended(item)
        elif isinstance(item, Decided):
            for said in item.said:
                if isinstance(said, Decision):
                    account.decided(said)
        now = getattr(item, "now", now)
    account.interrupted(now)
    if config is None:
        raise RecordingError(f"{files[0]}: no engine ran in it; give a recording that is longer")
    return config, account.losses


class _World:
    """One variant in the recorded world."""

    def __init__(self, variant: Variant, slots: Slots, traffic: Traffic) -> None:
        self.variant = variant
        self.account = Account(slots, traffic.rate, self._share)
        self.shell = ModelledShell(variant.config, self.account.decided, self.account.committed)

    def _share(self, key: TargetKey) -> float:
        stream = self.shell.engine.roster.streams.get(key.stream)
        return 1 / max(1, stream.admitted) if stream else 0.0


class Tuner:
    """Feeds one pass over the files to all variants at once, so that files of any size are read once."""

    def __init__(self, config: EngineConfig, variants: Sequence[Variant]) -> None:
        """Set what was recorded first, and what to try."""
        self.settings_changed = False
        self._config = config
        self.traffic = Traffic()
        self.events = 0
        self.began: float | None = None
        self.ended = 0.0
        self._slots = Slots(TableKind.ANCHORED)
        self._variants = variants
        self._worlds: list[_World] = []
        self._real = Account(self._slots, self.traffic.rate, self._real_share)
        self._told: list[Event] = []
        self._continuity = Continuity()
        self._host = ""
        self._now = 0.0
        self._offset = 0.0

    def run(self, files: Sequence[Path], on_read: OnRead = None) -> None:
        """Read the files to their end.

        Raises:
            RecordingError: a file cannot be read.
        """
        for item in items_of(files, on_read):
            self._now = getattr(item, "now", self._now)
            match item:
                case Began():
                    self._begin(item)
                case Told(event=event):
                    self.events += 1
                    self._told.append(event)
                case Decided():
                    self._decided(item)
                case PacketsRead(now=now, readings=readings):
                    for (stream, identifier), (packets, held) in readings.items():
                        self.traffic.read(TargetKey(stream, identifier), packets, held, now)
                case Committed():
                    self._slots.learn_size(item.stream, item.slots_total)
                case ClockSet(offset=offset):
                    self._offset = offset
                case Ended():
                    self._continuity.ended(item)
            self.ended = self._now + self._offset
        self._interrupt()

    def results(self, broken_cost_s: float) -> list[Result]:
        """Return what each variant would have cost."""
        return [Result(variant=world.variant, cost=world.account.cost(broken_cost_s)) for world in self._worlds]

    def real(self, broken_cost_s: float) -> Cost:
        """Return what was really decided, in the same terms (connections moved are not among them)."""
        return self._real.cost(broken_cost_s)

    def _begin(self, item: Began) -> None:
        header = item.header
        goes_on = self._continuity.begins(header)
        self.settings_changed |= item.config != self._config
        if self.began is None:
            self.began = header.now + header.offset
            if header.facts.get("table") == TableKind.MAGLEV:
                self._slots.kind = TableKind.MAGLEV
            self._worlds = [_World(variant, self._slots, self.traffic) for variant in self._variants]
        elif not goes_on:
            self._interrupt()
            if header.host != self._host or header.now < self._now:
                self._begin_elsewhere()
        self._host = header.host
        self._now, self._offset = header.now, header.offset
        if not goes_on and item.nodes is not None:
            self._step(beginning_of(restore_engine(item)))

    def _begin_elsewhere(self) -> None:
        """Another host, or the same after a reboot."""
        self.traffic.forget()
        for world in self._worlds:
            world.shell.begin_elsewhere()

    def _interrupt(self) -> None:
        self._told.clear()
        self._real.interrupted(self._now)
        for world in self._worlds:
            world.shell.finish(self._now)
            world.account.interrupted(self._now)
            world.shell.restart()

    def _decided(self, item: Decided) -> None:
        for said in item.said:
            if isinstance(said, Decision):
                self._real.decided(said)
                self.traffic.decided(said)
        # Calls for which nothing came from outside are the recorded engine's own; others have deadlines of theirs.
        if self._told:
            told, self._told = self._told, []
            self._step(told)

    def _step(self, told: Sequence[Event]) -> None:
        for world in self._worlds:
            world.shell.step(told, self._now)

    def _real_share(self, key: TargetKey) -> float:
        return self._worlds[0]._share(key) if self._worlds else 0.0


def tune(
    files: Sequence[Path],
    choices: Mapping[str, Sequence[str]],
    *,
    broken_cost_s: float = 10.0,
    on_read: OnRead = None,
) -> TuneReport:
    """Try values on recordings and recommend some.

    Args:
        files: in order, as `find_files` returns them.
        choices: values to try by dotted name; none: grace windows that suit what the recording holds.
        broken_cost_s: what a broken connection costs its user, as seconds of waiting.
        on_read: told how many more bytes were read; the files are read twice.

    Raises:
        RecordingError: a file cannot be read.
        SettingsError, ValueError: a value is wrong, or there are too many.
    """
    config, losses = survey(files, on_read)
    heals = sorted(loss.healed_s for loss in losses if loss.healed_s is not None)
    if not choices:
        windows = candidate_windows(heals, config.grace.max_s)
        choices = {WINDOW: [format_duration(window) for window in windows]}
    tuner = Tuner(config, variants_of(config, choices))
    tuner.run(files, on_read)
    results = tuner.results(broken_cost_s)
    if list(choices) == [WINDOW]:
        results.sort(key=lambda result: result.variant.config.grace.window_s)
    # Where nothing healed, the cheapest is to hold nothing: but how long healing takes was not recorded.
    chosen = recommend(results, by_window=WINDOW in choices) if heals else None
    return TuneReport(
        results=tuple(results),
        recommended=chosen,
        reasons=tuple(reasons_for(results, chosen, heals, len(losses))),
        heals_s=tuple(heals),
        lost=len(losses) - len(heals),
        real=tuner.real(broken_cost_s),
        held_packets=tuner.traffic.held_packets if tuner.traffic.counted else None,
        began=tuner.began or 0.0,
        ended=tuner.ended,
        events=tuner.events,
        broken_cost_s=broken_cost_s,
        settings_changed=tuner.settings_changed,
    )


def recommend(results: Sequence[Result], *, by_window: bool) -> int | None:
    """Return the index of the best result: the cheapest, and among equals the shortest window or what is in force.

    None: all cost the same, so that something else decided. No window at all has to be cheaper than every other.
    """
    least = min(result.cost.total_s for result in results)
    good = [index for index, result in enumerate(results) if result.cost.total_s <= least * (1 + SAME_COST) + 1e-9]
    if len(good) == len(results) > 1:
        return None
    if by_window:
        held = [index for index in good if results[index].variant.config.grace.window_s > 0]
        return min(held or good, key=lambda index: (results[index].variant.config.grace.window_s, index))
    return next((index for index in good if results[index].variant.recorded), good[0])


def reasons_for(results: Sequence[Result], chosen: int | None, heals: Sequence[float], losses: int) -> list[str]:
    """Say in sentences why a result is recommended."""
    if chosen is None:
        return [_what_happened(heals, losses), _why_same(results)] if heals else [_why_none(losses)]
    best = results[chosen]
    cost, name = best.cost, best.variant.named
    reasons = [
        _what_happened(heals, losses),
        f"With {name}, {cost.in_time} of {counted(cost.losses, 'loss', 'losses')} recover while the target is held; "
        f"{cost.too_soon} are withdrawn although the path comes back.",
        *_compared(results, best),
        *_next_windows(results, best),
    ]
    if cost.frozen:
        were = "withdrawal was" if cost.frozen == 1 else "withdrawals were"
        reasons.append(
            f"{cost.frozen} {were} suppressed as mass failures (freeze.threshold); the window has no part in those."
        )
    longest_s = best.variant.config.grace.max_s
    beyond = sum(heal > longest_s for heal in heals)
    if beyond:
        reasons.append(f"{beyond} healed only after grace.max ({format_duration(longest_s)}): no window reaches them.")
    if losses < FEW_LOSSES:
        few = counted(losses, "loss", "losses")
        reasons.append(f"This rests on {few} only: record more before you trust the tenth of a second.")
    return reasons


def counted(number: int, one: str, many: str) -> str:
    """Return a number with its noun."""
    return f"{number} {one if number == 1 else many}"


def _why_none(losses: int) -> str:
    if not losses:
        return "No target lost its path in this recording: there is nothing to choose by."
    were = "loss, which did not heal" if losses == 1 else "losses, none of which healed"
    return (
        f"{losses} {were} while it was recorded: it does not tell how long your links take to come back, so nothing "
        "is recommended. Record incidents that heal."
    )


def _why_same(results: Sequence[Result]) -> str:
    other = "other settings decided, such as the windows of single causes (grace.neighbor_window, grace.verdict_window)"
    if any(result.cost.frozen for result in results):
        other = "with windows that were too short, mass failures kept the targets in (freeze.threshold)"
    return f"Every value tried costs the same, within 2 %: {other}. Nothing is recommended: keep what is in force."


def _compared(results: Sequence[Result], best: Result) -> list[str]:
    """Say how the best stands to what is in force, and to what is cheapest."""
    cost = best.cost.total_s
    recorded = next((result for result in results if result.variant.recorded), best)
    least = min(results, key=lambda result: result.cost.total_s)
    reasons = []
    if recorded is best:
        reasons.append("That is what was in force already.")
    elif recorded.cost.total_s > cost * (1 + SAME_COST):
        reasons.append(
            f"It costs {cost:.0f}; {recorded.variant.named}, which was in force, {recorded.cost.total_s:.0f}."
        )
    else:
        reasons.append(f"It costs the same, within 2 %, as {recorded.variant.named}, which was in force.")
    if least.cost.total_s < cost - 0.5 and least is not recorded:
        reasons.append(
            f"{least.variant.named} costs {least.cost.total_s:.0f}, which is the same within 2 %: then the shorter "
            "window is better."
        )
    return reasons


def _next_windows(results: Sequence[Result], best: Result) -> list[str]:
    """Say what the next shorter and the next longer window would change, all else being equal."""
    window_s = best.variant.config.grace.window_s
    alike = [result for result in results if result.variant.besides_window == best.variant.besides_window]
    shorter = [result for result in alike if result.variant.config.grace.window_s < window_s]
    longer = [result for result in alike if result.variant.config.grace.window_s > window_s]
    reasons = []
    if shorter:
        near = max(shorter, key=lambda result: result.variant.config.grace.window_s)
        extra = near.cost.too_soon - best.cost.too_soon
        more = f"{extra} more would be withdrawn too soon: " if extra > 0 else ""
        reasons.append(
            f"With {near.variant.named}, {more}the cost would be {near.cost.total_s:.0f} instead of "
            f"{best.cost.total_s:.0f}."
        )
    if longer:
        near = min(longer, key=lambda result: result.variant.config.grace.window_s)
        gained = near.cost.in_time - best.cost.in_time
        waited = near.cost.vain_s - best.cost.vain_s
        if gained > 0:
            reasons.append(
                f"With {near.variant.named}, {gained} more would be kept, and the cost would be "
                f"{near.cost.total_s:.0f} instead of {best.cost.total_s:.0f}."
            )
        elif waited > 0:
            reasons.append(
                f"With {near.variant.named}, no more would be kept, and targets that are withdrawn all the same would "
                f"be held {waited:.1f} s longer altogether."
            )
        else:
            reasons.append(
                f"With {near.variant.named}, no more would be kept; a real loss would only be noticed later."
            )
    return reasons


def _what_happened(heals: Sequence[float], losses: int) -> str:
    took = f"{heals[0]:.2f} s" if len(heals) == 1 else f"{heals[0]:.2f} s to {heals[-1]:.2f} s"
    median = f" (median {statistics.median(heals):.2f} s)" if len(heals) > 2 else ""
    never = f"; {losses - len(heals)} did not while it was recorded" if losses > len(heals) else ""
    return f"{counted(losses, 'loss', 'losses')}: {len(heals)} healed, after {took}{median}{never}."


def windows_of(results: Sequence[Result]) -> list[float] | None:
    """Return the windows (seconds) when results differ in nothing else; else None."""
    if any([name for name, _ in result.variant.values] != [WINDOW] for result in results):
        return None
    return [parse_duration(result.variant.values[0][1]) for result in results]
