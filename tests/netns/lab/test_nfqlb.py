"""The packet process with real packets: the stand-in does what the real nfqlb does."""

import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lbguard.lab import nfqlb
from lbguard.lab.netns import Namespace, connect
from lbguard.lab.nfqlb import NfqlbKind, NfqlbProcess, search_path
from lbguard.lab.topology import VIP4, VIP6

SOCKETS = 60
LIMIT_S = 90.0
SHM = Path("/dev/shm")
NO_REAL = nfqlb.missing()
# Three datagrams from each of the ports: a port stands for a connection.
SEND = """
import socket, sys
family, address = (socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET), sys.argv[1]
for number in range(SOCKETS):
    with socket.socket(family, socket.SOCK_DGRAM) as each:
        each.bind(("", 20000 + number))
        for _ in range(3):
            each.sendto(b"x", (address, 4000))
""".replace("SOCKETS", str(SOCKETS))
MARKS = {0: 5001, 1: 5002, 2: 5003}


class Place:
    """A client and a load balancer whose nfqlb has three active targets; what it marks is counted behind it."""

    def __init__(self, lb: Namespace, client: Namespace, stream: str, process: NfqlbProcess) -> None:
        self.lb, self.client, self.stream, self.process = lb, client, stream, process
        self._sent = 0

    def nfqlb(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.lb.command("nfqlb", *arguments),
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": self.process.search},
        )

    def change(self, command: str, index: int, *words: str) -> None:
        done = self.nfqlb(command, f"--index={index}", f"--shm=tshm-{self.stream}", *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def send(self, vip: str) -> None:
        """Send three datagrams from each port, and wait until all of them were queued and got a verdict."""
        subprocess.run(self.client.command(sys.executable, "-c", SEND, vip), check=True)
        self._sent += 3 * SOCKETS
        deadline = time.monotonic() + LIMIT_S
        while self._queued_and_waiting() != (self._sent, 0):
            assert time.monotonic() < deadline, self._queued_and_waiting()
            time.sleep(0.01)

    def seen(self, vip: str) -> dict[tuple[int, int], int]:
        """Return how many packets came through the queue, by source port and mark."""
        family = "ip6" if ":" in vip else "ip"
        listed = json.loads(self.lb.run("nft", "-j", "list", "set", family, "behind", "seen"))["nftables"]
        elements = next(each["set"] for each in listed if "set" in each).get("elem", [])
        return {tuple(each["elem"]["val"]["concat"]): each["elem"]["counter"]["packets"] for each in elements}

    def forget(self) -> None:
        for family in ("ip", "ip6"):
            self.lb.run("nft", "flush", "set", family, "behind", "seen")

    def _queued_and_waiting(self) -> tuple[int, int]:
        with self.lb.entered():
            lines = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text().splitlines()
        assert len(lines) == 4
        return sum(int(line.split()[7]) for line in lines), sum(int(line.split()[2]) for line in lines)


BEHIND = """
table FAMILY behind {
  set seen { typeof udp sport . meta mark; flags dynamic; size 65535; counter; }
  chain prerouting {
    type filter hook prerouting priority dstnat;
    FAMILY daddr VIP meta l4proto udp update @seen { udp sport . meta mark }
  }
}
"""


def _count_behind(lb: Namespace) -> None:
    for family, vip in (("ip", VIP4), ("ip6", VIP6)):
        text = BEHIND.replace("FAMILY", family).replace("VIP", vip)
        subprocess.run(lb.command("nft", "-f", "-"), input=text, text=True, check=True)


@pytest.fixture(
    params=[
        NfqlbKind.STAND_IN,
        pytest.param(NfqlbKind.REAL, marks=[pytest.mark.nfqlb, pytest.mark.skipif(bool(NO_REAL), reason=NO_REAL)]),
    ]
)
async def place(
    request: pytest.FixtureRequest, make_namespace: Callable[[str], Namespace], tmp_path: Path
) -> AsyncIterator[Place]:
    lb, client = make_namespace("lb"), make_namespace("client")
    connect(lb, "client", client, "lb")
    lb.add_addresses("client", "10.0.0.1/24", "fd00::1/64")
    client.add_addresses("lb", "10.0.0.2/24", "fd00::2/64")
    client.add_route(VIP4, "10.0.0.1")
    client.add_route(VIP6, "fd00::1")
    _count_behind(lb)
    process = NfqlbProcess(lb, lb.name, 10, search_path(request.param, tmp_path))
    made = Place(lb, client, lb.name, process)
    try:
        await process.start()
        for index, mark in MARKS.items():
            made.change("activate", index, str(mark))
        yield made
    finally:
        await process.stop()
    assert not (SHM / f"tshm-{lb.name}").exists()


@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_a_connection_meets_one_target_until_that_target_leaves(place: Place, vip: str) -> None:
    place.send(vip)
    before = place.seen(vip)
    # Each of the sockets' packets has one mark, and all are there; the table spreads them over every target.
    assert sorted(port for port, _ in before) == list(range(20000, 20000 + SOCKETS))
    assert set(before.values()) == {3}
    assert {mark for _, mark in before} == set(MARKS.values())
    place.change("deactivate", 2)
    place.forget()
    place.send(vip)
    after = place.seen(vip)
    assert {mark for _, mark in after} == {MARKS[0], MARKS[1]}
    assert sum(after.values()) == 3 * SOCKETS
    # At the same index the table is what it was, and so is the way of every connection.
    place.change("activate", 2, str(MARKS[2]))
    place.forget()
    place.send(vip)
    assert place.seen(vip) == before


def test_without_a_target_or_a_flow_packets_are_dropped(place: Place) -> None:
    for index in MARKS:
        place.change("deactivate", index)
    place.send(VIP4)
    assert place.seen(VIP4) == {}
    place.change("activate", 0, str(MARKS[0]))
    place.send(VIP4)
    assert sum(place.seen(VIP4).values()) == 3 * SOCKETS
    place.forget()
    done = place.nfqlb("flow-delete", f"--name={place.stream}")
    assert (done.returncode, done.stdout.strip()) == (0, "OK")
    place.send(VIP4)
    assert place.seen(VIP4) == {}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("flow-set", "--name=x", "--target=SHM", "--protocols=tcp"), 0, "OK"),
        (("flow-set", "--name=x", "--target=none", "--protocols=tcp"), 255, "FAIL: Couldn't create load-balancer"),
        (("flow-set", "--name=x", "--target=SHM", "--protocols=magic"), 255, "Invalid protocols"),
        (("flow-set", "--name=x", "--target=SHM", "--dsts=magic"), 255, "Invalid dsts"),
        (("flow-set", "--target=SHM"), 1, "Missing option [--name]"),
        (("flow-set", "--name=x"), 1, "Missing option [--target]"),
        (("flow-delete", "--name=unknown"), 0, "OK"),
        (("flow-delete",), 1, "Missing option [--name]"),
    ],
)
def test_a_declaration_is_answered(place: Place, arguments: tuple[str, ...], status: int, words: str) -> None:
    done = place.nfqlb(*(word.replace("SHM", f"tshm-{place.stream}") for word in arguments))
    assert (done.returncode, (done.stdout + done.stderr).strip()) == (status, words)


def test_a_declaration_without_a_packet_process_fails(
    make_namespace: Callable[[str], Namespace], tmp_path: Path
) -> None:
    lb = make_namespace("lb")
    alone = Place(lb, lb, "none", NfqlbProcess(lb, "none", 10, search_path(NfqlbKind.STAND_IN, tmp_path)))
    done = alone.nfqlb("flow-set", "--name=x", "--target=y")
    assert (done.returncode, done.stderr.strip()) == (1, "Connect failed. Connection refused")
