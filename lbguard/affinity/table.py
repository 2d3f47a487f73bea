"""Flow affinity in the kernel: brings the table `inet lbguard-affinity` to what is desired, and keeps it there."""

import contextlib
import errno
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.main import NFTables

from lbguard.affinity import ruleset
from lbguard.affinity.contents import count_flows, read_sets_of_marks, sets_of
from lbguard.affinity.ruleset import AffinityOptions
from lbguard.core.model import StreamSteering
from lbguard.distributor.base import DistributorError
from lbguard.distributor.nftables.inventory import Kind, RulesetObject, read_counter, read_inventory
from lbguard.distributor.nftables.nfnetlink import (
    DELETE_TABLE,
    NetfilterSocket,
    Nfnetlink,
    NftError,
    Request,
    netfilter_message,
    text_attribute,
)
from lbguard.distributor.nftables.session import LIBRARY, NftContext, NftSession

_log = logging.getLogger("lbguard.affinity")

_NFPROTO_INET: Final = 1
_TABLE_NAME: Final = 1  # NFTA_TABLE_NAME
_OF_STREAMS: Final = ("steer_4_", "steer_6_")
_REMOVAL: Final = f"delete table {ruleset.FAMILY} {ruleset.TABLE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityCounts:
    """State of the flow maps. `flows`: entries by protocol and family, such as ("tcp", 4).

    `steered`: packets that began a flow and were given to another target. `orphaned`: packets of remembered flows whose
    target is served no more. `refused`: packets that began a flow which was not remembered, for want of room. All grow
    until somebody removes the table.
    """

    flows: Mapping[tuple[str, int], int]
    steered: int
    orphaned: int
    refused: int


@dataclass(slots=True)
class _Held:
    """State of the table as we left it."""

    streams: dict[str, StreamSteering] = field(default_factory=dict)
    generation: int = -1


class AffinityTable:
    """Keeper of the table, in the network namespace of the thread that constructs it.

    Every method raises DistributorError where nftables is missing, not permitted or refuses; then nothing changed, and
    the next call tries everything again.
    """

    def __init__(self, options: AffinityOptions, *, library: str = LIBRARY) -> None:
        self.options = options
        self._session = NftSession(library)
        self._held: _Held | None = None

    async def apply(self, streams: Iterable[StreamSteering]) -> None:
        """Make exactly these streams' affinity effective. Flows that are remembered stay remembered."""
        desired = {each.stream: each for each in streams}
        await self._session.call(lambda nft: self._apply(nft, desired))

    async def look(self) -> bool:
        """Check whether another program changed the table, and restore it then. Returns whether it was unchanged."""
        return await self._session.call(self._look)

    async def read(self) -> AffinityCounts:
        """Read the counts."""
        return await self._session.call(self._read)

    async def remove(self) -> None:
        """Remove the table with all that is remembered; an absent one is no error."""
        await self._session.call(self._remove)

    async def close(self) -> None:
        """End the worker thread; the kernel continues to steer."""
        await self._session.close()

    def _apply(self, nft: NftContext, desired: dict[str, StreamSteering]) -> None:
        held, self._held = self._held, None
        if held is None:
            # An earlier run may have left a table: its flows are kept, and all other contents are changed as desired.
            inventory = read_inventory(nft.kernel, ruleset.TABLE)
            if not self._intact(inventory):
                self._build(nft, anew=inventory is not None)
            chains = {each.name for each in inventory or () if each.kind is Kind.CHAIN}
            left = sorted(chain for chain in chains if chain.startswith(_OF_STREAMS))
            _transact(nft, _changes({}, desired, read_sets_of_marks(nft.kernel), left))
        else:
            _transact(nft, _changes(held.streams, desired, sets_of(held.streams.values()), ()))
        self._held = _Held(streams=desired, generation=nft.kernel.generation())

    def _look(self, nft: NftContext) -> bool:
        held = self._held
        if held is None:
            return False
        generation = nft.kernel.generation()
        if generation == held.generation:
            return True
        inventory = read_inventory(nft.kernel, ruleset.TABLE)
        in_order = (
            self._intact(inventory)
            and _has_streams(inventory or [], held.streams)
            and read_sets_of_marks(nft.kernel) == sets_of(held.streams.values())
        )
        if in_order:
            held.generation = generation
            return True
        self._held = None
        self._apply(nft, held.streams)
        return False

    def _read(self, nft: NftContext) -> AffinityCounts:
        flows = count_flows(nft.kernel, self.options)
        found = {name: read_counter(nft.kernel, ruleset.TABLE, name) for name in ruleset.COUNTERS}
        return AffinityCounts(flows=flows, **{name: count.packets if count else 0 for name, count in found.items()})

    def _remove(self, nft: NftContext) -> None:
        self._held = None
        if read_inventory(nft.kernel, ruleset.TABLE) is not None:
            nft.run(_REMOVAL)

    def _intact(self, inventory: list[RulesetObject] | None) -> bool:
        """Return whether the table holds what does not depend on streams, of these options and this version."""
        if inventory is None:
            return False
        chains = {each.name for each in inventory if each.kind is Kind.CHAIN}
        if ruleset.layout_chain(self.options) not in chains:
            return False
        rules = Counter(each.name for each in inventory if each.kind is Kind.RULE)
        return all(rules[chain] == count for chain, count in ruleset.rule_counts(self.options).items())

    def _build(self, nft: NftContext, *, anew: bool) -> None:
        """Create the table; the flows of an earlier one are lost."""
        if anew:
            _log.warning("affinity table made anew: remembered flows are forgotten")
            nft.run(_REMOVAL)
        try:
            nft.run("\n".join(ruleset.structure(self.options)))
            self._add_raw_rules()
            try:
                nft.run("\n".join(ruleset.defragment()))
            except NftError as error:
                _log.info("fragments are not put together: %s", error)
            # The hook comes last: until its rules are there, no packet meets a chain that is not filled.
            nft.run("\n".join(ruleset.rules(self.options)))
        except DistributorError:
            # An incomplete table steers no flow correctly.
            with contextlib.suppress(NftError):
                nft.run(_REMOVAL)
            raise

    def _add_raw_rules(self) -> None:
        try:
            with NFTables(nfgen_family=_NFPROTO_INET) as library:
                library.begin()
                for rule in ruleset.raw_rules(self.options):
                    library.rule("add", table=ruleset.TABLE, chain=rule.chain, expressions=(rule.expressions,))
                library.commit()
        except NetlinkError as error:
            raise NftError(f"nftables: a rule of flow affinity is refused: {error.args[1]}", error.code) from None


def remove_left_over() -> bool:
    """Remove the table of an earlier run, without libnftables; returns whether there was one.

    Raises:
        DistributorError, OSError: the kernel refuses, or has no nf_tables.
    """
    kernel = Nfnetlink(NetfilterSocket())
    request = Request(netfilter_message(DELETE_TABLE, text_attribute(_TABLE_NAME, ruleset.TABLE)), _REMOVAL)
    try:
        kernel.transact([request])
    except NftError as error:
        if error.code == errno.ENOENT:
            return False
        raise
    finally:
        kernel.close()
    return True


def _transact(nft: NftContext, parts: Sequence[list[str]]) -> None:
    """Carry out all parts in one transaction, or, where the socket has no room for it, in as few as it has."""
    if not parts:
        return
    try:
        nft.run("\n".join(line for part in parts for line in part))
    except NftError as error:
        if os.strerror(errno.EMSGSIZE) not in str(error) or len(parts) == 1:
            raise
        middle = len(parts) // 2
        _transact(nft, parts[:middle])
        _transact(nft, parts[middle:])


def _changes(
    held: Mapping[str, StreamSteering],
    desired: Mapping[str, StreamSteering],
    before: Mapping[str, set[str]],
    left: Iterable[str],
) -> list[list[str]]:
    """Return the commands that turn one state of all streams into another, in parts that may be done one by one.

    `before`: elements of the sets and maps of marks. `left`: chains of streams that an earlier run made.
    """
    parts = []
    for name, steering in desired.items():
        known = held.get(name)
        lines = ruleset.stream_objects(name) if known is None else []
        for family, of_family in ((4, steering.ipv4), (6, steering.ipv6)):
            was = None if known is None else (known.ipv4 if family == 4 else known.ipv6).healthy
            if was != of_family.healthy:
                lines += ruleset.fill_healthy(name, family, of_family.healthy)
        if lines:
            parts.append(lines)
    after = sets_of(desired.values())
    for name in after:
        lines = ruleset.change_elements(name, sorted(before[name] - after[name]), sorted(after[name] - before[name]))
        parts += [[line] for line in lines]
    wanted = {ruleset.steer_chain(name, family) for name in desired for family in (4, 6)}
    present = {ruleset.steer_chain(name, family) for name in held for family in (4, 6)}.union(left)
    parts += [ruleset.drop_steer_chain(chain) for chain in sorted(present - wanted)]
    return parts


def _has_streams(inventory: list[RulesetObject], streams: Mapping[str, StreamSteering]) -> bool:
    rules = Counter(each.name for each in inventory if each.kind is Kind.RULE)
    chains = [ruleset.steer_chain(name, family) for name in streams for family in (4, 6)]
    return all(rules[chain] == ruleset.STEER_RULES for chain in chains)
