"""Turns the immutable values of the core, and checkpoints of its state, into rows that JSON can hold, and back exactly.

A row is a list: the name of the type, then its fields in order. How a field is written follows from its annotation, so
a new event needs nothing here: bytes as hexadecimal text, sets sorted, enumerations by value, a value of a union by its
own row. A reader gets the names of the fields from the file (`Schema`), so that fields which were added since, with a
default, do not make old files unreadable. A checkpoint (`core.checkpoint`) can be read by the same core only.
"""

import dataclasses
import hashlib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import lbguard.core
from lbguard.core import events
from lbguard.core.checkpoint import PLAIN, CheckpointError, Method, Node, Ref, classes, never_changes
from lbguard.core.config import EngineConfig
from lbguard.core.effects import Effect, Record, SetAvailability
from lbguard.core.model import Decision

Row = list[Any]
Convert = Callable[[Any], Any]

RECORDED: tuple[type, ...] = (*typing.get_args(events.Event), EngineConfig, Decision, SetAvailability)
"""The types that have a row of their own."""


class CodecError(Exception):
    """A row that cannot be read; the message says why."""


class _Form:
    """Written form of one dataclass or named tuple."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        hints = typing.get_type_hints(kind)
        self.is_tuple = issubclass(kind, tuple)
        self.names = _names(kind)
        self.required = _required(kind, self.names)
        converters = [(index, *_converters(hints[name])) for index, name in enumerate(self.names)]
        self._to = [(index, to) for index, to, _ in converters if to is not None]
        self._from = {self.names[index]: back for index, _, back in converters if back is not None}
        get = attrgetter(*self.names) if self.names else None
        # A single name makes attrgetter return the bare value.
        self._get: Convert = (
            (lambda value: (get(value),)) if get and len(self.names) == 1 else get or (lambda value: ())
        )

    def fields_of(self, value: Any) -> Row:
        """Return the fields of a value as JSON takes them."""
        fields = list(value if self.is_tuple else self._get(value))
        for index, convert in self._to:
            fields[index] = convert(fields[index])
        return fields

    def value_of(self, fields: Iterable[Any], names: tuple[str, ...] | None = None) -> Any:
        """Return the value of fields; `names`: the field names of the writer, in its order.

        Without `names` the last ones may be missing, if they have defaults.
        """
        named = dict(zip(self.names if names is None else names, fields, strict=names is not None))
        for name, convert in self._from.items():
            if name in named:
                named[name] = convert(named[name])
        return self.kind(**named)


def _names(kind: Any) -> tuple[str, ...]:
    return kind._fields if issubclass(kind, tuple) else tuple(field.name for field in dataclasses.fields(kind))


def _required(kind: type, names: tuple[str, ...]) -> frozenset[str]:
    if issubclass(kind, tuple):
        return frozenset(names) - frozenset(kind._field_defaults)  # type: ignore[attr-defined]
    missing = dataclasses.MISSING
    return frozenset(
        field.name
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.default is missing and field.default_factory is missing
    )


@cache
def _form(kind: type) -> _Form:
    return _Form(kind)


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"))


def _converters(hint: Any) -> tuple[Convert | None, Convert | None]:
    """Return the functions that write and read a value of an annotation; None where it is taken as it is."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is bytes:
        return bytes.hex, bytes.fromhex
    if _is_record(hint):
        form = _form(hint)
        return form.fields_of, form.value_of
    if isinstance(hint, type) and issubclass(hint, Enum):
        # Writing a value as it is will do: every enumeration of the core is a text or a whole number.
        return None, hint
    if origin is types.UnionType or origin is typing.Union:
        return _union(arguments)
    if origin is tuple:
        return _tuple(arguments)
    if origin is frozenset:
        return sorted, frozenset
    if origin is dict:
        key, value = (_converters(argument)[1] or _same for argument in arguments)
        return None, lambda items: {key(k): value(v) for k, v in items.items()}
    return None, None


def _same(value: Any) -> Any:
    return value


def _union(arguments: tuple[Any, ...]) -> tuple[Convert | None, Convert | None]:
    kinds = [argument for argument in arguments if argument is not type(None)]
    if len(kinds) == 1:
        to, back = _converters(kinds[0])
        return (
            (lambda value: None if value is None else to(value)) if to else None,
            (lambda value: None if value is None else back(value)) if back else None,
        )
    by_name = {kind.__name__: _form(kind) for kind in kinds}

    def write(value: Any) -> Row:
        name = type(value).__name__
        return [name, *by_name[name].fields_of(value)]

    return write, lambda row: by_name[row[0]].value_of(row[1:])


def _tuple(arguments: tuple[Any, ...]) -> tuple[Convert, Convert]:
    if arguments[-1] is Ellipsis:
        to, back = _converters(arguments[0])
        return (
            (lambda items: [to(item) for item in items]) if to else list,
            (lambda items: tuple([back(item) for item in items])) if back else tuple,
        )
    pairs = [_converters(argument) for argument in arguments]
    writers, readers = [to or _same for to, _ in pairs], [back or _same for _, back in pairs]
    return (
        lambda items: [write(item) for write, item in zip(writers, items, strict=True)],
        lambda items: tuple([read(item) for read, item in zip(readers, items, strict=True)]),
    )


_BY_NAME = {kind.__name__: kind for kind in RECORDED}


def encode(value: Any) -> Row:
    """Return the row of a value of one of the `RECORDED` types."""
    kind: Any = type(value)
    return [kind.__name__, *_form(kind).fields_of(value)]


def encode_item(kind: type, value: Any) -> Row:
    """Return the fields, without a name, of a value whose type the reader knows."""
    return _form(kind).fields_of(value)


def decode_item(kind: type, fields: Row) -> Any:
    """Return the value of `encode_item`."""
    return _form(kind).value_of(fields)


def schema() -> dict[str, list[str]]:
    """Return the field names of every type in recordings, nested types included."""
    return {name: list(_form(kind).names) for name, kind in sorted(_kinds().items())}


@cache
def _kinds() -> dict[str, type]:
    found: dict[str, type] = {}
    waiting: list[Any] = list(RECORDED)
    while waiting:
        kind = waiting.pop()
        if _is_record(kind):
            if kind.__name__ not in found:
                found[kind.__name__] = kind
                waiting += typing.get_type_hints(kind).values()
        else:
            waiting += [argument for argument in typing.get_args(kind) if argument is not Ellipsis]
    return found


class Decoder:
    """Reads rows that were written with some schema: this version's, or an older one's."""

    def __init__(self, written: Mapping[str, list[str]]) -> None:
        """Compare the schemas.

        Raises:
            CodecError: a type or field of the file is not known here, or one that is needed was not written.
        """
        self._names: dict[str, tuple[str, ...] | None] = {}
        kinds = _kinds()
        nested = schema()
        for name, fields in written.items():
            if name not in nested:
                raise CodecError(f"it holds values of a type that this version does not know: {name}")
            unknown = [field for field in fields if field not in nested[name]]
            if unknown:
                raise CodecError(f"{name} has fields that this version does not know: {', '.join(unknown)}")
            missing = _form(kinds[name]).required - set(fields)
            if missing:
                raise CodecError(f"{name} lacks fields that this version needs: {', '.join(sorted(missing))}")
            in_order = fields == nested[name][: len(fields)]
            if not in_order and name not in _BY_NAME:
                raise CodecError(f"{name} has its fields in another order than in this version")
            self._names[name] = None if in_order else tuple(fields)

    def decode(self, row: Row) -> Any:
        """Return the value of a row.

        Raises:
            CodecError: the row has another form than its type.
        """
        try:
            name = row[0]
            return _form(_BY_NAME[name]).value_of(row[1:], self._names[name])
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise CodecError(f"a row that cannot be read ({type(error).__name__}: {error})") from error


_ITEMS_A_ROW = 128


def said_of(effects: list[Effect]) -> list[object]:
    """Return the recorded part of the effects: decisions, and changes of availability."""
    return [
        effect.decision if isinstance(effect, Record) else effect
        for effect in effects
        if isinstance(effect, Record | SetAvailability)
    ]


@cache
def core_digest() -> str:
    """Return a digest of the core's source text: equal ones decide alike."""
    digest = hashlib.blake2b(digest_size=8)
    for place in lbguard.core.__path__:
        for path in sorted(Path(place).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


# Checkpoints


def encode_nodes(nodes: Iterable[Node]) -> Iterator[list[Any]]:
    """Return the nodes as short lists that JSON can hold: `[kind, limit, ...items]`, and `["", ...items]` goes on.

    Keys and values of a mapping take turns.
    """
    for node in nodes:
        row = [node.kind, node.limit]
        items = node.content
        for start in range(0, len(items), _ITEMS_A_ROW):
            row += [_plain(item) for item in items[start : start + _ITEMS_A_ROW]]
            yield row
            row = [""]
        if not items:
            yield row


def decode_nodes(rows: Iterable[list[Any]]) -> list[Node]:
    """Return the nodes of `encode_nodes`.

    Raises:
        CheckpointError: a row has another form.
    """
    nodes: list[Node] = []
    try:
        for kind, *rest in rows:
            if kind:
                nodes.append(Node(kind, [_value(item) for item in rest[1:]], rest[0]))
            else:
                nodes[-1].content.extend(_value(item) for item in rest)
        return nodes
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"a node that cannot be read ({type(error).__name__}: {error})") from error


def _plain(value: Any) -> Any:
    kind: Any = type(value)
    if kind in PLAIN:
        return value
    if kind is Ref:
        return {"@": value.number}
    if kind is Method:
        return {"m": [value.number, value.name]}
    if kind is bytes:
        return {"b": value.hex()}
    if kind is frozenset:
        return {"f": sorted(value)}
    if kind is tuple:
        return {"t": [_plain(item) for item in value]}
    if isinstance(value, Enum):
        return {"e": [kind.__name__, value.value]}
    if isinstance(value, dict):
        # Inside of a frozen value (a configuration): nobody changes it.
        return {"d": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if never_changes(kind):
        items = value if isinstance(value, tuple) else [getattr(value, name) for name in _names(kind)]
        return {"v": [kind.__name__, *map(_plain, items)]}
    raise TypeError(f"{kind.__qualname__} has no place in a checkpoint")


def _value(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    ((tag, content),) = plain.items()
    match tag:
        case "@":
            return Ref(content)
        case "m":
            return Method(*content)
        case "b":
            return bytes.fromhex(content)
        case "f":
            return frozenset(content)
        case "t":
            return tuple([_value(item) for item in content])
        case "e":
            return classes()[content[0]](content[1])
        case "d":
            return {_value(key): _value(item) for key, item in content}
        case "v":
            kind: Any = classes()[content[0]]
            items = [_value(item) for item in content[1:]]
            return kind(*items) if issubclass(kind, tuple) else kind(**dict(zip(_names(kind), items, strict=True)))
    raise ValueError(f"unknown tag {tag!r}")
