"""A flood into a held target: what the kernel drops before lbguard reads it, and what it lets pass."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbguard.core.model import PARKING_LINK
from lbguard.lab.netns import Namespace
from lbguard.parking.device import ParkingLink
from lbguard.parking.frames import IGNORED_MAX, read_frame
from tests.netns.service.guarded import wait_until
from tests.netns.service.test_parking import FAMILIES, PORT, VIPS, Parked, other_packet
from tests.unit.parking.packets import TCP, UDP, datagram, frame, ipv4, ipv6, segment

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[3]
LIMIT_S = 90.0
SCTP = 132
PACKETS = {
    "udp4": ipv4(UDP, datagram()),
    "udp6": ipv6(UDP, datagram()),
    "tcp4": ipv4(TCP, segment(1, b"x")),
    "tcp6": ipv6(TCP, segment(1, b"x")),
    "sctp4": ipv4(SCTP, bytes(12)),
    "sctp6": ipv6(SCTP, bytes(12)),
    "fragment4": ipv4(TCP, bytes(24), fragment=8),
    "ping4": ipv4(1, bytes(8)),
}
RESPONSIVE = {"tcp4", "tcp6", "sctp4", "sctp6", "fragment4"}
OTHERS = PACKETS.keys() - RESPONSIVE
LAST = 9999
"""A mark that no filter drops: its frame comes after all others."""


class Device:
    """The parking link, and a sender on its other side."""

    def __init__(self, namespace: Namespace) -> None:
        with namespace.entered():
            self.link = ParkingLink()
            namespace.run("ip", "link", "set", PARKING_LINK, "up")
            self._sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._sender.bind((PARKING_LINK, 0))

    def passing(self, marks: tuple[int, ...]) -> set[tuple[int, str]]:
        """Send each packet to each target, and return those that come through."""
        for mark in marks:
            for packet in PACKETS.values():
                self._sender.send(frame(packet, mark))
        self._sender.send(frame(PACKETS["tcp4"], LAST))
        names = {packet: name for name, packet in PACKETS.items()}
        found: set[tuple[int, str]] = set()
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            read = self.link.read()
            parked = None if read is None else read_frame(read)
            if parked is None:
                time.sleep(0.001)
            elif parked.mark == LAST:
                return found
            else:
                found.add((parked.mark, names[parked.packet]))
        raise AssertionError("the last frame did not come")

    def close(self) -> None:
        self._sender.close()
        self.link.close()


@pytest.fixture
def device(namespace: Namespace) -> Iterator[Device]:
    with contextlib.closing(Device(namespace)) as made:
        yield made


@pytest.fixture
def lab(make_namespace: Callable[[str], Namespace], tmp_path: os.PathLike[str]) -> Iterator[Parked]:
    made = Parked(make_namespace("lb"), make_namespace("px"), make_namespace("client"), tmp_path)
    yield made
    made.close()


def test_a_crowd_of_one_kind_takes_nothing_from_the_other_kind(device: Device) -> None:
    everything = {(mark, name) for mark in (1, 2) for name in PACKETS}
    assert device.passing((1, 2)) == everything
    device.link.ignore([(1, False)])
    assert device.passing((1, 2)) == everything - {(1, name) for name in OTHERS}
    device.link.ignore([(1, True), (2, False)])
    assert device.passing((1, 2)) == {(1, name) for name in OTHERS} | {(2, name) for name in RESPONSIVE}
    device.link.ignore([(1, True), (1, False)])
    assert device.passing((1, 2)) == {(2, name) for name in PACKETS}
    device.link.ignore([])
    assert device.passing((1, 2)) == everything


def test_as_many_crowds_are_dropped_as_a_filter_has_room_for(device: Device) -> None:
    device.link.ignore([(mark, responsive) for mark in range(1, 2 * IGNORED_MAX) for responsive in (False, True)])
    assert device.passing((1, IGNORED_MAX)) == set()
    assert device.passing((IGNORED_MAX + 1,)) == {(IGNORED_MAX + 1, name) for name in PACKETS}


def test_a_flood_of_datagrams_does_not_take_what_a_held_targets_associations_sent(lab: Parked) -> None:
    """Each packet is sent once, and nobody repeats it."""
    count = 40
    with lab.proxies.entered():
        receiver = socket.socket(FAMILIES[4], socket.SOCK_RAW, SCTP)
    with lab.client_side.entered():
        sender = socket.socket(FAMILIES[4], socket.SOCK_RAW, SCTP)
    with receiver, sender, lab.parking({"LBGUARD_PARKING__PACKETS": "500"}):
        receiver.setblocking(False)
        lab.delete_link("nse-a")
        lab.wait_for(t1="held")
        macs = (lab.client_side.link("up").mac, lab.lb.link("client").mac)
        argv = (sys.executable, "-m", "tests.bench.parking_flood", "up", *macs, str(PORT), "10")
        with subprocess.Popen(lab.client_side.command(*argv), cwd=ROOT) as flood:
            try:
                wait_until(lambda: lab.dropped("kernel_queue") > 2000, "the kernel drops the flood")
                for number in range(count):
                    sender.sendto(other_packet("sctp", 4, number), (VIPS[4], 0))
                    time.sleep(0.01)
            finally:
                flood.kill()
        lab.make_link("nse-a")
        lab.wait_for(t1="active")
        wait_until(lambda: lab.metric("lbguard_parking_packets") == 0, "all packets given back")
        found = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                found.add(receiver.recv(65536)[20:])
        assert len(found & {other_packet("sctp", 4, number) for number in range(count)}) > count / 2
