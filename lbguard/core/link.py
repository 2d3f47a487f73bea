"""Links, their addresses and their neighbours, as the core keeps them, and a record of their changes."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from lbguard.core.addr import Ip, Prefix, format_ip, is_ipv4, is_link_local, prefix_of
from lbguard.core.events import NeighborSeen
from lbguard.core.model import LinkKey, NeighborState


class Address(NamedTuple):
    """An address of a link and its on-link prefix: its own subnet, or its peer's."""

    ip: Ip
    subnet: Prefix

    def __str__(self) -> str:
        own = f"{format_ip(self.ip)}/{self.subnet.length}"
        return own if prefix_of(self.ip, self.subnet.length) == self.subnet else f"{own} peer {self.subnet}"


_VALID = (
    NeighborState.REACHABLE
    | NeighborState.STALE
    | NeighborState.DELAY
    | NeighborState.PROBE
    | NeighborState.PERMANENT
    | NeighborState.NOARP
)


@dataclass(slots=True)
class Neighbor:
    """A neighbour entry: state, last known link-layer address, failed resolutions in a row, last proof of life.

    `overdue`: it was asked to prove that it is there, and has not answered in the usual time; it has not failed yet.
    """

    state: NeighborState
    mac: bytes = b""
    failures: int = 0
    confirmed_at: float = float("-inf")
    overdue: bool = False

    @property
    def resolved(self) -> bool:
        """Return whether the entry has a link-layer address that packets are sent to."""
        return bool(self.state & _VALID)

    def seen(self, event: NeighborSeen, now: float, *, dumped: bool) -> None:
        """Record the kernel's state of the entry, notified or `dumped`."""
        if event.state == NeighborState.FAILED or (event.state == NeighborState.INCOMPLETE and not dumped):
            # The kernel notifies once for each failed resolution, not for each attempt. It notifies INCOMPLETE where a
            # packet made it try again before the notification was written (net/core/neighbour.c, neigh_timer_handler).
            self.failures += 1
        elif event.state & _VALID:
            self.failures = 0
            self.mac = event.mac or self.mac
            if not dumped and event.state not in (NeighborState.PROBE, NeighborState.DELAY):
                self.overdue = False
            if event.state == NeighborState.REACHABLE and not event.foreign:
                self.confirmed_at = now
        self.state = event.state


def _by_family() -> dict[bool, int]:
    return {True: 0, False: 0}


@dataclass(slots=True)
class Subnet:
    """The addresses of a link in one subnet: whether each is usable, and how many are."""

    addresses: dict[Ip, bool] = field(default_factory=dict)
    usable: int = 0


@dataclass(slots=True, eq=False)
class Link:
    """One incarnation of a link.

    `order`: when the link was first seen, counting links; a new MAC does not change it. `from_start`: it was there in
    the first full view. `addresses`: whether each is usable; `families`: the number of each family (IPv4: True).
    `subnets`: the on-link prefixes of addresses (without IPv6 link-local ones). `routes`: the on-link prefixes of
    routes without a gateway, with the number of routes. `ready`: usable addresses while the link is up, with how often
    each is held; `ready_families`: the number of each family. `rx_at`: when packets last arrived, as far as the counter
    was read. `losses` by family: how often the link was set down or lost an address of it; the kernel may then drop
    routes of that family.
    """

    key: LinkKey
    name: str
    up: bool
    admin_up: bool
    mac: bytes
    order: int = 0
    from_start: bool = False
    addresses: dict[Address, bool] = field(default_factory=dict)
    families: dict[bool, int] = field(default_factory=_by_family)
    subnets: dict[Prefix, Subnet] = field(default_factory=dict)
    routes: dict[Prefix, int] = field(default_factory=dict)
    ready: dict[Ip, int] = field(default_factory=dict)
    ready_families: dict[bool, int] = field(default_factory=_by_family)
    neighbors: dict[Ip, Neighbor] = field(default_factory=dict)
    losses: dict[bool, int] = field(default_factory=_by_family)
    rx_packets: int = -1
    rx_at: float = float("-inf")

    @property
    def ifindex(self) -> int:
        """The kernel's number of the link."""
        return self.key.ifindex

    def on_link(self) -> list[Prefix]:
        """Return the prefixes that are on the link, without IPv6 link-local ones."""
        return [*self.subnets, *(prefix for prefix in self.routes if prefix not in self.subnets)]

    def has_on_link(self, subnet: Prefix) -> bool:
        """Return whether a prefix is on the link."""
        return subnet in self.subnets or subnet in self.routes

    def ready_in(self, subnet: Prefix) -> bool:
        """Return whether the link is up with a usable address for a prefix that is on it."""
        if not self.up:
            return False
        own = self.subnets.get(subnet)
        if own is not None and own.usable:
            return True
        return subnet in self.routes and self.ready_families[is_ipv4(subnet.network)] > 0

    def our_address(self, subnet: Prefix | None) -> Ip:
        """Return our usable address for a prefix that is on the link; empty when there is none."""
        if subnet is None:
            return b""
        own = self.subnets.get(subnet)
        found = next((ip for ip in own.addresses if ip in self.ready), b"") if own else b""
        if found or subnet not in self.routes:
            return found
        ipv4 = is_ipv4(subnet.network)
        return next((ip for ip in self.ready if is_ipv4(ip) == ipv4), b"")

    def reaches(self, ip: Ip, ours: tuple[Ip, ...]) -> bool:
        """Return whether the link has one of our addresses with a prefix that contains an address."""
        return any(
            len(subnet.network) == len(ip)
            and prefix_of(ip, subnet.length) == subnet
            and any(own in held.addresses for own in ours)
            for subnet, held in self.subnets.items()
        )

    # Changes

    def adopt_addresses(self, other: "Link") -> None:
        """Adopt the addresses and routes of another incarnation of the same link."""
        self.addresses, self.families = other.addresses, other.families
        self.subnets, self.routes = other.subnets, other.routes

    def put_address(self, address: Address, usable: bool) -> bool:
        """Record an address; return whether it was usable before."""
        before = self.addresses.get(address)
        self.addresses[address] = usable
        if before is None:
            self.families[is_ipv4(address.ip)] += 1
        if not is_link_local(address.ip):
            subnet = self.subnets.setdefault(address.subnet, Subnet())
            subnet.addresses[address.ip] = usable
            subnet.usable += usable - bool(before)
        return bool(before)

    def drop_address(self, address: Address) -> None:
        """Forget an address that the link has."""
        usable = self.addresses.pop(address)
        self.families[is_ipv4(address.ip)] -= 1
        subnet = self.subnets.get(address.subnet)
        if subnet is not None and subnet.addresses.pop(address.ip, None) is not None:
            subnet.usable -= usable
            if not subnet.addresses:
                del self.subnets[address.subnet]

    def count_ready(self, ip: Ip, change: int) -> bool:
        """Add `change` to the count of a usable address; return whether its family became usable or unusable."""
        count = self.ready.get(ip, 0) + change
        family, held = is_ipv4(ip), ip in self.ready
        if count > 0:
            self.ready[ip] = count
        else:
            self.ready.pop(ip, None)
        before = self.ready_families[family]
        self.ready_families[family] += (count > 0) - held
        return (before > 0) != (self.ready_families[family] > 0)

    def recount_ready(self) -> None:
        """Compute again which addresses are ready, after the link came up, went down or was replaced."""
        self.ready.clear()
        self.ready_families = _by_family()
        if self.up:
            for (ip, _), usable in self.addresses.items():
                if usable and not is_link_local(ip):
                    self.count_ready(ip, 1)

    def counted(self, rx_packets: int, now: float) -> bool:
        """Record a reading of the receive counter; return whether packets arrived since the previous one."""
        arrived = 0 <= self.rx_packets < rx_packets
        if arrived:
            self.rx_at = now
        self.rx_packets = rx_packets
        return arrived


@dataclass(slots=True)
class ViewChanges:
    """Changes since the last call of `take_changes`.

    `ips`: target addresses whose path may have changed. `ready`: addresses that became usable on a link that is up.
    `lost_links`: ifindexes whose routes the kernel dropped (silently for IPv4). `disowned`: links that are ready in a
    subnet which a newer link owns. `family_back`: links that have an address of a family again after they had none: the
    kernel starts that family with its defaults.
    """

    ips: dict[Ip, None] = field(default_factory=dict)
    ready: dict[LinkKey, list[Ip]] = field(default_factory=dict)
    lost_links: set[int] = field(default_factory=set)
    disowned: set[LinkKey] = field(default_factory=set)
    family_back: set[int] = field(default_factory=set)
    moved_neighbors: list[tuple[int, Ip, bytes, bytes]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
