"""Parking beside an unmodified load balancer: the packets of targets whose links are lost are kept and given back."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from lbguard.api.client import GuardClient
from lbguard.lab.netns import Namespace, connect
from tests.netns.interposer.balancer import LIMIT_S, PATIENT, VIP, Balancer, wait_until

pytestmark = pytest.mark.netns

ON = {"LBGUARD_PARKING__ENABLED": "true", **PATIENT}
PARKING = "lbguard-park"
PORT = 4000


class Datagrams:
    """A client that sends to the VIP, and the receiver on the targets' side."""

    def __init__(self, balancer: Balancer, client: Namespace) -> None:
        connect(client, "up", balancer.lb, "client")
        client.add_addresses("up", "10.0.0.2/24")
        balancer.lb.add_addresses("client", "10.0.0.1/24")
        client.add_route("default", "10.0.0.1")
        balancer.lb.sysctl("net.ipv4.ip_forward", "1")
        balancer.proxies.add_addresses("lo", f"{VIP}/32")
        # The receiver answers nothing and has no way back to the client.
        for link in ("all", "default", "lb-1", "lb-2"):
            balancer.proxies.sysctl(f"net.ipv4.conf.{link}.rp_filter", "0")
        with balancer.proxies.entered():
            self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._receiver.bind((VIP, PORT))
        self._receiver.setblocking(False)
        with client.entered():
            self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send(self, *texts: str) -> None:
        for text in texts:
            self._sender.sendto(text.encode(), (VIP, PORT))

    def received(self) -> list[str]:
        """Return what has arrived since the last call."""
        found = []
        while True:
            try:
                found.append(self._receiver.recv(2048).decode())
            except BlockingIOError:
                return found

    def arrive(self, count: int) -> list[str]:
        """Wait until so many packets arrived, and return them."""
        found: list[str] = []

        def there() -> bool:
            found.extend(self.received())
            return len(found) >= count

        wait_until(there, f"{count} packets")
        return found

    def forwarded(self) -> None:
        """Wait until a packet comes through."""
        deadline = time.monotonic() + LIMIT_S
        while "try" not in self.received():
            assert time.monotonic() < deadline, "no packet comes through"
            self.send("try")
            time.sleep(0.05)

    def close(self) -> None:
        self._receiver.close()
        self._sender.close()


@pytest.fixture
def datagrams(balancer: Balancer, make_namespace: Callable[[str], Namespace]) -> Iterator[Datagrams]:
    made = Datagrams(balancer, make_namespace("client"))
    yield made
    made.close()


def kept(balancer: Balancer) -> int:
    """Return how many packets are kept; -1 while parking is not in force."""
    with GuardClient(balancer.socket) as client:
        parking = client.status().parking
    return parking.packets if parking is not None and parking.in_force else -1


def serve(balancer: Balancer, datagrams: Datagrams, identifier: int) -> None:
    """Give the load balancer two targets, and every packet to one of them."""
    balancer.serve(1, 5)
    balancer.mark_everything(identifier)
    wait_until(lambda: kept(balancer) == 0, "parking in force")
    datagrams.forwarded()
    time.sleep(0.2)
    datagrams.received()


def lose(balancer: Balancer, datagrams: Datagrams) -> list[str]:
    """Cut the link of target 1, let the load balancer notice, and send packets that are kept."""
    balancer.cut(1)
    balancer.meridio.check()
    balancer.wait_for(t1="held", t5="active")
    texts = [str(number) for number in range(50)]
    datagrams.send(*texts)
    wait_until(lambda: kept(balancer) == 50, "50 packets kept")
    assert datagrams.received() == []
    return texts


def test_packets_are_given_back_before_the_load_balancer_has_noticed(balancer: Balancer, datagrams: Datagrams) -> None:
    with balancer.service(**ON):
        serve(balancer, datagrams, 1)
        texts = lose(balancer, datagrams)
        balancer.make_link(1)
        assert datagrams.arrive(50) == texts
        assert balancer.meridio.targets.keys() == {5}
        balancer.wait_for(t1="active", t5="active")
        balancer.meridio.check()
        assert balancer.meridio.targets.keys() == {1, 5}
        assert kept(balancer) == 0
        datagrams.forwarded()
    assert balancer.meridio.refused == []
    assert PARKING not in {link.name for link in balancer.lb.links()}


def test_packets_of_a_target_that_is_removed_meanwhile_are_dropped(balancer: Balancer, datagrams: Datagrams) -> None:
    with balancer.service(**ON):
        serve(balancer, datagrams, 1)
        lose(balancer, datagrams)
        balancer.give(5)
        wait_until(lambda: kept(balancer) == 0, "none is kept")
        balancer.make_link(1)
        balancer.give(1, 5)
        balancer.wait_for(t1="active", t5="active")
        datagrams.forwarded()
        assert set(datagrams.received()) <= {"try"}
    assert balancer.meridio.refused == []


def test_without_lbguard_the_load_balancer_works_as_before(balancer: Balancer, datagrams: Datagrams) -> None:
    with balancer.service(**ON) as service:
        serve(balancer, datagrams, 1)
        lose(balancer, datagrams)
        service.kill()
        wait_until(lambda: PARKING not in {link.name for link in balancer.lb.links()}, "the link is gone")
    balancer.make_link(1)
    balancer.meridio.check()
    datagrams.forwarded()
    assert set(datagrams.received()) <= {"try"}
