"""The embedded distributor: slot tables in nftables maps, on any Linux machine, without nfqlb.

`nft_ruleset` holds the ruleset itself and the reasons for its shape. This module keeps it equal to what is asked:

- every commit is one transaction for all streams, with the elements of differing slots only;
- a table that exists is adopted: its slots and active marks are read back and left as they are;
- whoever else changes the ruleset is noticed by the kernel's generation counter, which every transaction of the
  network namespace raises by one. As long as it counts our own transactions only, nobody touched our table, and a check
  costs one netlink round trip. Otherwise the table is read and compared.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lbguard.core.addr import Prefix
from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor import nft_ruleset
from lbguard.distributor.base import CommitResult, DistributorError
from lbguard.distributor.maglev import (
    NO_TARGET,
    ImplicitPermutations,
    TableCalculator,
    TableKind,
    largest_prime_at_most,
)
from lbguard.distributor.nft_counters import HeldCount
from lbguard.distributor.nft_ruleset import FAMILY, TABLE, StreamNames
from lbguard.distributor.nft_session import LIBRARY, NftContext, NftError, NftSession

_log = logging.getLogger(__name__)

_Objects = list[dict[str, Any]]


@dataclass(slots=True, kw_only=True)
class _Held:
    """What the kernel holds for an attached stream, as far as we know."""

    stream: StreamSpec
    names: StreamNames
    calculator: TableCalculator
    slots_total: int
    slots: dict[int, int] = field(default_factory=dict)
    active: frozenset[int] = frozenset()
    handles: frozenset[tuple[str, str, int]] = frozenset()
    other_size: bool = False
    """The map in the kernel has another number of slots: the next commit replaces it."""
    lost: str = ""
    """What someone else did to the stream's table, until a commit has mended it; empty when nothing."""
    doubtful: bool = False
    """A commit failed: read back before the next one."""


@dataclass(slots=True, kw_only=True)
class _Plan:
    """One stream's part of a commit."""

    held: _Held
    stream: StreamSpec
    lines: list[str]
    slots: dict[int, int]
    active: frozenset[int]
    slots_changed: int
    renewed: bool


class NftDistributor:
    """The distributor of kind `nftables`.

    It works in the network namespace of the thread that constructs it. `hash_seed` (32 bits) must be the same on all
    load balancers that serve the same VIPs, or a flow that moves from one to another changes its target. The number of
    slots of a stream is the largest prime not above `slots_per_target * max_targets`.
    """

    kind = "nftables"

    def __init__(
        self, table: TableKind, hash_seed: int = 0, slots_per_target: int = 100, *, library: str = LIBRARY
    ) -> None:
        if not 0 <= hash_seed < 2**32:
            raise ValueError(f"hash_seed {hash_seed}: 0 to 4294967295 are allowed")
        self._table = table
        self._seed = hash_seed
        self._slots_per_target = slots_per_target
        self._session = NftSession(library)
        # The rest is touched by the session's thread alone.
        self._streams: dict[str, _Held] = {}
        self._defragment = True
        self._generation: int | None = None

    async def attach(self, stream: StreamSpec) -> None:
        """Make a stream's table ready; one that exists keeps its slots, its rules are renewed for these VIPs.

        A table with another number of slots (`max_targets` was changed) is left alone until the next commit.

        Raises:
            DistributorError: nftables is missing or not permitted, or the stream cannot be expressed in it.
        """
        await self._session.call(lambda nft: self._attach(nft, stream))

    async def read_active(self, stream: StreamSpec) -> frozenset[int]:
        """Return the identifiers that are active in a stream's table.

        Raises:
            DistributorError: the table is gone or cannot be read.
        """
        names = _names(stream)
        marks = await self._session.call(lambda nft: _read_active(nft, names))
        if marks is None:
            raise DistributorError(
                f"stream {stream.name}: nftables table {FAMILY} {TABLE} holds nothing of it (removed?)"
            )
        return frozenset(
            mark - stream.identifier_offset
            for mark in marks
            if stream.mark(0) < mark <= stream.mark(stream.max_targets)
        )

    async def commit(self, tables: Sequence[StreamTable]) -> Sequence[CommitResult]:
        """Bring the tables to these states in one transaction; see the protocol.

        When it fails as a whole, each stream is read back and tried alone, so one bad stream stops no other.
        """
        return await self._session.call(lambda nft: self._commit(nft, tables))

    async def lost_streams(self) -> dict[str, str]:
        """Return the streams whose rules or slots were changed by someone else, until a commit has renewed them.

        Raises:
            DistributorError: the ruleset cannot be read.
        """
        return await self._session.call(self._lost_streams)

    async def detach(self, stream: StreamSpec, *, withdraw: bool) -> None:
        """Stop looking after a stream; with `withdraw` remove all of it, and the table with the last stream.

        Raises:
            DistributorError: the removal was refused.
        """
        await self._session.call(lambda nft: self._detach(nft, stream, withdraw))

    async def prune(self, known: Collection[str]) -> Sequence[str]:
        """Remove the streams that an earlier run left in the table; their rules would go on taking their VIPs.

        Raises:
            DistributorError: the table cannot be read, or the removal was refused.
        """
        strangers = sorted(await self.present_streams() - set(known))
        for name in strangers:
            await self.detach(StreamSpec(name=name), withdraw=True)
        return strangers

    async def present_streams(self) -> frozenset[str]:
        """Return the streams that stand in the kernel's table, attached or left there by an earlier run.

        Raises:
            DistributorError: the table cannot be read.
        """
        return await self._session.call(_present_streams)

    async def read_unserved(self, stream: StreamSpec) -> HeldCount:
        """Return the packets and bytes to a stream's VIPs that were dropped because no target was active.

        Raises:
            DistributorError: the counter is gone or cannot be read.
        """
        name = _names(stream).unserved
        objects = await self._session.call(lambda nft: nft.listing(f"list counter {FAMILY} {TABLE} {name}"))
        for counter in _of_kind(objects or [], "counter"):
            return HeldCount(counter["packets"], counter["bytes"])
        raise DistributorError(f"stream {stream.name}: its counter of dropped packets is gone")

    async def remove(self) -> None:
        """Remove the whole table with all streams, attached or not; an absent one is no error.

        Raises:
            DistributorError: the removal was refused.
        """
        await self._session.call(self._remove)

    async def close(self) -> None:
        """End the worker thread; the table stays."""
        await self._session.close()

    def _attach(self, nft: NftContext, stream: StreamSpec) -> None:
        self._warn_of_overlap(stream)
        if not self._streams:
            self._generation = nft.generation()
        held = self._read(nft, stream)
        if not held.other_size:
            self._renew(nft, held, stream)
        self._streams[stream.name] = held

    def _read(self, nft: NftContext, stream: StreamSpec) -> _Held:
        """Read back what the kernel holds for a stream."""
        names = _names(stream)
        wanted_size = largest_prime_at_most(self._slots_per_target * stream.max_targets)
        known = self._streams.get(stream.name)
        held = _Held(
            stream=stream,
            names=names,
            calculator=known.calculator
            if known and known.slots_total == wanted_size
            else TableCalculator(ImplicitPermutations(stream.name, wanted_size), self._table),
            slots_total=wanted_size,
            active=_read_active(nft, names) or frozenset(),
        )
        for table in _of_kind(nft.listing(f"list map {FAMILY} {TABLE} {names.slots}") or [], "map"):
            held.slots = dict(table.get("elem", ()))
            held.other_size = table.get("size") != wanted_size
        return held

    def _renew(self, nft: NftContext, held: _Held, stream: StreamSpec) -> None:
        """Write the rules of a stream, for its VIPs as they are now, and no element."""
        self._transact(nft, lambda: self._structure(held, stream.vips))
        held.stream = stream
        held.handles = _handles(nft.listing(f"list table {FAMILY} {TABLE}", terse=True) or [], held.names)

    def _structure(self, held: _Held, vips: Sequence[Prefix]) -> list[str]:
        return nft_ruleset.structure(
            held.names, vips, slots=held.slots_total, seed=self._seed, defragment=self._defragment
        )

    def _transact(self, nft: NftContext, lines: Callable[[], list[str]]) -> None:
        """Run the lines in one transaction; without kernel defragmentation where the kernel has no tproxy."""
        commands = lines()
        if not commands:
            return
        try:
            nft.run("\n".join(commands))
        except NftError as error:
            if not self._defragment or not any("tproxy" in line for line in commands):
                raise
            self._defragment = False
            try:
                nft.run("\n".join(lines()))
            except NftError:
                self._defragment = True
                raise
            _log.warning("no defragmentation (%s): fragmented packets are spread by addresses alone", error)
        if self._generation is not None:
            ours = (self._generation + 1) % 2**32
            # Another number means that somebody else was at work too: the next check will look at the table.
            self._generation = ours if nft.generation() == ours else self._generation

    def _commit(self, nft: NftContext, tables: Sequence[StreamTable]) -> list[CommitResult]:
        started = time.monotonic()
        try:
            plans = [self._plan(nft, table) for table in tables]
            self._apply(nft, plans)
        except (DistributorError, ValueError) as error:
            if len(tables) > 1:
                return [result for table in tables for result in self._commit(nft, [table])]
            return [self._retry(nft, table, str(error), started) for table in tables]
        duration_s = time.monotonic() - started
        return [_result(plan, duration_s) for plan in plans]

    def _retry(self, nft: NftContext, table: StreamTable, error: str, started: float) -> CommitResult:
        """Read the kernel's table anew and commit once more: someone else may have changed it."""
        name = table.stream.name
        held = self._streams.get(name)
        if held is None:
            return CommitResult(stream=name, error=error)
        held.doubtful = True
        try:
            plan = self._plan(nft, table)
            self._apply(nft, [plan])
        except (DistributorError, ValueError) as second:
            return CommitResult(stream=name, slots_total=held.slots_total, error=f"stream {name}: {second}")
        return _result(plan, time.monotonic() - started)

    def _plan(self, nft: NftContext, table: StreamTable) -> _Plan:
        stream = table.stream
        held = self._streams.get(stream.name)
        if held is None:
            raise DistributorError(f"stream {stream.name} is not attached")
        strangers = [i for i in table.registered | table.active if not 1 <= i <= stream.max_targets]
        if strangers:
            raise DistributorError(f"identifiers {sorted(strangers)} are outside 1..{stream.max_targets}")
        renew = held.doubtful or bool(held.lost) or held.other_size or _shape(stream) != _shape(held.stream)
        if renew:
            held = self._read(nft, stream)
        wanted = {
            slot: stream.mark(index + 1)
            for slot, index in enumerate(
                held.calculator.table({i - 1 for i in table.registered}, {i - 1 for i in table.active})
            )
            if index != NO_TARGET
        }
        active = frozenset(map(stream.mark, table.active))
        replaced = nft_ruleset.slots_removal(held.names) if held.other_size else []
        elements, changed = nft_ruleset.slot_changes(held.names, {} if held.other_size else held.slots, wanted)
        elements += nft_ruleset.active_changes(held.names, held.active, active)
        lines = [*replaced, *(self._structure(held, stream.vips) if renew else ()), *elements]
        return _Plan(
            held=held, stream=stream, lines=lines, slots=wanted, active=active, slots_changed=changed, renewed=renew
        )

    def _apply(self, nft: NftContext, plans: Sequence[_Plan]) -> None:
        def lines() -> list[str]:
            return [
                line for plan in plans for line in plan.lines if self._defragment or not nft_ruleset.defragments(line)
            ]

        self._transact(nft, lines)
        objects = nft.listing(f"list table {FAMILY} {TABLE}", terse=True) or [] if any(p.renewed for p in plans) else []
        for plan in plans:
            held = plan.held
            held.stream, held.slots, held.active = plan.stream, plan.slots, plan.active
            held.other_size, held.lost, held.doubtful = False, "", False
            if plan.renewed:
                held.handles = _handles(objects, held.names)
            self._streams[plan.stream.name] = held

    def _lost_streams(self, nft: NftContext) -> dict[str, str]:
        generation = nft.generation()
        if generation != self._generation and self._streams:
            objects = nft.listing(f"list table {FAMILY} {TABLE}") or []
            defragmenting = sum(rule["chain"] == nft_ruleset.DEFRAGMENT for rule in _of_kind(objects, "rule"))
            for held in self._streams.values():
                if self._defragment and not defragmenting and not held.other_size:
                    held.lost = "the rules that switch defragmentation on were removed"
                held.lost = _difference(objects, held) or held.lost
            self._generation = generation
        return {name: held.lost for name, held in self._streams.items() if held.lost}

    def _detach(self, nft: NftContext, stream: StreamSpec, withdraw: bool) -> None:
        if withdraw:
            names = _names(stream)
            objects = nft.listing(f"list table {FAMILY} {TABLE}", terse=True)
            present = {thing["name"] for kind in _KINDS for thing in _of_kind(objects or [], kind)}
            lines = nft_ruleset.removal(names, present)
            if objects is not None and not present - {*names, nft_ruleset.DEFRAGMENT}:
                lines = [nft_ruleset.TABLE_REMOVAL]
            self._transact(nft, lambda: lines)
        self._streams.pop(stream.name, None)

    def _remove(self, nft: NftContext) -> None:
        if nft.listing(f"list table {FAMILY} {TABLE}", terse=True) is not None:
            self._transact(nft, lambda: [nft_ruleset.TABLE_REMOVAL])
        self._streams.clear()

    def _warn_of_overlap(self, stream: StreamSpec) -> None:
        """Say which VIPs two streams share: one of them gets nothing. A VIP that moves may overlap for a moment."""
        for other in (held.stream for name, held in self._streams.items() if name != stream.name):
            for vip, taken in itertools.product(stream.vips, other.vips):
                if nft_ruleset.overlap(vip, taken):
                    _log.warning("VIP %s of stream %s overlaps %s of stream %s", vip, stream.name, taken, other.name)


_KINDS = ("map", "set", "counter", "chain")


def _names(stream: StreamSpec) -> StreamNames:
    try:
        return nft_ruleset.stream_names(stream.name)
    except ValueError as error:
        raise DistributorError(str(error)) from error


def _shape(stream: StreamSpec) -> tuple[object, ...]:
    """Return what of a stream shows in the rules and the size of the map."""
    return stream.max_targets, stream.vips


def _result(plan: _Plan, duration_s: float) -> CommitResult:
    return CommitResult(
        stream=plan.stream.name,
        slots_changed=plan.slots_changed,
        slots_total=plan.held.slots_total,
        duration_s=duration_s,
    )


def _of_kind(objects: _Objects, kind: str) -> list[dict[str, Any]]:
    return [thing[kind] for thing in objects if kind in thing]


def _read_active(nft: NftContext, names: StreamNames) -> frozenset[int] | None:
    objects = nft.listing(f"list set {FAMILY} {TABLE} {names.active}")
    return None if objects is None else _active(objects, names)


def _active(objects: _Objects, names: StreamNames) -> frozenset[int] | None:
    for marks in _of_kind(objects, "set"):
        if marks["name"] == names.active:
            return frozenset(marks.get("elem", ()))
    return None


def _present_streams(nft: NftContext) -> frozenset[str]:
    found = set()
    for table in _of_kind(nft.listing(f"list table {FAMILY} {TABLE}", terse=True) or [], "map"):
        kind, _, encoded = table["name"].partition("_")
        if kind == "slots":
            with contextlib.suppress(ValueError):  # Not one of ours.
                found.add(nft_ruleset.decode_name(encoded))
    return frozenset(found)


def _handles(objects: _Objects, names: StreamNames) -> frozenset[tuple[str, str, int]]:
    """Return the identity of everything that belongs to a stream: whatever is made anew gets a new handle."""
    found = {
        (kind, thing["name"], thing["handle"])
        for kind in _KINDS
        for thing in _of_kind(objects, kind)
        if thing["name"] in names
    }
    return frozenset(
        found.union(
            ("rule", rule["chain"], rule["handle"]) for rule in _of_kind(objects, "rule") if rule["chain"] in names
        )
    )


def _difference(objects: _Objects, held: _Held) -> str:
    """Say how the kernel's table differs from what we left there; empty when it does not."""
    maps: Mapping[str, dict[str, Any]] = {table["name"]: table for table in _of_kind(objects, "map")}
    table = maps.get(held.names.slots)
    if table is None:
        return "the table was removed from nftables"
    if dict(table.get("elem", ())) != held.slots or _active(objects, held.names) != held.active:
        return "slots were changed by someone else"
    if not held.other_size and _handles(objects, held.names) != held.handles:
        return "rules were changed by someone else"
    return ""
