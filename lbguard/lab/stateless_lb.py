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
import contextlib
import subprocess
import time
from pathlib import Path

from lbguard.core.addr import format_ip, is_ipv4
from lbguard.core.model import StreamSpec, TargetSpec
from lbguard.distributor.base import DistributorError
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.memory import StreamMemory
from lbguard.lab.network import Network
from lbguard.lab.stand_in import accepted, follow, log, set_older_links_down
from lbguard.sources.file import TargetsFile

SLOTS_PER_TARGET = 100
OUT_WITHIN_S = 5.0
"""Time for which the effect of a removal on the table is watched."""
LOOK_AGAIN_S = 0.001


class StatelessLb:
    """One stream's targets: configured or pending."""

    def __init__(self, targets_file: Path, shm_dir: Path) -> None:
        self._network = Network()
        self._targets_file = targets_file
        self._shm_dir = shm_dir
        self._stream = _read(targets_file)
        self._shm = f"tshm-{self._stream.name}"
        self._configured: dict[int, TargetSpec] = {}
        self._pending: dict[int, TargetSpec] = {}

    async def start(self) -> None:
        """Make the stream's table, then take the targets."""
        room = self._stream.max_targets
        self._nfqlb("init", "--ownfw=0", f"--shm={self._shm}", f"--M={room * SLOTS_PER_TARGET}", f"--N={room}")
        set_older_links_down(self._network)
        self._take(self._stream)

    async def reread(self) -> None:
        """Take the list anew: remove who left it, add who came."""
        self._take(_read(self._targets_file))

    async def look(self) -> None:
        """Remove every target that misses a route, and try the pending ones again."""
        set_older_links_down(self._network)
        for target in list(self._configured.values()):
            if not all(self._verify(target, ip) for ip in target.ips):
                self._remove(target)
                self._pending[target.identifier] = target
                self._say(target, "withdraw", "withdrawn")
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
        index, mark = f"--index={identifier - 1}", self._stream.mark(identifier)
        if not (done and self._nfqlb("activate", index, f"--shm={self._shm}", str(mark))):
            self._pending[identifier] = target
            for ip in target.ips:
                self._unconfigure(target, ip)
            return
        self._configured[identifier] = target
        self._pending.pop(identifier, None)
        self._say(target, action, "active")

    def _remove(self, target: TargetSpec) -> None:
        self._nfqlb("deactivate", f"--index={target.identifier - 1}", f"--shm={self._shm}")
        del self._configured[target.identifier]
        for ip in target.ips:
            self._unconfigure(target, ip)

    def _remove_deliberately(self, target: TargetSpec) -> None:
        """Remove a target whose path is fine, and log how long it stayed in the table after the call began."""
        started = time.monotonic()
        self._nfqlb("deactivate", f"--index={target.identifier - 1}", f"--shm={self._shm}")
        while not (out := not self._in_table(target)) and time.monotonic() < started + OUT_WITHIN_S:
            time.sleep(LOOK_AGAIN_S)
        log("removed", identifier=target.identifier, out=out, took_s=time.monotonic() - started)
        del self._configured[target.identifier]
        for ip in target.ips:
            self._unconfigure(target, ip)
        self._say(target, "remove", None)

    def _in_table(self, target: TargetSpec) -> bool:
        index = target.identifier - 1
        with contextlib.suppress(DistributorError):
            memory = StreamMemory(self._shm_dir / self._shm, self._stream, TableKind.MAGLEV, read_only=True)
            with contextlib.closing(memory):
                return memory.active()[index] >= 0 or index in memory.lookup()
        return True

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

    def _nfqlb(self, *arguments: str) -> bool:
        done = subprocess.run(["nfqlb", *arguments], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            log("refused", call=" ".join(arguments), reason=(done.stderr or done.stdout).strip())
        return done.returncode == 0

    def _say(self, target: TargetSpec, action: str, state: str | None) -> None:
        log("decision", action=action, identifier=target.identifier, stream=self._stream.name, state_to=state)


def _read(targets_file: Path) -> StreamSpec:
    (stream,) = TargetsFile(targets_file).read()
    return stream


def main() -> None:
    """Entry of the process."""
    parser = argparse.ArgumentParser(description="stand-in for Meridio's load balancer process")
    parser.add_argument("--targets", type=Path, required=True)
    parser.add_argument("--shm-dir", type=Path, default=Path("/dev/shm"))
    arguments = parser.parse_args()
    asyncio.run(follow(StatelessLb(arguments.targets, arguments.shm_dir)))


if __name__ == "__main__":
    main()
