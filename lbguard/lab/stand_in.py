"""Shared behaviour of the stand-ins for today's load balancer: when they poll, how they use `ip`, what they log.

Link events are coalesced for 100 ms, and every 10 s they look anyway, as Meridio 1.2's stateless-lb does.
"""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any, Protocol

from lbguard.kernel.codec.constants import RTNLGRP_LINK
from lbguard.kernel.netlink import open_netlink

COALESCE_S = 0.1
CHECK_S = 10.0


def run_ip(*args: str) -> bool:
    """Run `ip`; return whether it succeeded. Refusals are normal: that is how a stand-in learns what works."""
    return subprocess.run(["ip", *args], check=False, capture_output=True).returncode == 0


def read_ip(*args: str) -> list[dict[str, Any]]:
    """Return what `ip` shows; nothing when it refuses."""
    done = subprocess.run(["ip", "-j", *args], check=False, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else []


def older_links_of_shared_subnets(links: list[dict[str, Any]]) -> list[str]:
    """Return the names of links that are up although a newer one has an address of the same IPv4 subnet.

    `links` is what `ip -j -4 addr show up` prints; the greater ifindex is the newer link.
    """
    subnets: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for link in links:
        for address in link.get("addr_info", []):
            subnet = f"{address['local'].rpartition('.')[0]}/{address['prefixlen']}"
            subnets[subnet].append((link["ifindex"], link["ifname"]))
    return [name for sharing in subnets.values() for _, name in sorted(sharing)[:-1]]


def set_older_links_down() -> None:
    """Set the older link of each shared subnet down."""
    for name in older_links_of_shared_subnets(read_ip("-4", "addr", "show", "up")):
        run_ip("link", "set", name, "down")


def log(event: str, **fields: object) -> None:
    """Write a line on standard error in the form of the service's own log."""
    line = {"ts": time.time(), "level": "info", "event": event, **fields}
    print(json.dumps(line), file=sys.stderr, flush=True)


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
            await _any_of(stop, changed, reread, timeout_s=CHECK_S)
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


async def _any_of(*events: asyncio.Event, timeout_s: float) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
