"""A load balancer and a peer, joined by one link, and the adapters at work in the load balancer's namespace."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lbguard.kernel.batches import NetlinkChannel
from lbguard.kernel.links import LinkOperations
from lbguard.kernel.requests import KernelRequests
from lbguard.lab.netns import Namespace, connect


@dataclass
class Bench:
    """Two namespaces: `lb` (link nse-a) and `peer` (link lb-a), with 172.16.0.1/.2 and fd00::1/::2."""

    lb: Namespace
    peer: Namespace
    channel: NetlinkChannel

    def json(self, *args: str) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = json.loads(self.lb.run("ip", "-d", "-j", *args, check=False) or "[]")
        return shown

    def ifindex(self, name: str) -> int:
        return next(int(link["ifindex"]) for link in self.json("link") if link["ifname"] == name)

    def neighbor(self, ip: str) -> dict[str, Any] | None:
        return next((entry for entry in self.json("neigh") if entry.get("dst") == ip), None)

    def drop(self, dropped: bool) -> None:
        """Make the peer deaf (or not) to everything that arrives on its link."""
        policy = "drop" if dropped else "accept"
        self.peer.run("nft", f"chain netdev bench ingress {{ policy {policy}; }}")


@pytest.fixture
def bench(make_namespace: Callable[[str], Namespace]) -> Iterator[Bench]:
    lb, peer = make_namespace("lb"), make_namespace("peer")
    connect(lb, "nse-a", peer, "lb-a")
    for namespace, link, host in ((lb, "nse-a", 1), (peer, "lb-a", 2)):
        namespace.ip("addr", "add", f"172.16.0.{host}/24", "dev", link)
        namespace.ip("addr", "add", f"fd00::{host}/64", "dev", link, "nodad")
        # IPv6 solicits nobody before a link-local address is usable, so there is one from the start.
        namespace.ip("addr", "add", f"fe80::{host}/64", "dev", link, "nodad")
    peer.run("nft", "add table netdev bench")
    chain = "type filter hook ingress device lb-a priority 0; policy accept;"
    peer.run("nft", f"add chain netdev bench ingress {{ {chain} }}")
    with lb.entered():
        channel = NetlinkChannel()
    yield Bench(lb, peer, channel)
    channel.close()


@pytest.fixture
async def links(bench: Bench) -> AsyncIterator[LinkOperations]:
    """Operations on the load balancer's links."""
    requests = KernelRequests(bench.lb.name)
    yield LinkOperations(requests)
    requests.close()
