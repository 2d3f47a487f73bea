"""Flow affinity in the kernel: brings the table `inet lbguard-affinity` to what is desired, and keeps it there."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.nftables.main import NFTables

from lbguard.affinity import ruleset
from lbguard.affinity.ruleset import AffinityOptions
from lbguard.core.model import StreamSteering
from lbguard.distributor.nftables.elements import list_request
from lbguard.distributor.nftables.inventory import Kind, RulesetObject, read_counter, read_inventory
from lbguard.distributor.nftables.nfnetlink import GET_ELEMENTS, NftError
from lbguard.distributor.nftables.session import LIBRARY, NftContext, NftSession
from lbguard.kernel.codec.framing import attributes

_log = logging.getLogger("lbguard.affinity")

_NFPROTO_INET: Final = 1
_ELEMENT_LIST: Final = 3  # NFTA_SET_ELEM_LIST_ELEMENTS
_OF_STREAMS: Final = ("steer_4_", "steer_6_")


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityCounts:
    """State of the flow maps. `flows`: entries by protocol and family, such as ("tcp", 4).

    `steered`: packets that began a flow and were given to another target. `orphaned`: packets of remembered flows whose
    target is served no more. Both grow until somebody removes the table.
    """

    flows: Mapping[tuple[str, int], int]
    steered: int
    orphaned: int


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
        """Look whether somebody changed the table, and make it anew then. Returns whether it was in order."""
        return await self._session.call(self._look)

    async def read(self) -> AffinityCounts:
        """Read the counts."""
        return await self._session.call(self._read)

    async def remove(self) -> None:
        """Remove the table with all that is remembered; an absent one is no error."""
        await self._session.call(self._remove)

    async def close(self) -> None:
        """End the worker thread; the kernel goes on."""
        await self._session.close()

    def _apply(self, nft: NftContext, desired: dict[str, StreamSteering]) -> None:
        held = self._held
        if held is None:
            # Nothing is known of what an earlier run left: its flows are kept, all else is written again.
            if not self._intact(read_inventory(nft.kernel, ruleset.TABLE)):
                self._build(nft)
            nft.run("\n".join(_everything(nft, desired)))
        else:
            changes = _changes(held.streams, desired)
            if changes:
                self._held = None
                nft.run("\n".join(changes))
        self._held = _Held(streams=desired, generation=nft.kernel.generation())

    def _look(self, nft: NftContext) -> bool:
        held = self._held
        if held is None:
            return False
        generation = nft.kernel.generation()
        if generation == held.generation:
            return True
        inventory = read_inventory(nft.kernel, ruleset.TABLE)
        in_order = self._intact(inventory) and _has_streams(inventory or [], held.streams)
        if in_order:
            held.generation = generation
            return True
        self._held = None
        self._apply(nft, held.streams)
        return False

    def _read(self, nft: NftContext) -> AffinityCounts:
        flows = {}
        for protocol in self.options.protocols:
            for family in (4, 6):
                name = ruleset.flow_map(protocol, family)
                found = nft.kernel.dump(GET_ELEMENTS, list_request(ruleset.TABLE, name)) or ()
                flows[protocol, family] = sum(
                    sum(1 for _ in attributes(payload))
                    for body in found
                    for kind, payload in attributes(body)
                    if kind == _ELEMENT_LIST
                )
        steered, orphaned = (read_counter(nft.kernel, ruleset.TABLE, name) for name in ruleset.COUNTERS)
        return AffinityCounts(
            flows=flows, steered=steered.packets if steered else 0, orphaned=orphaned.packets if orphaned else 0
        )

    def _remove(self, nft: NftContext) -> None:
        self._held = None
        if read_inventory(nft.kernel, ruleset.TABLE) is not None:
            nft.run(f"delete table {ruleset.FAMILY} {ruleset.TABLE}")

    def _intact(self, inventory: list[RulesetObject] | None) -> bool:
        """Return whether the table holds what does not depend on streams, of these options and this version."""
        if inventory is None:
            return False
        chains = {each.name for each in inventory if each.kind is Kind.CHAIN}
        if ruleset.layout_chain(self.options) not in chains:
            return False
        rules = Counter(each.name for each in inventory if each.kind is Kind.RULE)
        return all(rules[chain] == count for chain, count in ruleset.rule_counts(self.options).items())

    def _build(self, nft: NftContext) -> None:
        """Make the table anew; what it remembered is lost."""
        if read_inventory(nft.kernel, ruleset.TABLE) is not None:
            _log.warning("affinity table made anew: remembered flows are forgotten")
            nft.run(f"delete table {ruleset.FAMILY} {ruleset.TABLE}")
        nft.run("\n".join(ruleset.structure(self.options)))
        try:
            with NFTables(nfgen_family=_NFPROTO_INET) as library:
                library.begin()
                for rule in ruleset.raw_rules(self.options):
                    library.rule("add", table=ruleset.TABLE, chain=rule.chain, expressions=(rule.expressions,))
                library.commit()
        except NetlinkError as error:
            raise NftError(f"nftables: a rule of flow affinity is refused: {error.args[1]}", error.code) from None
        try:
            nft.run("\n".join(ruleset.defragment()))
        except NftError as error:
            _log.info("fragments are not put together: %s", error)
        # The hook comes last: until its rules are there, no packet meets a chain that is not filled.
        nft.run("\n".join(ruleset.rules(self.options)))


def _everything(nft: NftContext, desired: dict[str, StreamSteering]) -> list[str]:
    """Return the commands that write all streams over whatever an earlier run left."""
    inventory = read_inventory(nft.kernel, ruleset.TABLE) or []
    present = {each.name for each in inventory if each.kind is Kind.CHAIN and each.name.startswith(_OF_STREAMS)}
    sets = _sets({})
    kinds = {name: "map" if name.startswith("steer") else "set" for name in sets}
    lines = [f"flush {kind} {ruleset.FAMILY} {ruleset.TABLE} {name}" for name, kind in kinds.items()]
    wanted = {ruleset.steer_chain(name, family) for name in desired for family in (4, 6)}
    for chain in sorted(present - wanted):
        lines += ruleset.drop_steer_chain(chain)
    return lines + _changes({}, desired)


def _changes(held: dict[str, StreamSteering], desired: dict[str, StreamSteering]) -> list[str]:
    """Return the commands that turn one state of all streams into another."""
    lines = []
    before, after = _sets(held), _sets(desired)
    for name in sorted(desired.keys() - held.keys()):
        lines += ruleset.stream_objects(name)
    for name, steering in desired.items():
        known = held.get(name)
        for family, of_family in ((4, steering.ipv4), (6, steering.ipv6)):
            was = None if known is None else (known.ipv4 if family == 4 else known.ipv6).healthy
            if was != of_family.healthy:
                lines += ruleset.fill_healthy(name, family, of_family.healthy)
    for name in after:
        lines += ruleset.change_elements(name, sorted(before[name] - after[name]), sorted(after[name] - before[name]))
    for name in sorted(held.keys() - desired.keys()):
        for family in (4, 6):
            lines += ruleset.drop_steer_chain(ruleset.steer_chain(name, family))
    return lines


def _sets(streams: dict[str, StreamSteering]) -> dict[str, set[str]]:
    """Return the elements of each set and of the maps from a mark to its stream's chain."""
    sets: dict[str, set[str]] = {
        name: set() for name in ("marks", "served", "learn", "avoid_4", "avoid_6", "steer_4", "steer_6")
    }
    for name, steering in streams.items():
        sets["marks"].update(map(str, steering.marks))
        sets["served"].update(map(str, steering.served))
        sets["avoid_4"].update(map(str, steering.ipv4.avoid))
        sets["avoid_6"].update(map(str, steering.ipv6.avoid))
        if steering.learning:
            sets["learn"].update(map(str, steering.marks))
        for family in (4, 6):
            chain = ruleset.steer_chain(name, family)
            sets[f"steer_{family}"].update(f"{mark} : jump {chain}" for mark in steering.marks)
    return sets


def _has_streams(inventory: list[RulesetObject], streams: Mapping[str, StreamSteering]) -> bool:
    rules = Counter(each.name for each in inventory if each.kind is Kind.RULE)
    return all(rules[ruleset.steer_chain(name, family)] for name in streams for family in (4, 6))
