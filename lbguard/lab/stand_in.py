"""Shared behaviour of the stand-ins for today's load balancer: when they poll, what they find, what they log.

Link events are coalesced for 100 ms, and every 10 s they look anyway, as Meridio 1.2's stateless-lb does.
"""

import asyncio
import contextlib
import json
import signal
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from pyroute2.netlink.exceptions import NetlinkError

from lbguard.core.model import StreamSpec
from lbguard.kernel.codec.constants import RTNLGRP_LINK
from lbguard.kernel.sockets import open_netlink
from lbguard.lab.network import Network
from lbguard.lab.network_objects import Address, Link
from lbguard.sources.file import TargetsFile

COALESCE_S = 0.1
CHECK_S = 10.0


def accepted(request: Callable[..., None], *args: Any, **fields: Any) -> bool:
    """Make a request; return whether it succeeded. Refusals are normal: that is how a stand-in learns what works."""
    try:
        request(*args, **fields)
    except NetlinkError:
        return False
    return True


def older_links_of_shared_subnets(links: Iterable[Link], addresses: Iterable[Address]) -> list[str]:
    """Return the names of links that are up although a newer one has an address of the same IPv4 subnet.

    The greater ifindex is the newer link.
    """
    subnets: dict[str, list[tuple[int, str]]] = defaultdict(list)
    up = {link.name: link.ifindex for link in links if link.up}
    for address in addresses:
        if address.link in up and "." in address.ip:
            subnet = f"{address.ip.rpartition('.')[0]}/{address.prefix_length}"
            subnets[subnet].append((up[address.link], address.link))
    return [name for sharing in subnets.values() for _, name in sorted(sharing)[:-1]]


def set_older_links_down(network: Network) -> None:
    """Set the older link of each shared subnet down."""
    for name in older_links_of_shared_subnets(network.links(), network.addresses()):
        with contextlib.suppress(OSError, NetlinkError):  # it may be gone
            network.set_link(name, up=False)


def read_stream(targets_file: Path) -> StreamSpec:
    """Read the list of targets, which holds one stream."""
    (stream,) = TargetsFile(targets_file).read()
    return stream


def log(event: str, **fields: object) -> None:
    """Write a line on standard error in the form of the service's own log."""
    line = {"ts": time.time(), "level": "info", "event": event, **fields}
    # In one piece: another thread may log at the same time.
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()


class StandIn(Protocol):
    """Functions of a stand-in, and when each is called."""

    async def start(self) -> None:
        """Begin; comes once, before anything else."""

    async def look(self) -> None:
        """Look at what is there; comes after link events, and at each check."""

    async def reread(self) -> None:
        """Read the list of targets again; comes with SIGHUP."""


async def follow(stand_in: StandIn) -> None:
    """Follow link events until SIGTERM; leave everything as it is."""
    loop = asyncio.get_running_loop()
    stop, changed, reread = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reread.set)
    with _link_events() as sock:

        def link_event() -> None:
            _drain(sock)
            changed.set()

        loop.add_reader(sock, link_event)
        await stand_in.start()
        log("ready")
        while not stop.is_set():
            await any_of(stop, changed, reread, timeout_s=CHECK_S)
            if reread.is_set():
                reread.clear()
                await stand_in.reread()
                continue
            if changed.is_set():
                await asyncio.sleep(COALESCE_S)
                changed.clear()
            if not stop.is_set():
                await stand_in.look()
        loop.remove_reader(sock)


def _link_events() -> socket.socket:
    sock = open_netlink(socket.NETLINK_ROUTE, groups=(RTNLGRP_LINK,))
    sock.setblocking(False)
    return sock


def _drain(sock: socket.socket) -> None:
    """Throw the messages away: that something happened is all a stand-in needs (an overrun says so too)."""
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass


async def any_of(*events: asyncio.Event, timeout_s: float) -> None:
    """Wait until one of the events is set, or for a time."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
