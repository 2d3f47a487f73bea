"""A load balancer that is not modified, with our program before its nfqlb, and the real service beside it."""

import contextlib
import json
import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from lbguard.api.client import GuardClient
from lbguard.core.model import StreamSpec
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.memory import StreamMemory
from lbguard.lab.netns import Namespace, connect
from tests.bench.service import Service
from tests.fakes.interposed import Interposed
from tests.fakes.stateless_lb import OFFSET, StatelessLb

LIMIT_S = 90.0
OURS = 152
SHM = Path("/dev/shm")
VIP = "20.0.0.1"
_MARKING = """
add table inet marking
add chain inet marking prerouting {{ type filter hook prerouting priority -150; }}
add rule inet marking prerouting ip daddr {vip} meta mark set {mark}
"""
METRICS_AT = "127.0.0.1:9464"
METRICS = {"LBGUARD_METRICS__LISTEN": METRICS_AT}
PATIENT = {"LBGUARD_GRACE__WINDOW": "1h", "LBGUARD_GRACE__MAX": "1h"}


def wait_until(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"this did not come true in {LIMIT_S} s: {what or condition}")
        time.sleep(0.02)


def ips_of(identifier: int) -> tuple[str, str]:
    """Return the addresses of a target: 1 to 4 are behind the first proxy, 5 to 9 behind the second."""
    proxy = 1 if identifier < 5 else 2
    return f"172.16.{proxy}.{10 + identifier}", f"fd00:{proxy}::{10 + identifier:x}"


class Balancer:
    """Namespaces of the load balancer and of the proxies, the model of stateless-lb, and the service."""

    shm_prefix = "tshm-"
    first = 1
    """The identifier of the target at index 0."""

    def __init__(
        self, lb: Namespace, proxies: Namespace, nfqlb: Interposed, stream: str, shm_dir: Path, directory: Path
    ) -> None:
        self.lb, self.proxies, self.nfqlb, self.stream = lb, proxies, nfqlb, stream
        self.meridio = StatelessLb(lb, nfqlb, stream)
        self.real = shm_dir == SHM
        self._directory = directory
        self._shm_dir = shm_dir
        self.socket = directory / f"{lb.name}.sock"
        self._service: Service | None = None
        for namespace in (lb, proxies):
            for link in ("all", "default"):
                namespace.sysctl(f"net.ipv6.conf.{link}.accept_dad", "0")
        for number in (1, 2):
            self.make_link(number)

    def make_link(self, number: int) -> None:
        far = f"lb-{number}"
        connect(self.lb, f"nse-{number}", self.proxies, far)
        targets = [
            ip for identifier in range(1, 10) for ip in ips_of(identifier) if f":{number}:" in ip or f".{number}." in ip
        ]
        self.proxies.add_addresses(far, *(f"{ip}/{64 if ':' in ip else 24}" for ip in targets))
        self.lb.add_addresses(f"nse-{number}", f"172.16.{number}.1/24", f"fd00:{number}::1/64")

    def cut(self, number: int) -> None:
        self.lb.delete_link(f"nse-{number}")

    @contextlib.contextmanager
    def service(self, **settings: str) -> Iterator[Service]:
        """Run the service, ready and listening for calls."""
        service = self._service = Service(
            self.lb,
            self._directory,
            "streams: []",
            settings={
                "LBGUARD_SOURCE": "interposer",
                "LBGUARD_INTERPOSER__DIRECTORY": str(self.nfqlb.shared),
                "LBGUARD_DISTRIBUTOR__KIND": "auto",
                "LBGUARD_DISTRIBUTOR__SHM_DIR": str(self._shm_dir),
                "LBGUARD_FREEZE__THRESHOLD": "1",
                **settings,
            },
        )
        with service:
            wait_until((self.nfqlb.shared / "requests").exists, "the service listens")
            wait_until(lambda: (self.nfqlb.shared / "missed").stat().st_size == 0, "missed calls are taken")
            yield service

    def serve(self, *identifiers: int) -> None:
        """Start the load balancer, give it targets, and wait until they have slots."""
        self.meridio.start()
        self.give(*identifiers)
        self.wait_for_slots(*identifiers)

    def wait_for_slots(self, *identifiers: int) -> None:
        """Wait until exactly these targets have slots: on a busy machine an activate is answered before."""
        wait_until(lambda: self.active() == set(self.table()) == set(identifiers), f"slots of {identifiers}")

    def give(self, *identifiers: int) -> None:
        self.meridio.set_targets({identifier: ips_of(identifier) for identifier in identifiers})

    def table(self) -> list[int]:
        """Return the identifier that each slot belongs to; one below the first for nobody."""
        return [index + self.first for index in self._memory(StreamMemory.lookup)]

    def active(self) -> set[int]:
        """Return the identifiers that have a mark in nfqlb's memory."""
        marks = self._memory(StreamMemory.active)
        offsets = {mark - (index + self.first) for index, mark in enumerate(marks) if mark >= 0}
        assert len(offsets) < 2, offsets
        return {index + self.first for index, mark in enumerate(marks) if mark >= 0}

    def _memory(self, read: Callable[[StreamMemory], list[int]]) -> list[int]:
        path = self._shm_dir / f"{self.shm_prefix}{self.stream}"
        memory = StreamMemory(path, StreamSpec(name=self.stream, max_targets=1), TableKind.MAGLEV, read_only=True)
        try:
            return read(memory)
        finally:
            memory.close()

    def states(self) -> dict[int, str]:
        """Return the state of each target, as the service tells it."""
        with GuardClient(self.socket) as client:
            return {target.identifier: target.state.value for target in client.status().targets}

    def wait_for(self, **states: str) -> None:
        wanted = {int(name[1:]): state for name, state in states.items()}
        wait_until(lambda: self.states() == wanted, f"{wanted}")

    def registered(self) -> dict[int, bool]:
        """Return who is registered for a restart, and whether the load balancer has confirmed it."""
        kept = json.loads((self.nfqlb.shared / "registry.json").read_text())["streams"]
        targets = kept.get(self.stream, {}).get("targets", {})
        return {int(identifier): entry["confirmed"] for identifier, entry in targets.items()}

    def outcomes(self, command: str, calls: int) -> dict[str, int]:
        """Return the outcomes of all calls of a command, when the service has counted so many; needs `METRICS`."""
        line = re.compile(rf'lbguard_interposer_calls_total{{command="{command}",outcome="(\w+)"}} (\d+)')
        found: dict[str, int] = {}

        def counted() -> bool:
            with self.lb.entered(), urllib.request.urlopen(f"http://{METRICS_AT}/metrics", timeout=LIMIT_S) as answer:
                page = answer.read().decode()
            found.update((outcome, int(count)) for outcome, count in line.findall(page))
            return sum(found.values()) >= calls

        wait_until(counted, f"{calls} calls of {command} counted")
        return found

    def rules(self, identifier: int) -> tuple[list[int], list[int]]:
        """Return the priorities of the IPv4 rules for a target's mark: ours, and the load balancer's."""
        found = [rule for rule in self.lb.rules(ipv4=True) if rule.mark == OFFSET + identifier]
        ours = [rule.priority for rule in found if rule.protocol == OURS]
        return ours, [rule.priority for rule in found if rule.protocol != OURS]

    def routes(self, identifier: int) -> list[tuple[int, bool]]:
        """Return the IPv4 routes of a target's table, the preferred first: protocol, and whether it drops."""
        routes = sorted(self.lb.routes(OFFSET + identifier, ipv4=True), key=lambda route: route.metric)
        return [(route.protocol, route.kind == "blackhole") for route in routes]

    def next_hop(self, identifier: int) -> str:
        """Return the gateway of a packet to a VIP with the mark of a target; empty when it goes nowhere."""
        route = self.lb.route_to("20.0.0.1", mark=OFFSET + identifier)
        return route.gateway if route else ""

    def mark_everything(self, identifier: int) -> None:
        """Mark every packet to the VIP for a target, as nfqlb does with the packets of a target's slots."""
        self.lb.run("nft", _MARKING.format(vip=VIP, mark=OFFSET + identifier))

    def avoided(self) -> set[int]:
        """Return the targets that get no new IPv4 connections."""
        listed = json.loads(self.lb.run("nft", "-j", "list", "set", "inet", "lbguard-affinity", "avoid_4"))
        found = next(thing["set"] for thing in listed["nftables"] if "set" in thing)
        return {mark - OFFSET for mark in found.get("elem", ())}

    def steered(self) -> int:
        """Return the number of connections that were given to another target."""
        shown = self.lb.run("nft", "list", "counter", "inet", "lbguard-affinity", "steered")
        return int(shown.split("packets ")[1].split()[0])

    def begin_connection(self) -> None:
        """Send the first packet of a TCP connection to the VIP, from the second proxy, and wait for no answer."""
        self.proxies.add_route(f"{VIP}/32", "172.16.2.1")
        with self.proxies.entered():
            client = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with client, contextlib.suppress(BlockingIOError):
            client.connect((VIP, 80))

    def close(self) -> None:
        if self._service is not None and self._service.process is not None:
            self._service.kill()
