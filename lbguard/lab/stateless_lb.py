"""A stand-in for Meridio 1.2's load balancer process, not modified for lbguard: it runs `nfqlb` by name.

In the order of the real one: a target is configured address by address (what is left of it deleted, rule, old neighbour
entries out, route by gateway alone), then activated. A removal deactivates first, then deletes rule and route of each
address. 100 ms after a link came or went, and each 10 s, whoever has lost a route is removed and becomes *pending*;
pending targets are tried again at each look; when two links share a subnet the older one is set down.

    python -m lbguard.lab.stateless_lb --targets FILE [--shm-dir DIRECTORY]

SIGHUP stands for news from the registry: the list is read again. It logs JSON lines on standard error in the form of
the service's own; `removed` and `refused` are records of this process alone.
"""

import argparse
import asyncio
import time
from pathlib import Path

from lbguard.core.addr import format_ip, is_ipv4
from lbguard.core.model import StreamSpec, TargetSpec
from lbguard.lab.network import Network
from lbguard.lab.nfqlb_calls import NfqlbCalls
from lbguard.lab.stand_in import accepted, follow, read_stream, set_older_links_down


class StatelessLb:
    """One stream's targets: configured or pending."""

    def __init__(self, targets_file: Path, shm_dir: Path) -> None:
        self._network = Network()
        self._targets_file = targets_file
        self._stream = read_stream(targets_file)
        self._nfqlb = NfqlbCalls(self._stream, f"tshm-{self._stream.name}", shm_dir, first=1)
        self._configured: dict[int, TargetSpec] = {}
        self._pending: dict[int, TargetSpec] = {}

    async def start(self) -> None:
        """Make the stream's table, then take the targets."""
        self._nfqlb.init()
        set_older_links_down(self._network)
        self._take(self._stream)

    async def reread(self) -> None:
        """Take the list anew: remove who left it, add who came."""
        self._take(read_stream(self._targets_file))

    async def look(self) -> None:
        """Remove every target that misses a route, and try the pending ones again."""
        set_older_links_down(self._network)
        for target in list(self._configured.values()):
            if not all(self._verify(target, ip) for ip in target.ips):
                self._remove(target)
                self._pending[target.identifier] = target
                self._nfqlb.say(target.identifier, "withdraw", "withdrawn")
        for target in list(self._pending.values()):
            self._add(target, "readmit")

    def _take(self, stream: StreamSpec) -> None:
        listed = {target.identifier: target for target in stream.targets}
        for identifier in list(self._pending):
            if listed.get(identifier) != self._pending[identifier]:
                del self._pending[identifier]
        for identifier, target in list(self._configured.items()):
            if listed.get(identifier) != target:
                self._remove_deliberately(target)
        for identifier, target in listed.items():
            if identifier not in self._configured and identifier not in self._pending:
                self._add(target, "admit")

    def _add(self, target: TargetSpec, action: str) -> None:
        identifier = target.identifier
        done = all(self._configure(target, ip) for ip in target.ips)
        if not (done and self._nfqlb.activate(identifier, self._stream.mark(identifier))):
            self._pending[identifier] = target
            for ip in target.ips:
                self._unconfigure(target, ip)
            return
        self._configured[identifier] = target
        self._pending.pop(identifier, None)
        self._nfqlb.say(identifier, action, "active")

    def _remove(self, target: TargetSpec) -> None:
        self._nfqlb.deactivate(target.identifier)
        self._forget(target)

    def _remove_deliberately(self, target: TargetSpec) -> None:
        started = time.monotonic()
        self._nfqlb.deactivate(target.identifier)
        self._nfqlb.watch_removal(target.identifier, started)
        self._forget(target)
        self._nfqlb.say(target.identifier, "remove", None)

    def _forget(self, target: TargetSpec) -> None:
        del self._configured[target.identifier]
        for ip in target.ips:
            self._unconfigure(target, ip)

    def _configure(self, target: TargetSpec, ip: bytes) -> bool:
        self._unconfigure(target, ip)
        network, table, address = self._network, self._stream.mark(target.identifier), format_ip(ip)
        if not accepted(network.add_rule, table, table, ipv4=is_ipv4(ip)):
            return False
        for entry in network.neighbors():
            if entry.ip == address:
                network.delete_neighbor(address, entry.link)
        if accepted(network.add_route, "default", address, table=table):
            return True
        self._unconfigure(target, ip)
        return False

    def _unconfigure(self, target: TargetSpec, ip: bytes) -> None:
        """Delete rule and route; what is left when the rule cannot be deleted stays, as with the real one."""
        table = self._stream.mark(target.identifier)
        if accepted(self._network.delete_rule, None, table, ipv4=is_ipv4(ip)):
            accepted(self._network.delete_route, "default", format_ip(ip), table=table)

    def _verify(self, target: TargetSpec, ip: bytes) -> bool:
        routes = self._network.routes(self._stream.mark(target.identifier))
        return any(route.gateway == format_ip(ip) for route in routes)


def main() -> None:
    """Entry of the process."""
    parser = argparse.ArgumentParser(description="stand-in for Meridio's load balancer process")
    parser.add_argument("--targets", type=Path, required=True)
    parser.add_argument("--shm-dir", type=Path, default=Path("/dev/shm"))
    arguments = parser.parse_args()
    asyncio.run(follow(StatelessLb(arguments.targets, arguments.shm_dir)))


if __name__ == "__main__":
    main()
