"""The core's view of the kernel: links with their addresses, owners of subnets, and neighbours of targets.

`ownership.py` computes the owner of each subnet, and the subnet through which a target address is reached. This module
applies each change of the kernel, at a cost that does not grow with the number of addresses on a link.

Excluded links are kept apart with their addresses, since a rename may include one; no other code sees them.

Only neighbour entries that the kernel learned itself are its own. An entry that another program created (static,
learned by a control plane, managed) is never verified, resolved or flushed.
"""

import fnmatch
from collections import Counter
from collections.abc import Sequence

from lbguard.core.addr import Ip, Prefix, is_ipv4, is_link_local
from lbguard.core.events import (
    AddressGone,
    AddressSeen,
    KernelSnapshot,
    LinkGone,
    LinkRouteGone,
    LinkRouteSeen,
    LinkSeen,
    NeighborGone,
    NeighborSeen,
    TrafficSeen,
)
from lbguard.core.link import Address, Link, Neighbor, ViewChanges
from lbguard.core.model import PARKING_LINK, Condition, LinkKey, NeighborState
from lbguard.core.ownership import Ownership


class NetView:
    """Links, addresses and neighbours, with ownership kept up to date change by change."""

    def __init__(self, *, excluded_links: Sequence[str], failures_needed: int) -> None:
        self.links: dict[int, Link] = {}
        self.changes = ViewChanges()
        self._excluded_links = excluded_links
        self._excluded: dict[int, Link] = {}
        self.failures_needed = failures_needed
        self._generation = 0
        self._complete = False
        self._foreign: dict[int, set[Ip]] = {}
        self._ownership = Ownership(self._paths_changed, self._link_disowned)

    def take_changes(self) -> ViewChanges:
        """Return the changes since the last call."""
        changes, self.changes = self.changes, ViewChanges(ready=self.changes.ready)
        return changes

    # Target addresses

    @property
    def owners(self) -> dict[Prefix, Link]:
        """The owning link of each subnet that has one."""
        return self._ownership.owners

    def add_ip(self, ip: Ip) -> None:
        """Follow a target address (counted, since several targets may share one)."""
        self._ownership.add_ip(ip)

    def remember_subnets(self, subnets: Sequence[Prefix]) -> None:
        """Adopt subnets that an earlier run had lost; called before the first full view."""
        self._ownership.remember(subnets)

    def subnets_to_remember(self) -> tuple[Prefix, ...]:
        """Return the subnets of target addresses that a later run must know."""
        return self._ownership.to_remember()

    def remove_ip(self, ip: Ip) -> None:
        """Stop following a target address."""
        if self._ownership.remove_ip(ip):
            for link in self.links.values():
                link.neighbors.pop(ip, None)

    def locate(self, ip: Ip) -> tuple[Link | None, Prefix | None, Condition]:
        """Return the owning link of a followed address, the subnet that decided, and the condition up to there."""
        return self._ownership.locate(ip)

    def neighbor_failed(self, link: Link, ip: Ip) -> bool:
        """Return whether the kernel failed to resolve an address often enough in a row to count as evidence."""
        neighbor = link.neighbors.get(ip)
        return neighbor is not None and neighbor.failures >= self.failures_needed

    def neighbor_unanswered(self, link: Link, ip: Ip, *, awaited: bool) -> bool:
        """Return whether the last resolution of an address failed, or none succeeded yet while an answer is awaited."""
        neighbor = link.neighbors.get(ip)
        if self.foreign_neighbor(link.ifindex, ip):
            return False
        if neighbor is None:
            return awaited
        return neighbor.failures > 0 or neighbor.overdue or (awaited and not neighbor.resolved)

    def neighbor_silent(self, link: Link, ip: Ip) -> bool:
        """Return whether the last resolution of an address failed, or is overdue: packets to it are lost."""
        neighbor = link.neighbors.get(ip)
        if neighbor is None or self.foreign_neighbor(link.ifindex, ip):
            return False
        return neighbor.failures > 0 or neighbor.overdue

    def set_overdue(self, link: Link, ip: Ip) -> None:
        """Record that an address was asked for a sign of life, and has not answered in the usual time."""
        link.neighbors[ip].overdue = True
        self.changes.ips[ip] = None

    def foreign_neighbor(self, ifindex: int, ip: Ip) -> bool:
        """Return whether a link's neighbour entry of an address, followed or not, is foreign."""
        return ip in self._foreign.get(ifindex, ())

    def forwards(self, ifindex: int, ip: Ip) -> bool:
        """Return whether a link still reaches a followed address: it is up with a usable address for its subnet."""
        link = self.links.get(ifindex)
        return link is not None and any(link.ready_in(network) for network in self._ownership.networks(ip))

    def follows(self, ip: Ip) -> bool:
        """Return whether an address is a target's."""
        return self._ownership.follows(ip)

    def near(self, address: Ip) -> dict[Ip, None]:
        """Return the followed addresses in any subnet of ours that contains an address."""
        return self._ownership.near(address)

    def holds(self, key: LinkKey, ip: Ip) -> bool:
        """Return whether this incarnation of a link is up and has a usable address at this moment."""
        link = self.links.get(key.ifindex)
        return link is not None and link.key == key and ip in link.ready

    def faces_targets(self, link: Link) -> bool:
        """Return whether any followed target address lies in a subnet of the link."""
        return any(self._ownership.members(subnet) for subnet in link.on_link())

    def losses(self, ifindex: int, *, ipv4: bool) -> int:
        """Return how often a link lost what the kernel drops routes of a family for; -1: it carries none now."""
        link = self.links.get(ifindex)
        return link.losses[ipv4] if link is not None and link.admin_up else -1

    def superseded(self, link: Link, subnets: Sequence[Prefix] | None = None) -> bool:
        """Return whether newer links own every subnet that is on a link, or those that were when it was set down."""
        return self._ownership.superseded(link, link.on_link() if subnets is None else subnets)

    def answers_elsewhere(self, link: Link) -> bool:
        """Return whether targets of every subnet of a superseded link answered its new owner, and none failed there."""
        return self._ownership.answers_elsewhere(link)

    # Kernel changes

    def link_seen(self, event: LinkSeen) -> None:
        """Apply a link's attributes; an unknown ifindex or a new MAC is a new incarnation."""
        patterns = (PARKING_LINK, *self._excluded_links)
        excluded = any(fnmatch.fnmatchcase(event.name, pattern) for pattern in patterns)
        if excluded and event.ifindex not in self._excluded:
            self._exclude(event)
        elif not excluded and event.ifindex not in self.links:
            self._include(event)
        link = self._excluded[event.ifindex] if excluded else self.links[event.ifindex]
        if excluded:
            self.changes.ignored["link_excluded"] += 1
        if link.admin_up and not event.admin_up:
            if not excluded:
                self.changes.lost_links.add(event.ifindex)
            for ipv4 in link.losses:
                link.losses[ipv4] += 1
            link.neighbors.clear()
        if link.mac != event.mac and not excluded:
            self._reincarnate(link)
        was_up = link.up
        link.name, link.up, link.admin_up, link.mac = event.name, event.up, event.admin_up, event.mac
        if not excluded and (was_up != link.up or not link.ready):
            self._refresh(link)

    def link_gone(self, event: LinkGone) -> None:
        """Forget a link with all that hung on it."""
        self._foreign.pop(event.ifindex, None)
        if self._excluded.pop(event.ifindex, None) is not None:
            self.changes.ignored["link_excluded"] += 1
            return
        link = self.links.pop(event.ifindex, None)
        if link is None:
            self.changes.ignored["link_unknown"] += 1
            return
        self.changes.lost_links.add(event.ifindex)
        self._withdraw_subnets(link)

    def address_seen(self, event: AddressSeen) -> None:
        """Record an address of a link."""
        link = self._any_link(event.ifindex)
        if link is None:
            self.changes.ignored["address_of_unknown_link"] += 1
            return
        address = Address(event.ip, event.subnet)
        family_back = link.families[is_ipv4(event.ip)] == 0
        before = link.put_address(address, event.usable)
        if event.ifindex not in self.links:
            self.changes.ignored["address_of_unknown_link"] += 1
            return
        if family_back:
            self.changes.family_back.add(event.ifindex)
        if is_link_local(event.ip):
            return
        self._ownership.hold(address.subnet, link)
        if before != event.usable:
            self._count_ready(link, event.ip, 1 if event.usable else -1)
            self._ownership.touch(address.subnet)
        self._ownership.elect(address.subnet)

    def address_gone(self, event: AddressGone) -> None:
        """Forget an address of a link."""
        link = self._any_link(event.ifindex)
        address = Address(event.ip, event.subnet)
        usable = link.addresses.get(address) if link else None
        if link is None or usable is None:
            self.changes.ignored["address_unknown"] += 1
            return
        link.drop_address(address)
        link.losses[is_ipv4(event.ip)] += 1
        if event.ifindex not in self.links or is_link_local(event.ip):
            return
        if usable:
            # A route that has not moved to the owner yet may lead through this link, which no longer forwards.
            self._count_ready(link, event.ip, -1)
            self._ownership.touch(address.subnet)
        if not link.has_on_link(address.subnet):
            self._ownership.release(address.subnet, link, remains=True)
        self._ownership.elect(address.subnet)

    def link_route_seen(self, event: LinkRouteSeen) -> None:
        """Record a route without a gateway: its prefix is on the link."""
        link = self._any_link(event.ifindex)
        if link is None:
            self.changes.ignored["route_of_unknown_link"] += 1
            return
        link.routes[event.prefix] = link.routes.get(event.prefix, 0) + 1
        if event.ifindex in self.links:
            self._ownership.hold(event.prefix, link)
            self._ownership.elect(event.prefix)

    def link_route_gone(self, event: LinkRouteGone) -> None:
        """Forget a route without a gateway."""
        link = self._any_link(event.ifindex)
        if link is None or event.prefix not in link.routes:
            self.changes.ignored["route_of_unknown_link"] += 1
            return
        link.routes[event.prefix] -= 1
        if link.routes[event.prefix]:
            return
        del link.routes[event.prefix]
        if event.ifindex in self.links:
            self._ownership.touch(event.prefix)
            if not link.has_on_link(event.prefix):
                self._ownership.release(event.prefix, link, remains=True)
            self._ownership.elect(event.prefix)

    def neighbor_seen(self, event: NeighborSeen, now: float, *, dumped: bool = False) -> None:
        """Record the state of a target's neighbour entry; of others only whether they are foreign matters."""
        if event.foreign:
            self._foreign.setdefault(event.ifindex, set()).add(event.ip)
        elif event.ifindex in self._foreign:
            self._foreign[event.ifindex].discard(event.ip)
        link = self.links.get(event.ifindex)
        neighbor = link.neighbors.get(event.ip) if link is not None else None
        if neighbor is None:
            if link is None or not self.follows(event.ip):
                self.changes.ignored["neighbor_of_no_target"] += 1
                return
            neighbor = link.neighbors[event.ip] = Neighbor(NeighborState.NONE)
        failures, mac, resolved, overdue = neighbor.failures, neighbor.mac, neighbor.resolved, neighbor.overdue
        neighbor.seen(event, now, dumped=dumped)
        if mac and neighbor.mac != mac:
            self.changes.moved_neighbors.append((event.ifindex, event.ip, mac, neighbor.mac))
        if failures != neighbor.failures or (neighbor.resolved and not resolved) or overdue != neighbor.overdue:
            self.changes.ips[event.ip] = None

    def neighbor_gone(self, event: NeighborGone) -> None:
        """Record that the kernel dropped an entry. A failed address stays failed until it answers."""
        if event.ifindex in self._foreign:
            self._foreign[event.ifindex].discard(event.ip)
        link = self.links.get(event.ifindex)
        neighbor = link.neighbors.get(event.ip) if link else None
        if neighbor is None:
            self.changes.ignored["neighbor_of_no_target"] += 1
            return
        neighbor.state = NeighborState.NONE

    def traffic_seen(self, event: TrafficSeen, now: float) -> bool:
        """Record a reading of a link's receive counter; return whether packets arrived since the one before."""
        link = self.links.get(event.ifindex)
        return link is not None and link.counted(event.rx_packets, now)

    def replace(self, snapshot: KernelSnapshot, now: float) -> None:
        """Apply a full view: objects that it does not contain are gone."""
        present = {link.ifindex for link in snapshot.links}
        for ifindex in [i for i in (*self.links, *self._excluded) if i not in present]:
            self.link_gone(LinkGone(ifindex=ifindex))
        for seen in sorted(snapshot.links, key=lambda link: link.ifindex):
            self.link_seen(seen)
        known = {**self.links, **self._excluded}
        held = {(a.ifindex, Address(a.ip, a.subnet)) for a in snapshot.addresses}
        for link in known.values():
            for address in [each for each in link.addresses if (link.ifindex, each) not in held]:
                ip, (network, length) = address
                self.address_gone(AddressGone(ifindex=link.ifindex, ip=ip, prefix_length=length, peer=network))
        for seen_address in snapshot.addresses:
            self.address_seen(seen_address)
        self._replace_link_routes(known, snapshot.link_routes)
        if not self._complete:
            self._complete = True
            self._ownership.find_homes()
        self._replace_neighbors(snapshot, now)
        # A full view contains every irrelevant object too; those are not counted as ignored.
        self.changes.ignored.clear()

    # Inner workings

    def _replace_link_routes(self, known: dict[int, Link], routes: Sequence[LinkRouteSeen]) -> None:
        counts: dict[int, Counter[Prefix]] = {}
        for route in routes:
            counts.setdefault(route.ifindex, Counter())[route.prefix] += 1
        for ifindex, link in known.items():
            current = counts.get(ifindex, Counter())
            for prefix in [prefix for prefix in link.routes if prefix not in current]:
                link.routes[prefix] = 1
                self.link_route_gone(LinkRouteGone(ifindex=ifindex, prefix=prefix))
            for prefix, count in current.items():
                if prefix not in link.routes:
                    self.link_route_seen(LinkRouteSeen(ifindex=ifindex, prefix=prefix))
                link.routes[prefix] = count

    def _replace_neighbors(self, snapshot: KernelSnapshot, now: float) -> None:
        entries = {(n.ifindex, n.ip) for n in snapshot.neighbors}
        self._foreign.clear()
        for link in self.links.values():
            for ip, neighbor in link.neighbors.items():
                if (link.ifindex, ip) not in entries:
                    neighbor.state = NeighborState.NONE
        for entry in snapshot.neighbors:
            known = self.links[entry.ifindex].neighbors.get(entry.ip) if entry.ifindex in self.links else None
            # A dump that repeats a failure does not count it again.
            if known is None or known.state != entry.state or entry.foreign or entry.mac not in (b"", known.mac):
                self.neighbor_seen(entry, now, dumped=True)

    def _paths_changed(self, ips: dict[Ip, None]) -> None:
        self.changes.ips.update(ips)

    def _link_disowned(self, key: LinkKey) -> None:
        self.changes.disowned.add(key)

    def _any_link(self, ifindex: int) -> Link | None:
        return self.links.get(ifindex) or self._excluded.get(ifindex)

    def _new_link(self, event: LinkSeen) -> Link:
        self._generation += 1
        key = LinkKey(event.ifindex, self._generation)
        order, from_start = self._generation, not self._complete
        return Link(key, event.name, event.up, event.admin_up, event.mac, order=order, from_start=from_start)

    def _include(self, event: LinkSeen) -> None:
        """Include a link that is new, or whose name was excluded until now."""
        link = self._new_link(event)
        link.up = False
        before = self._excluded.pop(event.ifindex, None)
        if before is not None:
            link.adopt_addresses(before)
        self.links[event.ifindex] = link
        for subnet in link.on_link():
            self._ownership.hold(subnet, link)

    def _exclude(self, event: LinkSeen) -> None:
        """Exclude a link from now on; its addresses are kept."""
        before = self.links.pop(event.ifindex, None)
        link = self._excluded[event.ifindex] = Link(
            LinkKey(event.ifindex, 0), event.name, event.up, event.admin_up, event.mac
        )
        if before is not None:
            link.adopt_addresses(before)
            self._withdraw_subnets(before)

    def _withdraw_subnets(self, link: Link) -> None:
        """Remove a link from the election of all its subnets: it is gone or excluded."""
        self._ownership.forget(link)
        for subnet in link.on_link():
            self._ownership.release(subnet, link, remains=False)

    def _reincarnate(self, link: Link) -> None:
        """Treat a changed MAC as a new link: its neighbours' entries of it, and its entries of them, are wrong.

        Its age stays: a new MAC does not make it the newest link of its subnets.
        """
        self._generation += 1
        link.key = LinkKey(link.ifindex, self._generation)
        link.neighbors.clear()
        link.ready.clear()
        link.rx_packets, link.rx_at = -1, float("-inf")
        for subnet in link.on_link():
            self._ownership.touch(subnet)

    def _refresh(self, link: Link) -> None:
        """Compute which addresses are ready, and the owners of the link's subnets, after the link itself changed."""
        before = set(link.ready)
        link.recount_ready()
        new = link.ready.keys() - before
        if new:
            self.changes.ready.setdefault(link.key, []).extend(sorted(new))
        changed = link.ready.keys() != before
        for subnet in link.on_link():
            if changed:
                # Also where another link owns the subnet: a route that has not moved there may lead through this one.
                self._ownership.touch(subnet)
            self._ownership.elect(subnet)

    def _count_ready(self, link: Link, ip: Ip, change: int) -> None:
        """Add `change` to the count of a usable address, which matters while its link is up."""
        if not link.up:
            return
        if change > 0 and ip not in link.ready:
            self.changes.ready.setdefault(link.key, []).append(ip)
        if link.count_ready(ip, change):
            # Any address of the family serves the on-link prefixes of routes.
            for prefix in [prefix for prefix in link.routes if is_ipv4(prefix.network) == is_ipv4(ip)]:
                self._ownership.touch(prefix)
                self._ownership.elect(prefix)
