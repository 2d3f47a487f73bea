"""Checkpoints in a recording: the state of an engine (see `core.checkpoint`) as rows that JSON can hold."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import lbguard.core
from lbguard.core.checkpoint import PLAIN, CheckpointError, Method, Node, Ref, classes, never_changes

_ITEMS_A_ROW = 128


@cache
def core_digest() -> str:
    """Return a digest of the core's source text: equal ones decide alike."""
    digest = hashlib.blake2b(digest_size=8)
    for place in lbguard.core.__path__:
        for path in sorted(Path(place).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


# Writing and reading


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


@cache
def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


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
