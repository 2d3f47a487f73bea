"""A load balancer with the real service in its namespace, two proxies' links, and everything the kernel holds of it."""

import contextlib
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from lbguard.api.client import GuardClient
from lbguard.core.model import Decision
from lbguard.lab.netns import Namespace, connect
from lbguard.lab.network_objects import Route, Rule
from tests.bench.service import Service

LIMIT_S = 90.0
LINKS = {"nse-a": 1, "nse-b": 2}
"""The links to the two proxies, and the number of the subnet of each: 172.16.N.0/24 and fd00:N::/64."""

TARGETS = {1: 1, 2: 1, 3: 2, 4: 2}
"""The targets of stream-a, and the proxy that each is behind."""

SETTINGS = {
    "LBGUARD_GRACE__WINDOW": "300ms",
    "LBGUARD_FREEZE__THRESHOLD": "1",
    "LBGUARD_AVAILABILITY__GRACE": "100ms",
    "LBGUARD_METRICS__LISTEN": "127.0.0.1:9464",
}
PATIENT = {"LBGUARD_GRACE__WINDOW": "1h", "LBGUARD_GRACE__MAX": "1h"}
"""Settings with which a test has all the time of the world while targets are held."""

OURS = 152
"""The protocol of our routes and rules."""


def wait_until(condition: Callable[[], object], what: str = "", limit_s: float = LIMIT_S) -> None:
    """Wait for a condition, with a generous bound."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"this did not come true in {limit_s} s: {what or condition}")
        time.sleep(0.02)


def ips_of(identifier: int) -> list[str]:
    proxy = TARGETS.get(identifier, 9)
    return [f"172.16.{proxy}.{10 + identifier}", f"fd00:{proxy}::{10 + identifier:x}"]


def stream(name: str = "stream-a", *identifiers: int, **changes: object) -> dict[str, object]:
    return {
        "name": name,
        "max_targets": 10,
        "identifier_offset": 5000,
        "vips": ["20.0.0.1/32", "2000::1/128"],
        "targets": [{"identifier": identifier, "ips": ips_of(identifier)} for identifier in identifiers],
    } | changes


def targets_yaml(*streams: dict[str, object]) -> str:
    return yaml.safe_dump({"streams": list(streams or (stream("stream-a", *TARGETS),))}, sort_keys=False)


def with_prefix(ips: Iterable[str]) -> list[str]:
    """Return the addresses as a link has them: /24 and /64."""
    return [f"{ip}/{64 if ':' in ip else 24}" for ip in ips]


class Guarded:
    """The namespaces of a load balancer and of its proxies, and services started in the former."""

    def __init__(self, lb: Namespace, proxies: Namespace, directory: Path) -> None:
        self.lb = lb
        self.proxies = proxies
        self.directory = directory
        self.targets_path = directory / f"{lb.name}.yaml"
        self.config_path = directory / f"{lb.name}-settings.yaml"
        self.socket = directory / f"{lb.name}.sock"
        self._services: list[Process] = []
        for namespace in (lb, proxies):
            for link in ("all", "default"):
                namespace.sysctl(f"net.ipv6.conf.{link}.accept_dad", "0")
        for link in LINKS:
            self.make_link(link)

    # Links

    def make_link(self, link: str) -> None:
        """Make a link to a proxy, with the addresses of the load balancer and of the targets behind it."""
        number, far = LINKS[link], f"lb-{LINKS[link]}"
        connect(self.lb, link, self.proxies, far)
        for identifier in (identifier for identifier, proxy in TARGETS.items() if proxy == number):
            self.proxies.add_addresses(far, *with_prefix(ips_of(identifier)))
        self.lb.add_addresses(link, f"172.16.{number}.1/24", f"fd00:{number}::1/64")

    def delete_link(self, link: str) -> None:
        self.lb.delete_link(link)

    # The service

    def process(
        self, settings: dict[str, str] | None = None, *, targets: str | None = None, config: str | None = None
    ) -> "Process":
        """Return a service that is not started yet. `config`: its settings file, which says more than the defaults."""
        usual = SETTINGS
        if config is not None:
            self.config_path.write_text(config)
            usual = {name: value for name, value in SETTINGS.items() if "GRACE" not in name and "FREEZE" not in name}
            usual["LBGUARD_CONFIG"] = str(self.config_path)
        if targets is None:
            targets = self.targets_path.read_text() if self.targets_path.exists() else targets_yaml()
        made = Process(self.lb, self.directory, targets, settings={**usual, **(settings or {})}, wait=False)
        self._services.append(made)
        return made

    @contextlib.contextmanager
    def service(
        self,
        settings: dict[str, str] | None = None,
        *,
        targets: str | None = None,
        config: str | None = None,
        admitted: int = 4,
    ) -> Iterator["Process"]:
        """Run a service that is ready and has admitted (or adopted) so many targets, and stop it in the end."""
        process = self.process(settings, targets=targets, config=config)
        with process:
            process.wait_until_ready()
            process.wait_until_admitted(admitted)
            self.wait_for_table(admitted)
            wait_until(lambda: self.nft("table", "inet", "lbguard-counters"), "the packet counters")
            yield process

    def wait_for_table(self, admitted: int) -> None:
        wait_until(lambda: sum(self.active().values()) >= admitted, f"{admitted} targets in the table")

    def write_targets(self, text: str, *, in_place: bool = False) -> None:
        if in_place:
            self.targets_path.write_text(text)
        else:
            beside = self.targets_path.with_suffix(".new")
            beside.write_text(text)
            beside.rename(self.targets_path)

    def client(self) -> GuardClient:
        return GuardClient(self.socket, timeout_s=LIMIT_S)

    def states(self) -> dict[int, str]:
        """Return the state of each target of stream-a, as the service tells it."""
        with self.client() as client:
            return {target.identifier: target.state.value for target in client.status().targets}

    def wait_for(self, **states: str) -> None:
        """Wait until targets are in these states: `wait_for(t1="held")`."""
        wanted = {int(name[1:]): state for name, state in states.items()}
        wait_until(lambda: wanted.items() <= self.states().items(), f"{wanted}")

    def decisions(self) -> list[Decision]:
        with self.client() as client:
            return [watched.decision for watched in client.watch(1000, follow=False)]

    def close(self) -> None:
        for service in self._services:
            if service.process is not None:
                service.kill()

    def http(self, page: str) -> tuple[int, str]:
        """Get a page of the endpoint for metrics and health: status and text; 0 while it is not served."""
        with self.lb.entered():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:9464{page}", timeout=LIMIT_S) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()
            except urllib.error.URLError:
                return 0, ""

    def metric(self, sample: str) -> float | None:
        """Return the value of a sample, by its name with labels as the page shows it."""
        for line in self.http("/metrics")[1].splitlines():
            name, _, value = line.rpartition(" ")
            if name == sample:
                return float(value)
        return None

    # What the kernel holds

    def rules(self) -> list[Rule]:
        """Return every rule of both families with a mark."""
        return sorted(rule for rule in self.lb.rules() if rule.mark)

    def routes(self, table: int | None = None) -> list[Route]:
        """Return every route of our protocol; that IPv6 has its fallbacks on loopback is left out."""
        ours = [route for route in self.lb.routes(table) if route.protocol == OURS]
        return sorted(route._replace(link="") if route.link == "lo" else route for route in ours)

    def gateways(self, identifier: int) -> set[str]:
        """Return the addresses that the routes of a target's table lead to."""
        return {route.gateway for route in self.routes(5000 + identifier) if route.gateway}

    def nft(self, *args: str) -> list[dict[str, Any]]:
        """List something of nftables; empty when it is not there."""
        text = self.lb.run("nft", "-j", "list", *args, check=False)
        objects: list[dict[str, Any]] = json.loads(text)["nftables"] if text else []
        return objects

    def slots(self) -> dict[int, int]:
        """Return the slots of stream-a: slot to mark."""
        for thing in self.nft("table", "inet", "lbguard"):
            if thing.get("map", {}).get("name", "").startswith("slots_"):
                return dict(thing["map"].get("elem", ()))
        return {}

    def active(self) -> dict[int, bool]:
        """Return the identifiers that have slots."""
        return {mark - 5000: True for mark in self.slots().values()}

    def data_path(self) -> dict[str, object]:
        """Return all that packets pass: slots, rules and routes."""
        return {"slots": self.slots(), "rules": self.rules(), "routes": self.routes()}

    def plain(self, messages: Iterable[Any]) -> list[str]:
        """Return what messages of the kernel say of routes and rules, without numbers of links."""
        names = {link.ifindex: link.name for link in self.lb.links()}
        shown = []
        for message in messages:
            fields = [message[name] for name, _ in message.fields if name != "header"]
            attributes = dict(message["attrs"])
            attributes.pop("RTA_CACHEINFO", None)
            if "RTA_OIF" in attributes:
                attributes["RTA_OIF"] = names.get(attributes["RTA_OIF"])
            shown.append(f"{fields} {attributes}")
        return shown

    def everything(self) -> dict[str, list[str]]:
        """Return all that the kernel holds and lbguard could touch, line by line."""
        sysctls = self.lb.run("sysctl", "-a", "--pattern", r"^net\.(ipv4|ipv6|core|netfilter)\.", check=False)
        timers = self.lb.neighbor_timers()
        for values in timers.values():
            # The time that an entry stays reachable is random, and drawn anew from time to time.
            del values["NDTPA_REFCNT"], values["NDTPA_REACHABLE_TIME"]
        return {
            "rules4": self.plain(self.lb.raw_rules(ipv4=True)),
            "rules6": self.plain(self.lb.raw_rules(ipv4=False)),
            "routes4": self.plain(self.lb.raw_routes(ipv4=True)),
            "routes6": self.plain(self.lb.raw_routes(ipv4=False)),
            "links": [str(link) for link in self.lb.links()],
            "addresses": [str(address) for address in self.lb.addresses()],
            "timers": [f"{of} {values}" for of, values in timers.items()],
            "ruleset": self.lb.run("nft", "-s", "list", "ruleset").splitlines(),
            "sysctls": sysctls.splitlines(),
        }


class Process(Service):
    """The service with what a test asks of it besides."""

    def wait_for_log(self, event: str, count: int = 1, **fields: object) -> dict[str, Any]:
        """Wait for a log line with these fields, the `count`-th one, and return it."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [line for line in self.log(event) if fields.items() <= line.items()]
            return len(found) >= count

        wait_until(there, f"log line {event!r} with {fields}")
        return found[count - 1]

    def wait_for_end(self) -> int:
        """Wait until the process ends by itself; return its exit status."""
        process, self.process = self.process, None
        assert process is not None
        process.communicate(timeout=LIMIT_S)
        return process.returncode

    def terminate(self) -> int:
        """Ask it to stop; return its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait_for_end()

    def hang_up(self) -> None:
        """Ask it to read the targets again."""
        os.kill(self.pid, signal.SIGHUP)
