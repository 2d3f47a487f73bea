"""A text that tries everything with whoever prints it, and what shows that it had no success."""

import dataclasses
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")

FORGED = "lbguard: all is well"
HOSTILE = f"a\x1b[31mb\x07\x9b\x7f\r\n{FORGED}\u2028\u202e\u200b\ufeff\ue000\xad[bold]c[/bold]:warning:<i>&\t"
"""Control characters of both kinds, a line of its own, a turned direction, invisible characters, and three markups."""

SHOWN = r"a\x1b[31mb\x07\x9b\x7f\r\n" + FORGED + r"\u2028\u202e\u200b\ufeff\ue000\xad[bold]c[/bold]:warning:<i>&\t"

_RAW = set(HOSTILE) - {char for char in HOSTILE if char.isprintable()} - {"\n"}


def in_every_text(value: T) -> T:
    """Return a copy of plain values in which every text is the hostile one."""
    copy: Any = _changed(value)
    return copy  # type: ignore[no-any-return]


def _changed(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Enum):
        return HOSTILE
    if isinstance(value, tuple):
        items = [_changed(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: _changed(getattr(value, name)) for name in names})
    return value


def assert_harmless(text: str) -> None:
    """Check that nothing of the hostile text had an effect on what was printed."""
    assert not _RAW & set(text), sorted(map(repr, _RAW & set(text)))
    assert not [line for line in text.splitlines() if line.strip().startswith(FORGED)]
