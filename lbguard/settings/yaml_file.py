"""Bounded reader of external YAML, used for every YAML file that lbguard reads.

Parsing takes memory and time in proportion to the bytes of any input: libyaml's events are read one by one and
converted to values without recursion, so depth cannot exhaust the stack, and no alias repeats a value. Between two
pieces of the input other threads can run.

Only the unambiguous part of YAML 1.1 is accepted. Refused, with line and column: aliases, anchors, tags, directives,
merge keys, keys given twice, keys that are not text, several documents, deep nesting, and plain words whose meaning
differs from their appearance: `010` (8), `1:30` (90), `2026-01-01` (a date) and, where no setting is a switch, `no`
(false). Quoted they are text.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, model_validator
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from yaml.reader import ReaderError

from lbguard.settings.bounded_file import FileError, read_regular_file

MAX_BYTES = 16 * 2**20
"""A larger file is refused unread: 100,000 dual-stack targets need about 8 MiB."""

MAX_DEPTH = 20
MAX_VALUES = 1_000_000
"""Values in one file, keys and collections among them: 100,000 dual-stack targets are 700,000."""

MAX_PROBLEMS = 1000
"""After so many problems the check of a file ends."""

SHOWN_PROBLEMS = 10
"""Number of problems in the text of an error, which is logged and shown by `lbguard status`."""

_KEYS = 100
_PROBLEM_CHARACTERS = 500
"""Limit of a quoted value, which may be megabytes in the file."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is about ten times faster

_PIECE_BYTES = 16 * 2**10
_SHOWN_CHARACTERS = 40
_MAX_DIGITS = 20
_MAX_NUMBER = 100
"""Limit in characters of a number: parsing a longer one may take seconds, in which no other thread runs."""

_BREAKS = ("\n", "\r", "\x85", "\u2028", "\u2029")
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
_FALSE = frozenset({"no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
_DIGITS = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
_BASED = re.compile(r"[-+]?0(?:x[0-9a-fA-F_]*[0-9a-fA-F]|b[01_]*[01])")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_SIXTIES = re.compile(r"[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*")
_FRACTION = re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_OF_A_NUMBER = re.compile(r"[-+0-9_.:]+")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?", re.DOTALL)


class YamlError(Exception):
    """Content was refused; the text has line, column, the fault and what to write instead."""


class YamlFileError(Exception):
    """A file cannot be used. `problems` has every reason with its place, shortened; the text has the first of them."""

    def __init__(self, path: Path, problems: Iterable[str]) -> None:
        self.path = path
        self.problems = tuple(map(_shortened, problems))
        more = f"; and {len(self.problems) - SHOWN_PROBLEMS} more" if len(self.problems) > SHOWN_PROBLEMS else ""
        super().__init__(f"{path}: " + "; ".join(self.problems[:SHOWN_PROBLEMS]) + more)


class YamlMapping(BaseModel):
    """A mapping with known keys only.

    A mapping with more keys than any of lbguard's is refused as a whole: a million unknown keys would block the
    process.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, mapping: object) -> object:
        if isinstance(mapping, dict) and len(mapping) > _KEYS:
            raise ValueError(f"has {len(mapping):,} keys, most of which are none that is known")
        return mapping


def read_yaml(path: Path) -> bytes:
    """Return the content of a file for `parse_yaml`.

    Raises:
        FileError: see `read_regular_file`.
    """
    return read_regular_file(path, MAX_BYTES)


def parse_yaml(content: bytes, *, switches: Collection[str] | None = None) -> Any:
    """Return the value of YAML content: mappings with text keys, lists, text, numbers, switches and None.

    Args:
        content: UTF-8, with or without a byte order mark.
        switches: the keys whose value may be `true`, `no` or a similar word; elsewhere such a word is refused, since it
        is meant as a name. None: any value may be.

    Raises:
        YamlError: it is refused. No content raises another exception.
    """
    if len(content) > MAX_BYTES:
        raise YamlError(f"is larger than {MAX_BYTES // 2**20} MiB")
    try:
        _check_text(content)
        return _Builder(switches).build(yaml.parse(_Pieces(content), Loader=_Loader))
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        raise YamlError(f"is not valid YAML: {_place(mark)}{words}") from None
    except ReaderError as error:
        line = content.count(b"\n", 0, error.position) + 1
        raise YamlError(f"is not valid YAML: line {line}: {error.reason} (U+{error.character:04X})") from None
    except Exception as error:
        # A fault of the library, or no memory: it is reported as a bad file.
        raise YamlError(f"is not readable YAML: {type(error).__name__}: {_shown(str(error))}") from None


class _Pieces:
    """Stream of the content in pieces: after each, another thread may run."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)
        self._at = 0

    def read(self, size: int = _PIECE_BYTES) -> bytes:
        piece = bytes(self._content[self._at : self._at + min(size, _PIECE_BYTES)])
        self._at += len(piece)
        return piece


def _check_text(content: bytes) -> None:
    """Refuse what is not UTF-8, and directives: libyaml's time for them grows with the square of their number."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        raise YamlError(f"line {line}, column {column}: is not UTF-8 (byte 0x{content[error.start]:02x})") from None
    if text.startswith(("%", "\ufeff%")) or any(f"{line_break}%" in text for line_break in _BREAKS):
        raise YamlError("a line begins with %: directives are refused; remove it, or quote the text")


class _Builder:
    """Converts events to values. `_open` has the collections that are not ended yet, outermost first."""

    def __init__(self, switches: Collection[str] | None) -> None:
        self._switches = switches
        self._open: list[dict[str, Any] | list[Any]] = []
        self._keys: list[str | None] = []
        self._documents = 0
        self._values = 0
        self._whole: Any = None

    def build(self, events: Iterator[Event]) -> Any:
        """Return the value of the only document; None when there is none."""
        for event in events:
            kind = type(event)
            if isinstance(event, ScalarEvent):
                self._scalar(event)
            elif kind is MappingStartEvent:
                self._begin(event, {})
            elif kind is SequenceStartEvent:
                self._begin(event, [])
            elif kind is MappingEndEvent or kind is SequenceEndEvent:
                self._open.pop()
                self._keys.pop()
            elif isinstance(event, AliasEvent):
                raise _refusal(event, f"aliases (*{_shown(str(event.anchor))}) are refused; write the value out")
            elif kind is DocumentStartEvent:
                self._documents += 1
                if self._documents > 1:
                    raise _refusal(event, "a second document begins; only one is read, so remove the rest")
        return self._whole

    def _begin(self, event: Event, collection: dict[str, Any] | list[Any]) -> None:
        self._check(event)
        if len(self._open) >= MAX_DEPTH:
            raise _refusal(event, f"is nested deeper than {MAX_DEPTH} levels")
        if self._wants_key():
            raise _refusal(event, "a key must be text, not a list or a mapping")
        self._put(collection)
        self._open.append(collection)
        self._keys.append(None)

    def _scalar(self, event: ScalarEvent) -> None:
        self._check(event)
        text = event.value
        plain = not event.style
        if not self._wants_key():
            self._put(self._value(event, text) if plain else text)
            return
        if plain and text == "<<":
            raise _refusal(event, "merge keys (<<) are refused; write the values out")
        key = self._value(event, text) if plain else text
        if not isinstance(key, str):
            raise _refusal(event, f"the key {_shown(text)} is not text; quote it")
        mapping = self._open[-1]
        assert isinstance(mapping, dict)
        if key in mapping:
            raise _refusal(event, f"the key {_shown(key)} is given twice in one mapping; keep one of the two")
        self._keys[-1] = key

    def _check(self, event: Any) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _refusal(event, f"holds more than {MAX_VALUES:,} values")
        if event.anchor is not None:
            raise _refusal(event, f"anchors (&{_shown(event.anchor)}) are refused; remove it")
        if event.tag is not None:
            raise _refusal(event, f"tags ({_shown(event.tag)}) are refused; remove it")

    def _wants_key(self) -> bool:
        return bool(self._open) and self._keys[-1] is None and isinstance(self._open[-1], dict)

    def _put(self, value: Any) -> None:
        if not self._open:
            self._whole = value
            return
        place, key = self._open[-1], self._keys[-1]
        if isinstance(place, dict):
            assert key is not None
            place[key] = value
            self._keys[-1] = None
        else:
            place.append(value)

    def _value(self, event: Event, text: str) -> Any:
        """Return the value of a plain word."""
        if text in _NULL:
            return None
        if text in _TRUE or text in _FALSE:
            if self._switches is not None and (not self._keys or self._keys[-1] not in self._switches):
                means = "true" if text in _TRUE else "false"
                raise _refusal(event, f"{text} means {means} in YAML, and no switch is here; quote it if it is a name")
            return text in _TRUE
        first = text[0]
        if not (first.isascii() and (first.isdigit() or first in "+-.")):
            return text
        return _number(event, text)


def _number(event: Event, text: str) -> Any:
    """Return the number in a plain word, or the word itself when it is not a number."""
    if _DIGITS.fullmatch(text) or _BASED.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise _too_long(event, text)
        return int(text.replace("_", ""), 0)
    if len(text) > _MAX_NUMBER:
        if _OF_A_NUMBER.fullmatch(text):
            raise _too_long(event, text)
        return text
    if _LEADING_ZERO.fullmatch(text):
        raise _refusal(
            event, f"{_shown(text)} would be read to the base 8; write it without the leading 0, or quote it"
        )
    if _SIXTIES.fullmatch(text):
        raise _refusal(event, f"{_shown(text)} would be read to the base 60; quote it if it is text")
    if _DATE.fullmatch(text):
        raise _refusal(event, f"{_shown(text)} would be read as a date; quote it")
    if _FRACTION.fullmatch(text):
        return float(text.replace("_", ""))
    if sign := _INFINITE.fullmatch(text):
        return -math.inf if sign[1] == "-" else math.inf
    return math.nan if text in {".nan", ".NaN", ".NAN"} else text


def _too_long(event: Event, text: str) -> YamlError:
    return _refusal(event, f"{_shown(text)} is too long for a number; quote it if it is text")


def _refusal(event: Event, what: str) -> YamlError:
    return YamlError(f"{_place(event.start_mark)}{what}")


def _place(mark: Any) -> str:
    return "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "


def _shortened(text: str, characters: int = _PROBLEM_CHARACTERS) -> str:
    return text if len(text) <= characters else text[:characters] + "..."


def _shown(text: str) -> str:
    """Return external text escaped for a message."""
    shown = _shortened(text, _SHOWN_CHARACTERS)
    return shown if shown.isprintable() else ascii(shown)


__all__ = ["FileError", "YamlError", "YamlFileError", "YamlMapping", "parse_yaml", "read_yaml"]
