"""Operations on links (down, up, neighbour timers, arp_notify), and the uses of a link that prevent setting it down.

Nothing is cached, so the answer is current. The kernel does not show a link in another network namespace that is
stacked on this one.
"""

import asyncio
import errno
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_interface, ip_network
from socket import AF_INET, AF_INET6
from typing import Any, Final

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink import nlmsg
from pyroute2.netlink.exceptions import NetlinkError

from lbguard.core.events import LinkSetDown
from lbguard.core.model import ROUTE_PROTOCOL, LinkKey
from lbguard.kernel.batches import describe_error
from lbguard.kernel.requests import KernelRequests

_RTN_UNICAST: Final = 1
_RTPROT_KERNEL: Final = 2
_NUD_NOARP: Final = 0x40
_NUD_PERMANENT: Final = 0x80
_NTF_EXT_LEARNED: Final = 0x10
_NTF_EXT_MANAGED: Final = 0x01
_IFA_F_NODAD: Final = 0x02
_IFA_F_PERMANENT: Final = 0x80
_IFA_F_NOPREFIXROUTE: Final = 0x200
_EXISTS: Final = 17
_FAMILIES: Final = (AF_INET, AF_INET6)

Message = Any
"""A message as pyroute2 decodes it: `get` finds a field or an attribute by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAddress:
    """A permanent IPv6 address, which the kernel removes when the link is set down. `peer`: empty for none."""

    ip: str
    prefix_length: int
    peer: str
    flags: int


class LinkNeeds:
    """Queries about one link, in the network namespace of the calling thread. Every method may block briefly."""

    def __init__(self, ifindex: int) -> None:
        self._ifindex = ifindex

    def found(self) -> str:
        """Return a text with the first use of the link; empty when there is none."""
        try:
            return self._found()
        except (NetlinkError, OSError) as error:
            return f"the kernel does not say what needs it: {error}"

    def _found(self) -> str:
        with IPRoute(ext_ack=True, strict_check=True) as kernel:
            links = {link["index"]: link for link in kernel.link("dump")}
            own = links.get(self._ifindex)
            if own is None:
                return "the link is gone"
            subnets = {
                network
                for address in kernel.addr("dump", index=self._ifindex)
                for network in (
                    ip_interface(f"{address.get('address')}/{address['prefixlen']}").network,
                    ip_network(address.get("local") or address.get("address")),
                )
            }
            return (
                self._stacked(own, links, {str(subnet[0]) for subnet in subnets if subnet.num_addresses == 1})
                or self._route(kernel.route("dump", family=AF_INET), subnets)
                or self._route(kernel.route("dump", family=AF_INET6), subnets)
                or ("a next-hop object leads through it" if has_nexthop_object(self._ifindex) else "")
                or self._neighbor(kernel.neigh("dump", family=AF_INET, ifindex=self._ifindex), subnets)
                or self._neighbor(kernel.neigh("dump", family=AF_INET6, ifindex=self._ifindex), subnets)
                or self._rule(own.get("ifname"), [*kernel.rule("dump", family=AF_INET)])
                or self._rule(own.get("ifname"), [*kernel.rule("dump", family=AF_INET6)])
            )

    def lost_when_down(self) -> tuple[LostAddress, ...]:
        """Return the addresses that the link loses when set down and that no other program restores.

        Raises:
            NetlinkError, OSError: the kernel does not answer.
        """
        with IPRoute(ext_ack=True, strict_check=True) as kernel:
            return tuple(
                LostAddress(
                    ip=address.get("local") or address.get("address"),
                    prefix_length=address["prefixlen"],
                    peer=address.get("address") if address.get("local") else "",
                    flags=address.get("flags", 0) & _IFA_F_NOPREFIXROUTE | _IFA_F_NODAD,
                )
                for address in kernel.addr("dump", family=AF_INET6, index=self._ifindex)
                if address.get("flags", 0) & _IFA_F_PERMANENT and not IPv6Address(address.get("address")).is_link_local
            )

    def set_up(self, addresses: Iterable[LostAddress]) -> str:
        """Set the link up and restore the addresses it lost; existing ones stay.

        Returns why that failed; empty on success.
        """
        try:
            self._set_up(addresses)
        except (NetlinkError, OSError) as error:
            return str(error)
        return ""

    def _set_up(self, addresses: Iterable[LostAddress]) -> None:
        with IPRoute(ext_ack=True, strict_check=True) as kernel:
            kernel.link("set", index=self._ifindex, state="up")
            for lost in addresses:
                ends = {"local": lost.ip, "address": lost.peer} if lost.peer else {"address": lost.ip}
                try:
                    kernel.addr(
                        "add",
                        index=self._ifindex,
                        prefixlen=lost.prefix_length,
                        family=AF_INET6,
                        flags=lost.flags,
                        **ends,
                    )
                except NetlinkError as error:
                    if error.code != _EXISTS:
                        raise

    def _stacked(self, own: Message, links: dict[int, Message], addresses: set[str]) -> str:
        lower, master = _lower(own), own.get("master")
        if master:
            return f"it is a port of {_name(links, master)}"
        for index, link in links.items():
            if link.get("master") == self._ifindex:
                return f"{_name(links, index)} is a port of it"
            # The two ends of a veth pair in one namespace name each other.
            rides = _lower(link) == self._ifindex and index not in (lower, self._ifindex)
            if rides or self._ifindex in _tunnel_ends(link, "_LINK") or addresses & {*_tunnel_ends(link, "_LOCAL")}:
                return f"{_name(links, index)} rides on it"
        if lower and _lower(links.get(lower, {})) != self._ifindex:
            return f"it rides on {_name(links, lower)}"
        return ""

    def _route(self, routes: Iterable[Message], subnets: set[Any]) -> str:
        for route in routes:
            made_by_kernel = route["proto"] == _RTPROT_KERNEL
            if route["proto"] == ROUTE_PROTOCOL or not self._leads_here(route):
                continue
            if made_by_kernel and route["type"] != _RTN_UNICAST:
                continue
            destination = route.get("dst")
            if destination is None:
                return "the default route leads through it"
            network = ip_network(f"{destination}/{route['dst_len']}")
            if network.is_link_local or (made_by_kernel and network in subnets):
                continue
            return f"the route to {network} leads through it"
        return ""

    def _neighbor(self, entries: Iterable[Message], subnets: set[Any]) -> str:
        """Find a user-made entry: the kernel drops all entries of a link that is set down, and restores none."""
        for entry in entries:
            destination = entry.get("dst")
            if destination is None or entry["ifindex"] != self._ifindex:
                continue
            ip = ip_address(destination)
            # Entries of multicast and broadcast addresses are the kernel's.
            unasked = entry["state"] & _NUD_NOARP and not ip.is_multicast
            by_hand = entry["state"] & _NUD_PERMANENT or (
                unasked and not any(ip == net.broadcast_address for net in subnets if net.num_addresses > 1)
            )
            flags_ext = entry.get("NDA_FLAGS_EXT") or 0
            learned = entry["flags"] & _NTF_EXT_LEARNED or flags_ext & _NTF_EXT_MANAGED or entry.get("NDA_PROTOCOL")
            if by_hand or learned:
                return f"somebody made the neighbour entry of {ip} on it"
        return ""

    def _leads_here(self, route: Message) -> bool:
        hops = route.get("multipath") or ()
        return route.get("oif") == self._ifindex or any(hop["oif"] == self._ifindex for hop in hops)

    def _rule(self, name: str, rules: Iterable[Message]) -> str:
        named = any(name in (rule.get("iifname"), rule.get("oifname")) for rule in rules)
        return "a routing rule names it" if named else ""


def _lower(link: Message) -> int:
    """Return the link of this namespace that a link is stacked on; 0 when there is none."""
    return 0 if link.get("link_netnsid") is not None else link.get("link") or 0


def _tunnel_ends(link: Message, which: str) -> list[Any]:
    """Return the links that a tunnel (vxlan, gre, ...) sends through, or its local addresses.

    They are in the data of its kind, in attributes whose names have the same ending.
    """
    info = link.get("linkinfo")
    data = info.get("data") if info else None
    attributes = data.get("attrs", ()) if data else ()
    return [value for name, value in attributes if name.endswith(which)]


def _name(links: dict[int, Message], index: int) -> str:
    return str(links[index].get("ifname")) if index in links else f"link {index}"


_RTM_GETNEXTHOP: Final = 106
_UNKNOWN_TO_THE_KERNEL: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL})


class _NextHop(nlmsg):  # type: ignore[misc]
    """The message that pyroute2 0.9 lacks (struct nhmsg, linux/nexthop.h)."""

    __slots__ = ()
    fields = (("family", "B"), ("scope", "B"), ("protocol", "B"), ("resvd", "B"), ("flags", "I"))
    nla_map = (
        ("NHA_UNSPEC", "none"),
        ("NHA_ID", "uint32"),
        ("NHA_GROUP", "hex"),
        ("NHA_GROUP_TYPE", "uint16"),
        ("NHA_BLACKHOLE", "flag"),
        ("NHA_OIF", "uint32"),
    )


def has_nexthop_object(ifindex: int) -> bool:
    """Return whether any next-hop object of this network namespace leads through a link, in a thread without a loop.

    Raises:
        OSError: the kernel gives no answer.
    """
    try:
        return asyncio.run(_any(ifindex))
    except OSError as error:
        if error.errno in _UNKNOWN_TO_THE_KERNEL:
            return False
        raise


async def _any(ifindex: int) -> bool:
    requests = KernelRequests()
    request = _NextHop()
    request["attrs"] = [("NHA_OIF", ifindex)]
    try:
        return bool(await requests.dump(request, _RTM_GETNEXTHOP, lambda _message: True))
    finally:
        requests.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborTimers:
    """Neighbour timers of one link, for ARP and neighbour discovery alike (ip-sysctl: net.ipv4.neigh.*).

    A verify probe that gets no answer is repeated every `retrans_ms`: `ucast_probes` to the known link-layer address,
    then `mcast_reprobes` by multicast, and only then the entry fails. The defaults detect a changed link-layer address
    0.2 s after a probe begins, and give a busy neighbour 1 s before it counts as failed. An address that was never
    resolved is solicited `mcast_probes` times, for 3 s by default: on a fresh link IPv6 sends no solicitation at all
    until the link-local address has passed duplicate address detection (net/ipv6/ndisc.c, ndisc_send_ns). `locktime_ms`
    must be 0: otherwise ARP ignores a changed address for that long after the probe itself touched the entry
    (net/ipv4/arp.c).
    """

    retrans_ms: int = 200
    delay_probe_ms: int = 500
    base_reachable_ms: int = 10_000
    ucast_probes: int = 1
    mcast_probes: int = 15
    mcast_reprobes: int = 4
    locktime_ms: int = 0

    def attributes(self) -> dict[str, int]:
        """Return the parameters by the names of their attributes in an RTM_SETNEIGHTBL request."""
        return {
            "NDTPA_RETRANS_TIME": self.retrans_ms,
            "NDTPA_DELAY_PROBE_TIME": self.delay_probe_ms,
            "NDTPA_BASE_REACHABLE_TIME": self.base_reachable_ms,
            "NDTPA_UCAST_PROBES": self.ucast_probes,
            "NDTPA_MCAST_PROBES": self.mcast_probes,
            "NDTPA_MCAST_REPROBES": self.mcast_reprobes,
            "NDTPA_LOCKTIME": self.locktime_ms,
        }


class LinkOperations:
    """Sets superseded links down and up again, and tunes the links that face targets.

    The addresses that a link loses by being set down are remembered until it is set up again, or until the end of this
    process. So are the links for which the kernel announces because of `tune`.
    """

    def __init__(self, requests: KernelRequests) -> None:
        self._requests = requests
        self._lost: dict[LinkKey, tuple[LostAddress, ...]] = {}
        self._notifying: dict[int, str] = {}

    async def set_down(self, link: LinkKey, ifname: str) -> LinkSetDown:
        """Set a link down, unless something needs it or its ifindex now belongs to a link of another name.

        Returns:
            The outcome; `reason` is empty when the link is down (also when it was already).
        """
        reason = await self._mismatch(link.ifindex, ifname)
        if not reason:
            reason = await asyncio.to_thread(self._ask, link)
        if not reason:
            reason = await _why_not(self._requests.set_link_down(link.ifindex))
        if reason:
            self._lost.pop(link, None)
        return LinkSetDown(link=link, reason=reason)

    async def set_up(self, link: LinkKey, ifname: str) -> str:
        """Set a link up after `set_down`, with the addresses it lost. Returns the error; empty on success."""
        lost = self._lost.pop(link, ())
        reason = await self._mismatch(link.ifindex, ifname)
        if reason:
            return reason
        return await asyncio.to_thread(lambda: LinkNeeds(link.ifindex).set_up(lost))

    async def tune(self, ifindex: int, ifname: str, timers: NeighborTimers) -> str:
        """Set what makes a link to targets recover fast. Returns the first error; empty on success.

        Neighbour timers for both families; and `arp_notify`: the kernel announces the link's IPv4 addresses in the
        moment in which the link comes up, before any process knows of it.
        """
        reason = await self._mismatch(ifindex, ifname)
        if reason:
            return reason
        # A link may lack one family: each step is tried.
        reasons = [await _why_not(self._notify(ifindex, ifname))]
        for family in _FAMILIES:
            reasons.append(await _why_not(self._requests.set_neighbor_timers(ifindex, family, timers.attributes())))
        return next(filter(None, reasons), "")

    async def _notify(self, ifindex: int, ifname: str) -> None:
        if not await self._requests.arp_notify(ifindex):
            await self._requests.set_arp_notify(ifindex, on=True)
            self._notifying[ifindex] = ifname

    async def restore(self) -> None:
        """Clear `arp_notify` of each link on which `tune` has set it and that still exists."""
        while self._notifying:
            ifindex, ifname = self._notifying.popitem()
            if not await self._mismatch(ifindex, ifname):
                await _why_not(self._requests.set_arp_notify(ifindex, on=False))

    def _ask(self, link: LinkKey) -> str:
        """Return what needs a link (empty: nothing), and remember the addresses it loses when set down."""
        needs = LinkNeeds(link.ifindex)
        reason = needs.found()
        if not reason:
            self._lost[link] = needs.lost_when_down()
        return reason

    async def _mismatch(self, ifindex: int, ifname: str) -> str:
        """Return why an ifindex is not the meant link's; empty when it is."""
        try:
            found = await self._requests.link_name(ifindex)
        except OSError as error:
            return describe_error(error)
        return "" if found == ifname else f"ifindex {ifindex} is no longer {ifname}"


async def _why_not(request: Awaitable[None]) -> str:
    """Make a request; return its error, empty on success."""
    try:
        await request
    except OSError as error:
        return describe_error(error)
    return ""
