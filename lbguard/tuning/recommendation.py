"""Candidate settings from `--set NAME=VALUE,VALUE`, and the recommendation of one of them, with its reasons; pure."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lbguard.core.config import EngineConfig
from lbguard.core.model import Condition
from lbguard.settings.model import Settings, SettingsError, engine_config, load
from lbguard.settings.notation import format_duration
from lbguard.settings.sources import Problem, leaves, nearest
from lbguard.tuning.cost import Cost, Remembered

WINDOW = "grace.window"
AFFINITY = "affinity.mode"
VARIANTS_MAX = 64
MARGIN_SHARE, MARGIN_MIN_S = 0.25, 0.5
"""Margin of a window above the longest heal that it covers: a share of that heal, and a minimum in seconds."""

_HAIR = 1e-9
"""Tolerance of comparisons: less than any written duration, more than rounding errors of a sum."""

NOT_TUNABLE = frozenset({"mode", "neighbors.probe_interval", "neighbors.tune", "neighbors.solicit"})
"""Settings without an effect on a recording, whose neighbours behave as recorded."""

_LEAVES = {leaf.name: leaf for leaf in leaves(Settings)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One set of values: the requested ones by dotted name (as text of a setting), and the resulting configuration.

    `remembered`: the flows that are remembered, which is not the engine's concern.
    """

    values: tuple[tuple[str, str], ...]
    config: EngineConfig
    recorded: bool = False
    remembered: Remembered = Remembered.NONE

    @property
    def label(self) -> str:
        """Return the values as text; a single one without its name."""
        if not self.values:
            return "as recorded"
        if len(self.values) == 1:
            return self.values[0][1]
        return self.named

    @property
    def named(self) -> str:
        """Return the values with their names, for a sentence."""
        return " ".join(f"{name}={value}" for name, value in self.values)

    @property
    def besides_window(self) -> tuple[tuple[str, str], ...]:
        """The values but that of the grace window."""
        return tuple((name, value) for name, value in self.values if name != WINDOW)


def settings_of(config: EngineConfig, remembered: Remembered = Remembered.INCIDENTS) -> dict[str, str]:
    """Return the settings, as flags take them, that make this configuration.

    `remembered` is the mode of flow affinity where it is on: the configuration does not tell.
    """
    grace = config.grace
    values: dict[str, Any] = {
        "mode": "observe" if config.observe else "enforce" if config.manages_paths else "companion",
        "grace.window": grace.window_s,
        "grace.max": grace.max_s,
        "grace.neighbor_window": grace.by_cause_s.get(Condition.NEIGHBOR_FAILED),
        "grace.verdict_window": grace.by_cause_s.get(Condition.VERDICT_DOWN),
        "grace.adaptive": grace.adaptive,
        "grace.adaptive_quantile": grace.adaptive_quantile,
        "freeze.threshold": config.freeze.threshold,
        "freeze.limit": config.freeze.limit_s,
        "damping.half_life": config.damping.half_life_s,
        "damping.step": config.damping.step_s,
        "damping.max": config.damping.max_s,
        "availability.grace": config.availability_grace_s,
        "affinity.mode": str(remembered) if config.affinity else "off",
        "affinity.learn": config.learn_s,
        "drain.window": config.drain_window_s,
        "evidence.soft_budget": config.soft_budget,
        "evidence.neighbor_failures": config.neighbor_failures_needed,
        "evidence.verdict_confirm": config.evidence.confirm_k,
        "evidence.verdict_memory": config.evidence.confirm_n,
        "evidence.veto_window": config.evidence.veto_window_s,
        "links.superseded": "down" if config.superseded_link_down else "ignore",
        "links.exclude": config.excluded_links,
        "neighbors.probe_interval": config.neighbor_probe_interval_s,
        "neighbors.tune": config.tune_neighbors,
        "neighbors.solicit": config.solicit_neighbors,
    }
    return {name: _LEAVES[name].show(value) for name, value in values.items()}


def remembered_with(config: EngineConfig, mode: str) -> Remembered:
    """Return which flows are remembered with a configuration and a mode of flow affinity (empty: unknown)."""
    if not config.affinity:
        return Remembered.NONE
    return Remembered.ALL if mode == Remembered.ALL else Remembered.INCIDENTS


def config_with(recorded: EngineConfig, values: Mapping[str, str]) -> EngineConfig:
    """Return a recorded configuration with some settings changed.

    Raises:
        SettingsError: a setting is unknown, its value is wrong, or it is none that decisions rest on.
    """
    known = settings_of(recorded)
    for name, value in values.items():
        if name in _LEAVES and (name not in known or name in NOT_TUNABLE):
            raise SettingsError(
                [
                    Problem(
                        setting=name,
                        value=value,
                        origin="--set",
                        reason="the effect of this setting cannot be computed from a recording",
                        allowed=", ".join(setting for setting in known if setting not in NOT_TUNABLE),
                    )
                ]
            )
    before, after = (engine_config(load(flags={**known, **some, "source": "file"}).settings) for some in ({}, values))
    changed: EngineConfig = _changed(recorded, before, after)
    return changed


def _changed(recorded: Any, before: Any, after: Any) -> Any:
    """Return a recorded value with what differs between two others; what no setting reaches stays as it was."""
    if before == after:
        return recorded
    if isinstance(after, dict):
        kept = {key: value for key, value in recorded.items() if key in after or key not in before}
        return kept | {key: value for key, value in after.items() if before.get(key) != value}
    if not dataclasses.is_dataclass(after) or isinstance(after, type):
        return after
    names = [field.name for field in dataclasses.fields(after)]
    return dataclasses.replace(
        recorded, **{name: _changed(*(getattr(one, name) for one in (recorded, before, after))) for name in names}
    )


def parse_choices(assignments: Sequence[str]) -> dict[str, list[str]]:
    """Read `NAME=VALUE,VALUE` texts.

    Raises:
        ValueError: a text has another form.
    """
    choices: dict[str, list[str]] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        values = [value.strip() for value in text.split(",") if value.strip()]
        if not equals or not name.strip() or not values:
            raise ValueError(f"{assignment!r} is not NAME=VALUE,VALUE, such as {WINDOW}=1s,2s,5s")
        if name.strip() not in _LEAVES:
            hint = nearest(name.strip(), list(_LEAVES))
            raise ValueError(f"{name.strip()} is not a setting{f'; {hint}' if hint else ''}")
        choices.setdefault(name.strip(), []).extend(values)
    return choices


def variants_of(recorded: EngineConfig, choices: Mapping[str, Sequence[str]], affinity: str = "") -> list[Candidate]:
    """Return the recorded settings, and every combination of the values. `affinity`: the recorded mode, if known.

    Raises:
        ValueError: too many combinations.
        SettingsError: a value is wrong.
    """
    count = math.prod(len(values) for values in choices.values())
    if count > VARIANTS_MAX:
        raise ValueError(f"{count} combinations of values; at most {VARIANTS_MAX} are tried in one go")
    variants = [_candidate(recorded, affinity, choices, recorded=True)]
    for combination in itertools.product(*choices.values()):
        values = dict(zip(choices, combination, strict=True))
        tried = _candidate(config_with(recorded, values), values.get(AFFINITY, affinity), choices)
        if all((tried.config, tried.remembered) != (variant.config, variant.remembered) for variant in variants):
            variants.append(tried)
    return variants


def _candidate(config: EngineConfig, affinity: str, names: Iterable[str], *, recorded: bool = False) -> Candidate:
    """Return a candidate, with the values of the named settings in the settings' own form."""
    remembered = remembered_with(config, affinity)
    settings = settings_of(config, remembered)
    values = tuple((name, settings.get(name, "")) for name in names)
    return Candidate(values=values, config=config, recorded=recorded, remembered=remembered)


def with_margin(heal_s: float) -> float:
    """Return the shortest window (seconds) with a margin above a heal: a quarter of it, at least half a second.

    The next heal may be slower than the slowest recorded one, and a heal just after the window costs as much as a real
    loss.
    """
    return heal_s + max(MARGIN_SHARE * heal_s, MARGIN_MIN_S)


def has_margin(window_s: float, heals_s: Sequence[float]) -> bool:
    """Return whether a window leaves the margin above every heal that it is long enough for."""
    return all(window_s >= with_margin(heal) - _HAIR for heal in heals_s if heal <= window_s)


def candidate_windows(heals_s: Sequence[float], max_s: float, limit: int = 10) -> list[float]:
    """Return grace windows worth trying: none, and those with a margin above one of the heals; at most `limit`."""
    above = sorted({min(round_up(with_margin(heal)), max_s) for heal in heals_s})
    # Those that have it above every heal they cover come first: only they are recommended.
    fit = _spread([window for window in above if has_margin(window, heals_s)], limit - 1)
    others = _spread([window for window in above if window not in fit], limit - 1 - len(fit))
    return [0.0, *sorted([*fit, *others])]


def _spread(windows: Sequence[float], count: int) -> list[float]:
    """Return at most `count` of ascending windows, evenly spread; the longest is among them."""
    count = min(count, len(windows))
    return [windows[-1 - place * len(windows) // count] for place in range(count)]


def round_up(seconds: float) -> float:
    """Round a duration up to a readable value: steps of 0.1 s below 5 s, 0.5 s below 20 s, 1 s above."""
    per_second = 10 if seconds < 5 else 2 if seconds < 20 else 1
    # A hair less, so that 1.2 does not become 1.3 for the sake of its last bit.
    return math.ceil(seconds * per_second - _HAIR) / per_second


SAME_COST = 0.02
"""Costs that differ by no more than this share count as equal: then the shorter window is better."""

HEALS_NEEDED = 10
"""So many losses have to heal in a recording before values are recommended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One set of values and its cost."""

    variant: Candidate
    cost: Cost


def choose(
    results: Sequence[Result], heals: Sequence[float], losses: int, *, by_window: bool
) -> tuple[int | None, str]:
    """Return the index of the result to recommend, or None and why there is none.

    Where windows were tried, only those count that leave a margin above every heal they cover.
    """
    if not heals:
        # The cheapest is then to hold nothing: but how long healing takes was not recorded.
        return None, _why_none(losses)
    best = recommend(results, by_window=by_window)
    if best is None:
        return None, _why_same(results)
    if len(heals) < HEALS_NEEDED:
        return None, (
            f"Too few samples ({len(heals)}): record at least {HEALS_NEEDED} losses that heal. Nothing is recommended: "
            "keep what is in force."
        )
    if not by_window:
        return best, ""
    fit = [index for index, result in enumerate(results) if has_margin(_window_s(result), heals)]
    if all(_window_s(results[index]) < _window_s(results[best]) for index in fit):
        return None, _why_no_margin(results[best], heals)
    return _shortest(results, _cheapest(results, fit)), ""


def recommend(results: Sequence[Result], *, by_window: bool) -> int | None:
    """Return the index of the result with the lowest cost; among equals the shortest window or the current one.

    None: all costs are equal, so something else decided. A window of zero needs a lower cost than every other.
    """
    good = _cheapest(results, range(len(results)))
    if len(good) == len(results) > 1:
        return None
    if by_window:
        return _shortest(results, good)
    return next((index for index in good if results[index].variant.recorded), good[0])


def _cheapest(results: Sequence[Result], indices: Sequence[int]) -> list[int]:
    least = min(results[index].cost.total_s for index in indices)
    return [index for index in indices if results[index].cost.total_s <= least * (1 + SAME_COST) + 1e-9]


def _shortest(results: Sequence[Result], indices: Sequence[int]) -> int:
    held = [index for index in indices if _window_s(results[index]) > 0]
    return min(held or indices, key=lambda index: (_window_s(results[index]), index))


def _window_s(result: Result) -> float:
    return result.variant.config.grace.window_s


def reasons_for(results: Sequence[Result], chosen: int, heals: Sequence[float]) -> list[str]:
    """Return in sentences why a result is recommended."""
    best = results[chosen]
    cost, name = best.cost, best.variant.named
    reasons = [
        f"With {name}, {cost.in_time} of {counted(cost.losses, 'loss', 'losses')} recover while the target is held; "
        f"{cost.too_soon} are withdrawn although the path comes back.",
        *_compared(results, best, heals),
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
    return reasons


def counted(number: int, one: str, many: str) -> str:
    """Return a number with its noun."""
    return f"{number} {one if number == 1 else many}"


def _why_none(losses: int) -> str:
    if not losses:
        return "No target lost its path in this recording: there is nothing to choose by."
    were = "loss, which did not heal" if losses == 1 else "losses, none of which healed"
    return (
        f"{losses} {were} while it was recorded: it does not show how long your links take to come back, so nothing "
        "is recommended. Record incidents that heal."
    )


def _why_no_margin(best: Result, heals: Sequence[float]) -> str:
    """Return which window would have the margin that the best of those tried lacks."""
    needed_s = _window_s(best)
    while not has_margin(needed_s, heals):
        needed_s = round_up(max(with_margin(heal) for heal in heals if heal <= needed_s))
    needed, longest_s = format_duration(needed_s), best.variant.config.grace.max_s
    try_it = f"try {needed}" if needed_s <= longest_s else f"{needed} would, beyond grace.max: raise that, and try it"
    return (
        f"{best.variant.named} would be best, but leaves no margin above the longest heal that it covers, nor does any "
        f"longer window that was tried: {try_it}."
    )


def _why_same(results: Sequence[Result]) -> str:
    other = "other settings decided, such as the windows of single causes (grace.neighbor_window, grace.verdict_window)"
    if any(result.cost.frozen for result in results):
        other = "with windows that were too short, mass failures kept the targets in (freeze.threshold)"
    return f"Every value tried costs the same, within 2 %: {other}. Nothing is recommended: keep what is in force."


def _compared(results: Sequence[Result], best: Result, heals: Sequence[float]) -> list[str]:
    """Compare the best result with the current settings, and with the cheapest result."""
    cost = best.cost.total_s
    recorded = next((result for result in results if result.variant.recorded), best)
    least = min(results, key=lambda result: result.cost.total_s)
    reasons = []
    if recorded is best:
        reasons.append("That is what was in force already.")
    elif not cost / (1 + SAME_COST) <= recorded.cost.total_s <= cost * (1 + SAME_COST):
        reasons.append(
            f"It costs {cost:.0f}; {recorded.variant.named}, which was in force, {recorded.cost.total_s:.0f}."
        )
    else:
        reasons.append(f"It costs the same, within 2 %, as {recorded.variant.named}, which was in force.")
    if least.cost.total_s < cost - 0.5:
        why = "which is the same within 2 %: then the shorter window is better"
        if not has_margin(_window_s(least), heals):
            why = "but leaves no margin above the longest heal that it covers"
        reasons.append(f"{least.variant.named} costs {least.cost.total_s:.0f}, {why}.")
    return reasons


def _next_windows(results: Sequence[Result], best: Result) -> list[str]:
    """Return the effect of the next shorter and of the next longer window, with all other values equal."""
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


def what_happened(heals: Sequence[float], losses: int) -> list[str]:
    """Return how many losses there were and how long they took to heal; nothing where none did."""
    if not heals:
        return []
    took = f"{heals[0]:.2f} s" if len(heals) == 1 else f"{heals[0]:.2f} s to {heals[-1]:.2f} s"
    median = f" (median {statistics.median(heals):.2f} s)" if len(heals) > 2 else ""
    never = f"; {losses - len(heals)} did not while it was recorded" if losses > len(heals) else ""
    return [f"{counted(losses, 'loss', 'losses')}: {len(heals)} healed, after {took}{median}{never}."]
