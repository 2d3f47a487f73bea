"""Text from outside, made fit to be shown.

Names of links, streams and reporters, reasons, paths and what other processes say may hold anything: escape sequences
that drive the terminal, newlines that look like lines of ours, overrides of the writing direction. Whatever is printed
passes through here first.
"""

import dataclasses
import html
import json
import operator
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from pathlib import PurePath
from typing import Any, TypeVar

T = TypeVar("T")

_DELETE = "\x7f"


def printable(text: str) -> str:
    r"""Return text on one line, with everything that is no visible character escaped: `\x1b`, `\n`, `\u202e`.

    Control and format characters, private and unassigned ones, surrogates, and every separator but the space.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    """Return text of several lines with everything but its newlines escaped as `printable` does."""
    return "\n".join(map(printable, text.split("\n")))


def html_text(text: str) -> str:
    """Return text as it can stand in an HTML page, attributes included; what is not visible is escaped as above."""
    return html.escape(printable_lines(text))


def printable_values(value: T) -> T:
    """Return a copy of plain values whose texts are printable, each on one line.

    Goes into dataclasses, named and other tuples, lists, sets, mappings and paths; members of enumerations are ours.
    """
    copy: Any = _printable(value)
    return copy  # type: ignore[no-any-return]


def _printable(value: Any) -> Any:
    # Nearly everything is printable already, and is returned as it is: a status has a hundred thousand values.
    if isinstance(value, str):
        return value if value.isprintable() or isinstance(value, Enum) else printable(value)
    if value is None or isinstance(value, int | float | bytes):
        return value
    if isinstance(value, tuple):
        items = [_printable(item) for item in value]
        if all(map(operator.is_, items, value)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list | set | frozenset):
        return type(value)(map(_printable, value))
    if isinstance(value, Mapping):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, PurePath):
        return type(value)(printable(str(value)))
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    changes: dict[str, Any] = {}
    for name in _names(type(value)):
        before = getattr(value, name)
        after = _printable(before)
        if after is not before:
            changes[name] = after
    return dataclasses.replace(value, **changes) if changes else value


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind) if field.init)


def json_text(value: object, *, indent: int | None = None, default: Callable[[Any], object] | None = None) -> str:
    """Return a value as JSON in which everything that is not visible ASCII is escaped; see `json.dumps`."""
    # DEL is the one control character that JSON lets pass; it can only stand in a string.
    return json.dumps(value, indent=indent, default=default).replace(_DELETE, "\\u007f")
