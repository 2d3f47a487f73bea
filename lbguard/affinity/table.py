"""Flow affinity in the kernel: brings the table `inet lbguard-affinity` to what is desired, and keeps it there."""

import contextlib
import errno
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.main import NFTables

from lbguard.affinity import choice, elements, ruleset
from lbguard.affinity.contents import filled_of, owners_of, read_sets, sets_of
from lbguard.affinity.elements import Element
from lbguard.affinity.flows import count_flows, forget_flows
from lbguard.affinity.names import (
    COUNTERS,
    TABLE,
    AffinityOptions,
    healthy_map,
    is_of_stream,
    layout_chain,
    steer_chain,
)
from lbguard.affinity.raw_rules import raw_rules
from lbguard.core.model import FamilySteering, StreamSteering
from lbguard.distributor.base import DistributorError
from lbguard.distributor.nftables.elements import transactions
from lbguard.distributor.nftables.inventory import Kind, RulesetObject, read_counter, read_inventory
from lbguard.distributor.nftables.nfnetlink import NetfilterSocket, Nfnetlink, NftError, Request
from lbguard.distributor.nftables.queueing import AFFINITY_AFTER, MANGLE, LastQueue
from lbguard.distributor.nftables.removal import Removal, remove_table
from lbguard.distributor.nftables.session import LIBRARY, NftContext, NftSession
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.affinity")

_NFPROTO_INET: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityCounts:
    """State of the flow maps. `flows`: entries by protocol and family, such as ("tcp", 4).

    The others count packets since the table was made. `steered`: began a flow and were given to another target.
    `learned`: began a flow that was remembered with the table's target. `observed`: belonged to a flow that was
    remembered because the table was about to change. `orphaned`: belonged to a flow whose target is served no more.
    `refused`: their flow was not remembered, for want of room.
    """

    flows: Mapping[tuple[str, int], int]
    steered: int = 0
    learned: int = 0
    observed: int = 0
    orphaned: int = 0
    refused: int = 0


@dataclass(slots=True)
class _Held:
    """State of the table as we left it."""

    streams: Mapping[str, StreamSteering] = field(default_factory=dict)
    chains: frozenset[str] = frozenset()
    """Chains of streams."""
    complete: frozenset[str] = frozenset()
    """Those of them that have their rules."""
    priority: int = 0
    """The priority of the chain by which packets come."""
    filled: frozenset[str] | None = None
    """The exceptional sets that have elements, and so the rules that look in them; None: unknown."""
    generation: int = -1


class AffinityTable:
    """Keeper of the table, in the network namespace of the thread that constructs it.

    Every method raises DistributorError where nftables is missing, not permitted or refuses; then nothing changed, and
    the next call tries everything again.
    """

    def __init__(self, options: AffinityOptions, *, library: str = LIBRARY, queue_at_least: int = MANGLE) -> None:
        """Set the bounds of the maps, and the priority at which packets are queued at least; see `LastQueue`."""
        self.options = options
        self._queue = LastQueue(queue_at_least)
        self._session = NftSession(library)
        self._held: _Held | None = None
        # The last stream of each mark, also of marks that are not in use any more. Until the moment (monotonic), flows
        # may be left of streams that ended before this process began.
        self._owners: dict[int, str] = {}
        self._earlier_until = -math.inf

    async def apply(self, streams: Iterable[StreamSteering]) -> None:
        """Make exactly these streams' affinity effective. Flows that are remembered stay remembered.

        The flows of a mark that another stream had before are forgotten.
        """
        desired = {each.stream: each for each in streams}
        await self._session.call(lambda nft: self._apply(nft, desired))

    async def look(self) -> bool:
        """Check whether another program changed the table, and restore it then. Returns whether it was unchanged."""
        return await self._session.call(self._look)

    async def read(self) -> AffinityCounts:
        """Read the counts."""
        return await self._session.call(self._read)

    async def remove(self) -> None:
        """Remove the table with all that is remembered, as `remove_table` does; an absent one is no error."""
        await self._session.call(self._remove)

    async def close(self) -> None:
        """End the worker thread; the kernel continues to steer."""
        await self._session.close()

    def _apply(self, nft: NftContext, desired: Mapping[str, StreamSteering]) -> None:
        held, self._held = self._held, None
        found = None
        if held is None:
            held, found = self._adopt(nft, desired)
        self._place(nft, held)
        owners = owners_of(desired.values())
        earlier = time.monotonic() < self._earlier_until
        moved = frozenset(m for m, name in owners.items() if self._owners.get(m, "" if earlier else name) != name)
        if moved:
            # Their flows are those of another stream: its VIPs may be unknown to these targets, which would not answer.
            held, found = self._change(nft, held, _without(desired, moved), found), None
            count = forget_flows(nft.kernel, self.options, moved)
            if count:
                _log.info("flows of an earlier stream are forgotten", extra=fields(targets=len(moved), flows=count))
        self._owners |= owners
        held = self._change(nft, held, desired, found)
        held.generation = nft.kernel.generation()
        self._held = held

    def _adopt(
        self, nft: NftContext, desired: Mapping[str, StreamSteering]
    ) -> tuple[_Held, dict[str, set[Element]] | None]:
        """Return the state that the kernel has, and the elements of its sets.

        An earlier run may have left a table: its flows are kept, and all other contents are changed as desired.
        """
        inventory = read_inventory(nft.kernel, TABLE)
        if inventory is None or not self._intact(inventory):
            priority = self._queue.look(nft.kernel) + AFFINITY_AFTER
            self._build(nft, priority, inventory or ())
            return _Held(priority=priority), None
        priority = _priority(inventory)
        # The queue of the load balancer may be away for a moment.
        self._queue.raise_to(priority - AFFINITY_AFTER)
        found = read_sets(nft.kernel)
        if not self._owners:
            self._owners = _earlier_owners(found, desired)
            self._earlier_until = time.monotonic() + self.options.idle_s
        chains = frozenset(e.name for e in inventory if e.kind is Kind.CHAIN and is_of_stream(e.name))
        return _Held(chains=chains, complete=_complete(inventory, chains), priority=priority), found

    def _place(self, nft: NftContext, held: _Held) -> None:
        """Have the packets come after every chain that queues them."""
        wanted = self._queue.look(nft.kernel) + AFFINITY_AFTER
        if held.priority != wanted:
            nft.run("\n".join(ruleset.hook(wanted)))
            nft.run("\n".join(ruleset.move(self.options, held.priority, wanted)))
            _log.info("flow affinity acts at another priority", extra=fields(priority=wanted))
            held.priority = wanted

    def _change(
        self,
        nft: NftContext,
        held: _Held,
        desired: Mapping[str, StreamSteering],
        found: Mapping[str, set[Element]] | None,
    ) -> _Held:
        """Turn one state of all streams into another, and return it. `found`: the kernel's elements where known."""
        changed = [steering for name, steering in desired.items() if held.streams.get(name) != steering]
        before = found or sets_of(s for name, s in held.streams.items() if desired.get(name) != s)
        after = sets_of(changed)
        filled = filled_of(desired.values())
        chains = frozenset(chain for name in desired for chain in _chains_of(name))
        _run(nft, [choice.stream_objects(name) for name in desired if not _chains_of(name) <= held.complete])
        parts = [renewal for each in changed for renewal in _renewals(held.streams.get(each.stream), each)]
        for name in after:
            parts += elements.changes(name, before[name], after[name])
        for requests in transactions(parts, nft.kernel.transaction_bytes_max):
            nft.kernel.transact(requests)
        renewed = [] if filled == held.filled else [ruleset.exceptional_rules(self.options, filled)]
        _run(nft, renewed + [choice.drop_steer_chain(chain) for chain in sorted(held.chains - chains)])
        return replace(held, streams=desired, chains=chains, complete=chains, filled=filled)

    def _look(self, nft: NftContext) -> bool:
        held = self._held
        if held is None:
            return False
        generation = nft.kernel.generation()
        if generation == held.generation:
            return True
        inventory = read_inventory(nft.kernel, TABLE)
        in_order = (
            inventory is not None
            and self._intact(inventory, held.filled)
            and _priority(inventory) == held.priority
            and _complete(inventory, held.chains) == held.chains
            and read_sets(nft.kernel) == sets_of(held.streams.values())
        )
        if in_order:
            self._place(nft, held)
            held.generation = nft.kernel.generation()
            return True
        self._held = None
        self._apply(nft, held.streams)
        return False

    def _read(self, nft: NftContext) -> AffinityCounts:
        found = {name: read_counter(nft.kernel, TABLE, name) for name in COUNTERS}
        counts = {name: count.packets if count else 0 for name, count in found.items()}
        return AffinityCounts(flows=count_flows(nft.kernel, self.options), **counts)

    def _remove(self, nft: NftContext) -> None:
        self._held = None
        self._owners, self._earlier_until = {}, -math.inf
        remove_table(nft.kernel, TABLE)

    def _intact(self, inventory: list[RulesetObject], filled: frozenset[str] | None = None) -> bool:
        """Return whether the table holds what does not depend on streams, of these options and this version."""
        chains = {each.name for each in inventory if each.kind is Kind.CHAIN}
        if layout_chain(self.options) not in chains:
            return False
        rules = _rules_by_chain(inventory)
        return all(
            rules[chain] == count
            for chain, count in ruleset.rule_counts(self.options, filled, _priority(inventory)).items()
        )

    def _build(self, nft: NftContext, priority: int, earlier: Sequence[RulesetObject]) -> None:
        """Create the table; the flows of an earlier one are lost."""
        self._owners, self._earlier_until = {}, -math.inf
        if earlier:
            remove_table(nft.kernel, TABLE)
        if any(each.kind is Kind.MAP for each in earlier):
            _log.warning("affinity table made anew: remembered flows are forgotten")
        try:
            nft.run("\n".join(ruleset.hook(priority)))
            nft.run("\n".join(ruleset.structure(self.options)))
            self._add_raw_rules()
            try:
                nft.run("\n".join(ruleset.defragment()))
            except NftError as error:
                _log.info("fragments are not put together: %s", error)
            # Until the chain with the hook gets its rules, no packet meets a chain that is not filled.
            nft.run("\n".join(ruleset.rules(self.options, priority)))
        except DistributorError:
            # An incomplete table steers no flow correctly.
            with contextlib.suppress(NftError):
                remove_table(nft.kernel, TABLE)
            raise

    def _add_raw_rules(self) -> None:
        try:
            with NFTables(nfgen_family=_NFPROTO_INET) as library:
                library.begin()
                for rule in raw_rules(self.options):
                    library.rule("add", table=TABLE, chain=rule.chain, expressions=(rule.expressions,))
                library.commit()
        except NetlinkError as error:
            raise NftError(f"nftables: a rule of flow affinity is refused: {error.args[1]}", error.code) from None


def remove_left_over() -> Removal:
    """Remove the table of an earlier run, without libnftables.

    Raises:
        DistributorError, OSError: the kernel refuses, or has no nf_tables.
    """
    with contextlib.closing(Nfnetlink(NetfilterSocket())) as kernel:
        return remove_table(kernel, TABLE)


def _run(nft: NftContext, parts: Sequence[list[str]]) -> None:
    """Run all parts in one transaction, or, where the socket has no room for it, in as few as it has."""
    if not parts:
        return
    try:
        nft.run("\n".join(line for part in parts for line in part))
    except NftError as error:
        if os.strerror(errno.EMSGSIZE) not in str(error) or len(parts) == 1:
            raise
        middle = len(parts) // 2
        _run(nft, parts[:middle])
        _run(nft, parts[middle:])


def _renewals(known: StreamSteering | None, steering: StreamSteering) -> Iterator[list[Request]]:
    """Yield the requests that spread the slots of a stream over its healthy targets, given how it was left."""
    for family in (4, 6):
        was, wanted = (None if s is None else (s.ipv4 if family == 4 else s.ipv6).healthy for s in (known, steering))
        if was != wanted:
            yield elements.renewal(healthy_map(steering.stream, family), choice.shares(wanted or ()))


def _without(streams: Mapping[str, StreamSteering], marks: frozenset[int]) -> dict[str, StreamSteering]:
    """Return the steering of all streams without some targets."""

    def rest(some: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(mark for mark in some if mark not in marks)

    def of_family(family: FamilySteering) -> FamilySteering:
        return FamilySteering(healthy=rest(family.healthy), avoid=rest(family.avoid), served=rest(family.served))

    return {
        name: replace(each, marks=rest(each.marks), ipv4=of_family(each.ipv4), ipv6=of_family(each.ipv6))
        for name, each in streams.items()
    }


def _earlier_owners(found: Mapping[str, set[Element]], desired: Mapping[str, StreamSteering]) -> dict[int, str]:
    """Return the stream that each mark had in an earlier run, as far as its table says."""
    streams = {steer_chain(name, family): name for name in desired for family in (4, 6)}
    jumps = [element for name in ruleset.STEER_MAPS for element in found[name] if isinstance(element, tuple)]
    # A mark without a healthy target jumps nowhere.
    unclear = {mark: name for mark, name in owners_of(desired.values()).items() if mark in found["marks"]}
    return unclear | {mark: streams.get(str(chain), str(chain)) for mark, chain in jumps}


def _priority(inventory: Collection[RulesetObject]) -> int:
    """Return the priority of the chain by which packets come; others may be left, without rules."""
    rules = _rules_by_chain(inventory)
    hooks = [each for each in inventory if each.priority is not None]
    return max((each.priority or 0 for each in hooks if rules[each.name]), default=0)


def _rules_by_chain(inventory: Iterable[RulesetObject]) -> Counter[str]:
    return Counter(each.name for each in inventory if each.kind is Kind.RULE)


def _complete(inventory: Iterable[RulesetObject], chains: Iterable[str]) -> frozenset[str]:
    """Return the chains of streams that have all of their rules."""
    rules = _rules_by_chain(inventory)
    return frozenset(chain for chain in chains if rules[chain] == choice.STEER_RULES)


def _chains_of(stream: str) -> frozenset[str]:
    return frozenset(steer_chain(stream, family) for family in (4, 6))
