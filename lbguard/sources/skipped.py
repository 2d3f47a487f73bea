"""Entries of a list that were skipped, each with a named reason. Pure."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

_SHOWN = 80


class Reason(StrEnum):
    """Reason why an entry was skipped, or is used with other values than its own."""

    FOREIGN_CONDUIT = "foreign_conduit"
    BAD_STREAM_NAME = "bad_stream_name"
    BAD_MAX_TARGETS = "bad_max_targets"
    DUPLICATE_STREAM = "duplicate_stream"
    BAD_VIP = "bad_vip"
    NO_IDENTIFIER = "no_identifier"
    BAD_IDENTIFIER = "bad_identifier"
    IDENTIFIER_OUT_OF_RANGE = "identifier_out_of_range"
    DUPLICATE_IDENTIFIER = "duplicate_identifier"
    NO_ADDRESS = "no_address"
    BAD_ADDRESS = "bad_address"
    SURPLUS_ADDRESS = "surplus_address"
    NO_MARKS_LEFT = "no_marks_left"
    SIZE_CHANGED = "size_changed"
    MARKS_CHANGED = "marks_changed"
    BAD_OBJECT = "bad_object"
    DUPLICATE_ADDRESS = "duplicate_address"
    NO_IDENTIFIER_LEFT = "no_identifier_left"


class Skipped(NamedTuple):
    """One entry that was skipped, or is used with other values than its own."""

    reason: Reason
    what: str


def shown(text: object) -> str:
    """Return external text escaped for the log."""
    escaped = repr(text)
    return escaped if len(escaped) <= _SHOWN else escaped[: _SHOWN - 3] + "..."


def count_reasons(skipped: Iterable[Skipped]) -> Counter[Reason]:
    """Count skipped entries by reason."""
    return Counter(entry.reason for entry in skipped)
