"""The chain: client - load balancer - proxies (bridges) - targets, each in a network namespace of its own.

    client 10.0.0.2 ── 10.0.0.1 lb 172.16.N.2 ── 172.16.N.1 proxy-N (bridge) ── 172.16.N.(10+K) target-K

and the same in IPv6 (`fd00:0:0:N::/64`). The VIPs stand on the loopback of every target. Packets for a VIP get the
fwmark of a target in the load balancer and go to that target's own address; answers take the way back by the proxy's
routes to the load balancer's address. Every proxy has a subnet of its own, as in Meridio.

IPv6 duplicate address detection is off unless `dad` is asked for: the kernel's default keeps a new link's addresses,
the link-local one included, tentative for a second or two, and until then nobody on that link can even ask for a
neighbour, neither a load balancer nor a target.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import yaml

from lbguard.lab.netns import Namespace, connect
from lbguard.lab.network import MAIN_TABLE

VIP4 = "20.0.0.1"
VIP6 = "2000::1"
STREAM = "stream-a"
IDENTIFIER_OFFSET = 5000
MAX_TARGETS = 100
MAX_TARGETS_UNPRIVILEGED = 20
"""In a user namespace the kernel limits the size of a netlink message, and with it that of an nftables transaction."""

LB_HOST = 2
"""The load balancer's host number in every proxy's subnet."""

SETTLE_TIMEOUT_S = 10.0

_LB_SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv4.fwmark_reflect": "1",
    "net.ipv6.fwmark_reflect": "1",
    # A second address of a subnet stays when the first one goes.
    "net.ipv4.conf.all.promote_secondaries": "1",
    "net.ipv4.conf.all.send_redirects": "0",
    "net.ipv4.conf.default.send_redirects": "0",
}
_NO_DAD_SYSCTLS = {"net.ipv6.conf.all.accept_dad": "0", "net.ipv6.conf.default.accept_dad": "0"}
"""Both are needed: the kernel takes the greater of `all` and the link's own value (ip-sysctl, accept_dad)."""
_PROXY_SYSCTLS = {key: value for key, value in _LB_SYSCTLS.items() if "fwmark" not in key}
_END_SYSCTLS = {
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv4.conf.all.accept_redirects": "0",
    "net.ipv6.conf.all.accept_redirects": "0",
}
_DEAF_IPV6 = """
add table ip6 lab
add chain ip6 lab deaf { type filter hook prerouting priority -400 ; policy drop ; }
add rule ip6 lab deaf iifname "lo" accept
"""


def addresses_of(proxy: int, host: int) -> tuple[str, str]:
    """Return the addresses of a host in a proxy's subnets."""
    return f"172.16.{proxy}.{host}/24", f"fd00:0:0:{proxy}::{host}/64"


@dataclass(frozen=True, slots=True)
class TargetPlace:
    """Location of a target: its identifier (1..), its proxy (1..) and its two addresses, which `moves` change."""

    identifier: int
    proxy: int
    moves: int = 0

    @property
    def _host(self) -> int:
        return 9 + self.identifier + 100 * self.moves

    @property
    def ipv4(self) -> str:
        """The target's own IPv4 address, in its proxy's subnet."""
        return f"172.16.{self.proxy}.{self._host}"

    @property
    def ipv6(self) -> str:
        """The target's own IPv6 address, in its proxy's subnet."""
        return f"fd00:0:0:{self.proxy}::{self._host:x}"


@dataclass(slots=True)
class Chain:
    """The namespaces and links of one run. Build it with `build`, and close it (or use it as a context manager)."""

    proxies: int = 2
    targets_per_proxy: int = 2
    dad: bool = False
    max_targets: int = MAX_TARGETS
    client: Namespace = field(init=False)
    lb: Namespace = field(init=False)
    places: tuple[TargetPlace, ...] = field(init=False)
    lb_links: dict[int, str] = field(init=False, default_factory=dict)
    superseded_links: dict[int, str] = field(init=False, default_factory=dict)
    lb_hosts: dict[int, int] = field(init=False, default_factory=dict)
    _lb_ports: dict[int, str] = field(init=False, default_factory=dict)
    _proxy_spaces: dict[int, Namespace] = field(init=False, default_factory=dict)
    _target_spaces: dict[int, Namespace] = field(init=False, default_factory=dict)
    _target_links: dict[int, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.places = tuple(
            TargetPlace(identifier=index + 1, proxy=index // self.targets_per_proxy + 1)
            for index in range(self.proxies * self.targets_per_proxy)
        )

    def __enter__(self) -> Self:
        self.build()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def build(self) -> None:
        """Make every namespace, link, address and route. The links are up when it returns."""
        tag = secrets.token_hex(2)
        self.client = self._namespace(f"client-{tag}", _END_SYSCTLS)
        self.lb = self._namespace(f"lb-{tag}", _LB_SYSCTLS)
        self._join_client()
        for proxy in range(1, self.proxies + 1):
            self._proxy_spaces[proxy] = self._namespace(f"proxy{proxy}-{tag}", _PROXY_SYSCTLS)
            self._build_proxy(proxy)
            self.create_lb_link(proxy)
            self._build_proxy_routes(proxy)
        for place in self.places:
            self._target_spaces[place.identifier] = self._namespace(f"target{place.identifier}-{tag}", _END_SYSCTLS)
            self.target(place.identifier).add_addresses("lo", f"{VIP4}/32", f"{VIP6}/128")
            self.create_target_link(place.identifier)
        self._settle()

    def close(self) -> None:
        """Remove the namespaces, and with them everything inside."""
        for namespace in self.namespaces():
            namespace.delete()

    def namespaces(self) -> Iterator[Namespace]:
        """Go through all namespaces that exist so far."""
        for name in ("client", "lb"):
            namespace = getattr(self, name, None)
            if namespace is not None:
                yield namespace
        yield from self._proxy_spaces.values()
        yield from self._target_spaces.values()

    def proxy(self, number: int) -> Namespace:
        """Return the namespace of a proxy (1..)."""
        return self._proxy_spaces[number]

    def target(self, identifier: int) -> Namespace:
        """Return the namespace of a target (1..)."""
        return self._target_spaces[identifier]

    def behind(self, proxies: Sequence[int]) -> frozenset[int]:
        """Return the identifiers of the targets behind these proxies."""
        return frozenset(place.identifier for place in self.places if place.proxy in proxies)

    def place(self, identifier: int) -> TargetPlace:
        """Return where a target stands."""
        return self.places[identifier - 1]

    def write_targets_file(self, path: Path) -> None:
        """Write the list of targets that the service and the stand-in read (YAML)."""
        stream = {
            "name": STREAM,
            "max_targets": self.max_targets,
            "identifier_offset": IDENTIFIER_OFFSET,
            "vips": [f"{VIP4}/32", f"{VIP6}/128"],
            "targets": [
                {"identifier": place.identifier, "ips": [f"{place.ipv4}/32", f"{place.ipv6}/128"]}
                for place in self.places
            ],
        }
        path.write_text(yaml.safe_dump({"streams": [stream]}, sort_keys=False))

    # -- what the scenarios do to the chain ---------------------------------------------------------------------------

    def create_lb_link(self, proxy: int) -> None:
        """Make a link between the load balancer and a proxy: new name, new MAC, the same addresses, up.

        If one exists already, the new one stands beside it in the same subnet and the old one is superseded.
        """
        name = f"nsm-proxy{proxy}-{secrets.token_hex(2)}"
        peer = f"lb-{secrets.token_hex(3)}"
        if proxy in self.lb_links:
            self.superseded_links[proxy] = self.lb_links[proxy]
        self.lb.add_veth(name, peer, self.proxy(proxy).path, up=False)
        self._lb_ports[proxy], self.lb_hosts[proxy] = peer, LB_HOST
        self.proxy(proxy).set_link(peer, master="br0", up=True)
        self.lb.add_addresses(name, *addresses_of(proxy, LB_HOST), dad=self.dad)
        self.lb.set_link(name, up=True)
        self.lb_links[proxy] = name

    def delete_lb_link(self, proxy: int) -> None:
        """Delete a proxy's current link in the load balancer; the proxy's end goes with it."""
        self.lb.delete_link(self.lb_links.pop(proxy))

    def delete_superseded_link(self, proxy: int) -> None:
        """Delete the link that a second `create_lb_link` superseded (the late Close of the old connection)."""
        self.lb.delete_link(self.superseded_links.pop(proxy))

    def create_target_link(self, identifier: int) -> None:
        """Make a target's link to its proxy: new MAC, the same addresses, up, with the routes of the target."""
        place, space = self.place(identifier), self.target(identifier)
        name, peer = f"nsc-{secrets.token_hex(3)}", f"tgt-{secrets.token_hex(3)}"
        space.add_veth(name, peer, self.proxy(place.proxy).path, up=False)
        self.proxy(place.proxy).set_link(peer, master="br0", up=True)
        space.add_addresses(name, f"{place.ipv4}/24", f"{place.ipv6}/64")
        space.set_link(name, up=True)
        space.add_route("default", f"172.16.{place.proxy}.1")
        space.add_route("default", f"fd00:0:0:{place.proxy}::1", name)
        self._target_links[identifier] = name

    def delete_target_link(self, identifier: int) -> None:
        """Delete a target's link to its proxy; the load balancer's own links stay as they are."""
        self.target(identifier).delete_link(self._target_links.pop(identifier))

    def move_target(self, identifier: int) -> None:
        """Give a target other addresses on a new link, as the pod has that replaces it."""
        self.delete_target_link(identifier)
        moved = replace(self.place(identifier), moves=1 - self.place(identifier).moves)
        self.places = tuple(moved if place.identifier == identifier else place for place in self.places)
        self.create_target_link(identifier)

    def block_target_ipv6(self, identifier: int) -> None:
        """Make a target deaf in IPv6, neighbour discovery included; its IPv4 goes on."""
        self.target(identifier).run("nft", _DEAF_IPV6)

    def unblock_target_ipv6(self, identifier: int) -> None:
        """Let IPv6 packets reach a target again."""
        self.target(identifier).run("nft", "delete table ip6 lab")

    def filter_datapath(self, proxy: int, drop: str) -> None:
        """Have a proxy's bridge drop what matches (nftables; empty: everything) to and from the load balancer.

        The link itself stays up, and no counter of the load balancer sees what was dropped.
        """
        port = self._lb_ports[proxy]
        rules = ["add table bridge lab"]
        for hook, sides in (("forward", ("iifname", "oifname")), ("input", ("iifname",)), ("output", ("oifname",))):
            rules.append(f"add chain bridge lab {hook} {{ type filter hook {hook} priority 0 ; }}")
            rules += [f"add rule bridge lab {hook} {side} {port} {drop} drop" for side in sides]
        self.proxy(proxy).run("nft", "\n".join(rules))

    def mend_datapath(self, proxy: int) -> None:
        """End what `filter_datapath` began."""
        self.proxy(proxy).run("nft", "delete table bridge lab")

    def change_lb_addresses(self, proxy: int, host: int) -> None:
        """Give the load balancer's end of a link other addresses: new ones first, then the way back, then old out."""
        link, old = self.lb_links[proxy], self.lb_hosts[proxy]
        self.lb.add_addresses(link, *addresses_of(proxy, host))
        self.proxy(proxy).replace_route("default", f"172.16.{proxy}.{host}")
        self.proxy(proxy).replace_route("default", f"fd00:0:0:{proxy}::{host}", "br0")
        self.lb.delete_addresses(link, *addresses_of(proxy, old))
        self.lb_hosts[proxy] = host

    def disable_lb_ipv6(self, proxy: int) -> None:
        """Switch IPv6 off on the load balancer's end of a link: the kernel removes its IPv6 addresses and routes."""
        self.lb.sysctl(f"net.ipv6.conf.{self.lb_links[proxy]}.disable_ipv6", "1")

    # -- building -----------------------------------------------------------------------------------------------------

    def _namespace(self, name: str, sysctls: dict[str, str]) -> Namespace:
        namespace = Namespace(name)
        for key, value in sysctls.items() if self.dad else (sysctls | _NO_DAD_SYSCTLS).items():
            namespace.sysctl(key, value)
        return namespace

    def _settle(self) -> None:
        """Wait for what the kernel does some time after `link up`: IPv6 prefix routes, duplicate address detection.

        Raises:
            TimeoutError: it was not done in time.
        """
        awaited = {(self.lb, f"fd00:0:0:{proxy}::/64") for proxy in self._proxy_spaces}
        awaited |= {(self.proxy(proxy), prefix) for proxy, prefix in self._proxy_prefixes()}
        awaited |= {(self.target(place.identifier), f"fd00:0:0:{place.proxy}::/64") for place in self.places}
        awaited |= {(self.lb, "fd01::/64"), (self.client, "fd01::/64")}
        end = time.monotonic() + SETTLE_TIMEOUT_S
        while awaited := {
            (space, prefix)
            for space, prefix in awaited
            if not any(route.destination == prefix for route in space.routes(MAIN_TABLE, ipv4=False))
        }:
            if time.monotonic() > end:
                missing = ", ".join(sorted(f"{prefix} in {space.name}" for space, prefix in awaited))
                raise TimeoutError(f"IPv6 routes did not appear: {missing}")
            time.sleep(0.02)

    def _proxy_prefixes(self) -> set[tuple[int, str]]:
        return {(proxy, f"fd00:0:0:{proxy}::/64") for proxy in self._proxy_spaces}

    def _join_client(self) -> None:
        connect(self.lb, "gw0", self.client, "eth0")
        self.lb.add_addresses("gw0", "10.0.0.1/24", "fd01::1/64")
        self.client.add_addresses("eth0", "10.0.0.2/24", "fd01::2/64")
        # As in a real load balancer: what has no route of its own goes back to the gateway.
        self.lb.add_route("default", "10.0.0.2")
        self.lb.add_route("default", "fd01::2", "gw0")
        self.client.add_route(VIP4, "10.0.0.1")
        self.client.add_route(VIP6, "fd01::1", "eth0")

    def _build_proxy(self, proxy: int) -> None:
        # A bridge takes the lowest MAC of its ports unless it has one; the proxy's must not change with them.
        self.proxy(proxy).add_link(
            "br0", "bridge", address=f"02:00:00:00:{proxy:02x}:01", br_stp_state=0, br_mcast_snooping=0
        )
        self.proxy(proxy).add_addresses("br0", *addresses_of(proxy, 1))

    def _build_proxy_routes(self, proxy: int) -> None:
        self.proxy(proxy).add_route("default", f"172.16.{proxy}.2")
        self.proxy(proxy).add_route("default", f"fd00:0:0:{proxy}::2", "br0")
