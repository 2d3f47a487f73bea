import dataclasses

import pytest

from lbguard.core.config import EngineConfig, GraceConfig
from lbguard.core.model import Condition
from lbguard.settings.model import SettingsError, engine_config, load
from lbguard.tuning.candidates import (
    candidate_windows,
    config_with,
    has_margin,
    parse_choices,
    round_up,
    settings_of,
    variants_of,
)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"mode": "observe", "grace.window": "1.25s", "grace.max": "2m", "grace.verdict_window": "4s"},
        {"freeze.threshold": "0.75", "damping.step": "0", "links.superseded": "ignore", "links.exclude": "lo,eth*"},
        {"grace.adaptive": "true", "grace.adaptive_quantile": "0.9", "evidence.neighbor_failures": "5"},
        {"mode": "companion", "evidence.verdict_confirm": "2", "evidence.veto_window": "4s"},
        {"neighbors.probe_interval": "0", "neighbors.solicit": "false", "evidence.soft_budget": "0.25"},
    ],
)
def test_a_configuration_and_its_settings_are_the_same_thing(flags: dict[str, object]) -> None:
    config = engine_config(load(flags=flags).settings)
    assert engine_config(load(flags=dict(settings_of(config))).settings) == config
    assert config_with(config, {}) == config


def test_what_no_setting_reaches_stays_as_recorded() -> None:
    recorded = EngineConfig(
        grace=GraceConfig(by_cause_s={Condition.NO_LINK: 7.0, Condition.VERDICT_DOWN: 2.0}), retry_max_s=2.0
    )
    assert config_with(recorded, {}) == recorded
    changed = config_with(recorded, {"grace.window": "5s", "grace.verdict_window": ""})
    assert changed.grace.by_cause_s == {Condition.NO_LINK: 7.0}
    assert config_with(recorded, {"grace.neighbor_window": "1s"}).grace.by_cause_s == {
        Condition.NO_LINK: 7.0,
        Condition.VERDICT_DOWN: 2.0,
        Condition.NEIGHBOR_FAILED: 1.0,
    }
    assert changed == dataclasses.replace(
        recorded, grace=dataclasses.replace(recorded.grace, window_s=5.0, by_cause_s={Condition.NO_LINK: 7.0})
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("grace.window", "soon", "500ms"),
        ("grace.window", "50s", "grace.max"),
        ("metrics.listen", ":1", "grace.window"),
        ("neighbors.tune", "false", "cannot be computed"),
    ],
)
def test_wrong_values_are_refused_as_settings_are(name: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        config_with(EngineConfig(), {name: value})


def test_choices_are_read() -> None:
    assert parse_choices(["grace.window=1s, 2s", "grace.max=10s", "grace.window=3s"]) == {
        "grace.window": ["1s", "2s", "3s"],
        "grace.max": ["10s"],
    }
    for text, words in (("grace.window", "grace.window=1s"), ("=3", "NAME"), ("grace.windo=3", "grace.window")):
        with pytest.raises(ValueError, match=words):
            parse_choices([text])


def test_every_combination_is_a_variant_and_the_recorded_one_comes_first() -> None:
    variants = variants_of(EngineConfig(), {"grace.window": ["1s", "3s"], "grace.max": ["30s", "40s"]})
    assert [variant.label for variant in variants] == [
        "grace.window=3s grace.max=30s",
        "grace.window=1s grace.max=30s",
        "grace.window=1s grace.max=40s",
        "grace.window=3s grace.max=40s",
    ]
    assert [variant.recorded for variant in variants] == [True, False, False, False]
    with pytest.raises(ValueError, match="at most"):
        variants_of(EngineConfig(), {"grace.window": [f"{n}s" for n in range(9)], "grace.max": ["30s"] * 9})


def test_candidates_leave_a_margin_above_the_heals() -> None:
    assert candidate_windows([], 30.0) == [0.0]
    assert candidate_windows([0.5, 0.52, 1.0], 30.0) == [0.0, 1.0, 1.1, 1.5]
    assert candidate_windows([8.0], 30.0) == [0.0, 10.0]
    assert candidate_windows([40.0], 30.0) == [0.0, 30.0]
    many = candidate_windows([n / 7 for n in range(1, 100)], 30.0)
    assert len(many) == len(set(many)) == 10
    assert many == sorted(many)
    assert many[-1] == 18.0
    # Of many, those above a gap stay: only they are recommended.
    assert 3.8 in candidate_windows([*(n / 33 for n in range(1, 100)), *(20 + n / 20 for n in range(60))], 60.0)


def test_a_window_has_a_margin_above_every_heal_that_it_covers() -> None:
    assert has_margin(0.0, [0.5])
    assert has_margin(1.0, [0.5, 1.2])
    assert not has_margin(1.0, [0.5, 0.6])
    assert not has_margin(9.9, [8.0])
    assert has_margin(10.0, [8.0])


@pytest.mark.parametrize(
    ("seconds", "rounded"), [(0.41, 0.5), (1.2, 1.2), (4.99, 5.0), (5.1, 5.5), (21.3, 22.0), (0.0, 0.0)]
)
def test_durations_are_rounded_up_to_what_people_write(seconds: float, rounded: float) -> None:
    assert round_up(seconds) == rounded
