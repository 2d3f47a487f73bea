"""Links, addresses, routes, rules and neighbours of a network namespace, made and read over netlink.

Defaults are those of ip(8), but for IPv6 addresses: they are usable at once unless `dad` is asked for.
"""

import contextlib
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from os import fsdecode, fsencode
from pathlib import Path
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWADDR,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    rt_type,
)
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD, IFA_F_NOPREFIXROUTE, ifaddrmsg
from pyroute2.netlink.rtnl.ndmsg import NUD_NOARP, NUD_PERMANENT, ndmsg, states
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from lbguard.lab.netlink_thread import NetlinkThread
from lbguard.lab.network_objects import Address, Link, Neighbor, Route, Rule

MAIN_TABLE, LOCAL_TABLE = 254, 255
PROTOCOL_BOOT = 3
"""The protocol of routes and rules whose maker names none."""

_ADD = NLM_F_CREATE | NLM_F_EXCL
_REPLACE = NLM_F_CREATE | NLM_F_REPLACE
_SCOPE_LINK, _SCOPE_HOST, _SCOPE_NOWHERE = 253, 254, 255
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_TO_TABLE = 1
_STATES = {number: name for name, number in states.items()}


class Network(NetlinkThread):
    """The network namespace of the thread that makes it. Use it as a context manager, or call `close`."""

    # -- links --------------------------------------------------------------------------------------------------------

    def add_link(self, name: str, kind: str, *, up: bool = True, **fields: Any) -> None:
        """Make a link; `link` and others that stand for links are given by index."""
        self.request("link", "add", ifname=fsencode(name), kind=kind, **({"state": "up"} if up else {}), **fields)

    def add_veth(self, name: str, peer: str, peer_path: Path | None = None, *, up: bool = True, **fields: Any) -> None:
        """Make a pair of links, up; the peer in another namespace if its file is given, and then left down."""
        with contextlib.ExitStack() as stack:
            other: dict[str, Any] = {"ifname": peer}
            if peer_path is not None:
                other["net_ns_fd"] = stack.enter_context(peer_path.open("rb")).fileno()
            self.add_link(name, "veth", up=up, peer=other, **fields)
        if up and peer_path is None:
            self.set_link(peer, up=True)

    def add_macvlan(self, name: str, parent: str, path: Path) -> None:
        """Make a macvlan link (mode bridge) on a link of this namespace, down, in another namespace, by its file."""
        with path.open("rb") as file:
            index = self.index(parent)
            self.add_link(name, "macvlan", up=False, link=index, macvlan_mode="bridge", net_ns_fd=file.fileno())

    def set_link(self, *names: str, up: bool | None = None, master: str | None = None, **fields: Any) -> None:
        """Change links: up or down, ports of a bridge (`master=""`: of none), `address`, `mtu`, `ifname`, `ifalias`."""
        if up is not None:
            fields["state"] = "up" if up else "down"
        if master is not None:
            fields["master"] = self.index(master) if master else 0
        for name in names:
            self.request("link", "set", index=self.index(name), **fields)

    def delete_link(self, name: str) -> None:
        """Delete a link."""
        self.request("link", "del", index=self.index(name))

    def links(self) -> list[Link]:
        """Return all links."""
        return [_link(message) for message in self.request("link", "dump")]

    def link(self, name: str) -> Link:
        """Return one link."""
        [message] = self.request("link", "get", index=self.index(name))
        return _link(message)

    def _names(self) -> dict[int, str]:
        return {link.ifindex: link.name for link in self.links()}

    # -- addresses ----------------------------------------------------------------------------------------------------

    def add_addresses(self, link: str, *addresses: str, dad: bool = False, prefix_route: bool = True) -> None:
        """Give a link addresses, each with its prefix length; `1.2.3.4>1.2.3.5/32` has a peer."""
        self._addresses(RTM_NEWADDR, _ADD, link, addresses, dad, prefix_route)

    def delete_addresses(self, link: str, *addresses: str) -> None:
        """Take addresses off a link."""
        self._addresses(RTM_DELADDR, 0, link, addresses, True, True)

    def flush_addresses(self, link: str, *, ipv6_only: bool = False) -> None:
        """Take all addresses off a link but the link-local ones."""
        for address in self.addresses(link):
            if address.scope != _SCOPE_LINK and not (ipv6_only and "." in address.ip):
                with contextlib.suppress(NetlinkError):  # it went with the first one of its subnet
                    self.delete_addresses(link, f"{address.ip}/{address.prefix_length}")

    def addresses(self, link: str | None = None) -> list[Address]:
        """Return all addresses, or those of a link."""
        names = self._names()
        found = []
        for message in self.request("addr", "dump"):
            local, other = message.get("local"), message.get("address")
            found.append(
                Address(
                    names.get(message["index"], ""),
                    local or other,
                    message["prefixlen"],
                    other if local and local != other else "",
                    message["scope"],
                    message.get("flags"),
                )
            )
        return [address for address in found if link in (None, address.link)]

    def _addresses(
        self, kind: int, flags: int, link: str, addresses: Sequence[str], dad: bool, prefix_route: bool
    ) -> None:
        index, messages = self.index(link), []
        for text in addresses:
            local, _, peer = text.rpartition(">")
            interface = ip_interface(peer)
            message = _message(ifaddrmsg, kind, flags)
            message["family"] = _family(interface.version == 4)
            message["prefixlen"], message["index"] = interface.network.prefixlen, index
            has = 0 if prefix_route else IFA_F_NOPREFIXROUTE
            if interface.version == 6 and not dad:
                has |= IFA_F_NODAD
            message["attrs"] = [("IFA_LOCAL", local or str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
            message["attrs"].append(("IFA_FLAGS", has))
            messages.append(message)
        self.send(messages)

    # -- routes -------------------------------------------------------------------------------------------------------

    def add_route(self, destination: str, via: str = "", link: str = "", **fields: Any) -> None:
        """Add a route to `default` or to a prefix; `::/0` is the default of IPv6 where no gateway tells the family.

        Args:
            destination: `default` or a prefix.
            via: the gateway.
            link: the link it leads through.
            fields: `table`, `metric`, `protocol`, `kind` (such as `blackhole`), `next_hops` (gateways).
        """
        self._route(RTM_NEWROUTE, _ADD, destination, via, link, **fields)

    def replace_route(self, destination: str, via: str = "", link: str = "", **fields: Any) -> None:
        """Put a route in the place of that with the same destination and metric."""
        self._route(RTM_NEWROUTE, _REPLACE, destination, via, link, **fields)

    def delete_route(self, destination: str, via: str = "", link: str = "", **fields: Any) -> None:
        """Delete the first route that has all that is named."""
        self._route(RTM_DELROUTE, 0, destination, via, link, **{"protocol": 0, "kind": "unspec", **fields})

    def flush_routes(self, table: int, *, ipv4: bool = True) -> None:
        """Delete all routes of a table."""
        self.in_thread(self.netlink.flush_routes, table=table, family=_family(ipv4))

    def routes(self, table: int | None = None, *, ipv4: bool | None = None) -> list[Route]:
        """Return all routes, or those of a table or a family."""
        names = self._names()
        found = [_route(message, names) for family in (True, False) for message in self.raw_routes(ipv4=family)]
        return [route for route in found if table in (None, route.table) and ipv4 in (None, route.ipv4)]

    def raw_routes(self, *, ipv4: bool) -> Sequence[Any]:
        """Return the kernel's messages of all routes of a family."""
        return self.request("route", "dump", family=_family(ipv4))

    def route_to(self, destination: str, mark: int = 0) -> Route | None:
        """Return the route that a packet takes; nothing if it takes none."""
        with contextlib.suppress(NetlinkError):
            [message] = self.request("route", "get", dst=destination, mark=mark)
            return _route(message, self._names())
        return None

    def _route(
        self,
        command: int,
        flags: int,
        destination: str,
        via: str,
        link: str,
        *,
        table: int | None = None,
        metric: int | None = None,
        protocol: int = PROTOCOL_BOOT,
        kind: str = "unicast",
        next_hops: Sequence[str] = (),
    ) -> None:
        gateways = [via] if via else list(next_hops)
        if destination == "default":
            destination = "::/0" if any(":" in gateway for gateway in gateways) else "0.0.0.0/0"
        prefix = ip_network(destination)
        message = _message(rtmsg, command, flags)
        message["family"], message["dst_len"] = _family(prefix.version == 4), prefix.prefixlen
        message["proto"], message["type"] = protocol, rt_type[kind]
        if command == RTM_DELROUTE:
            message["scope"] = _SCOPE_NOWHERE
        elif prefix.version == 4 and kind == "local":
            message["scope"] = _SCOPE_HOST
        elif prefix.version == 4 and kind == "unicast" and not gateways:
            message["scope"] = _SCOPE_LINK
        attributes: list[tuple[str, object]] = [
            ("RTA_TABLE", table or (LOCAL_TABLE if kind == "local" else MAIN_TABLE))
        ]
        message["attrs"] = attributes
        if prefix.prefixlen:
            attributes.append(("RTA_DST", str(prefix.network_address)))
        if metric is not None:
            attributes.append(("RTA_PRIORITY", metric))
        if link:
            attributes.append(("RTA_OIF", self.index(link)))
        if via:
            attributes.append(("RTA_GATEWAY", via))
        elif gateways:
            hops = [{"hops": 0, "oif": 0, "flags": 0, "attrs": [("RTA_GATEWAY", hop)]} for hop in gateways]
            attributes.append(("RTA_MULTIPATH", hops))
        self.send([message])

    # -- rules --------------------------------------------------------------------------------------------------------

    def add_rule(
        self,
        mark: int,
        table: int,
        *,
        ipv4: bool = True,
        priority: int | None = None,
        protocol: int = PROTOCOL_BOOT,
    ) -> None:
        """Have packets with a mark look a table up."""
        self._rule(RTM_NEWRULE, _ADD, mark, table, ipv4, (("FRA_PRIORITY", priority), ("FRA_PROTOCOL", protocol)))

    def delete_rule(self, mark: int | None, table: int, *, ipv4: bool = True) -> None:
        """Delete the first rule with this table and, unless it is None, this mark."""
        self._rule(RTM_DELRULE, 0, mark, table, ipv4, ())

    def rules(self, *, ipv4: bool | None = None) -> list[Rule]:
        """Return the rules of one family or of both."""
        return [
            Rule(
                family,
                message.get("fwmark") or 0,
                message.get("table"),
                message.get("priority") or 0,
                message.get("protocol") or 0,
            )
            for family in (True, False)
            if ipv4 in (None, family)
            for message in self.raw_rules(ipv4=family)
        ]

    def raw_rules(self, *, ipv4: bool) -> Sequence[Any]:
        """Return the kernel's messages of all rules of a family."""
        return self.request("rule", "dump", family=_family(ipv4))

    def _rule(
        self,
        command: int,
        flags: int,
        mark: int | None,
        table: int,
        ipv4: bool,
        attributes: Sequence[tuple[str, int | None]],
    ) -> None:
        message = _message(fibmsg, command, flags)
        message["family"], message["action"] = _family(ipv4), _TO_TABLE
        named = [("FRA_TABLE", table), ("FRA_FWMARK", mark), *attributes]
        message["attrs"] = [(name, value) for name, value in named if value is not None]
        self.send([message])

    # -- neighbours ---------------------------------------------------------------------------------------------------

    def replace_neighbor(
        self,
        ip: str,
        link: str,
        mac: str = "",
        *,
        state: str = "permanent",
        flags: int = 0,
        protocol: int = 0,
        extended_flags: int = 0,
    ) -> None:
        """Set the neighbour entry of an address; `flags` are NTF_*."""
        message = self._neighbor_message(RTM_NEWNEIGH, _REPLACE, ip, self.index(link))
        message["state"], message["flags"] = states[state], flags
        named = [("NDA_LLADDR", mac), ("NDA_PROTOCOL", protocol), ("NDA_FLAGS_EXT", extended_flags)]
        message["attrs"] += [(name, value) for name, value in named if value]
        self.send([message])

    def delete_neighbor(self, ip: str, link: str) -> None:
        """Delete a neighbour entry; one that is gone already is no error."""
        with contextlib.suppress(NetlinkError):
            self.send([self._neighbor_message(RTM_DELNEIGH, 0, ip, self.index(link))])

    def flush_neighbors(self, link: str | None = None, ip: str | None = None) -> None:
        """Delete the neighbour entries of a link or an address that nobody made to stay."""
        for entry in self.neighbors():
            stays = states[entry.state] & (NUD_PERMANENT | NUD_NOARP)
            if not stays and link in (None, entry.link) and ip in (None, entry.ip):
                self.delete_neighbor(entry.ip, entry.link)

    def neighbors(self) -> list[Neighbor]:
        """Return all neighbour entries that have a state."""
        names = self._names()
        return [
            Neighbor(
                message.get("dst"),
                names.get(message["ifindex"], ""),
                message.get("lladdr") or "",
                _STATES[message["state"]],
                message["flags"],
                message.get("protocol") or 0,
            )
            for family in (socket.AF_INET, socket.AF_INET6)
            for message in self.request("neigh", "dump", family=family)
            if message["state"]
        ]

    def neighbor(self, ip: str) -> Neighbor | None:
        """Return the first neighbour entry of an address."""
        return next((entry for entry in self.neighbors() if entry.ip == ip), None)

    def neighbor_timers(self) -> dict[tuple[str, int], dict[str, int]]:
        """Return the timers (NDTPA_*) of each neighbour table (arp_cache, ndisc_cache) and link; 0: the defaults."""
        found: dict[tuple[str, int], dict[str, int]] = {}
        for message in self.in_thread(self.netlink.get_ntables):
            table, timers = message.get_attr("NDTA_NAME"), dict(message.get_attr("NDTA_PARMS")["attrs"])
            found[table, timers.get("NDTPA_IFINDEX", 0)] = timers
        return found

    def _neighbor_message(self, command: int, flags: int, ip: str, index: int) -> Any:
        message = _message(ndmsg, command, flags)
        message["family"], message["ifindex"] = _family(ip_address(ip).version == 4), index
        message["attrs"] = [("NDA_DST", ip)]
        return message


def _message(kind: Callable[[], Any], command: int, flags: int) -> Any:
    message = kind()
    message["header"]["type"], message["header"]["flags"] = command, NLM_F_REQUEST | NLM_F_ACK | flags
    return message


def _family(ipv4: bool) -> int:
    return socket.AF_INET if ipv4 else socket.AF_INET6


def _link(message: Any) -> Link:
    return Link(
        message["index"],
        fsdecode(message.get("ifname")),  # pyroute2 gives bytes where it is not UTF-8
        message.get("address") or "",
        bool(message["flags"] & _IFF_UP),
        bool(message["flags"] & _IFF_LOWER_UP),
        message.get("operstate") == "UP",
        message.get("mtu"),
        message.get("master"),
    )


def _route(message: Any, names: dict[int, str]) -> Route:
    destination, hops = message.get("dst"), message.get("multipath") or ()
    return Route(
        message.get("table"),
        message["family"] == socket.AF_INET,
        f"{destination}/{message['dst_len']}" if message["dst_len"] else "default",
        rt_type[message["type"]],
        message.get("gateway") or "",
        names.get(message.get("oif"), ""),
        message.get("priority") or 0,
        message["proto"],
        tuple(hop.get("gateway") for hop in hops),
    )
