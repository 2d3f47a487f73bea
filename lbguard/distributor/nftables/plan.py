"""One stream's part of a commit: what differs from what the kernel holds, and the messages that make it equal. Pure."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import CommitResult
from lbguard.distributor.nftables import elements as nft_elements
from lbguard.distributor.nftables import ruleset as nft_ruleset
from lbguard.distributor.nftables import state as nft_state
from lbguard.distributor.nftables.nfnetlink import Request
from lbguard.distributor.nftables.ruleset import TABLE
from lbguard.distributor.nftables.state import Held


@dataclass(slots=True, kw_only=True)
class Plan:
    """Steps of a commit for one stream."""

    held: Held
    stream: StreamSpec
    map_name: str
    """The map that packets shall be looked up in; another one than now when that is unfit."""
    before: "array[int]"
    """Current slots of that map."""
    slots: "array[int]"
    active: frozenset[int]
    changed: list[int]
    """The slots that differ from those of the map."""
    renew: bool
    """Write the rules too, and before the elements what those need."""

    def declarations(self) -> list[str]:
        """Return the commands that make what the elements shall stand in, where something is missing."""
        if self.held.complete and not self.held.unfit:
            return []
        return nft_ruleset.declarations(self.held.names, self.map_name, self.held.slots_total)

    def element_changes(self) -> Iterator[list[Request]]:
        """Yield the slots in parts that must stay whole, then the set of active marks, which no packet goes by."""
        yield from nft_elements.slot_changes(TABLE, self.map_name, self.before, self.slots, self.changed)
        yield from nft_elements.mark_changes(TABLE, self.held.names.active, self.held.active, self.active)

    def result(self, duration_s: float) -> CommitResult:
        """Return the outcome to report once the commit took effect."""
        return CommitResult(
            stream=self.stream.name,
            slots_changed=len(self.changed),
            slots_total=self.held.slots_total,
            duration_s=duration_s,
        )


def needs_renewal(held: Held, stream: StreamSpec) -> bool:
    """Return whether elements alone will not do: something is in doubt, or the stream looks otherwise in the rules."""
    in_doubt = held.unread or held.doubtful or bool(held.lost)
    return in_doubt or held.unfit or _shape(stream) != _shape(held.stream)


def make_plan(held: Held, table: StreamTable, *, renew: bool) -> Plan:
    """Compare what a stream's table shall be with what the kernel holds."""
    stream = table.stream
    indexes = held.calculator.table({i - 1 for i in table.registered}, {i - 1 for i in table.active})
    wanted = nft_state.wanted_slots(stream, indexes)
    map_name, before = held.map_name, held.slots
    if held.unfit:
        map_name = held.names.spare if held.map_name == held.names.slots else held.names.slots
        before = nft_state.empty_slots(held.slots_total)
    return Plan(
        held=held,
        stream=stream,
        map_name=map_name,
        before=before,
        slots=wanted,
        active=frozenset(map(stream.mark, table.active)),
        changed=nft_elements.differing(before, wanted),
        renew=renew,
    )


def _shape(stream: StreamSpec) -> tuple[object, ...]:
    """Return what of a stream shows in the rules and the size of the map."""
    return stream.max_targets, stream.vips
