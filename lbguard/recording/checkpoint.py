"""Whole state of an engine as data, so that a recording can begin at any moment and be replayed exactly.

`freeze` walks the objects of the core that hold state and copies what may change. It only refers to what never changes
(addresses, keys, routes, specifications), so that the loop is blocked as briefly as possible. Another thread writes the
result. Each object is one node, numbered from 0, the engine; nodes refer to each other by number, so that `restore`
keeps the identity of objects.
"""

import hashlib
import importlib
import pkgutil
import types
import typing
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, cast

import lbguard.core
from lbguard.core.engine import Engine

_CONTAINERS: dict[str, type] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": Counter,
    "list": list,
    "set": set,
    "deque": deque,
}
_NAME_OF_CONTAINER = {kind: name for name, kind in _CONTAINERS.items()}
_ITEMS_A_ROW = 128
_PLAIN = (bool, int, float, str, type(None))


class CheckpointError(Exception):
    """A checkpoint that cannot be restored here; the message says why."""


class _Ref(NamedTuple):
    """Reference to another node."""

    number: int


class _Method(NamedTuple):
    """Reference to a method of another node."""

    number: int
    name: str


class Node(NamedTuple):
    """One object: its class, and its content in an immutable form.

    The content is the items of a container; keys and values of a mapping alternate; for an object of the core, its
    attributes in order if it has slots, else alternating names and values. `limit` is the maximal length of a deque.
    """

    kind: str
    content: list[Any]
    limit: int | None = None


@cache
def _classes() -> dict[str, type]:
    """Return every class of the core by its name."""
    found = {}
    for module in pkgutil.iter_modules(lbguard.core.__path__):
        for name, kind in vars(importlib.import_module(f"lbguard.core.{module.name}")).items():
            if isinstance(kind, type) and kind.__module__.startswith("lbguard.core."):
                found[name] = kind
    return found


@cache
def core_digest() -> str:
    """Return a digest of the core's source text: equal ones decide alike."""
    digest = hashlib.blake2b(digest_size=8)
    for place in lbguard.core.__path__:
        for path in sorted(Path(place).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _never_changes(kind: type) -> bool:
    """Return whether values of a type can be shared between the engine and its copy."""
    frozen = is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    return kind in _PLAIN or kind in (bytes, frozenset) or frozen or issubclass(kind, tuple | Enum)


class _Slots(NamedTuple):
    """Copy plan for objects of a class with slots: all attributes at once, then those (by index) that may change."""

    names: list[str]
    get: Callable[[Any], tuple[Any, ...]]
    changing: list[int]


@cache
def _slots(kind: type) -> _Slots | None:
    """Return how to copy objects of a class; None for a class without slots."""
    if not (is_dataclass(kind) and hasattr(kind, "__slots__")):
        return None
    names = [field.name for field in fields(kind)]
    hints = typing.get_type_hints(kind)
    changing = [index for index, name in enumerate(names) if _may_change(hints[name])]
    return _Slots(names, attrgetter(*names) if len(names) > 1 else lambda one: (getattr(one, names[0]),), changing)


def _may_change(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        return any(_may_change(argument) for argument in typing.get_args(hint))
    kind = origin or hint
    return not (isinstance(kind, type) and _never_changes(cast("Any", kind)))


class _Walk:
    def __init__(self) -> None:
        self.objects: list[Any] = []
        self._numbers: dict[int, int] = {}

    def number(self, thing: object) -> int:
        number = self._numbers.get(id(thing))
        if number is None:
            number = self._numbers[id(thing)] = len(self.objects)
            self.objects.append(thing)
        return number

    def keep(self, value: Any) -> Any:
        kind: Any = type(value)
        if _never_changes(kind):
            return value
        if isinstance(value, types.MethodType):
            return _Method(self.number(value.__self__), value.__name__)
        return _Ref(self.number(value))

    def keep_all(self, values: Iterable[Any]) -> list[Any]:
        kept = list(values)
        if all(map(_never_changes, set(map(type, kept)))):
            return kept
        return [self.keep(value) for value in kept]


def freeze(engine: Engine) -> list[Node]:
    """Copy the state of an engine: in its loop's thread, between two calls."""
    walk = _Walk()
    walk.number(engine)
    nodes: list[Node] = []
    # The list grows while it is walked.
    for thing in walk.objects:
        kind: Any = type(thing)
        name = _NAME_OF_CONTAINER.get(kind, "")
        if not name:
            nodes.append(_freeze_object(thing, walk))
        elif isinstance(thing, dict):
            nodes.append(Node(name, _by_turns(walk.keep_all(thing), walk.keep_all(thing.values()))))
        else:
            nodes.append(Node(name, walk.keep_all(thing), thing.maxlen if kind is deque else None))
    return nodes


def _by_turns(keys: list[Any], values: list[Any]) -> list[Any]:
    items = [None] * (2 * len(keys))
    items[::2], items[1::2] = keys, values
    return items


def _freeze_object(thing: Any, walk: _Walk) -> Node:
    kind: Any = Engine if isinstance(thing, Engine) else type(thing)
    slots = _slots(kind)
    if slots is not None:
        values = list(slots.get(thing))
        for index in slots.changing:
            values[index] = walk.keep(values[index])
        return Node(kind.__name__, values)
    if not any(known is kind for known in _classes().values()):
        raise TypeError(f"{kind.__module__}.{kind.__qualname__} is not a class of the core")
    own = {name: value for name, value in vars(thing).items() if not name.startswith("tape_")}
    return Node(kind.__name__, _by_turns(list(own), walk.keep_all(own.values())))


# Writing and reading


def encode_nodes(nodes: Iterable[Node]) -> Iterator[list[Any]]:
    """Return the nodes as short lists for JSON: `[kind, limit, ...items]`; `["", ...items]` continues one.

    Keys and values of a mapping alternate.
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
    if kind in _PLAIN:
        return value
    if kind is _Ref:
        return {"@": value.number}
    if kind is _Method:
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
        # Part of a frozen value (a configuration), which never changes.
        return {"d": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if _never_changes(kind):
        items = value if isinstance(value, tuple) else [getattr(value, name) for name in _names(kind)]
        return {"v": [kind.__name__, *map(_plain, items)]}
    raise TypeError(f"{kind.__qualname__} has no place in a checkpoint")


@cache
def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _value(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    ((tag, content),) = plain.items()
    match tag:
        case "@":
            return _Ref(content)
        case "m":
            return _Method(*content)
        case "b":
            return bytes.fromhex(content)
        case "f":
            return frozenset(content)
        case "t":
            return tuple([_value(item) for item in content])
        case "e":
            return _classes()[content[0]](content[1])
        case "d":
            return {_value(key): _value(item) for key, item in content}
        case "v":
            kind: Any = _classes()[content[0]]
            items = [_value(item) for item in content[1:]]
            return kind(*items) if issubclass(kind, tuple) else kind(**dict(zip(_names(kind), items, strict=True)))
    raise ValueError(f"unknown tag {tag!r}")


def restore(nodes: list[Node]) -> Engine:
    """Return an engine in the state that was frozen.

    Raises:
        CheckpointError: it does not fit this version of the core.
    """
    try:
        things = [_empty(node) for node in nodes]
        for thing, node in zip(things, nodes, strict=True):
            _fill(thing, node, things)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"it does not fit this version ({type(error).__name__}: {error})") from error
    if not things or not isinstance(things[0], Engine):
        raise CheckpointError("it holds no engine")
    return things[0]


def _empty(node: Node) -> Any:
    if node.kind == "deque":
        return deque(maxlen=node.limit)
    if node.kind in _CONTAINERS:
        return _CONTAINERS[node.kind]()
    kind: Any = _classes()[node.kind]
    return kind.__new__(kind)


def _fill(thing: Any, node: Node, things: list[Any]) -> None:
    def found(value: Any) -> Any:
        if type(value) is _Ref:
            return things[value.number]
        if type(value) is _Method:
            return getattr(things[value.number], value.name)
        return value

    if node.kind in ("list", "deque"):
        thing.extend(found(item) for item in node.content)
    elif node.kind == "set":
        thing.update(found(item) for item in node.content)
    elif node.kind in _CONTAINERS:
        for key, value in zip(node.content[::2], node.content[1::2], strict=True):
            thing[found(key)] = found(value)
    else:
        kind: Any = type(thing)
        slots = _slots(kind)
        names, values = (slots.names, node.content) if slots else (node.content[::2], node.content[1::2])
        for name, value in zip(names, values, strict=True):
            setattr(thing, name, found(value))
