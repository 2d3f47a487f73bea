"""A working model of Meridio's load balancer, as far as it makes rules, routes and calls of nfqlb.

In its order: a target is configured address by address (what is left of it deleted, rule, old neighbour entries out,
route), then activated. A removal deactivates first, then deletes rule and route address by address, giving an address
up at the first failure. A check removes whoever has lost a route and tries the removed ones again. The real one checks
100 ms after a link came or went and each 10 s; here the test says when.
"""

from collections.abc import Mapping

from lbguard.lab.netns import Namespace
from lbguard.lab.stand_in import accepted
from tests.fakes.interposed import Interposed

OFFSET = 5000


class StatelessLb:
    """The load balancer of one stream. `calls` are those that nfqlb refused, as the real one logs them."""

    def __init__(self, namespace: Namespace, nfqlb: Interposed, stream: str, max_targets: int = 10) -> None:
        self.targets: dict[int, tuple[str, ...]] = {}
        self.pending: dict[int, tuple[str, ...]] = {}
        self.refused: list[str] = []
        self.shm = f"tshm-{stream}"
        self._namespace = namespace
        self._nfqlb = nfqlb
        self._max_targets = max_targets

    def start(self) -> None:
        """Make the stream's table."""
        room = self._max_targets
        assert self._call("init", "--ownfw=0", f"--shm={self.shm}", f"--M={room * 100}", f"--N={room}")

    def stop(self) -> None:
        """End the stream: every target removed, then the table deleted."""
        for identifier in list(self.targets):
            self._remove(identifier)
        assert self._call("delete", f"--shm={self.shm}")

    def set_targets(self, listed: Mapping[int, tuple[str, ...]]) -> None:
        """Take the registry's list."""
        for identifier in list(self.pending):
            if listed.get(identifier) != self.pending[identifier]:
                del self.pending[identifier]
        for identifier in list(self.targets):
            if listed.get(identifier) != self.targets[identifier]:
                self._remove(identifier)
        for identifier, ips in listed.items():
            if identifier not in self.targets and identifier not in self.pending:
                self._add(identifier, ips)

    def check(self) -> None:
        """Verify every target, then try the pending ones again."""
        for identifier, ips in list(self.targets.items()):
            if not all(self._verify(identifier, ip) for ip in ips):
                self._remove(identifier)
                self.pending[identifier] = ips
        for identifier, ips in list(self.pending.items()):
            self._add(identifier, ips)

    def _add(self, identifier: int, ips: tuple[str, ...]) -> None:
        table = OFFSET + identifier
        done = all(self._configure(table, ip) for ip in ips)
        if done:
            done = self._call("activate", f"--index={identifier - 1}", f"--shm={self.shm}", str(table))
        if not done:
            self.pending[identifier] = ips
            for ip in ips:
                self._unconfigure(table, ip)
            return
        self.targets[identifier] = ips
        self.pending.pop(identifier, None)

    def _remove(self, identifier: int) -> None:
        self._call("deactivate", f"--index={identifier - 1}", f"--shm={self.shm}")
        for ip in self.targets.pop(identifier):
            self._unconfigure(OFFSET + identifier, ip)

    def _configure(self, table: int, ip: str) -> bool:
        self._unconfigure(table, ip)
        if not accepted(self._namespace.add_rule, table, table, ipv4=":" not in ip):
            return False
        for entry in self._namespace.neighbors():
            if entry.ip == ip:
                self._namespace.delete_neighbor(ip, entry.link)
        if accepted(self._namespace.add_route, "default", ip, table=table):
            return True
        self._unconfigure(table, ip)
        return False

    def _unconfigure(self, table: int, ip: str) -> None:
        if accepted(self._namespace.delete_rule, None, table, ipv4=":" not in ip):
            accepted(self._namespace.delete_route, "default", ip, table=table)

    def _verify(self, identifier: int, ip: str) -> bool:
        return any(route.gateway == ip for route in self._namespace.routes(OFFSET + identifier))

    def _call(self, *arguments: str) -> bool:
        status, printed = self._nfqlb.run(*arguments)
        if status:
            self.refused.append(f"{' '.join(arguments)}: {printed.strip()}")
        return status == 0
