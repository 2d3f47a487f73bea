"""State of a stream in the kernel's nftables table, and the plan of a commit: the slots that have to change."""

import contextlib
from array import array
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import CommitResult
from lbguard.distributor.maglev import TableCalculator, table_digest
from lbguard.distributor.nftables import elements as nft_elements
from lbguard.distributor.nftables import ruleset as nft_ruleset
from lbguard.distributor.nftables.elements import NO_MARK, SLOT_CODE
from lbguard.distributor.nftables.inventory import Kind, RulesetObject, read_sets
from lbguard.distributor.nftables.nfnetlink import GET_ELEMENTS, Nfnetlink, Request
from lbguard.distributor.nftables.ruleset import TABLE, StreamNames


@dataclass(slots=True, kw_only=True)
class Held:
    """Known state of an attached stream in the kernel."""

    stream: StreamSpec
    names: StreamNames
    calculator: TableCalculator
    map_name: str
    """The map of the lookup: `names.slots` or `names.spare`."""
    slots: "array[int]"
    """The mark of each slot, as in `elements.py`."""
    active: frozenset[int]
    things: frozenset[RulesetObject] = frozenset()
    """All objects of the stream except elements, as last written."""
    complete: bool = False
    """Maps, sets and counters exist: only rules and elements may have to be written."""
    unfit: bool = False
    """The map in the kernel has another size, or an element that is not a slot: the next commit replaces it."""
    lost: str = ""
    """Another program's change of the stream's table, until a commit has corrected it; empty: none."""
    doubtful: bool = False
    """A commit failed: read back before the next one."""
    unread: bool = False
    """An earlier run left it, and its elements were not read yet: the first commit reads them."""

    @property
    def slots_total(self) -> int:
        """The number of slots, M."""
        return len(self.slots)


def empty_slots(total: int) -> "array[int]":
    """Return the slots of an empty map."""
    return array(SLOT_CODE, (NO_MARK,)) * total


def unread(
    things: Collection[RulesetObject], stream: StreamSpec, calculator: TableCalculator, slots_total: int
) -> Held:
    """Return the state of a stream in an inventory, without elements, for this number of slots.

    Raises:
        ValueError: the stream's name is empty or too long.
    """
    names = nft_ruleset.stream_names(stream.name)
    present = of_stream(things, names)
    maps = [thing for thing in present if thing.kind is Kind.MAP]
    return Held(
        stream=stream,
        names=names,
        calculator=calculator,
        map_name=maps[0].name if maps else names.slots,
        slots=empty_slots(slots_total),
        active=frozenset(),
        complete={thing.name for thing in present} >= {names.active, names.unserved} and bool(maps),
        unfit=bool(maps) and maps[0].size != slots_total,
        unread=True,
    )


def read_held(
    kernel: Nfnetlink,
    things: Collection[RulesetObject],
    stream: StreamSpec,
    calculator: TableCalculator,
    slots_total: int,
) -> Held:
    """Read back the kernel's state of a stream of this inventory, which has at most one map.

    Raises:
        NftError: the kernel refuses.
        ValueError: the stream's name is empty or too long.
    """
    held = unread(things, stream, calculator, slots_total)
    if not held.unfit and any(thing.name == held.map_name for thing in things):
        slots = read_slots(kernel, held.map_name, slots_total)
        held.unfit = slots is None
        held.slots = empty_slots(slots_total) if slots is None else slots
    held.active = read_marks(kernel, held.names) or frozenset()
    held.unread = False
    return held


def of_stream(things: Iterable[RulesetObject], names: StreamNames) -> frozenset[RulesetObject]:
    """Return the objects of one stream."""
    return frozenset(thing for thing in things if thing.name in names)


def has_rules(things: Iterable[RulesetObject], names: StreamNames, written: Mapping[str, int]) -> bool:
    """Return whether each chain of a stream has as many rules as were written to it."""
    present = Counter(thing.name for thing in things if thing.kind is Kind.RULE)
    return all(present[chain] == written.get(chain, 0) for chain in names.chains)


def is_left_over(things: Iterable[RulesetObject]) -> bool:
    """Return whether these are only what `remove_table` leaves of streams: chains with a hook, and no rules in them."""
    others = [thing for thing in things if thing.name != nft_ruleset.DEFRAGMENT]
    return all(thing.kind is Kind.CHAIN and thing.priority is not None for thing in others)


def read_slots(kernel: Nfnetlink, map_name: str, total: int) -> "array[int] | None":
    """Return the mark of each slot of a map; None when the map is gone or has other elements.

    Raises:
        NftError: the kernel refuses.
    """
    found = kernel.dump(GET_ELEMENTS, nft_elements.list_request(TABLE, map_name))
    if found is None:
        return None
    slots = empty_slots(total)
    for keys, marks in nft_elements.read_pairs(found):
        if keys and not (0 <= min(keys) <= max(keys) < total and min(marks) >= 0):
            return None
        # A loop over ten thousand elements takes longer than the kernel's dump.
        deque(map(slots.__setitem__, keys, marks), maxlen=0)
    return slots


def read_marks(kernel: Nfnetlink, names: StreamNames) -> frozenset[int] | None:
    """Return the marks of a stream's active targets; None when the kernel does not have the stream.

    Raises:
        NftError: the kernel refuses.
    """
    found = kernel.dump(GET_ELEMENTS, nft_elements.list_request(TABLE, names.active))
    return None if found is None else nft_elements.read_keys(found)


def read_streams(kernel: Nfnetlink) -> frozenset[str]:
    """Return the names of the streams in the kernel's table.

    Raises:
        NftError: the kernel refuses.
    """
    names = set()
    for thing in read_sets(kernel, TABLE) or ():
        kind, _, encoded = thing.name.partition("_")
        if kind in ("slots", "spare", "active"):
            with contextlib.suppress(ValueError):  # Not one of ours.
                names.add(nft_ruleset.decode_name(encoded))
    return frozenset(names)


def difference(kernel: Nfnetlink, things: Iterable[RulesetObject], held: Held) -> str:
    """Return how the kernel's table differs from what was last written; empty when it does not.

    Raises:
        NftError: the kernel refuses.
    """
    present = of_stream(things, held.names)
    if held.map_name not in {thing.name for thing in present}:
        return "the table was removed from nftables"
    slots = held.slots if held.unfit else read_slots(kernel, held.map_name, held.slots_total)
    if slots != held.slots or read_marks(kernel, held.names) != held.active:
        return "slots were changed by someone else"
    if not held.unfit and present != held.things:
        return "rules were changed by someone else"
    return ""


def wanted_slots(stream: StreamSpec, indexes: Iterable[int]) -> "array[int]":
    """Return the mark of each slot for the target index (or NO_TARGET, -1) of each slot."""
    # The last entry is the one at index -1.
    marks = [*map(stream.mark, stream.identifiers), NO_MARK]
    return array(SLOT_CODE, map(marks.__getitem__, indexes))


@dataclass(slots=True, kw_only=True)
class Plan:
    """Steps of a commit for one stream."""

    held: Held
    stream: StreamSpec
    map_name: str
    """The map of the lookup after the commit; another one when the current map is unfit."""
    before: "array[int]"
    """Current slots of that map."""
    slots: "array[int]"
    active: frozenset[int]
    changed: list[int]
    """The slots that differ from those of the map."""
    digest: int
    renew: bool
    """Write the rules too, and before the elements the objects that these need."""

    def declarations(self) -> list[str]:
        """Return the commands that create missing maps, sets and counters."""
        if self.held.complete and not self.held.unfit:
            return []
        return nft_ruleset.declarations(self.held.names, self.map_name, self.held.slots_total)

    def element_changes(self) -> Iterator[list[Request]]:
        """Yield the slots in parts that must stay whole, then the set of active marks, which no rule uses."""
        yield from nft_elements.slot_changes(TABLE, self.map_name, self.before, self.slots, self.changed)
        yield from nft_elements.mark_changes(TABLE, self.held.names.active, self.held.active, self.active)

    def result(self, duration_s: float) -> CommitResult:
        """Return the outcome to report once the commit took effect."""
        return CommitResult(
            stream=self.stream.name,
            slots_changed=len(self.changed),
            slots_total=self.held.slots_total,
            duration_s=duration_s,
            digest=self.digest,
        )


def needs_renewal(held: Held, stream: StreamSpec) -> bool:
    """Return whether rules have to be written: the state is in doubt, or the stream's rules change."""
    in_doubt = held.unread or held.doubtful or bool(held.lost)
    return in_doubt or held.unfit or _shape(stream) != _shape(held.stream)


def make_plan(held: Held, table: StreamTable, *, renew: bool) -> Plan:
    """Compare a stream's desired table with the kernel's."""
    stream = table.stream
    indexes = held.calculator.table(set(map(stream.index, table.registered)), set(map(stream.index, table.active)))
    wanted = wanted_slots(stream, indexes)
    map_name, before = held.map_name, held.slots
    if held.unfit:
        map_name = held.names.spare if held.map_name == held.names.slots else held.names.slots
        before = empty_slots(held.slots_total)
    return Plan(
        held=held,
        stream=stream,
        map_name=map_name,
        before=before,
        slots=wanted,
        active=frozenset(map(stream.mark, table.active)),
        changed=nft_elements.differing(before, wanted),
        digest=table_digest(indexes),
        renew=renew,
    )


def _shape(stream: StreamSpec) -> tuple[object, ...]:
    """Return the properties of a stream on which the rules and the size of the map depend."""
    return stream.max_targets, stream.vips
