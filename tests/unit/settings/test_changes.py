"""Differences between settings, and the part of them that the running service takes over."""

import pytest

from lbguard.settings.changes import differences, with_live
from lbguard.settings.difference import Difference
from lbguard.settings.model import Settings, SettingsError, engine_config, load
from lbguard.settings.sources import leaves


def settings(**flags: str) -> Settings:
    return load(flags={name.replace("__", "."): value for name, value in flags.items()}).settings


def test_each_setting_that_differs_is_named_with_both_values() -> None:
    found = differences(settings(grace__window="4s"), settings(grace__window="2s", mode="observe"))
    assert found == (
        Difference(name="mode", running="enforce", wanted="observe", live=False),
        Difference(name="grace.window", running="4s", wanted="2s", live=True),
    )
    assert differences(Settings(), Settings()) == ()


def test_settings_of_the_probe_are_not_those_of_the_service() -> None:
    assert differences(Settings(), settings(probe__interval="7s")) == ()


def test_only_live_settings_are_taken_over() -> None:
    running, wanted = (
        settings(grace__window="4s"),
        settings(
            grace__window="2s",
            mode="observe",
            withdraw_on_exit="true",
            parking__bytes="1000000",
            parking__enabled="true",
        ),
    )
    after = with_live(running, wanted, differences(running, wanted))
    assert (after.grace.window, after.withdraw_on_exit, after.parking.bytes) == (2.0, True, 1_000_000)
    assert (after.mode, after.parking.enabled) == ("enforce", False)
    assert [each.name for each in differences(after, wanted)] == ["mode", "parking.enabled"]


def other_value(default: object) -> str | None:
    """Return a valid value other than the default, of a switch or a number."""
    if isinstance(default, bool):
        return str(not default).lower()
    return str(default / 2) if isinstance(default, float) else str(default + 1) if isinstance(default, int) else None


NUMBERS = {leaf.name: value for leaf in leaves(Settings) if (value := other_value(leaf.default)) is not None}


@pytest.mark.parametrize("name", NUMBERS)
def test_the_engine_takes_over_what_is_declared_live_and_nothing_else(name: str) -> None:
    running = engine_config(Settings())
    try:
        wanted = engine_config(load(flags={name: NUMBERS[name]}).settings)
    except SettingsError:
        return  # it needs others beside it
    if wanted != running:
        [leaf] = [leaf for leaf in leaves(Settings) if leaf.name == name]
        assert (running.with_live(wanted) != running) is leaf.live
