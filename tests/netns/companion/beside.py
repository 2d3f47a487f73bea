"""Today's load balancer process in the whole chain, with the real service beside it or without, and what each did."""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lbguard.lab.netns import Namespace
from lbguard.lab.topology import IDENTIFIER_OFFSET, Chain
from tests.bench.service import Service

LIMIT_S = 90.0
OURS = "proto 152"
MAX_TARGETS = 20
_ROOT = Path(__file__).parents[3]

COMPANION = {"LBGUARD_MODE": "companion", "LBGUARD_METRICS__LISTEN": "127.0.0.1:9464"}
FROM_KERNEL = {
    "LBGUARD_SOURCE": "kernel",
    "LBGUARD_KERNEL_SOURCE__STREAMS": f"stream-a={IDENTIFIER_OFFSET + 1}-{IDENTIFIER_OFFSET + MAX_TARGETS}",
    "LBGUARD_TARGETS_FILE": "",
}


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, with a generous bound."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"this did not come true in {LIMIT_S:g} s: {what}")
        time.sleep(0.02)


class Beside:
    """A chain in which today's process serves the targets; `guard` runs lbguard beside it."""

    def __init__(self, chain: Chain, directory: Path) -> None:
        self.chain = chain
        self.lb = chain.lb
        self._directory = directory
        self._targets = directory / "targets.yaml"
        self._log = directory / "baseline.log"
        self._changes = directory / "changes.log"
        chain.write_targets_file(self._targets)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run today's process, and note every change of routes, rules and neighbours."""
        with contextlib.ExitStack() as stack:
            watch = ["ip", "-d", "-o", "monitor", "label", "route", "rule", "neigh"]
            stack.enter_context(self._process(watch, self._changes))
            arguments = ["--targets", str(self._targets), "--distributor", "nftables"]
            stack.enter_context(self._process([sys.executable, "-m", "lbguard.lab.baseline", *arguments], self._log))
            wait_until(lambda: self._lines("ready"), "today's process is at work")
            yield

    @contextlib.contextmanager
    def guard(self, settings: dict[str, str]) -> Iterator[Service]:
        """Run lbguard beside it, all targets known."""
        service = Service(self.lb, self._directory, self._targets.read_text(), settings=COMPANION | settings)
        with service:
            wait_until(lambda: len(service.log("decision")) >= len(self.chain.places), "lbguard knows the targets")
            yield service

    @contextlib.contextmanager
    def _process(self, argv: list[str], output: Path) -> Iterator[None]:
        with output.open("wb") as file:
            process = subprocess.Popen(
                self.lb.command(*argv), stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=_ROOT, env=os.environ
            )
            try:
                yield
            finally:
                process.terminate()
                process.wait(timeout=LIMIT_S)

    # What today's process did

    def _lines(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def decisions(self) -> list[tuple[str, int]]:
        """Return what it did with which target, in order."""
        return [(line["action"], line["identifier"]) for line in self._lines("decision")]

    def wait_for(self, action: str, *identifiers: int, times: int = 1) -> None:
        """Wait until it did this to these targets, so many times since the start."""
        wait_until(
            lambda: all(self.decisions().count((action, identifier)) >= times for identifier in identifiers),
            f"{action} of {identifiers}",
        )

    # What happened in the kernel

    def changes(self, label: str) -> list[str]:
        """Return the changes of a kind (ROUTE, RULE, NEIGH) so far, as `ip monitor` prints them."""
        return [
            line for line in self._changes.read_text(errors="replace").splitlines() if line.startswith(f"[{label}]")
        ]

    def path_changes(self, *identifiers: int) -> Counter[str]:
        """Count changes of rules and of routes in tables of these targets (none: of all): ours, and others'."""
        marks = [
            IDENTIFIER_OFFSET + number for number in identifiers or [place.identifier for place in self.chain.places]
        ]
        tables = [f" {word} {mark}" for mark in marks for word in ("table", "lookup")]
        lines = [line + " " for label in ("ROUTE", "RULE") for line in self.changes(label)]
        counted = [line for line in lines if any(f"{table} " in line for table in tables)]
        return Counter("ours" if OURS in line else "others" for line in counted)

    def paths(self) -> dict[str, object]:
        """Return what packets pass: rules, routes, slots, and which links are up. Names of links become numbers."""
        links = {name: f"link-{proxy}" for proxy, name in self.chain.lb_links.items()}
        routes = [
            (route.ipv4, route.table, route.kind, route.gateway, links.get(route.link, route.link))
            for route in self.lb.routes()
            if 5000 <= route.table < 5100
        ]
        rules = [(rule.ipv4, rule.mark, rule.table) for rule in self.lb.rules() if rule.mark]
        up = {links[link.name] for link in self.lb.links() if link.up and link.name in links}
        return {"routes": sorted(routes), "rules": sorted(rules), "slots": self.slots(), "up": up}

    def ways(self) -> dict[str, str]:
        """Return where the kernel sends a packet with the mark of each target: gateway, and proxy of the link."""
        links = {name: f"proxy {proxy}" for proxy, name in self.chain.lb_links.items()}
        found = {}
        for place in self.chain.places:
            for ip in ("198.51.100.1", "2001:db8::1"):
                route = self.lb.route_to(ip, IDENTIFIER_OFFSET + place.identifier)
                assert route is not None
                found[f"{place.identifier} {ip}"] = f"{route.gateway} {links.get(route.link, route.link)}"
        return found

    def rules(self) -> Counter[str]:
        """Count the rules that are not ours, by family and mark."""
        return Counter(
            f"{'-4' if rule.ipv4 else '-6'} {rule.mark:#x}"
            for rule in self.lb.rules()
            if rule.mark and rule.protocol != 152
        )

    def slots(self) -> dict[int, int]:
        """Return the slots of the stream: slot to mark."""
        for thing in json.loads(self.lb.run("nft", "-j", "list", "table", "inet", "lbguard"))["nftables"]:
            if thing.get("map", {}).get("name", "").startswith("slots_"):
                return dict(thing["map"].get("elem", ()))
        return {}

    # Neighbours

    def mac_in_lb(self, ip: str) -> str:
        """Return the link-layer address that the load balancer holds of a target; empty when it holds none."""
        return _mac_of(self.lb, ip)

    def mac_in_proxy(self, proxy: int, ip: str) -> str:
        """Return the link-layer address that a proxy holds of the load balancer."""
        return _mac_of(self.chain.proxy(proxy), ip)

    def mac_of_target(self, identifier: int) -> str:
        """Return the address of a target's own link."""
        target, ip = self.chain.target(identifier), self.chain.place(identifier).ipv4
        return target.link(next(address.link for address in target.addresses() if address.ip == ip)).mac

    def mac_of_lb(self, proxy: int) -> str:
        """Return the address of the load balancer's link to a proxy."""
        return self.lb.link(self.chain.lb_links[proxy]).mac

    def meet(self, identifier: int) -> None:
        """Make the load balancer and a target know each other."""
        place = self.chain.place(identifier)
        for ip in (place.ipv4, place.ipv6):
            wait_until(functools.partial(answers, self.lb, ip), f"{ip} answers")


def answers(space: Namespace, ip: str) -> bool:
    """Send one packet to a port where nobody listens, and tell whether the address said so within half a second."""
    with space.entered():
        sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(0.5)
        sock.connect((ip, 9))
        try:
            sock.send(b"?")
            sock.recv(1)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _mac_of(space: Namespace, ip: str) -> str:
    entries = [entry for entry in space.neighbors() if entry.ip == ip and entry.mac and entry.state != "failed"]
    return entries[-1].mac if entries else ""
