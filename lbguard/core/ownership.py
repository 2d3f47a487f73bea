"""Ownership of subnets by links, and the subnet through which each target address is reached.

A subnet is a prefix that is on a link: of an address of ours, of its peer, or of a route without a gateway. Its owner
is the newest link that is up and has a usable address for it. The newest link is the one that was first seen last;
among those of the first full view, the one with the highest ifindex. While a new link of the same subnet is not yet up
or addressed, the old one stays the owner: make before break.

A target address is reached by the longest subnet that contains it. That subnet stays the address's own (its home) when
its link is gone: a wider subnet of another link does not take over, since packets would leave through a link that does
not lead to the target. A wider subnet takes over only through the same link, or through a link that is newer than the
lost one. Links of the start count as equally old, and the longest subnet on any link is then the home, usable or not. A
lost subnet is remembered for addresses that are listed while it is lost, and for a later run.

Cost: a change of a link concerns only the target addresses in that link's subnets. They are indexed by prefix, for each
prefix length that any link uses.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from lbguard.core.addr import Ip, Prefix, prefix_of
from lbguard.core.link import Link
from lbguard.core.model import Condition, LinkKey

_LOST_KEPT = 4096
"""Number of lost subnets that are remembered, the latest ones."""


class _Home(NamedTuple):
    """The home of an address: its subnet, and the order of the link that owned that last."""

    subnet: Prefix
    order: int

    def gives_way_to(self, subnet: Prefix, owner: Link) -> bool:
        """Return whether the address may be reached by another subnet that contains it, through its owner."""
        if subnet.length >= self.subnet.length or owner.order == self.order:
            return True
        return not owner.from_start and owner.order > self.order


class Ownership:
    """Owners of subnets and the target addresses in them.

    Args:
        changed: receives the target addresses whose path may have changed.
        disowned: receives a link that is ready in a subnet which a newer link owns.
    """

    def __init__(self, changed: Callable[[dict[Ip, None]], None], disowned: Callable[[LinkKey], None]) -> None:
        self.owners: dict[Prefix, Link] = {}
        self._changed = changed
        self._disowned = disowned
        self._holders: dict[Prefix, dict[int, Link]] = {}
        self._stripped: dict[Prefix, Link] = {}
        # Subnets with target addresses that are on no link any more, with the order of the last link that held each.
        self._lost: dict[Prefix, int] = {}
        self._uses: dict[Ip, int] = {}
        self._homes: dict[Ip, _Home] = {}
        # The networks of a followed address by the lengths in use, longest first: `locate` is on the hot path.
        self._networks: dict[Ip, tuple[Prefix, ...]] = {}
        self._prefix_lengths: dict[int, list[int]] = {4: [], 16: []}
        self._to_remember: tuple[Prefix, ...] | None = ()
        # An ordered set: the order of evaluation must not depend on the hashes of this process.
        self._members: dict[Prefix, dict[Ip, None]] = {}

    # Target addresses

    def add_ip(self, ip: Ip) -> None:
        """Follow a target address (counted, since several targets may share one)."""
        uses = self._uses.get(ip, 0)
        self._uses[ip] = uses + 1
        if uses == 0:
            self._to_remember = None
            self._networks[ip] = tuple(prefix_of(ip, length) for length in self._prefix_lengths[len(ip)])
            for network in self._networks[ip]:
                self._members.setdefault(network, {})[ip] = None
            self._find_home(ip)

    def remove_ip(self, ip: Ip) -> bool:
        """Stop following a target address; return whether nothing follows it any more."""
        self._uses[ip] -= 1
        if self._uses[ip]:
            return False
        del self._uses[ip]
        self._to_remember = None
        self._homes.pop(ip, None)
        for network in self._networks.pop(ip):
            self._members[network].pop(ip, None)
            if not self._members[network]:
                del self._members[network]
        return True

    def follows(self, ip: Ip) -> bool:
        """Return whether an address is a target's."""
        return ip in self._uses

    def networks(self, ip: Ip) -> tuple[Prefix, ...]:
        """Return the networks of a followed address, by the prefix lengths in use."""
        return self._networks[ip]

    def members(self, subnet: Prefix) -> dict[Ip, None]:
        """Return the followed addresses in a subnet."""
        return self._members.get(subnet, {})

    def near(self, address: Ip) -> dict[Ip, None]:
        """Return the followed addresses in any subnet of ours that contains an address."""
        found: dict[Ip, None] = {}
        for length in self._prefix_lengths[len(address)]:
            found |= self._members.get(prefix_of(address, length), {})
        return found

    def locate(self, ip: Ip) -> tuple[Link | None, Prefix | None, Condition]:
        """Return the owning link of a followed address, the subnet that decided, and the condition up to there."""
        home = self._homes.get(ip)
        found: tuple[Link | None, Prefix | None, Condition] = (None, home.subnet if home else None, Condition.NO_LINK)
        for network in self._networks[ip]:
            owner = self.owners.get(network)
            if owner is not None:
                if home is None or home.gives_way_to(network, owner):
                    return owner, network, Condition.OK
            elif found[2] is Condition.NO_LINK:
                holders = self._holders.get(network)
                if holders:
                    down = all(not link.up for link in holders.values())
                    found = (None, network, Condition.LINK_DOWN if down else Condition.ADDRESS_TENTATIVE)
                elif network in self._stripped:
                    found = (None, network, Condition.NO_ADDRESS)
        return found

    def remember(self, subnets: Iterable[Prefix]) -> None:
        """Adopt subnets that an earlier run had lost, before any link is known."""
        self._to_remember = None
        for subnet in subnets:
            self._index_length(len(subnet.network), subnet.length)
            self._lost[subnet] = 0

    def to_remember(self) -> tuple[Prefix, ...]:
        """Return the home subnets that a later run could not find by itself.

        These are on no link, or a wider subnet of another link contains them. They are asked for several times a
        second, and computed again after a change of subnets or targets.
        """
        if self._to_remember is None:
            self._to_remember = self._find_to_remember()
        return self._to_remember

    def _find_to_remember(self) -> tuple[Prefix, ...]:
        found: dict[Prefix, None] = {}
        if self._lost:
            own = {home.subnet for home in self._homes.values()}
            found = {subnet: None for subnet in self._lost if subnet in own}
        lengths = {(len(subnet.network), subnet.length) for subnet in self.owners}
        if len(lengths) > len({family for family, _ in lengths}):
            found |= {home.subnet: None for ip, home in self._homes.items() if self._is_contained(ip, home)}
        return tuple(found)

    def _is_contained(self, ip: Ip, home: _Home) -> bool:
        owners = (self.owners.get(network) for network in self._networks[ip] if network.length < home.subnet.length)
        return any(owner is not None and owner.order != home.order for owner in owners)

    def find_homes(self) -> None:
        """Set the home of every followed address to its longest subnet, once the first full view is complete."""
        self._to_remember = None
        self._homes.clear()
        for ip in self._uses:
            self._find_home(ip)

    def _find_home(self, ip: Ip) -> None:
        for network in self._networks[ip]:
            holders = self._holders.get(network)
            if holders:
                self._homes[ip] = _Home(network, max(link.order for link in holders.values()))
                return
            if network in self._lost:
                self._homes[ip] = _Home(network, self._lost[network])
                return

    # Links

    def hold(self, subnet: Prefix, link: Link) -> None:
        """Record that a subnet is on a link."""
        if link.ifindex not in self._holders.get(subnet, ()) or subnet in self._lost:
            self._to_remember = None
        self._index_length(len(subnet.network), subnet.length)
        self._stripped.pop(subnet, None)
        self._lost.pop(subnet, None)
        holders = self._holders.setdefault(subnet, {})
        if link.ifindex in holders:
            return
        holders[link.ifindex] = link
        for ip in self._members.get(subnet, ()):
            self._homes.setdefault(ip, _Home(subnet, link.order))

    def release(self, subnet: Prefix, link: Link, *, remains: bool) -> None:
        """Record that a subnet is no longer on a link; `remains`: the link itself still exists."""
        self._to_remember = None
        holders = self._holders.get(subnet)
        if holders is not None and holders.pop(link.ifindex, None) is not None:
            if not holders:
                del self._holders[subnet]
            self.elect(subnet)
        if subnet in self._members and not self._holders.get(subnet):
            self._lost[subnet] = link.order
            if len(self._lost) > _LOST_KEPT:
                del self._lost[next(iter(self._lost))]
            if remains:
                self._stripped[subnet] = link

    def forget(self, link: Link) -> None:
        """Forget the lost subnets of a link that is gone."""
        for subnet in [subnet for subnet, other in self._stripped.items() if other is link]:
            del self._stripped[subnet]
            self.touch(subnet)

    def elect(self, subnet: Prefix) -> None:
        """Choose the owner of a subnet: the newest link that is ready in it."""
        candidates = [link for link in self._holders.get(subnet, {}).values() if link.ready_in(subnet)]
        new = max(candidates, key=_order, default=None)
        old = self.owners.get(subnet)
        for link in candidates:
            if link is not new:
                self._disowned(link.key)
        if new is old and new is not None:
            return
        self._to_remember = None
        if new is not None:
            self.owners[subnet] = new
            self._assign_home(subnet, new)
        elif old is not None:
            del self.owners[subnet]
        self.touch(subnet)

    def _assign_home(self, subnet: Prefix, owner: Link) -> None:
        """Make a subnet with a new owner the home of addresses that have no better one."""
        for ip in self._members.get(subnet, ()):
            home = self._homes.get(ip)
            lost = home is not None and home.subnet not in self.owners
            longer = home is None or subnet.length >= home.subnet.length
            if home is None or longer or (lost and home.gives_way_to(subnet, owner)):
                self._homes[ip] = _Home(subnet, owner.order)

    def touch(self, subnet: Prefix) -> None:
        """Mark the target addresses in a subnet: their paths may have changed."""
        members = self._members.get(subnet)
        if members:
            self._changed(members)

    def answers_elsewhere(self, link: Link) -> bool:
        """Return whether targets of every subnet of a superseded link answered its new owner, and none failed there."""
        for subnet in link.on_link():
            owner = self.owners.get(subnet)
            members = self.members(subnet)
            if owner is None or owner is link:
                return False
            known = [owner.neighbors[ip] for ip in members if ip in owner.neighbors]
            if members and not any(neighbor.confirmed_at > float("-inf") for neighbor in known):
                return False
            if any(neighbor.failures for neighbor in known):
                return False
        return True

    def superseded(self, link: Link, subnets: Sequence[Prefix]) -> bool:
        """Return whether links that are newer than a link own all of these subnets; false for no subnets.

        Of two links of the start neither is known to be newer: neither supersedes the other.
        """
        owners = [self.owners.get(subnet) for subnet in subnets]
        return bool(owners) and all(o is not None and not o.from_start and o.order > link.order for o in owners)

    def _index_length(self, family_length: int, length: int) -> None:
        """Index the target addresses of a family by a prefix length that no link used before."""
        lengths = self._prefix_lengths[family_length]
        if length in lengths:
            return
        lengths.append(length)
        lengths.sort(reverse=True)
        for ip in self._uses:
            if len(ip) == family_length:
                self._networks[ip] = tuple(prefix_of(ip, each) for each in lengths)
                self._members.setdefault(prefix_of(ip, length), {})[ip] = None


def _order(link: Link) -> int:
    return link.order
