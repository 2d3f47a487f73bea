"""Strategies for the core's immutable values, from their annotations."""

import dataclasses
import types
import typing
from enum import Enum
from typing import Any

from hypothesis import strategies as st

from lbguard.recording.codec import schema


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for values of an annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is float:
        return st.floats(allow_nan=False)
    if hint is bytes:
        return st.binary(max_size=16)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or hasattr(hint, "_fields")):
        hints = typing.get_type_hints(hint)
        names = hint._fields if hasattr(hint, "_fields") else [field.name for field in dataclasses.fields(hint)]
        return st.builds(hint, **{name: values(hints[name]) for name in names})
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values(argument) for argument in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(values(argument) for argument in arguments))
    if origin is frozenset:
        return st.frozensets(values(arguments[0]), max_size=5)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    return st.from_type(hint)


def older_schema(name: str, fields: list[str]) -> dict[str, list[str]]:
    """Return the schema of a writer that knew other fields of one type."""
    return {**schema(), name: fields}
