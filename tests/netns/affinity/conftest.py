"""The small data path of the distributor's tests, with a rule of the test's own in place of the distributor."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from lbguard.affinity.names import AffinityOptions
from lbguard.affinity.table import AffinityTable
from lbguard.lab.netns import Namespace
from tests.netns.affinity import segments
from tests.netns.distributor.conftest import CLIENT4, CLIENT6, VIP4, VIP6, WAIT_S, Lab
from tests.netns.distributor.packets import Flow

FAMILIES = ("ipv4", "ipv6")
OPTIONS = AffinityOptions(udp=True)

_CHOICE = """
add table inet choice
add chain inet choice prerouting {{ type filter hook prerouting priority -150; }}
flush chain inet choice prerouting
add rule inet choice prerouting ip daddr 20.0.0.0/24 meta mark set {mark}
add rule inet choice prerouting ip6 daddr 2000::/64 icmpv6 type nd-neighbor-solicit accept
add rule inet choice prerouting ip6 daddr 2000::/64 meta mark set {mark}
"""


def flows(family: str, protocol: int, count: int, first_port: int = 20000) -> list[Flow]:
    client, vip = (CLIENT4, VIP4) if family == "ipv4" else (CLIENT6, VIP6)
    return [Flow(client, vip, protocol, first_port + i, 443) for i in range(count)]


class AffinityLab(Lab):
    """The data path; `choose` says which target every packet is meant for before affinity sees it."""

    def choose(self, target: int) -> None:
        """Mark all packets to the VIPs for a target."""
        self.balancer.run("nft", _CHOICE.format(mark=5000 + target))

    def begin(self, some: list[Flow]) -> list[int]:
        """Send the packet that begins each flow, and return the targets that got it."""
        return self.deliver([segments.begin(flow) for flow in some])

    def go_on(self, some: list[Flow]) -> list[int]:
        """Send a packet in the middle of each flow, and return the targets that got it."""
        return self.deliver([segments.go_on(flow) for flow in some])

    def ended(self, some: list[Flow], counter: str, count: int) -> None:
        """Wait until a counter of the balancer's affinity says that so many packets were counted."""
        deadline = time.monotonic() + WAIT_S
        while (found := self.counted(counter)) != count:
            assert time.monotonic() < deadline, f"{counter} is {found} and not {count}"
            time.sleep(0.01)

    def counted(self, counter: str) -> int:
        """Return the packets that a counter of the table says."""
        shown = self.balancer.run("nft", "list", "counter", "inet", "lbguard-affinity", counter)
        return int(shown.split("packets ")[1].split()[0])

    def entries(self, protocol: str, family: str) -> str:
        """Return a flow map as nft shows it."""
        return self.balancer.run("nft", "list", "map", "inet", "lbguard-affinity", f"flows_{protocol}_{family[-1]}")

    def keeper(self, options: AffinityOptions = OPTIONS) -> AffinityTable:
        """Return a keeper of the table in the balancer's namespace."""
        with self.balancer.entered():
            return AffinityTable(options)


@pytest.fixture
def lab(make_namespace: Callable[[str], Namespace]) -> Iterator[AffinityLab]:
    built = AffinityLab(make_namespace)
    with contextlib.closing(built):
        yield built


@pytest.fixture
async def table(lab: AffinityLab) -> AsyncIterator[AffinityTable]:
    """A keeper; nothing is in force yet."""
    made = lab.keeper()
    yield made
    await made.close()
