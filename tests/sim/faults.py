"""What goes wrong in a run: each scenario acts on the world now, and may mend later what it broke.

Every scenario looks at the world before it acts, so none asks for what cannot happen (deleting a link that is gone).
"""

import functools
from collections.abc import Callable
from ipaddress import ip_address

from lbguard.core.addr import Ip, Prefix, is_ipv4
from lbguard.core.events import SourceLost
from lbguard.core.model import (
    BLACKHOLE_METRIC,
    ROUTE_METRIC,
    NeighborState,
    Route,
    RouteKind,
    Rule,
    StreamSpec,
)
from tests.sim.kernel import SimLink
from tests.sim.reporters import Reporters
from tests.sim.world import MENDED_WITHIN_S, World

STREAM_NAMES = ("blue", "red")


class Scenario:
    """Makes the first world of a run, and then trouble. One proxy subnet P is 172.16.P.0/24 and fd00:P::/64."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.random
        self.reporters = Reporters(world)
        self.proxies = self.rng.randint(1, 3)
        self.quiet_until = 0.0
        self._last_ifindex = 1
        self._free_ifindexes: list[int] = []
        self._last_host = 9
        self._targets: dict[str, dict[int, tuple[Ip, ...]]] = {}
        world.kernel.add_link(SimLink(1, "lo", b""))
        for proxy in range(self.proxies):
            self.create_link(proxy)
        for number in range(self.rng.randint(1, len(STREAM_NAMES))):
            self.add_stream(number)
        self.add_foreign_state()

    def add_foreign_state(self) -> None:
        """Put a route and a rule of somebody else into a table of the targets: nobody may touch them."""
        kernel = self.world.kernel
        for spec in self.world.streams.values():
            mark = spec.mark(1)
            kernel.routes[mark, True, 100] = Route(mark, True, RouteKind.BLACKHOLE, 100, protocol=4)
            kernel.rules[Rule(mark, True, mark, priority=100, protocol=0)] = None
        kernel.routes[9999, True, BLACKHOLE_METRIC] = Route(
            9999, True, RouteKind.BLACKHOLE, BLACKHOLE_METRIC, protocol=4
        )
        kernel.others = kernel.foreign()

    def _mac(self) -> bytes:
        return b"\x02" + self.rng.randbytes(5)

    # Links

    def links_of(self, proxy: int) -> list[SimLink]:
        return [link for link in self.world.kernel.links.values() if link.name.startswith(f"nse{proxy}-")]

    def create_link(self, proxy: int) -> None:
        """A link appears as the mesh makes it: up at once or a moment later, its IPv6 address tentative first."""
        kernel, rng, world = self.world.kernel, self.rng, self.world
        if self._free_ifindexes and rng.random() < 0.3:
            ifindex = self._free_ifindexes.pop(rng.randrange(len(self._free_ifindexes)))
        else:
            self._last_ifindex += 1
            ifindex = self._last_ifindex
        link = SimLink(ifindex, f"nse{proxy}-{ifindex}", self._mac(), admin_up=False)
        kernel.add_link(link)
        ipv4 = ip_address(f"172.16.{proxy}.{rng.randint(1, 4)}").packed
        steps: list[Callable[[], None]] = [
            lambda: kernel.set_admin(ifindex, up=True),
            lambda: kernel.set_address(ifindex, ipv4, 24, usable=True),
        ]
        rng.shuffle(steps)
        for step in steps:
            world.after(rng.choice((0.0, 0.0, 0.05)), self._if_alive(link, step))
        world.after(0.06, self._if_alive(link, lambda: self.give_ipv6(link, proxy)))

    def give_ipv6(self, link: SimLink, proxy: int) -> None:
        """Give a link its IPv6 addresses; duplicate detection takes a while."""
        kernel = self.world.kernel
        if not link.admin_up:
            return
        kernel.set_address(link.ifindex, ip_address(f"fe80::{link.ifindex}").packed, 64, usable=True)
        ip = ip_address(f"fd00:{proxy}::{link.ifindex}").packed
        kernel.set_address(link.ifindex, ip, 64, usable=False)
        self.world.after(self.rng.choice((0.0, 0.2, 1.0)), self._if_alive(link, lambda: self._detected(link, ip)))

    def _detected(self, link: SimLink, ip: Ip) -> None:
        if (ip, 64) in link.addresses:
            self.world.kernel.set_address(link.ifindex, ip, 64, usable=True)

    def _if_alive(self, link: SimLink, step: Callable[[], None]) -> Callable[[], None]:
        return lambda: step() if self.world.kernel.links.get(link.ifindex) is link else None

    def delete_link(self, link: SimLink) -> None:
        if self.world.kernel.links.get(link.ifindex) is link:
            self.world.kernel.delete_link(link.ifindex)
            self._free_ifindexes.append(link.ifindex)

    def _outage(self) -> float:
        return self.rng.choice((0.02, 0.5, 0.5, 2.0, 4.0, 8.0, MENDED_WITHIN_S))

    def _some_link(self) -> tuple[int, SimLink] | None:
        proxy = self.rng.randrange(self.proxies)
        links = self.links_of(proxy)
        return (proxy, self.rng.choice(links)) if links else None

    def replace_link(self) -> None:
        """A link is deleted and comes back with a new MAC after an outage, if at all."""
        found = self._some_link()
        if found is not None:
            proxy, link = found
            self.delete_link(link)
            if self.rng.random() < 0.9:
                self.world.after(self._outage(), lambda: self._ensure_link(proxy))

    def _ensure_link(self, proxy: int) -> None:
        if not self.links_of(proxy):
            self.create_link(proxy)

    def heal_slowly(self) -> None:
        """A link is deleted and stays away for long, while the mesh says that it repairs it."""
        found = self._some_link()
        if found is not None:
            proxy, link = found
            self.reporters.promise_repair([ip for ip, _ in link.addresses])
            self.delete_link(link)
            self.world.after(MENDED_WITHIN_S, functools.partial(self._ensure_link, proxy))

    def double_link(self) -> None:
        """The new link of a subnet appears before the old one goes, which may be late."""
        found = self._some_link()
        if found is not None:
            proxy, link = found
            if len(self.links_of(proxy)) < 3:
                self.create_link(proxy)
                self.world.after(self._outage(), lambda: self.delete_link(link))

    def cut_link(self) -> None:
        """A link is set down, or loses its carrier, and comes back as it was."""
        found = self._some_link()
        if found is None:
            return
        proxy, link = found
        kernel = self.world.kernel
        if self.rng.random() < 0.5:
            kernel.set_carrier(link.ifindex, up=False)
            back = lambda: kernel.set_carrier(link.ifindex, up=True)  # noqa: E731
        else:
            kernel.set_admin(link.ifindex, up=False)

            def back() -> None:
                kernel.set_admin(link.ifindex, up=True)
                self.give_ipv6(link, proxy)

        self.world.after(self._outage(), self._if_alive(link, back))

    def flap_link(self) -> None:
        """The same link goes up and down several times."""
        for number in range(self.rng.randint(2, 4)):
            self.world.after(number * 1.5, self.cut_link)

    def change_mac(self) -> None:
        found = self._some_link()
        if found is not None:
            self.world.kernel.set_mac(found[1].ifindex, self._mac())

    def lose_address(self) -> None:
        """A link loses the address of one family for a while."""
        found = self._some_link()
        if found is None:
            return
        _, link = found
        ipv4 = self.rng.random() < 0.5
        for ip, length in [key for key in link.addresses if is_ipv4(key[0]) == ipv4]:
            self.world.kernel.delete_address(link.ifindex, ip, length)
            give = functools.partial(self.world.kernel.set_address, link.ifindex, ip, length, usable=True)
            self.world.after(self._outage(), self._if_alive(link, give))

    def lose_everything(self) -> None:
        """Every link goes at once and comes back one after another."""
        outage = self._outage()
        for proxy in range(self.proxies):
            for link in self.links_of(proxy):
                self.delete_link(link)
            delay = outage * self.rng.uniform(0.7, 1.0)
            self.world.after(delay, functools.partial(self._ensure_link, proxy))

    # Targets and streams

    def _ips(self) -> tuple[Ip, ...]:
        self._last_host += 1
        proxy = self.rng.randrange(self.proxies + (self.rng.random() < 0.05))
        ipv4 = ip_address(f"172.16.{proxy}.{self._last_host % 200 + 10}").packed
        ipv6 = ip_address(f"fd00:{proxy}::{self._last_host:x}:1").packed
        ips = self.rng.choice(((ipv4, ipv6), (ipv4, ipv6), (ipv4,), (ipv6,)))
        self.world.macs.update({ip: self._mac() for ip in ips})
        return ips

    def add_stream(self, number: int) -> None:
        name = STREAM_NAMES[number]
        self.world.streams[name] = StreamSpec(name=name, max_targets=8, identifier_offset=5000 + 100 * number)
        count = 1 if self.rng.random() < 0.2 else self.rng.randint(0, 5)
        self._targets[name] = {i: self._ips() for i in range(1, count + 1)}
        self._list(name)

    def _list(self, name: str) -> None:
        self.world.list_targets(name, self._targets[name])

    def change_targets(self) -> None:
        """The source adds, removes and re-addresses targets."""
        if not self.world.streams:
            return
        rng = self.rng
        name = rng.choice(sorted(self.world.streams))
        targets = self._targets[name]
        for _ in range(rng.randint(1, 3)):
            identifier = rng.randint(1, 8)
            if identifier not in targets:
                targets[identifier] = self._ips()
            elif rng.random() < 0.5:
                del targets[identifier]
                if rng.random() < 0.4:
                    ips = self._ips()
                    self.world.after(
                        rng.choice((0.001, 0.02, 1.0)), functools.partial(self._back, name, identifier, ips)
                    )
            elif rng.random() < 0.5:
                kept = targets[identifier][: rng.randint(0, 1)]
                new = tuple(ip for ip in self._ips() if len(ip) not in {len(k) for k in kept})
                targets[identifier] = kept + new or kept
            else:
                targets[identifier] = self._ips()
        self._list(name)
        self._tell()
        if rng.random() < 0.3:
            self.world.after(rng.choice((0.001, 0.003, 0.02)), self.change_targets)

    def _back(self, name: str, identifier: int, ips: tuple[Ip, ...]) -> None:
        if name in self.world.streams and identifier not in self._targets[name]:
            self._targets[name][identifier] = ips
            self._list(name)
            self._tell()

    def change_streams(self) -> None:
        """A stream comes, goes, or goes and comes back; never while the guard is away, see `crash`."""
        number = self.rng.randrange(len(STREAM_NAMES))
        name = STREAM_NAMES[number]
        if not self.world.running or self.world.now < self.quiet_until:
            return
        if name not in self.world.streams:
            self.add_stream(number)
        elif self.rng.random() < 0.3:
            spec = self.world.streams[name]
            vips = (Prefix(self.rng.randbytes(4), 32),)
            self.world.streams[name] = StreamSpec(
                name=name, max_targets=8, identifier_offset=spec.identifier_offset, vips=vips, targets=spec.targets
            )
        else:
            if self.rng.random() < 0.5:
                self._targets[name].clear()
                self._list(name)
                self._tell()
            del self.world.streams[name]
            delay = self.rng.choice((0.0, 0.02, 3.0))
            self.world.after(delay, lambda: self._stream_back(number))
        self._tell()

    def _stream_back(self, number: int) -> None:
        if STREAM_NAMES[number] not in self.world.streams:
            self.add_stream(number)
            self._tell()

    def lose_source(self) -> None:
        if self.world.running:
            self.world.deliver(SourceLost(reason="not readable"))
            self.world.after(1.0, self._tell)

    def _tell(self) -> None:
        if self.world.running and self.world.engine.running:
            self.world.tell_source()
        elif self.world.running:
            self.world.guards(0.5, self.world.tell_source)

    def silence(self) -> None:
        """Some addresses stop answering for a while; or a target gets a new MAC."""
        if not self.world.profile.soft or not self.world.macs:
            return
        duration = self.rng.choice((1.0, 4.0, MENDED_WITHIN_S, MENDED_WITHIN_S))
        known = sorted(ip for targets in self._targets.values() for ips in targets.values() for ip in ips)
        for ip in self.rng.sample(known, min(len(known), self.rng.choice((1, 1, 2, 4, 99, 99)))):
            if self.rng.random() < 0.2:
                self.world.macs[ip] = self._mac()
            else:
                self.world.silent.add(ip)
                mend = functools.partial(self.world.silent.discard, ip)
                self.world.after(duration, mend)

    # The machinery

    def overrun(self) -> None:
        if self.world.profile.lossy:
            self.world.overrun(self.rng.choice((0.2, 0.2, 2.0, 6.0)))

    def crash(self) -> None:
        """The guard is killed and starts again; the streams stay the same until it has settled.

        A new guard never hears of a stream that ended just before: the source does not list it, so nobody asks the
        distributor about it. Hence no crash while one ends.
        """
        world = self.world
        ending = not set(world.streams) == set(world.distributor.tables) == set(world.engine.stream_names())
        if world.profile.crashes and world.running and not ending:
            downtime = self.rng.choice((0.05, 0.5, 3.0))
            self.quiet_until = world.now + downtime + 4.0
            world.crash(downtime)
            if self.rng.random() < 0.5:
                world.after(downtime / 2, self.change_targets)

    def crash_in_a_hold(self) -> None:
        """A link is lost, and the guard is killed while it holds the targets; more often than once, perhaps."""
        self.cut_link()
        for delay in self.rng.sample((0.3, 0.9, 5.0, 9.5), self.rng.randint(1, 3)):
            self.world.after(delay, self.crash)

    def stop(self) -> None:
        """The guard is stopped for a while: so long that windows, freezes and leases end meanwhile; or killed then."""
        if not self.world.profile.stalls:
            return
        duration = self.rng.choice((0.1, 0.4, 2.0, 5.0, 15.0))
        self.world.stop(duration)
        if self.rng.random() < 0.2:
            self.world.after(duration * self.rng.choice((0.3, 1.0)) + 0.05, self.crash)

    def refuse(self) -> None:
        """The kernel or the distributor refuses, or a table is lost, or an adapter stalls."""
        if not self.world.profile.refusals or not self.world.streams:
            return
        world, rng = self.world, self.rng
        name = rng.choice(sorted(world.streams))
        what = rng.randrange(5)
        if what == 0:
            mark = world.streams[name].mark(rng.randint(1, 8))
            world.kernel.refusing.add(mark)
            world.after(self._outage(), lambda: world.kernel.refusing.discard(mark))
        elif what < 3:
            world.distributor.fail_next.add((rng.choice(("attach", "commit")), name))
        elif what == 3:
            if rng.random() < 0.5:
                self.change_targets()
            world.after(rng.choice((0.0, 0.003, 0.02)), lambda: world.lose_table(name))
        else:
            world.stall(rng.choice(("kernel", "tables")), rng.choice((0.5, 2.0, 6.0)))

    def disturb_route(self) -> None:
        """Somebody deletes a route or a rule of ours."""
        routes, rules = self.world.kernel.ours()
        if routes and self.rng.random() < 0.6:
            self.world.kernel.delete_route(self.rng.choice(sorted(routes)))
        elif rules:
            self.world.kernel.delete_rule(self.rng.choice(sorted(rules)))

    def take_place(self) -> None:
        """Somebody puts a route where one of ours stands or should stand, and takes it away after a while."""
        kernel, world = self.world.kernel, self.world
        # A request that is under way while somebody puts a route there cannot be called back.
        if not world.streams or world.profile.lossy or world.profile.refusals:
            return
        spec = world.streams[self.rng.choice(sorted(world.streams))]
        mark, ipv4 = spec.mark(self.rng.randint(1, 8)), self.rng.random() < 0.5
        links = [link for proxy in range(self.proxies) for link in self.links_of(proxy) if link.admin_up]
        if not links or (mark, ipv4, ROUTE_METRIC) in {slot for slot, r in kernel.routes.items() if r.protocol == 4}:
            return
        gateway = ip_address("172.16.0.99" if ipv4 else "fd00::99").packed
        route = Route(mark, ipv4, RouteKind.UNICAST, ROUTE_METRIC, gateway, self.rng.choice(links).ifindex, protocol=4)
        kernel.put_foreign_route(route)
        world.after(0.2, functools.partial(kernel.fresh.discard, route))
        world.after(self._outage(), functools.partial(kernel.take_foreign_route, route))

    def make_neighbor(self) -> None:
        """Somebody makes a static entry of a target's address, and takes it away after a while."""
        found = self._some_link()
        known = sorted(ip for targets in self._targets.values() for ips in targets.values() for ip in ips)
        if found is None or not known:
            return
        link, ip = found[1], self.rng.choice(known)
        self.world.kernel.set_neighbor(link.ifindex, ip, NeighborState.PERMANENT, self._mac())
        take = functools.partial(self.world.kernel.delete_neighbor, link.ifindex, ip)
        self.world.after(self._outage(), self._if_alive(link, take))

    def any(self) -> None:
        """Do one of all that, by weight."""
        scenarios: list[tuple[Callable[[], None], int]] = [
            (self.replace_link, 6),
            (self.double_link, 4),
            (self.cut_link, 5),
            (self.flap_link, 2),
            (self.change_mac, 1),
            (self.lose_address, 3),
            (self.lose_everything, 2),
            (self.change_targets, 5),
            (self.change_streams, 2),
            (self.lose_source, 1),
            (self.silence, 4),
            (self.heal_slowly, 2),
            (self.reporters.say_anything, 6),
            (self.reporters.lie, 3),
            (self.reporters.fall_silent, 3),
            (self.reporters.come_late, 3),
            (self.reporters.flap, 3),
            (self.reporters.contradict, 3),
            (self.reporters.heal, 3),
            (self.reporters.count_packets, 2),
            (self.overrun, 2),
            (self.crash, 2),
            (self.crash_in_a_hold, 2),
            (self.stop, 4),
            (self.refuse, 4),
            (self.disturb_route, 1),
            (self.take_place, 2),
            (self.make_neighbor, 2),
            (self.world.change_settings, 3),
        ]
        [scenario] = self.rng.choices([s for s, _ in scenarios], [w for _, w in scenarios])
        self.world.say(scenario.__name__)
        scenario()
