"""Candidate settings: from `--set NAME=VALUE,VALUE`, or grace windows that suit the heals of a recording; pure."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lbguard.core.config import EngineConfig
from lbguard.core.model import Condition
from lbguard.settings.model import Settings, SettingsError, engine_config, load
from lbguard.settings.notation import format_amount
from lbguard.settings.sources import Problem, leaves, nearest
from lbguard.tuning.cost import Remembered

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
        "availability.quorum": format_amount(config.availability_quorum),
        "availability.hysteresis": format_amount(config.availability_hysteresis),
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
