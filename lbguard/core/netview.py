"""The kernel as the core sees it: links and their addresses, who owns which subnet, and the neighbours of targets.

Ownership. A subnet is owned by the newest link that is up and holds a usable address in it. Newest means the highest
generation: generations count up with every link first seen, and in a first full view they follow the ifindex. While a
new link of the same subnet is not yet up or addressed, the old one stays the owner: make before break.

Cost. A change to a link touches only the target addresses in that link's subnets: they are indexed by prefix, for each
prefix length that any link uses.
"""

import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lbguard.core.addr import Ip, Prefix, is_ipv4, is_link_local, prefix_of
from lbguard.core.events import (
    AddressGone,
    AddressSeen,
    KernelSnapshot,
    LinkGone,
    LinkSeen,
    NeighborGone,
    NeighborSeen,
    TrafficSeen,
)
from lbguard.core.link import Link, Neighbor
from lbguard.core.model import Condition, LinkKey, NeighborState

_VALID = (
    NeighborState.REACHABLE
    | NeighborState.STALE
    | NeighborState.DELAY
    | NeighborState.PROBE
    | NeighborState.PERMANENT
    | NeighborState.NOARP
)


@dataclass(slots=True)
class ViewChanges:
    """What changed since it was last taken.

    `ips`: target addresses whose path may have changed. `ready`: addresses that became usable on a link that is up.
    `lost_links`: ifindexes whose routes the kernel dropped (silently for IPv4). `disowned`: links that are ready in a
    subnet which a newer link owns.
    """

    ips: dict[Ip, None] = field(default_factory=dict)
    ready: dict[LinkKey, list[Ip]] = field(default_factory=dict)
    lost_links: set[int] = field(default_factory=set)
    disowned: set[LinkKey] = field(default_factory=set)
    moved_neighbors: list[tuple[int, Ip, bytes, bytes]] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


class NetView:
    """Links, addresses and neighbours, with ownership kept up to date change by change."""

    def __init__(self, *, excluded_links: Sequence[str], failures_needed: int) -> None:
        self.links: dict[int, Link] = {}
        self.owners: dict[Prefix, Link] = {}
        self._excluded_links = excluded_links
        self._failures_needed = failures_needed
        self._generation = 0
        self._generation_at_start = 0
        self._holders: dict[Prefix, dict[int, Link]] = {}
        self._stripped: dict[Prefix, Link] = {}
        self._ip_uses: dict[Ip, int] = {}
        # The networks of a followed address by the lengths in use, longest first: `locate` is on the hot path.
        self._networks: dict[Ip, tuple[Prefix, ...]] = {}
        self._prefix_lengths: dict[int, list[int]] = {4: [], 16: []}
        # An ordered set: what is judged first must not depend on how bytes hash in this process.
        self._members: dict[Prefix, dict[Ip, None]] = {}
        self.changes = ViewChanges()

    def take_changes(self) -> ViewChanges:
        """Return what changed since the last call."""
        changes, self.changes = self.changes, ViewChanges(ready=self.changes.ready)
        return changes

    # Target addresses

    def add_ip(self, ip: Ip) -> None:
        """Follow a target address (counted, since several targets may share one)."""
        uses = self._ip_uses.get(ip, 0)
        self._ip_uses[ip] = uses + 1
        if uses == 0:
            self._networks[ip] = tuple(prefix_of(ip, length) for length in self._prefix_lengths[len(ip)])
            for network in self._networks[ip]:
                self._members.setdefault(network, {})[ip] = None

    def remove_ip(self, ip: Ip) -> None:
        """Stop following a target address."""
        self._ip_uses[ip] -= 1
        if self._ip_uses[ip]:
            return
        del self._ip_uses[ip]
        for network in self._networks.pop(ip):
            self._members[network].pop(ip, None)
            if not self._members[network]:
                del self._members[network]
        for link in self.links.values():
            link.neighbors.pop(ip, None)

    def locate(self, ip: Ip) -> tuple[Link | None, Prefix | None, Condition]:
        """Return the owning link of a followed address, the subnet that decided, and the condition up to there."""
        found: tuple[Link | None, Prefix | None, Condition] = (None, None, Condition.NO_LINK)
        for network in self._networks[ip]:
            owner = self.owners.get(network)
            if owner is not None:
                return owner, network, Condition.OK
            if found[2] is not Condition.NO_LINK:
                continue
            holders = self._holders.get(network)
            if holders:
                down = all(not link.up for link in holders.values())
                found = (None, network, Condition.LINK_DOWN if down else Condition.ADDRESS_TENTATIVE)
            elif network in self._stripped:
                found = (None, network, Condition.NO_ADDRESS)
        return found

    def neighbor_failed(self, link: Link, ip: Ip) -> bool:
        """Tell whether the kernel failed to resolve an address often enough in a row to count as evidence."""
        neighbor = link.neighbors.get(ip)
        return neighbor is not None and neighbor.failures >= self._failures_needed

    def networks(self, ip: Ip) -> tuple[Prefix, ...]:
        """Return the networks of a followed address, by the prefix lengths in use."""
        return self._networks[ip]

    def follows(self, ip: Ip) -> bool:
        """Tell whether an address is a target's."""
        return ip in self._ip_uses

    def near(self, address: Ip) -> dict[Ip, None]:
        """Return the followed addresses in any subnet of ours that contains an address."""
        found: dict[Ip, None] = {}
        for length in self._prefix_lengths[len(address)]:
            found |= self._members.get(prefix_of(address, length), {})
        return found

    def holds(self, key: LinkKey, ip: Ip) -> bool:
        """Tell whether this incarnation of a link is up and holds a usable address right now."""
        link = self.links.get(key.ifindex)
        return link is not None and link.key == key and ip in link.ready

    def faces_targets(self, link: Link) -> bool:
        """Tell whether any followed target address lies in a subnet of the link."""
        return any(prefix_of(ip, length) in self._members for ip, length in link.addresses if not is_link_local(ip))

    def losses(self, ifindex: int, *, ipv4: bool) -> int:
        """Return how often a link lost what the kernel drops routes of a family for; -1: it carries none now."""
        link = self.links.get(ifindex)
        return link.losses[ipv4] if link is not None and link.admin_up else -1

    def superseded(self, link: Link) -> bool:
        """Tell whether a newer link owns every subnet in which the link holds an address.

        Of links that were both there at the start nobody can say which is newer: neither supersedes the other.
        """
        oldest = max(link.key.generation, self._generation_at_start)
        subnets = [prefix_of(ip, length) for ip, length in link.addresses if not is_link_local(ip)]
        owners = [self.owners.get(subnet) for subnet in subnets]
        return bool(subnets) and all(o is not None and o.key.generation > oldest for o in owners)

    # Kernel changes

    def link_seen(self, event: LinkSeen) -> None:
        """Take a link's attributes; an unknown ifindex or a new MAC is a new incarnation."""
        link = self.links.get(event.ifindex)
        if link is None:
            if any(fnmatch.fnmatchcase(event.name, pattern) for pattern in self._excluded_links):
                self.changes.ignored["link_excluded"] += 1
                return
            link = Link(self._new_key(event.ifindex), event.name, event.up, event.admin_up, event.mac)
            self.links[event.ifindex] = link
            return
        if link.admin_up and not event.admin_up:
            self.changes.lost_links.add(event.ifindex)
            for ipv4 in link.losses:
                link.losses[ipv4] += 1
            link.neighbors.clear()
        if link.mac != event.mac:
            self._reincarnate(link)
        link.name, link.up, link.admin_up, link.mac = event.name, event.up, event.admin_up, event.mac
        self._refresh(link)

    def link_gone(self, event: LinkGone) -> None:
        """Forget a link with all that hung on it."""
        link = self.links.pop(event.ifindex, None)
        if link is None:
            self.changes.ignored["link_unknown"] += 1
            return
        self.changes.lost_links.add(event.ifindex)
        for subnet in [subnet for subnet, other in self._stripped.items() if other is link]:
            del self._stripped[subnet]
            self._touch((subnet,))
        for ip, length in link.addresses:
            self._drop_holder(prefix_of(ip, length), link)

    def address_seen(self, event: AddressSeen) -> None:
        """Take an address of a link."""
        link = self.links.get(event.ifindex)
        if link is None:
            self.changes.ignored["address_of_unknown_link"] += 1
            return
        link.addresses[event.ip, event.prefix_length] = event.usable
        if not is_link_local(event.ip):
            subnet = prefix_of(event.ip, event.prefix_length)
            self._index_length(len(event.ip), event.prefix_length)
            self._stripped.pop(subnet, None)
            self._holders.setdefault(subnet, {})[link.ifindex] = link
        self._refresh(link)

    def address_gone(self, event: AddressGone) -> None:
        """Forget an address of a link."""
        link = self.links.get(event.ifindex)
        if link is None or link.addresses.pop((event.ip, event.prefix_length), None) is None:
            self.changes.ignored["address_unknown"] += 1
            return
        link.losses[is_ipv4(event.ip)] += 1
        subnet = prefix_of(event.ip, event.prefix_length)
        if event.ip in link.ready:
            # A route that has not moved to the owner yet may lead through this link, and is no path any more.
            self._touch((subnet,))
        if not any(prefix_of(ip, length) == subnet for ip, length in link.addresses):
            self._drop_holder(subnet, link)
            if subnet in self._members and not self._holders.get(subnet):
                self._stripped[subnet] = link
        self._refresh(link)

    def neighbor_seen(self, event: NeighborSeen, now: float) -> None:
        """Take the state of a target's neighbour entry; others are of no interest."""
        link = self.links.get(event.ifindex)
        if link is None or event.ip not in self._ip_uses:
            self.changes.ignored["neighbor_of_no_target"] += 1
            return
        neighbor = link.neighbors.get(event.ip)
        if neighbor is None:
            neighbor = link.neighbors[event.ip] = Neighbor(NeighborState.NONE)
        failures = neighbor.failures
        if event.state == NeighborState.FAILED:
            # The kernel notifies once a failed resolution, not of the attempts in between.
            neighbor.failures += 1
        elif event.state & _VALID:
            neighbor.failures = 0
            if neighbor.mac and event.mac and neighbor.mac != event.mac:
                self.changes.moved_neighbors.append((event.ifindex, event.ip, neighbor.mac, event.mac))
            neighbor.mac = event.mac or neighbor.mac
            if event.state == NeighborState.REACHABLE:
                neighbor.confirmed_at = now
        neighbor.state = event.state
        if failures != neighbor.failures:
            self.changes.ips[event.ip] = None

    def neighbor_gone(self, event: NeighborGone) -> None:
        """Note that the kernel dropped an entry. What failed before stays so until the address answers."""
        link = self.links.get(event.ifindex)
        neighbor = link.neighbors.get(event.ip) if link else None
        if neighbor is None:
            self.changes.ignored["neighbor_of_no_target"] += 1
            return
        neighbor.state = NeighborState.NONE

    def traffic_seen(self, event: TrafficSeen, now: float) -> bool:
        """Take a reading of a link's receive counter; tells whether packets arrived since the one before."""
        link = self.links.get(event.ifindex)
        if link is None:
            return False
        arrived = 0 <= link.rx_packets < event.rx_packets
        if arrived:
            link.rx_at = now
        link.rx_packets = event.rx_packets
        return arrived

    def replace(self, snapshot: KernelSnapshot, now: float) -> None:
        """Take a full view: what it does not hold is gone."""
        present = {link.ifindex for link in snapshot.links}
        for ifindex in [i for i in self.links if i not in present]:
            self.link_gone(LinkGone(ifindex=ifindex))
        for seen in sorted(snapshot.links, key=lambda link: link.ifindex):
            self.link_seen(seen)
        self._generation_at_start = self._generation_at_start or self._generation
        held = {(a.ifindex, a.ip, a.prefix_length) for a in snapshot.addresses}
        for link in list(self.links.values()):
            for ip, length in list(link.addresses):
                if (link.ifindex, ip, length) not in held:
                    self.address_gone(AddressGone(ifindex=link.ifindex, ip=ip, prefix_length=length))
        for address in snapshot.addresses:
            self.address_seen(address)
        entries = {(n.ifindex, n.ip) for n in snapshot.neighbors}
        for link in self.links.values():
            for ip, neighbor in link.neighbors.items():
                if (link.ifindex, ip) not in entries:
                    neighbor.state = NeighborState.NONE
        for entry in snapshot.neighbors:
            known = self.links[entry.ifindex].neighbors.get(entry.ip) if entry.ifindex in self.links else None
            # A failure that was counted already is no new failure because a dump repeats it.
            if known is None or known.state != entry.state or entry.mac not in (b"", known.mac):
                self.neighbor_seen(entry, now)
        # A full view passes by everything that nobody asked about; that is no news.
        self.changes.ignored.clear()

    # Inner workings

    def _new_key(self, ifindex: int) -> LinkKey:
        self._generation += 1
        return LinkKey(ifindex, self._generation)

    def _reincarnate(self, link: Link) -> None:
        """Treat a changed MAC as a new link: what neighbours know of it is wrong, and so is what it knows of them."""
        link.key = self._new_key(link.ifindex)
        link.neighbors.clear()
        link.ready.clear()
        link.rx_packets, link.rx_at = -1, float("-inf")
        self._touch(self._subnets(link))

    def _subnets(self, link: Link) -> Iterable[Prefix]:
        return dict.fromkeys(prefix_of(ip, length) for ip, length in link.addresses if not is_link_local(ip))

    def _refresh(self, link: Link) -> None:
        """Recompute which addresses are ready, and who owns the subnets of the link."""
        ready = {ip for (ip, _), usable in link.addresses.items() if usable and link.up and not is_link_local(ip)}
        new = ready - link.ready
        if new:
            self.changes.ready.setdefault(link.key, []).extend(sorted(new))
        if ready != link.ready:
            # Also where another link owns the subnet: a route that has not moved there yet may lead through this one.
            self._touch(self._subnets(link))
        link.ready = ready
        for subnet in self._subnets(link):
            self._elect(subnet)

    def _drop_holder(self, subnet: Prefix, link: Link) -> None:
        holders = self._holders.get(subnet)
        if holders is not None and holders.pop(link.ifindex, None) is not None:
            if not holders:
                del self._holders[subnet]
            self._elect(subnet)

    def _elect(self, subnet: Prefix) -> None:
        """Choose the owner of a subnet: the newest link that is ready in it."""
        candidates = [
            link
            for link in self._holders.get(subnet, {}).values()
            if link.up
            and any(usable and prefix_of(ip, length) == subnet for (ip, length), usable in link.addresses.items())
        ]
        new = max(candidates, key=lambda link: link.key.generation, default=None)
        old = self.owners.get(subnet)
        self.changes.disowned.update(link.key for link in candidates if link is not new)
        if new is old and new is not None:
            return
        if new is not None:
            self.owners[subnet] = new
        elif old is not None:
            del self.owners[subnet]
        self._touch((subnet,))

    def _touch(self, subnets: Iterable[Prefix]) -> None:
        for subnet in subnets:
            self.changes.ips.update(self._members.get(subnet, {}))

    def _index_length(self, family_length: int, length: int) -> None:
        """Index the target addresses of a family by a prefix length that no link used before."""
        lengths = self._prefix_lengths[family_length]
        if length in lengths:
            return
        lengths.append(length)
        lengths.sort(reverse=True)
        for ip in self._ip_uses:
            if len(ip) == family_length:
                self._networks[ip] = tuple(prefix_of(ip, each) for each in lengths)
                self._members.setdefault(prefix_of(ip, length), {})[ip] = None
