"""A load balancer and a peer, joined by one link, and the adapters at work in the load balancer's namespace."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

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

    def drop(self, dropped: bool) -> None:
        """Make the peer deaf (or not) to everything that arrives on its link."""
        policy = "drop" if dropped else "accept"
        self.peer.run("nft", f"chain netdev bench ingress {{ policy {policy}; }}")


@pytest.fixture
def bench(make_namespace: Callable[[str], Namespace]) -> Iterator[Bench]:
    lb, peer = make_namespace("lb"), make_namespace("peer")
    connect(lb, "nse-a", peer, "lb-a")
    for namespace, link, host in ((lb, "nse-a", 1), (peer, "lb-a", 2)):
        # IPv6 solicits nobody before a link-local address is usable, so there is one from the start.
        namespace.add_addresses(link, f"172.16.0.{host}/24", f"fd00::{host}/64", f"fe80::{host}/64")
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
