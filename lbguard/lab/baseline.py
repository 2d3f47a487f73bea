"""A small stand-in for today's load balancer process, so that the lab can show what happens without lbguard.

It does what Meridio 1.2's stateless-lb does: link events are coalesced for 100 ms, and every 10 s it looks anyway; each
target that misses a route is taken out of the distributor (table `maglev`) and its rules and routes are deleted;
targets that are out are tried again at each look; when two links share a subnet the older one is set down. SIGHUP makes
it read the list again: a target that left it is taken out at once. Nothing is held, no neighbour entry is touched and
nothing is announced.

    python -m lbguard.lab.baseline --targets FILE --distributor nftables|nfqlb

It logs JSON lines on standard error in the form of the service's own.
"""

import argparse
import asyncio
from pathlib import Path

from lbguard.core.addr import format_ip, is_ipv4
from lbguard.core.model import StreamSpec, StreamTable, TargetSpec
from lbguard.distributor.base import Distributor, DistributorError
from lbguard.distributor.maglev import TableKind
from lbguard.lab.network import Network
from lbguard.lab.stand_in import accepted, follow, log, set_older_links_down
from lbguard.sources.file import TargetsFile


def default_tables(network: Network) -> set[tuple[bool, int]]:
    """Return (is IPv4, table) of every default route through a link."""
    return {(route.ipv4, route.table) for route in network.routes() if route.destination == "default" and route.link}


class Baseline:
    """One stream's targets, in or out."""

    def __init__(self, targets_file: Path, distributor: Distributor) -> None:
        self._network = Network()
        self._targets_file = targets_file
        self._stream = _read(targets_file)
        self._distributor = distributor
        self._active: set[int] = set()

    async def start(self) -> None:
        """Adopt what the distributor holds, then look."""
        await self._distributor.attach(self._stream)
        self._active = set(await self._distributor.read_active(self._stream))
        await self.look()

    async def reread(self) -> None:
        """Take the list anew: remove who left it, add who came."""
        stream = _read(self._targets_file)
        left = [target for target in self._stream.targets if target not in stream.targets]
        self._stream = stream
        for target in left:
            if target.identifier in self._active:
                await self._remove(target, "remove", None)
        await self.look()

    async def look(self) -> None:
        """Withdraw every target that misses a route, and try those that are out."""
        set_older_links_down(self._network)
        present = default_tables(self._network)
        for target in self._stream.targets:
            table = self._stream.mark(target.identifier)
            whole = all((is_ipv4(ip), table) in present for ip in target.ips)
            if target.identifier in self._active and not whole:
                await self._remove(target, "withdraw", "withdrawn")
            elif target.identifier not in self._active and self._program(target, table):
                self._active.add(target.identifier)
                await self._commit()
                self._say(target, "readmit", "active")

    async def _remove(self, target: TargetSpec, action: str, state: str | None) -> None:
        self._active.discard(target.identifier)
        await self._commit()
        self._unprogram(target, self._stream.mark(target.identifier))
        self._say(target, action, state)

    def _program(self, target: TargetSpec, table: int) -> bool:
        """Add rules and routes, by gateway alone as today; all or nothing."""
        for ip in target.ips:
            accepted(self._network.delete_rule, table, table, ipv4=is_ipv4(ip))
            added = accepted(self._network.add_rule, table, table, ipv4=is_ipv4(ip)) and accepted(
                self._network.replace_route, "default", format_ip(ip), table=table
            )
            if not added:
                self._unprogram(target, table)
                return False
        return True

    def _unprogram(self, target: TargetSpec, table: int) -> None:
        for ip in target.ips:
            accepted(self._network.delete_rule, table, table, ipv4=is_ipv4(ip))
            accepted(self._network.flush_routes, table, ipv4=is_ipv4(ip))

    async def _commit(self) -> None:
        registered = frozenset(target.identifier for target in self._stream.targets)
        table = StreamTable(stream=self._stream, registered=registered, active=frozenset(self._active))
        for result in await self._distributor.commit([table]):
            if result.error:
                raise DistributorError(result.error)

    def _say(self, target: TargetSpec, action: str, state: str | None) -> None:
        log("decision", action=action, identifier=target.identifier, stream=self._stream.name, state_to=state)


async def run(targets_file: Path, distributor: Distributor) -> None:
    """Look after one stream until SIGTERM; leave everything as it is."""
    await follow(Baseline(targets_file, distributor))
    await distributor.close()


def _read(targets_file: Path) -> StreamSpec:
    (stream,) = TargetsFile(targets_file).read()
    return stream


def make_distributor(kind: str) -> Distributor:
    """Return the distributor of a kind, with the table of today.

    Raises:
        ValueError: the kind is none of `nftables` and `nfqlb`.
    """
    if kind == "nftables":
        from lbguard.distributor.nftables.distributor import NftDistributor

        return NftDistributor(TableKind.MAGLEV)
    if kind == "nfqlb":
        from lbguard.lab.stock_nfqlb import StockCommands

        return StockCommands()
    raise ValueError(f"distributor {kind!r}: allowed: nftables or nfqlb")


def main() -> None:
    """Entry of the process."""
    parser = argparse.ArgumentParser(description="stand-in for today's load balancer process")
    parser.add_argument("--targets", type=Path, required=True)
    parser.add_argument("--distributor", default="nftables")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.targets, make_distributor(arguments.distributor)))


if __name__ == "__main__":
    main()
