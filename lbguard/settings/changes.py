"""Differences between the settings in force and other ones, and the part of them that needs no restart."""

from collections.abc import Iterable
from typing import Any

from lbguard.settings.difference import Difference
from lbguard.settings.model import Settings
from lbguard.settings.sources import leaves

_OF_ANOTHER_SERVICE = "probe."


def differences(running: Settings, wanted: Settings) -> tuple[Difference, ...]:
    """Return the settings of `lbguard run` that differ, in the order of the reference; not those of the probe."""
    return tuple(
        Difference(name=leaf.name, running=leaf.show(before), wanted=leaf.show(after), live=leaf.live)
        for leaf in leaves(Settings)
        if not leaf.name.startswith(_OF_ANOTHER_SERVICE)
        and (before := _value(running, leaf.name)) != (after := _value(wanted, leaf.name))
    )


def with_live(running: Settings, wanted: Settings, changed: Iterable[Difference]) -> Settings:
    """Return the running settings with the wanted values of the live ones among `changed`."""
    groups: dict[str, dict[str, Any]] = {}
    for difference in changed:
        if difference.live:
            group, _, name = difference.name.rpartition(".")
            groups.setdefault(group, {})[name] = _value(wanted, difference.name)
    update = groups.pop("", {})
    for group, values in groups.items():
        update[group] = getattr(running, group).model_copy(update=values)
    return running.model_copy(update=update)


def _value(settings: Settings, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value
