"""Checkpoints: the whole state of an engine as data, from which a recording can begin at any moment.

`freeze` walks the objects of the core that hold state and copies what may change. Immutable values (addresses, keys,
routes, specifications) are shared, not copied, so that the loop is blocked as briefly as possible. Each object is one
node, numbered from 0, the engine; nodes refer to each other by number, so that `restore` keeps the identity of objects.
"""

import importlib
import pkgutil
import types
import typing
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
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
PLAIN = (bool, int, float, str, type(None))


class CheckpointError(Exception):
    """A checkpoint cannot be restored here; the message says why."""


class Ref(NamedTuple):
    """Reference to another node."""

    number: int


class Method(NamedTuple):
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
def classes() -> dict[str, type]:
    """Return every class of the core by its name."""
    found = {}
    for module in pkgutil.iter_modules(lbguard.core.__path__):
        for name, kind in vars(importlib.import_module(f"lbguard.core.{module.name}")).items():
            if isinstance(kind, type) and kind.__module__.startswith("lbguard.core."):
                found[name] = kind
    return found


@cache
def never_changes(kind: type) -> bool:
    """Return whether values of a type can be shared between the engine and its copy."""
    frozen = is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    return kind in PLAIN or kind in (bytes, frozenset) or frozen or issubclass(kind, tuple | Enum)


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
    return not (isinstance(kind, type) and never_changes(cast("Any", kind)))


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
        if never_changes(kind):
            return value
        if isinstance(value, types.MethodType):
            return Method(self.number(value.__self__), value.__name__)
        return Ref(self.number(value))

    def keep_all(self, values: Iterable[Any]) -> list[Any]:
        kept = list(values)
        if all(map(never_changes, set(map(type, kept)))):
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
    if not any(known is kind for known in classes().values()):
        raise TypeError(f"{kind.__module__}.{kind.__qualname__} is not a class of the core")
    own = {name: value for name, value in vars(thing).items() if not name.startswith("tape_")}
    return Node(kind.__name__, _by_turns(list(own), walk.keep_all(own.values())))


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
    kind: Any = classes()[node.kind]
    return kind.__new__(kind)


def _fill(thing: Any, node: Node, things: list[Any]) -> None:
    def found(value: Any) -> Any:
        if type(value) is Ref:
            return things[value.number]
        if type(value) is Method:
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
