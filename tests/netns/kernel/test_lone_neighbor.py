"""What the kernel itself tells of a verified neighbour has the form that is remembered."""

import contextlib

import pytest

from lbguard.core.addr import parse_ip
from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.decode import lone_neighbor
from lbguard.kernel.sockets import NetlinkSocket
from lbguard.lab.netns import Namespace


@pytest.mark.parametrize("address", ["172.16.0.10", "fd00::10"])
def test_a_reachable_entry(namespace: Namespace, address: str) -> None:
    namespace.add_veth("nse-a", "nse-a-peer")
    with namespace.entered():
        listener = NetlinkSocket(receive_buffer_bytes=1 << 20, groups=(c.RTNLGRP_NEIGH,))
    with contextlib.closing(listener):
        # A notification is queued before the command that caused it returns.
        namespace.replace_neighbor(address, "nse-a", "02:00:00:00:00:0a", state="reachable")
        buffer, events = bytearray(65536), []
        with contextlib.suppress(BlockingIOError):
            while True:
                length, _ = listener.receive_into(buffer)
                events.append(lone_neighbor(buffer, length))
    [event] = [event for event in events if event is not None]
    assert (event.ip, event.mac) == (parse_ip(address), bytes.fromhex("02000000000a"))
