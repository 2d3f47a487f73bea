"""The engine's table of events."""

import typing

from lbguard.core import events
from lbguard.core.engine import _OBSERVERS


def test_every_event_has_an_observer() -> None:
    """The table is looked up for each event of the kernel, so it stands in place of a match that mypy would check."""
    assert set(_OBSERVERS) == set(typing.get_args(events.Event))
    declared = {
        kind
        for kind in vars(events).values()
        if isinstance(kind, type)
        and kind.__module__ == events.__name__
        and kind not in (events.OpenHold, events.OpenDrain, events.OpenOverride)
    }
    assert declared == set(_OBSERVERS), "an event that is not in the union `Event`"
