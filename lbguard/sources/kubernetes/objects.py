"""Common parts of the two kinds of objects: endpoints, their addresses, and reasons why one cannot be read. Pure.

An unusable endpoint is skipped and reported, never the whole object; an object that cannot be read at all is reported,
never the others. What was read of them before stays (`compose.py`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lbguard.core.addr import Ip, parse_ip, why_not_unicast
from lbguard.sources.skipped import Reason, Skipped, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A target as an object lists it.

    `key`: its identity, by which it is known in a later version and in other objects. `label`: its name for people.
    `identifier`: None where the object has none. `draining`: it is not ready, or it terminates.
    """

    key: str
    label: str
    ips: tuple[Ip, ...]
    identifier: int | None = None
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectEntries:
    """Content of one object: the endpoints of one stream.

    `unreadable`: the keys of endpoints that are listed but cannot be used. `skipped`: why, and other problems.
    """

    stream: str
    endpoints: tuple[Endpoint, ...]
    unreadable: frozenset[str] = frozenset()
    skipped: tuple[Skipped, ...] = ()


class BadObjectError(Exception):
    """An object that cannot be read at all; the text says why."""


Read = Callable[[Mapping[str, Any]], ObjectEntries | None]
"""Reads one object; None: it is for another load balancer. Raises `BadObjectError`."""


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    """Return a value that has to be a mapping.

    Raises:
        BadObjectError: it is none.
    """
    if not isinstance(value, dict):
        raise BadObjectError(f"{name} is not a mapping")
    return value


def items(value: Any, name: str) -> list[Any]:
    """Return a value that has to be a list; none at all is an empty one.

    Raises:
        BadObjectError: it is none.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadObjectError(f"{name} is not a list")
    return value


def text(value: Any, name: str) -> str:
    """Return a value that has to be text with at least one character.

    Raises:
        BadObjectError: it is none.
    """
    if not isinstance(value, str) or not value:
        raise BadObjectError(f"{name} is missing or not text")
    return value


def optional_text(value: Any) -> str:
    """Return text; empty for anything else."""
    return value if isinstance(value, str) else ""


def flag(value: Any, name: str, *, default: bool) -> bool:
    """Return a switch, which has a meaning where it is missing.

    Raises:
        BadObjectError: it is none.
    """
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadObjectError(f"{name} is neither true nor false")
    return value


def addresses(texts: Iterable[Any], what: str) -> tuple[tuple[Ip, ...], tuple[Skipped, ...]]:
    """Return one address per family, IPv4 first, and the problems of the others."""
    by_length: dict[int, Ip] = {}
    problems: list[Skipped] = []
    for each in texts:
        try:
            ip = _address(each)
        except ValueError as error:
            problems.append(Skipped(Reason.BAD_ADDRESS, f"{what}: {shown(each)}: {error}"))
            continue
        if by_length.setdefault(len(ip), ip) != ip:
            problems.append(Skipped(Reason.SURPLUS_ADDRESS, f"{what}: {shown(each)}; one address a family is used"))
    if not by_length and not problems:
        problems.append(Skipped(Reason.NO_ADDRESS, what))
    return tuple(by_length[length] for length in sorted(by_length)), tuple(problems)


def _address(value: Any) -> Ip:
    if not isinstance(value, str) or len(value) > 64 or "/" in value:
        raise ValueError("not an address")
    try:
        ip = parse_ip(value)
    except ValueError:
        raise ValueError("not an address, or it has a zone" if "%" in value else "not an address") from None
    if why := why_not_unicast(ip):
        raise ValueError(f"it is {why}")
    return ip
