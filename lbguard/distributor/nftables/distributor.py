"""Embedded distributor: slot tables in nftables maps, on any Linux machine, without nfqlb.

`ruleset.py` has the ruleset and the reasons for its shape, `state.py` reads back the kernel's state and compares it
with the desired one. This module applies the differences:

- A commit is one transaction for all streams, with the elements of differing slots only. Elements are sent as netlink
  messages (`elements.py`), which takes a fifth of the time that libnftables needs for the same elements as text, and
  almost no memory.
- Where it does not fit into the send buffer (the first fill of several tables in a user namespace, which is limited by
  net.core.wmem_max), it is split between slots and never within one: each slot is always replaced in one step. After a
  split, some flows move a few milliseconds after others.
- libnftables writes the rules, rarely: when a stream's VIPs change, and when another program has damaged them. They
  follow the elements, so that no packet is looked up in a map that is not filled yet. A map of another size
  (`max_targets` was changed) is created and filled beside the old one; one transaction then switches the rules to it,
  and the next removes the old one.
- A table that an earlier run left is adopted: the set of active marks gives its active targets at once. The first
  commit reads back, compares and renews the rest. It is due as soon as every stream is adopted: reading slots and
  writing rules takes ten times as long, and would delay the holds.
- Changes by other programs show in the kernel's generation counter, which every transaction of the network namespace
  raises by one. While it counts only our own transactions, our table is unchanged, and a check costs one netlink round
  trip. Otherwise the table is read and compared. A commit needs no such check: the kernel refuses to delete an element
  that is not there and to add one that is, and then the stream is read back first.
"""

import itertools
import logging
import time
from collections.abc import Callable, Collection, Sequence

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import CommitResult, DistributorError
from lbguard.distributor.maglev import ImplicitPermutations, TableCalculator, TableKind, largest_prime_at_most
from lbguard.distributor.nftables import elements as nft_elements
from lbguard.distributor.nftables import ruleset as nft_ruleset
from lbguard.distributor.nftables import state as nft_state
from lbguard.distributor.nftables.inventory import Kind, RulesetObject, read_inventory
from lbguard.distributor.nftables.nfnetlink import SEND_BUFFER_BYTES, Nfnetlink, NftError
from lbguard.distributor.nftables.removal import queue_possible, remove_table
from lbguard.distributor.nftables.ruleset import FAMILY, TABLE, StreamNames
from lbguard.distributor.nftables.session import LIBRARY, NftContext, NftSession
from lbguard.distributor.nftables.state import Held, Plan, make_plan, needs_renewal

_log = logging.getLogger(__name__)

_WRITE_TRIES = 3
_SLOTS_MIN = 3  # the smallest size for which permutations by offset and skip work


class NftDistributor:
    """The distributor of kind `nftables`.

    It works in the network namespace of the thread that constructs it. `hash_seed` (32 bits) must be the same on all
    load balancers that serve the same VIPs, or a flow that moves from one to another changes its target. The number of
    slots of a stream is the largest prime not above `slots_per_target * max_targets`. `send_buffer_bytes` is the
    requested send buffer, which limits one transaction; without privilege the kernel may grant less.
    """

    kind = "nftables"

    def __init__(
        self,
        table: TableKind,
        hash_seed: int = 0,
        slots_per_target: int = 100,
        *,
        library: str = LIBRARY,
        send_buffer_bytes: int = SEND_BUFFER_BYTES,
    ) -> None:
        if not 0 <= hash_seed < 2**32:
            raise ValueError(f"hash_seed {hash_seed}: 0 to 4294967295 are allowed")
        self._table = table
        self._seed = hash_seed
        self._slots_per_target = slots_per_target
        self._session = NftSession(library, send_buffer_bytes)
        # Only the session's thread uses the attributes below.
        self._streams: dict[str, Held] = {}
        self._defragment = True
        self._generation: int | None = None
        self._listed: tuple[int, list[RulesetObject]] | None = None

    async def attach(self, stream: StreamSpec) -> None:
        """Make a stream's table ready; an attached one gets its rules renewed for these VIPs.

        A table of an earlier run, or with another number of slots (`max_targets` was changed), stays unchanged until
        the next commit.

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
        marks = await self._session.call(lambda nft: nft_state.read_marks(nft.kernel, names))
        if marks is None:
            raise DistributorError(
                f"stream {stream.name}: nftables table {FAMILY} {TABLE} holds nothing of it (removed?)"
            )
        identifiers = {mark - stream.identifier_offset for mark in marks}
        return frozenset(identifiers.intersection(stream.identifiers))

    async def commit(self, tables: Sequence[StreamTable]) -> Sequence[CommitResult]:
        """Bring the tables to these states in one transaction; see the protocol.

        When it fails as a whole, each stream is read back and tried alone, so one bad stream stops no other.
        """
        return await self._session.call(lambda nft: self._commit(nft, tables))

    async def lost_streams(self) -> dict[str, str]:
        """Return the streams whose rules or slots another program changed, until a commit has renewed them.

        Raises:
            DistributorError: the ruleset cannot be read.
        """
        return await self._session.call(self._lost_streams)

    async def detach(self, stream: StreamSpec, *, withdraw: bool) -> None:
        """Detach a stream; with `withdraw` remove all of it, and with the last stream the table.

        Where another program may have queued packets, chains with a hook stay, without rules; see `removal.py`.

        Raises:
            DistributorError: the removal was refused.
        """
        await self._session.call(lambda nft: self._detach(nft, stream, withdraw))

    async def prune(self, known: Collection[str]) -> Sequence[str]:
        """Remove the streams that an earlier run left in the table; their rules would still match their VIPs.

        Raises:
            DistributorError: the table cannot be read, or the removal was refused.
        """
        return await self._session.call(lambda nft: self._prune(nft, known))

    async def present_streams(self) -> frozenset[str]:
        """Return the streams in the kernel's table, attached or left there by an earlier run.

        Raises:
            DistributorError: the table cannot be read.
        """
        return await self._session.call(lambda nft: nft_state.read_streams(nft.kernel))

    async def remove(self) -> None:
        """Remove the whole table with all streams, attached or not; an absent table is not an error.

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
            self._generation = nft.kernel.generation()
        names = _names(stream)
        held = nft_state.unread(self._inventory(nft.kernel), stream, self._calculator(stream), self._size(stream))
        if stream.name in self._streams or not held.complete:
            held = self._read(nft, stream)
            if not held.unfit:
                declared = nft_ruleset.declarations(names, held.map_name, held.slots_total)
                self._write_rules(nft, lambda: declared + self._rules(held, held.map_name, stream), [held])
                held.complete = True
        self._streams[stream.name] = held

    def _size(self, stream: StreamSpec) -> int:
        return largest_prime_at_most(max(_SLOTS_MIN, self._slots_per_target * stream.max_targets))

    def _calculator(self, stream: StreamSpec) -> TableCalculator:
        size = self._size(stream)
        known = self._streams.get(stream.name)
        if known and known.slots_total == size:
            return known.calculator
        return TableCalculator(ImplicitPermutations(stream.name, size), self._table)

    def _read(self, nft: NftContext, stream: StreamSpec) -> Held:
        """Read back the kernel's state of a stream."""
        self._settle_maps(nft, _names(stream))
        things = self._inventory(nft.kernel)
        return nft_state.read_held(nft.kernel, things, stream, self._calculator(stream), self._size(stream))

    def _inventory(self, kernel: Nfnetlink) -> list[RulesetObject]:
        """Return the table's objects, read again only after another process has changed the ruleset.

        The generation is read first: the next check notices a change in between.
        """
        generation = kernel.generation()
        if self._listed is None or self._listed[0] != generation:
            self._listed = generation, read_inventory(kernel, TABLE) or []
        return self._listed[1]

    def _settle_maps(self, nft: NftContext, names: StreamNames) -> None:
        """Keep one map where an interrupted change of size left two: the kernel deletes none that a rule uses."""
        maps = [thing.name for thing in self._inventory(nft.kernel) if thing.name in (names.slots, names.spare)]
        if len(maps) > 1:
            try:
                self._transact(nft, lambda: [nft_ruleset.map_removal(maps[0])])
            except NftError:
                self._transact(nft, lambda: [nft_ruleset.map_removal(maps[1])])

    def _rules(self, held: Held, map_name: str, stream: StreamSpec) -> list[str]:
        return nft_ruleset.rules(
            held.names,
            stream.vips,
            map_name=map_name,
            slots=held.slots_total,
            seed=self._seed,
            defragment=self._defragment,
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
        self._count_transaction(nft.kernel)

    def _count_transaction(self, kernel: Nfnetlink) -> None:
        if self._generation is not None:
            ours = (self._generation + 1) % 2**32
            # Another number means that another program made a transaction too: the next check reads the table.
            self._generation = ours if kernel.generation() == ours else self._generation

    def _write_rules(self, nft: NftContext, lines: Callable[[], list[str]], streams: Sequence[Held]) -> None:
        """Run the lines and record the objects that they created.

        When another transaction changed the ruleset at the same time, the lines are run again, since the objects may
        be another program's. The generation counts the transactions of the whole namespace, also our own of other
        tables: flow affinity makes several at a start. When they do not end, the rules of each chain are counted. Of
        a stream with another number nothing is recorded, so that the next check reports it.
        """
        for _ in range(_WRITE_TRIES):
            self._add_hooks(nft, [held.names for held in streams])
            before = nft.kernel.generation()
            self._transact(nft, lines)
            things = self._inventory(nft.kernel)
            alone = nft.kernel.generation() == (before + 1) % 2**32
            if alone:
                break
        written = nft_ruleset.rules_by_chain(lines())
        for held in streams:
            present = nft_state.of_stream(things, held.names)
            held.things = present if alone or nft_state.has_rules(present, held.names, written) else frozenset()

    def _add_hooks(self, nft: NftContext, streams: Sequence[StreamNames]) -> None:
        present = {thing.name for thing in self._inventory(nft.kernel)}
        missing = [names for names in streams if names.vips not in present]
        self._transact(nft, lambda: [line for names in missing for line in nft_ruleset.hook(names)])

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
        return [plan.result(duration_s) for plan in plans]

    def _retry(self, nft: NftContext, table: StreamTable, error: str, started: float) -> CommitResult:
        """Read the kernel's table again and commit once more: another program may have changed it."""
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
        return plan.result(time.monotonic() - started)

    def _plan(self, nft: NftContext, table: StreamTable) -> Plan:
        stream = table.stream
        held = self._streams.get(stream.name)
        if held is None:
            raise DistributorError(f"stream {stream.name} is not attached")
        outside = [i for i in table.registered | table.active if i not in stream.identifiers]
        if outside:
            raise DistributorError(
                f"identifiers {sorted(outside)} are outside {stream.identifiers[0]}..{stream.identifiers[-1]}"
            )
        renew = needs_renewal(held, stream)
        if renew:
            held = self._read(nft, stream)
        return make_plan(held, table, renew=renew)

    def _apply(self, nft: NftContext, plans: Sequence[Plan]) -> None:
        renewed = [plan for plan in plans if plan.renew]
        self._transact(nft, lambda: [line for plan in renewed for line in plan.declarations()])
        parts = itertools.chain.from_iterable(map(Plan.element_changes, plans))
        for requests in nft_elements.transactions(parts, nft.kernel.transaction_bytes_max):
            nft.kernel.transact(requests)
            self._count_transaction(nft.kernel)
        if renewed:
            self._write_rules(
                nft,
                lambda: [line for plan in renewed for line in self._rules(plan.held, plan.map_name, plan.stream)],
                [plan.held for plan in renewed],
            )
        # Not with the rules: a packet that is still in the old rules would find the map's elements gone.
        left = [plan.held.map_name for plan in renewed if plan.held.unfit]
        self._transact(nft, lambda: list(map(nft_ruleset.map_removal, left)))
        for plan in plans:
            held = plan.held
            held.things = frozenset(thing for thing in held.things if thing.name not in left)
            held.stream, held.map_name, held.slots, held.active = plan.stream, plan.map_name, plan.slots, plan.active
            held.complete, held.unfit, held.lost, held.doubtful = True, False, "", False
            self._streams[plan.stream.name] = held

    def _lost_streams(self, nft: NftContext) -> dict[str, str]:
        generation = nft.kernel.generation()
        if generation != self._generation and self._streams:
            things = self._inventory(nft.kernel)
            defragmenting = any(thing.kind is Kind.RULE and thing.name == nft_ruleset.DEFRAGMENT for thing in things)
            for held in self._streams.values():
                if held.unread:
                    continue  # Its first commit reads and renews all of it.
                if self._defragment and not defragmenting and not held.unfit:
                    held.lost = "the rules that switch defragmentation on were removed"
                held.lost = nft_state.difference(nft.kernel, things, held) or held.lost
            self._generation = generation
        return {name: held.lost for name, held in self._streams.items() if held.lost}

    def _detach(self, nft: NftContext, stream: StreamSpec, withdraw: bool) -> None:
        if withdraw:
            names = _names(stream)
            things = read_inventory(nft.kernel, TABLE) or []
            if nft_state.is_left_over(thing for thing in things if thing.name not in names):
                remove_table(nft.kernel, TABLE)
            else:
                present = {thing.name for thing in things if thing.kind is not Kind.RULE}
                lines = nft_ruleset.removal(names, present, keep_hook=queue_possible())
                self._transact(nft, lambda: lines)
        self._streams.pop(stream.name, None)

    def _prune(self, nft: NftContext, known: Collection[str]) -> list[str]:
        unknown = sorted(nft_state.read_streams(nft.kernel) - set(known))
        for name in unknown:
            self._detach(nft, StreamSpec(name=name), withdraw=True)
        if not self._streams and nft_state.is_left_over(read_inventory(nft.kernel, TABLE) or ()):
            remove_table(nft.kernel, TABLE)
        return unknown

    def _remove(self, nft: NftContext) -> None:
        remove_table(nft.kernel, TABLE)
        self._streams.clear()

    def _warn_of_overlap(self, stream: StreamSpec) -> None:
        """Log the VIPs that two streams share: one of them gets no packets. A VIP that moves may overlap briefly."""
        for other in (held.stream for name, held in self._streams.items() if name != stream.name):
            for vip, taken in itertools.product(stream.vips, other.vips):
                if nft_ruleset.overlap(vip, taken):
                    _log.warning("VIP %s of stream %s overlaps %s of stream %s", vip, stream.name, taken, other.name)


def _names(stream: StreamSpec) -> StreamNames:
    try:
        return nft_ruleset.stream_names(stream.name)
    except ValueError as error:
        raise DistributorError(str(error)) from error
