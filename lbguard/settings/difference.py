"""A setting that differs, as a value that needs no library of the settings."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A setting with two values, as text. `live`: the running service takes it over; else it needs a restart."""

    name: str
    running: str
    wanted: str
    live: bool
