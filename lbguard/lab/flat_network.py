"""Flat networks, as in Meridio-2: the load balancer and its targets are on one Ethernet segment, without a proxy.

    client 10.0.0.2 ── 10.0.0.1 lb 172.16.N.2 ══ segment N (macvlan) ══ 172.16.N.(10+K) target-K

and the same in IPv6. What is a proxy in the chain is a segment here: a namespace that stands for the node, with the
link on which Multus would make the pods' macvlan links. A target sends its answers to the load balancer's own address,
so it has a neighbour entry of it.
"""

import secrets
from dataclasses import dataclass

from lbguard.lab.topology import LB_HOST, Chain, addresses_of

PARENT = "uplink"


@dataclass(slots=True)
class FlatNetwork(Chain):
    """The namespaces and links of one run; see `Chain`."""

    def create_lb_link(self, proxy: int) -> None:
        """Make the load balancer's link to a segment: new name, new MAC, the same addresses, up."""
        name = f"net{proxy}-{secrets.token_hex(2)}"
        self.proxy(proxy).add_macvlan(name, PARENT, self.lb.path)
        self.lb.add_addresses(name, *addresses_of(proxy, LB_HOST), dad=self.dad)
        self.lb.set_link(name, up=True)
        self.lb_links[proxy], self.lb_hosts[proxy] = name, LB_HOST

    def delete_lb_link(self, proxy: int) -> None:
        """Delete the load balancer's link to a segment."""
        self.lb.delete_link(self.lb_links.pop(proxy))

    def create_target_link(self, identifier: int) -> None:
        """Make a target's link to its segment: new MAC, its addresses, up, with the routes of the target."""
        place, space = self.place(identifier), self.target(identifier)
        name = f"net-{secrets.token_hex(3)}"
        self.proxy(place.proxy).add_macvlan(name, PARENT, space.path)
        space.add_addresses(name, f"{place.ipv4}/24", f"{place.ipv6}/64")
        space.set_link(name, up=True)
        ipv4, ipv6 = (address.partition("/")[0] for address in addresses_of(place.proxy, LB_HOST))
        space.add_route("default", ipv4)
        space.add_route("default", ipv6, name)
        self._target_links[identifier] = name

    def _build_proxy(self, proxy: int) -> None:
        # A macvlan link has the carrier of its parent, which needs a peer.
        self.proxy(proxy).add_veth(PARENT, "switch")

    def _build_proxy_routes(self, proxy: int) -> None:
        """Nothing is routed in the segment."""

    def _proxy_prefixes(self) -> set[tuple[int, str]]:
        return set()
