"""Packet counters per target, and of packets dropped while held, for any distributor.

A held target's route table has only its blackhole route, and the kernel does not count packets there. So an nftables
table of our own checks each marked packet after the distributor (`queueing.py`) and after flow affinity by a route
lookup: `fib daddr . mark oif missing` is true when the mark's table ends in a blackhole, or no route matches the
packet. (`fib ... type` does not help: the kernel looks it up in the local table only.) With parking the mark's table
has a route to the parking link before the blackhole. The counters are in the elements of two sets, which survive the
service.

The route lookup is the expensive part, so it is made only for the marks of a third set: those whose path may be lost.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from lbguard.core.model import PARKING_LINK
from lbguard.distributor.nftables import elements as nft_elements
from lbguard.distributor.nftables.inventory import read_inventory
from lbguard.distributor.nftables.nfnetlink import GET_ELEMENTS
from lbguard.distributor.nftables.queueing import COUNTERS_AFTER, MANGLE, LastQueue
from lbguard.distributor.nftables.removal import remove_table
from lbguard.distributor.nftables.session import LIBRARY, NftContext, NftSession

FAMILY = "inet"
TABLE = "lbguard-counters"

_HITS = "hits"
_FALLBACK = "fallback"
_SUSPECTED = "suspected"


class HeldCount(NamedTuple):
    """A count of packets and of bytes (with IP header) that only grows."""

    packets: int
    bytes: int


class FallbackCounters:
    """Packet counters per fwmark, in the network namespace of the thread that constructs this.

    Counts survive a restart of the service; they start at zero again when another program removes the table. With
    `parking`, packets that leave through the parking link count as those that the fallback dropped: this costs another
    route lookup for each packet of a suspected mark. `queue_at_least`: see `LastQueue`.
    """

    def __init__(self, *, library: str = LIBRARY, parking: bool = False, queue_at_least: int = MANGLE) -> None:
        self._parking = parking
        self._queue = LastQueue(queue_at_least)
        self._placed_after: int | None = None
        self._session = NftSession(library)
        self._marks: frozenset[int] = frozenset()
        self._suspected: frozenset[int] = frozenset()

    async def ensure(self, marks: Iterable[int], suspected: Iterable[int] | None = None) -> None:
        """Count exactly these marks; existing counts continue.

        Packets that the fallback dropped are counted for the marks in `suspected` only; None: for each mark.

        Raises:
            DistributorError: nftables is missing, not permitted or refuses.
        """
        self._marks = frozenset(marks)
        self._suspected = self._marks if suspected is None else self._marks & frozenset(suspected)
        await self._session.call(self._ensure)

    async def suspect(self, marks: Iterable[int]) -> None:
        """Count packets that the fallback dropped for exactly these of the marks from now on.

        Raises:
            DistributorError: nftables is missing, not permitted or refuses.
        """
        self._suspected = self._marks & frozenset(marks)
        await self._session.call(lambda nft: nft.run("\n".join(_suspects(self._suspected))))

    async def read(self) -> dict[int, HeldCount]:
        """Return, for each mark, the packets to a held target that the fallback dropped.

        A table that another program removed is created again, with zeros.

        Raises:
            DistributorError: nftables is missing, not permitted or refuses.
        """
        return await self._session.call(lambda nft: self._read(nft, _FALLBACK))

    async def read_hits(self) -> dict[int, HeldCount]:
        """Return, for each mark, all packets that have it after flow affinity; otherwise as `read`.

        Raises:
            DistributorError: nftables is missing, not permitted or refuses.
        """
        return await self._session.call(lambda nft: self._read(nft, _HITS))

    async def remove(self) -> None:
        """Remove the table and its counts, as `remove_table` does; an absent table is not an error.

        Raises:
            DistributorError: nftables is missing, not permitted or refuses.
        """
        self._marks = self._suspected = frozenset()
        await self._session.call(lambda nft: remove_table(nft.kernel, TABLE))

    async def close(self) -> None:
        """End the worker thread; the counters continue to count."""
        await self._session.close()

    def _ensure(self, nft: NftContext) -> None:
        counted = _elements(nft, _FALLBACK), _elements(nft, _HITS)
        inventory = read_inventory(nft.kernel, TABLE) or ()
        chains = {each.name: each.priority for each in inventory if each.priority is not None}
        # The queue of the load balancer may be away for a moment.
        self._queue.raise_to(max(chains.values(), default=MANGLE) - COUNTERS_AFTER)
        after = self._queue.look(nft.kernel)
        chain = _chain(after + COUNTERS_AFTER)
        if chain not in chains:
            # By itself: where a transaction that adds a hook is refused, the queued packets are dropped.
            nft.run("\n".join(_hook(chain, after + COUNTERS_AFTER)))
        lines = _structure(chain, chains, parking=self._parking)
        for name, held in zip((_FALLBACK, _HITS), counted, strict=True):
            lines += _changes("delete", name, (held or {}).keys() - self._marks)
            lines += _changes("add", name, self._marks - (held or {}).keys())
        lines += _suspects(self._suspected)
        nft.run("\n".join(lines))
        self._placed_after = after

    def _read(self, nft: NftContext, name: str) -> dict[int, HeldCount]:
        counts = _elements(nft, name)
        misplaced = self._queue.look(nft.kernel) != self._placed_after
        if counts is None or counts.keys() != self._marks or misplaced:
            self._ensure(nft)
            counts = _elements(nft, name) or {}
        return counts


def _chain(priority: int) -> str:
    return "marked" if priority == MANGLE + COUNTERS_AFTER else f"marked_{priority}".replace("-", "m")


def _hook(chain: str, priority: int) -> list[str]:
    return [
        f'add table {FAMILY} {TABLE} {{ comment "made by lbguard: packets per target"; }}',
        f"add chain {FAMILY} {TABLE} {chain} {{ type filter hook prerouting priority {priority}; policy accept; }}",
    ]


def _structure(chain: str, chains: Collection[str], *, parking: bool) -> list[str]:
    """Return commands that renew the rules in a chain with a hook, and keep existing counts.

    `chains`: those with a hook that exist. The priority of a chain cannot be changed, so another chain gets the rules,
    and the others lose them. They stay: see `removal.py`. Earlier versions had the chain `prerouting` at the priority
    of flow affinity, and acted before it or after it; it stays, empty.
    """
    # A second lookup in the set of hits would count a packet twice.
    rule = f"add rule {FAMILY} {TABLE} {chain}"
    parked = f'{rule} meta mark @{_SUSPECTED} fib daddr . mark oifname "{PARKING_LINK}" meta mark @{_FALLBACK}'
    return [
        f"add set {FAMILY} {TABLE} {_HITS} {{ type mark; counter; }}",
        f"add set {FAMILY} {TABLE} {_FALLBACK} {{ type mark; counter; }}",
        f"add set {FAMILY} {TABLE} {_SUSPECTED} {{ type mark; }}",
        *(f"flush chain {FAMILY} {TABLE} {name}" for name in chains),
        f"flush chain {FAMILY} {TABLE} {chain}",
        f"{rule} meta mark @{_HITS} meta mark @{_SUSPECTED} fib daddr . mark oif missing meta mark @{_FALLBACK}",
        *([parked] if parking else []),
    ]


def _suspects(marks: Collection[int]) -> list[str]:
    return [f"flush set {FAMILY} {TABLE} {_SUSPECTED}", *_changes("add", _SUSPECTED, marks)]


def _changes(verb: str, name: str, marks: Collection[int]) -> list[str]:
    members = ", ".join(map(str, sorted(marks)))
    return [f"{verb} element {FAMILY} {TABLE} {name} {{ {members} }}"] if members else []


def _elements(nft: NftContext, name: str) -> dict[int, HeldCount] | None:
    """Return the counts of a set, or None when it does not exist."""
    found = nft.kernel.dump(GET_ELEMENTS, nft_elements.list_request(TABLE, name))
    return None if found is None else {m: HeldCount(*count) for m, count in nft_elements.read_counted(found).items()}
