"""A link of this load balancer and the neighbours on it, as the core remembers them."""

from dataclasses import dataclass, field

from lbguard.core.addr import Ip
from lbguard.core.model import LinkKey, NeighborState


@dataclass(slots=True)
class Neighbor:
    """A neighbour entry: state, last known link-layer address, failed resolutions in a row, last proof of life."""

    state: NeighborState
    mac: bytes = b""
    failures: int = 0
    confirmed_at: float = float("-inf")


@dataclass(slots=True, eq=False)
class Link:
    """One incarnation of a link.

    `addresses` maps (address, prefix length) to whether it is usable. `rx_at`: when packets last arrived, as far as the
    counter was read. `losses` by family (IPv4: True): how often it was set down or lost an address of it; the kernel
    may drop routes of that family then.
    """

    key: LinkKey
    name: str
    up: bool
    admin_up: bool
    mac: bytes
    addresses: dict[tuple[Ip, int], bool] = field(default_factory=dict)
    ready: set[Ip] = field(default_factory=set)
    neighbors: dict[Ip, Neighbor] = field(default_factory=dict)
    losses: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    rx_packets: int = -1
    rx_at: float = float("-inf")

    @property
    def ifindex(self) -> int:
        """The kernel's number of the link."""
        return self.key.ifindex
