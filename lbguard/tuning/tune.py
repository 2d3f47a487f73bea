"""Replays recordings under several sets of values side by side, weighs them, and recommends one."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lbguard.core.config import EngineConfig
from lbguard.core.events import Event, SettingsChanged
from lbguard.core.model import Decision, TargetKey
from lbguard.distributor.maglev import TableKind
from lbguard.recording.format import RecordingError
from lbguard.recording.reader import Began, ClockSet, Committed, Decided, Ended, PacketsRead, Told
from lbguard.recording.replay import Continuity, items_of, restore_engine
from lbguard.settings.notation import format_duration, parse_duration
from lbguard.tuning.candidates import AFFINITY, WINDOW, Candidate, candidate_windows, variants_of
from lbguard.tuning.cost import Cost, CostAccount, Loss, Remembered, Traffic
from lbguard.tuning.recommendation import (
    Result,
    changes_of_list,
    choose,
    reasons_for,
    saved_by_affinity,
    what_happened,
)
from lbguard.tuning.slots import Slots
from lbguard.tuning.world_model import WorldModel

OnRead = Callable[[int], None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneReport:
    """Result. `recommended` is an index into `results`; None if the recording does not suffice for a recommendation.

    `heals_s`: durations of the losses that healed, ascending. `real`: the recorded decisions, for comparison with the
    model. `remarks`: what changes of the list cost, and what flow affinity would have saved. `with_affinity`: cost of
    the recorded settings with flow affinity, where it was off and is not among the values tried. `settings_changed`: a
    later run was recorded with other settings than the first.
    """

    results: tuple[Result, ...]
    recommended: int | None
    reasons: tuple[str, ...]
    remarks: tuple[str, ...]
    heals_s: tuple[float, ...]
    lost: int
    real: Cost
    held_packets: int | None
    began: float
    ended: float
    events: int
    broken_cost_s: float
    with_affinity: Cost | None = None
    settings_changed: bool = False


class Survey(NamedTuple):
    """Settings of the first run, its mode of flow affinity (empty: unknown), and all losses."""

    config: EngineConfig
    affinity: str
    losses: list[Loss]


def survey(files: Sequence[Path], on_read: OnRead = None) -> Survey:
    """Read which losses a recording holds, without an engine.

    Raises:
        RecordingError: a file cannot be read, or nothing is in it.
    """
    config: EngineConfig | None = None
    affinity = ""
    account = CostAccount(Slots(TableKind.ANCHORED), lambda key: None, lambda key: 0.0)
    continuity = Continuity()
    now = 0.0
    for item in items_of(files, on_read):
        if isinstance(item, Began):
            if config is None:
                config, affinity = item.config, str(item.header.facts.get("affinity", ""))
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
    return Survey(config, affinity, account.losses)


class _World:
    """One variant in the recorded world."""

    def __init__(self, variant: Candidate, slots: Slots, traffic: Traffic) -> None:
        self.variant = variant
        self.account = CostAccount(
            slots,
            traffic.rate,
            self._share,
            remembered=variant.remembered,
            learns=variant.config.learn_s > 0,
            has_healthy=self._has_healthy,
        )
        self.shell = WorldModel(variant.config, self.account.decided, self.account.committed)

    def _share(self, key: TargetKey) -> float:
        stream = self.shell.engine.stream(key.stream)
        return 1 / max(1, stream.admitted) if stream else 0.0

    def _has_healthy(self, name: str) -> bool:
        stream = self.shell.engine.stream(name)
        return stream is not None and stream.admitted > stream.broken


class Tuner:
    """Feeds one pass over the files to all variants at once, so that files of any size are read once."""

    def __init__(self, config: EngineConfig, variants: Sequence[Candidate]) -> None:
        """Set the settings of the first recording, and the settings to try."""
        self.settings_changed = False
        self._config = config
        self.traffic = Traffic()
        self.events = 0
        self.began: float | None = None
        self.ended = 0.0
        self._slots = Slots(TableKind.ANCHORED)
        self._variants = variants
        self._worlds: list[_World] = []
        self._real = CostAccount(
            self._slots,
            self.traffic.rate,
            self._real_share,
            remembered=variants[0].remembered if variants else Remembered.NONE,
        )
        self._pending: list[Event] = []
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
                case Told(event=SettingsChanged()):
                    # Each variant has its own settings all the time.
                    self.events += 1
                    self.settings_changed = True
                case Told(event=event):
                    self.events += 1
                    self._pending.append(event)
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
        """Return the recorded decisions in the same terms (moved connections are not included)."""
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
            self._step(restore_engine(item).as_events())

    def _begin_elsewhere(self) -> None:
        """Another host, or the same after a reboot."""
        self.traffic.forget()
        for world in self._worlds:
            world.shell.begin_elsewhere()

    def _interrupt(self) -> None:
        self._pending.clear()
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
        if self._pending:
            events, self._pending = self._pending, []
            self._step(events)

    def _step(self, events: Sequence[Event]) -> None:
        for world in self._worlds:
            world.shell.step(events, self._now)

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
        choices: values to try by dotted name; none: grace windows that suit the recording.
        broken_cost_s: cost of a broken connection for its user, as seconds of waiting.
        on_read: called with how many more bytes were read; the files are read twice.

    Raises:
        RecordingError: a file cannot be read.
        SettingsError, ValueError: a value is wrong, or there are too many.
    """
    config, affinity, losses = survey(files, on_read)
    heals = sorted(loss.healed_s for loss in losses if loss.healed_s is not None)
    if not choices:
        windows = candidate_windows(heals, config.grace.max_s)
        choices = {WINDOW: [format_duration(window) for window in windows]}
    variants = variants_of(config, choices, affinity)
    compared = [] if config.affinity or AFFINITY in choices or not config.owns_paths else [_with_affinity(config)]
    tuner = Tuner(config, [*variants, *compared])
    tuner.run(files, on_read)
    all_results = tuner.results(broken_cost_s)
    results, others = all_results[: len(variants)], all_results[len(variants) :]
    if list(choices) == [WINDOW]:
        results.sort(key=lambda result: result.variant.config.grace.window_s)
    chosen, why_not = choose(results, heals, len(losses), by_window=WINDOW in choices)
    why = (why_not,) if chosen is None else reasons_for(results, chosen, heals)
    return TuneReport(
        results=tuple(results),
        recommended=chosen,
        reasons=(*what_happened(heals, len(losses)), *why),
        remarks=tuple(_about_affinity(results, others)),
        heals_s=tuple(heals),
        lost=len(losses) - len(heals),
        real=tuner.real(broken_cost_s),
        held_packets=tuner.traffic.held_packets if tuner.traffic.counted else None,
        began=tuner.began or 0.0,
        ended=tuner.ended,
        events=tuner.events,
        broken_cost_s=broken_cost_s,
        with_affinity=others[0].cost if others else None,
        settings_changed=tuner.settings_changed,
    )


def _about_affinity(results: Sequence[Result], with_affinity: Sequence[Result]) -> list[str]:
    """Return what changes of the list cost with the recorded settings, and what flow affinity would have saved."""
    recorded = next(result.cost for result in results if result.variant.recorded)
    saved = [sentence for other in with_affinity for sentence in saved_by_affinity(recorded, other.cost)]
    return [*changes_of_list(recorded), *saved]


def _with_affinity(recorded: EngineConfig) -> Candidate:
    """Return the recorded settings with flow affinity."""
    config = dataclasses.replace(recorded, affinity=True)
    return Candidate(values=(), config=config, remembered=Remembered.INCIDENTS)


def windows_of(results: Sequence[Result]) -> list[float] | None:
    """Return the windows (seconds) if results differ only in the window; else None."""
    if any([name for name, _ in result.variant.values] != [WINDOW] for result in results):
        return None
    return [parse_duration(result.variant.values[0][1]) for result in results]
