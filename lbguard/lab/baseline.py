"""A small stand-in for today's load balancer process, so that the lab can show what happens without lbguard.

It does what Meridio 1.2's stateless-lb does: link events are coalesced for 100 ms, and every 10 s it looks anyway; each
target that misses a route is taken out of the distributor (table `maglev`) and its rules and routes are deleted;
targets that are out are tried again at each look; when two links share a subnet the older one is set down. Nothing is
held, no neighbour entry is touched and nothing is announced.

    python -m lbguard.lab.baseline --targets FILE --distributor nftables|nfqlb-cli

It logs JSON lines on standard error in the form of the service's own.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from lbguard.core.addr import format_ip, is_ipv4
from lbguard.core.model import StreamSpec, StreamTable, TargetSpec
from lbguard.distributor.base import Distributor, DistributorError
from lbguard.distributor.maglev import TableKind
from lbguard.sources.file import TargetsFile

COALESCE_S = 0.1
CHECK_S = 10.0
RTMGRP_LINK = 1


def _ip(*args: str) -> bool:
    """Run `ip`; tell whether it succeeded. Refusals are normal: that is how this process learns what works."""
    return subprocess.run(["ip", *args], check=False, capture_output=True).returncode == 0


def _ip_json(*args: str) -> list[dict[str, Any]]:
    done = subprocess.run(["ip", "-j", *args], check=False, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else []


def _family(ip: bytes) -> str:
    return "-4" if is_ipv4(ip) else "-6"


def default_tables() -> set[tuple[str, str]]:
    """Return (family flag, table) of every default route of the namespace."""
    return {
        (family, str(route.get("table", "main")))
        for family in ("-4", "-6")
        for route in _ip_json(family, "route", "show", "table", "all")
        if route.get("dst") == "default" and route.get("dev")
    }


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


class Baseline:
    """One stream's targets, in or out."""

    def __init__(self, stream: StreamSpec, distributor: Distributor) -> None:
        self._stream = stream
        self._distributor = distributor
        self._active: set[int] = set()

    async def start(self) -> None:
        """Take over what the distributor holds, then look."""
        await self._distributor.attach(self._stream)
        self._active = set(await self._distributor.read_active(self._stream))
        await self.look()
        _log("ready")

    async def look(self) -> None:
        """Withdraw every target that misses a route, and try those that are out."""
        for name in older_links_of_shared_subnets(_ip_json("-4", "addr", "show", "up")):
            _ip("link", "set", name, "down")
        present = default_tables()
        for target in self._stream.targets:
            table = str(self._stream.mark(target.identifier))
            whole = all((_family(ip), table) in present for ip in target.ips)
            if target.identifier in self._active and not whole:
                await self._withdraw(target, table)
            elif target.identifier not in self._active and self._program(target, table):
                self._active.add(target.identifier)
                await self._commit()
                self._say(target, "readmit", "active")

    async def _withdraw(self, target: TargetSpec, table: str) -> None:
        self._active.discard(target.identifier)
        await self._commit()
        self._unprogram(target, table)
        self._say(target, "withdraw", "withdrawn")

    def _program(self, target: TargetSpec, table: str) -> bool:
        """Add rules and routes, by gateway alone as today; all or nothing."""
        for ip in target.ips:
            family = _family(ip)
            _ip(family, "rule", "del", "fwmark", table, "lookup", table)
            added = _ip(family, "rule", "add", "fwmark", table, "lookup", table) and _ip(
                family, "route", "replace", "default", "via", format_ip(ip), "table", table
            )
            if not added:
                self._unprogram(target, table)
                return False
        return True

    def _unprogram(self, target: TargetSpec, table: str) -> None:
        for ip in target.ips:
            _ip(_family(ip), "rule", "del", "fwmark", table, "lookup", table)
            _ip(_family(ip), "route", "flush", "table", table)

    async def _commit(self) -> None:
        registered = frozenset(target.identifier for target in self._stream.targets)
        table = StreamTable(stream=self._stream, registered=registered, active=frozenset(self._active))
        for result in await self._distributor.commit([table]):
            if result.error:
                raise DistributorError(result.error)

    def _say(self, target: TargetSpec, action: str, state: str) -> None:
        _log("decision", action=action, identifier=target.identifier, stream=self._stream.name, state_to=state)


def _log(event: str, **fields: object) -> None:
    line = {"ts": time.time(), "level": "info", "event": event, **fields}
    print(json.dumps(line), file=sys.stderr, flush=True)


def _link_events() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    sock.bind((0, RTMGRP_LINK))
    return sock


def _drain(sock: socket.socket) -> None:
    """Throw the messages away: that something happened is all this process needs (an overrun says so too)."""
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass


async def run(stream: StreamSpec, distributor: Distributor) -> None:
    """Follow link events until SIGTERM; leave everything as it is."""
    loop = asyncio.get_running_loop()
    stop, changed = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    with _link_events() as sock:

        def link_event() -> None:
            _drain(sock)
            changed.set()

        loop.add_reader(sock, link_event)
        baseline = Baseline(stream, distributor)
        await baseline.start()
        while not stop.is_set():
            await _either(stop, changed, CHECK_S)
            if changed.is_set():
                await asyncio.sleep(COALESCE_S)
                changed.clear()
            if not stop.is_set():
                await baseline.look()
        loop.remove_reader(sock)
    await distributor.close()


async def _either(first: asyncio.Event, second: asyncio.Event, timeout_s: float) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in (first, second)]
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def make_distributor(kind: str) -> Distributor:
    """Return the distributor of a kind, with the table of today.

    Raises:
        ValueError: the kind is none of `nftables` and `nfqlb-cli`.
    """
    if kind == "nftables":
        from lbguard.distributor.nft import NftDistributor

        return NftDistributor(TableKind.MAGLEV)
    if kind == "nfqlb-cli":
        from lbguard.distributor.nfqlb_cli import NfqlbCliDistributor

        return NfqlbCliDistributor(TableKind.MAGLEV)
    raise ValueError(f"distributor {kind!r}: nftables and nfqlb-cli are there")


def main() -> None:
    """Entry of the process."""
    parser = argparse.ArgumentParser(description="stand-in for today's load balancer process")
    parser.add_argument("--targets", type=Path, required=True)
    parser.add_argument("--distributor", default="nftables")
    arguments = parser.parse_args()
    (stream,) = TargetsFile(arguments.targets).read()
    asyncio.run(run(stream, make_distributor(arguments.distributor)))


if __name__ == "__main__":
    main()
