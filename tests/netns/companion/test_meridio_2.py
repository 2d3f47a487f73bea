"""Beside the unmodified load balancer of Meridio-2, in mode companion: names, identifiers and neighbours."""

import functools
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbguard.core.model import ROUTE_PROTOCOL, StreamSpec
from lbguard.lab.flat_network import FlatNetwork
from lbguard.lab.meridio_2_lb import OFFSET, Targets
from lbguard.lab.nfqlb import install_stand_in
from lbguard.lab.nfqlb_calls import NfqlbCalls
from tests.bench.service import Service
from tests.netns.companion.beside import COMPANION, answers, wait_until

pytestmark = pytest.mark.netns

GROUP = f"group-{secrets.token_hex(4)}"
"""The memory has this name, in a directory that all share."""
SHM_DIR = Path("/dev/shm")
ROOM = 10


class Gateway:
    """The load balancer of one Gateway on a flat network, its table in a directory."""

    def __init__(self, network: FlatNetwork, directory: Path) -> None:
        self.network = network
        self.lb = network.lb
        self.directory = directory
        program = str(install_stand_in(directory / "stand-in"))
        spec = StreamSpec(name=GROUP, max_targets=ROOM)
        calls = NfqlbCalls(spec, GROUP, SHM_DIR, first=0, program=program)
        self._targets = Targets(self.lb, calls)
        self._listed = {place.identifier - 1: (place.ipv4, place.ipv6) for place in network.places}
        self._targets.sweep()
        assert calls.init()
        assert self.reconcile()

    def reconcile(self, *without: int) -> bool:
        """Follow the list, without these; return whether every step succeeded."""
        done, _ = self._targets.reconcile({i: ips for i, ips in self._listed.items() if i not in without})
        return done

    def guard(self) -> Service:
        settings = {
            "LBGUARD_SOURCE": "kernel",
            "LBGUARD_KERNEL_SOURCE__STREAMS": f"{GROUP}={OFFSET}-{OFFSET + ROOM - 1}",
            "LBGUARD_KERNEL_SOURCE__FLAVOUR": "meridio-2",
            "LBGUARD_TARGETS_FILE": "",
            "LBGUARD_DISTRIBUTOR__KIND": "auto",
        }
        return Service(self.lb, self.directory, "", settings=COMPANION | settings)

    def mac_of(self, ip: str) -> str:
        """Return the link-layer address that the load balancer has of an address."""
        return next((entry.mac for entry in self.lb.neighbors() if entry.ip == ip and entry.state != "failed"), "")

    def meet(self, identifier: int) -> None:
        place = self.network.place(identifier + 1)
        for ip in (place.ipv4, place.ipv6):
            wait_until(functools.partial(answers, self.lb, ip), f"{ip} answers")

    def left_by_guard(self) -> list[object]:
        """Return the rules and routes of lbguard."""
        return [rule for rule in self.lb.rules() if rule.protocol == ROUTE_PROTOCOL] + [
            route for route in self.lb.routes() if route.protocol == ROUTE_PROTOCOL
        ]


@pytest.fixture
def gateway(sandbox: None, tmp_path: Path) -> Iterator[Gateway]:
    try:
        with FlatNetwork(2, 2) as network:
            yield Gateway(network, tmp_path)
    finally:
        (SHM_DIR / GROUP).unlink(missing_ok=True)


def decisions(guard: Service) -> list[tuple[str, str, int]]:
    return [(line["action"], line["stream"], line["identifier"]) for line in guard.log("decision")]


def wait_for(guard: Service, *wanted: tuple[str, str, int]) -> None:
    wait_until(lambda: set(wanted) <= set(decisions(guard)), f"{wanted}")


def test_targets_have_the_identifiers_and_the_table_of_meridio_2(gateway: Gateway) -> None:
    with gateway.guard() as guard:
        wait_for(guard, *(("adopt", GROUP, identifier) for identifier in range(4)))
        assert not guard.log("reads as empty")
        assert gateway.left_by_guard() == []


def test_a_replaced_link_of_a_target_is_found_without_a_packet(gateway: Gateway) -> None:
    with gateway.guard() as guard:
        wait_for(guard, ("adopt", GROUP, 0))
        gateway.meet(0)
        place, network = gateway.network.place(1), gateway.network
        before = gateway.mac_of(place.ipv4)
        network.delete_target_link(1)
        network.create_target_link(1)
        for ip in (place.ipv4, place.ipv6):
            wait_until(functools.partial(_new_mac, gateway, ip, before), f"{ip} is known under its new address")
            assert answers(gateway.lb, ip)
        assert gateway.left_by_guard() == []


def _new_mac(gateway: Gateway, ip: str, before: str) -> bool:
    return gateway.mac_of(ip) not in {"", before}


def test_a_target_whose_routes_are_gone_stays_until_its_pod_is_not_ready(gateway: Gateway) -> None:
    """Without a link its rules stay until a reconcile, in which the route is refused and the rule deleted."""
    with gateway.guard() as guard:
        wait_for(guard, *(("adopt", GROUP, identifier) for identifier in range(4)))
        gateway.network.delete_lb_link(1)
        wait_for(guard, ("hold", GROUP, 0), ("hold", GROUP, 1))
        assert not gateway.reconcile(3)
        wait_for(guard, ("remove", GROUP, 3))
        gateway.network.create_lb_link(1)
        assert gateway.reconcile(3)
        wait_for(guard, ("recover", GROUP, 0), ("recover", GROUP, 1))
        assert {identifier for action, _, identifier in decisions(guard) if action == "remove"} == {3}
        assert gateway.left_by_guard() == []
