"""Parser of the lists of Meridio's registry. Pure.

An unusable entry is skipped and reported, never the whole list. Otherwise the rules are those of Meridio's load
balancer: a target that is not ENABLED is not served, and of two targets with one identifier the last of the list
counts.
"""

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from lbguard.api.gen.meridio.nsp.v1 import nsp_pb2 as pb
from lbguard.core.addr import Ip, Prefix, parse_prefix, why_no_vip, why_not_unicast
from lbguard.core.model import MAX_TARGETS, NAME_PATTERN, TargetKey
from lbguard.sources.skipped import Reason, Skipped, shown

IDENTIFIER_KEY = "identifier"
"""The key of a target's context that holds its identifier."""

DEFAULT_MAX_TARGETS = 100
"""Registries before Meridio 1.0 report 0; Meridio's own clients read that as 100."""

Value = TypeVar("Value")

_IDENTIFIER_DIGITS = 9


class Place(NamedTuple):
    """The conduit that is watched, and its trench."""

    trench: str
    conduit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Read(Generic[Value]):
    """Content of a list, and the entries of it that were skipped."""

    value: Value
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEntries:
    """The targets of a list: those to serve with their addresses, IPv4 first, and those that are listed only.

    `unreadable_keys` and `unreadable_ips` (with the stream's name) are of entries whose other half could not be read.
    """

    served: Mapping[TargetKey, tuple[Ip, ...]]
    unreadable_keys: frozenset[TargetKey] = frozenset()
    unreadable_ips: frozenset[tuple[str, tuple[Ip, ...]]] = frozenset()


def _is_of(place: Place, conduit: pb.Conduit) -> bool:
    return (conduit.trench.name, conduit.name) == place


def read_streams(response: pb.StreamResponse, place: Place) -> Read[dict[str, int]]:
    """Read a list of streams: the room for targets by name, in the order of the list."""
    streams: dict[str, int] = {}
    skipped: list[Skipped] = []
    for stream in response.streams:
        room = stream.maxTargets or DEFAULT_MAX_TARGETS
        reason = None
        if not _is_of(place, stream.conduit):
            reason = Reason.FOREIGN_CONDUIT
        elif NAME_PATTERN.fullmatch(stream.name) is None:
            reason = Reason.BAD_STREAM_NAME  # it would become the name of a file
        elif room > MAX_TARGETS:
            reason = Reason.BAD_MAX_TARGETS
        elif stream.name in streams:
            reason = Reason.DUPLICATE_STREAM
        if reason is None:
            streams[stream.name] = room
        else:
            skipped.append(Skipped(reason, f"stream {shown(stream.name)}"))
    return Read(value=streams, skipped=tuple(skipped))


def read_vips(response: pb.VipResponse, place: Place) -> Read[dict[Prefix, None]]:
    """Read a list of VIPs, in the order of the list."""
    vips: dict[Prefix, None] = {}
    skipped: list[Skipped] = []
    for vip in response.vips:
        if vip.trench.name != place.trench:
            skipped.append(Skipped(Reason.FOREIGN_CONDUIT, f"VIP {shown(vip.name)}"))
            continue
        try:
            prefix = parse_prefix(vip.address)
            if why := why_no_vip(prefix):
                raise ValueError(f"it is {why}")
            vips[prefix] = None
        except ValueError as error:
            what = f"VIP {shown(vip.name)}: {shown(vip.address)}: {str(error)[:80]}"
            skipped.append(Skipped(Reason.BAD_VIP, what))
    return Read(value=vips, skipped=tuple(skipped))


@dataclass(slots=True)
class _TargetReader:
    """Reads one list of targets."""

    place: Place
    served: dict[TargetKey, tuple[Ip, ...]] = field(default_factory=dict)
    unreadable_keys: set[TargetKey] = field(default_factory=set)
    unreadable_ips: set[tuple[str, tuple[Ip, ...]]] = field(default_factory=set)
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, target: pb.Target) -> None:
        if target.type != pb.Target.DEFAULT or target.status != pb.Target.ENABLED:
            return
        stream = target.stream.name
        if not _is_of(self.place, target.stream.conduit):
            self._skip(Reason.FOREIGN_CONDUIT, f"target of stream {shown(stream)}")
            return
        text = target.context.get(IDENTIFIER_KEY)
        what = f"target {shown(text)} of stream {shown(stream)}"
        ips, problem = _addresses(target.ips, what)
        key = TargetKey(stream, int(text)) if text is not None and _is_identifier(text) else None
        if key is None:
            self._skip(Reason.NO_IDENTIFIER if text is None else Reason.BAD_IDENTIFIER, what)
            self.unreadable_ips.add((stream, ips))
            return
        if problem is not None:
            self.skipped.append(problem)
            if not ips or problem.reason is Reason.BAD_ADDRESS:
                self.unreadable_keys.add(key)
                return
        if self.served.get(key, ips) != ips:
            self._skip(Reason.DUPLICATE_IDENTIFIER, f"{what}: the last entry counts")
        self.served[key] = ips

    def _skip(self, reason: Reason, what: str) -> None:
        self.skipped.append(Skipped(reason, what))


def read_targets(response: pb.TargetResponse, place: Place) -> Read[TargetEntries]:
    """Read a list of targets. `compose.py` checks that their streams exist and have room."""
    reader = _TargetReader(place)
    for target in response.targets:
        reader.add(target)
    return Read(
        value=TargetEntries(
            served=reader.served,
            unreadable_keys=frozenset(reader.unreadable_keys - reader.served.keys()),
            unreadable_ips=frozenset(reader.unreadable_ips),
        ),
        skipped=tuple(reader.skipped),
    )


def _is_identifier(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _IDENTIFIER_DIGITS


def _addresses(texts: Iterable[str], what: str) -> tuple[tuple[Ip, ...], Skipped | None]:
    """Return one address per family, IPv4 first, and the problem of the others."""
    by_length: dict[int, Ip] = {}
    problem: Skipped | None = None
    for text in texts:
        try:
            ip = _address(text)
        except ValueError as error:
            problem = Skipped(Reason.BAD_ADDRESS, f"{what}: {shown(text)}: {error}")
            continue
        if by_length.setdefault(len(ip), ip) != ip and problem is None:
            problem = Skipped(Reason.SURPLUS_ADDRESS, f"{what}: {shown(text)}; one address a family is used")
    if not by_length and problem is None:
        problem = Skipped(Reason.NO_ADDRESS, what)
    return tuple(by_length[length] for length in sorted(by_length)), problem


def _address(text: str) -> Ip:
    """Read `address` or `address/length`: the length is that of the proxy's subnet and does not concern the target.

    The C library parses addresses; `ipaddress` takes thirty times as long, which would block the loop for a list of
    thousands.
    """
    host, slash, length = text.partition("/")
    try:
        ip = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except (OSError, ValueError):
        raise ValueError("not an address, or it has a zone" if "%" in host else "not an address") from None
    if slash and not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= len(ip) * 8):
        raise ValueError("its length is none")
    if why := why_not_unicast(ip):
        raise ValueError(f"it is {why}")
    return ip
