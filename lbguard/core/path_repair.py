"""Paths of targets: evaluates them against the view of the kernel; collects repairs (routes, rules, neighbours).

Beside a load balancer that manages the paths (EngineConfig.owns_paths is false), it requests no routes: the condition
of a path is then that of its link and its neighbour entry.
"""

from lbguard.core.addr import Ip, Prefix, format_mac, is_ipv4
from lbguard.core.config import EngineConfig
from lbguard.core.effects import (
    Effect,
    NeighborMoved,
    ProgramRoutes,
    ProgramRules,
    SetLinkDown,
    SetLinkUp,
)
from lbguard.core.events import LinkSetDown
from lbguard.core.kernel_tables import KernelTables
from lbguard.core.link import Link, ViewChanges
from lbguard.core.model import Condition, Evidence, LinkKey, Route
from lbguard.core.neighbor_work import NeighborWork, our_address
from lbguard.core.netview import NetView
from lbguard.core.state import Path, Target
from lbguard.core.verdict_fusion import VerdictFusion

_SAME_LINK_WAS_CUT = frozenset({Condition.LINK_DOWN, Condition.NO_ADDRESS, Condition.ADDRESS_TENTATIVE})


class PathRepair:
    """Paths of all targets: their conditions, routes and neighbours, and superseded links."""

    def __init__(self, config: EngineConfig, view: NetView, tables: KernelTables) -> None:
        self._config = config
        self._view = view
        self._tables = tables
        self.verdict_fusion = VerdictFusion(config.evidence, view)
        self.neighbors = NeighborWork(config, view)
        self._disowned: dict[LinkKey, None] = {}
        self._set_down: dict[int, LinkKey] = {}
        self._subnets_down: dict[LinkKey, tuple[int, tuple[Prefix, ...]]] = {}
        self._moved: list[NeighborMoved] = []
        self._asked: dict[Route, int] = {}
        self._answered: dict[int, tuple[LinkKey, set[bool]]] = {}

    def configure(self, config: EngineConfig) -> None:
        """Use another configuration from now on."""
        self._config = config
        self.verdict_fusion.configure(config.evidence)
        self.neighbors.configure(config)

    # Targets come and go

    def register(self, target: Target) -> None:
        """Desire the rule and the fallback of a target and start probing its addresses."""
        if self._config.owns_paths:
            self._tables.register(target.mark)
        for ip in target.paths:
            self.neighbors.follow(ip)

    def retire(self, mark: int) -> None:
        """Desire the removal of everything of a mark from the kernel."""
        if self._config.owns_paths:
            self._tables.retire(mark)

    def change_ips(self, target: Target, ips: tuple[Ip, ...]) -> None:
        """Re-key a target's paths. A new address of the same family gets the old one's route in one replace."""
        target.paths = {ip: target.paths.get(ip) or Path() for ip in ips}
        for ip in ips:
            self.neighbors.follow(ip)

    def unfollow(self, ip: Ip) -> None:
        """Stop probing an address that no target has any more."""
        self.neighbors.unfollow(ip)
        self.verdict_fusion.forget(ip)

    # Judging

    def evaluate(self, target: Target, now: float) -> None:
        """Update the conditions of a target's paths and desire their routes."""
        view, owns = self._view, self._config.owns_paths
        for ip, path in target.paths.items():
            before = path.condition
            link, subnet, condition = view.locate(ip)
            path.subnet = subnet or path.subnet
            if link is not None:
                path.lb_ip = our_address(link, subnet, path.lb_ip)
            down = self.verdict_fusion.weigh(target, path, ip, link, now)
            if link is None:
                path.condition = condition
                if owns:
                    self._tables.leave_path(target.mark, ip)
                continue
            if owns and not self._routed(target.mark, ip, link):
                condition = Condition.ROUTE_MISSING
            elif down:
                condition = Condition.VERDICT_DOWN
            elif view.neighbor_failed(link, ip):
                condition = Condition.NEIGHBOR_FAILED
            if path.link != link.key or before in _SAME_LINK_WAS_CUT:
                self.neighbors.arrived(link, ip, now, before=path.link)
                path.link = link.key
            path.condition = condition
            if self._config.affinity:
                path.unanswered = self.neighbors.unanswered(link, ip)
            if self._config.parking:
                path.silent = view.neighbor_silent(link, ip)
                unresolved = self.neighbors.unresolved(link, ip)
                if path.unresolved and not unresolved:
                    self._announce_again(link, ipv4=is_ipv4(ip))
                path.unresolved = unresolved
        if len(target.paths) < 2 and owns:
            for ipv4 in {True, False} - {is_ipv4(ip) for ip in target.paths}:
                self._tables.drop_family(target.mark, ipv4=ipv4)

    def _announce_again(self, link: Link, *, ipv4: bool) -> None:
        """Announce our addresses once more when the first target answers on a link, before it gets the kept packets.

        The first announcement may be lost, because the other end did not forward yet. Replies to the packets would then
        go to the link-layer address of an earlier link.
        """
        answered = self._answered.get(link.ifindex)
        if answered is None or answered[0] != link.key:
            # Each heal may bring a link with a new ifindex: those that are gone are not kept.
            self._answered = {index: known for index, known in self._answered.items() if index in self._view.links}
            answered = self._answered[link.ifindex] = (link.key, set())
        if ipv4 not in answered[1]:
            answered[1].add(ipv4)
            ours = [ip for ip in link.ready if is_ipv4(ip) is ipv4]
            self._view.changes.ready.setdefault(link.key, []).extend(ours)

    def _routed(self, mark: int, ip: Ip, link: Link) -> bool:
        """Desire the route of a path, and return whether its packets are forwarded now."""
        if ip in link.ready:
            # Our own address: a route to it would not forward.
            self._tables.leave_path(mark, ip)
            return False
        return self._tables.want_path(mark, ip, link.ifindex) or self._still_forwards(mark, ip)

    def _still_forwards(self, mark: int, ip: Ip) -> bool:
        """Return whether the route of a path still leads through another working link, until it moves."""
        ifindex = self._tables.forwarding_link(mark, ip)
        return ifindex != 0 and self._view.forwards(ifindex, ip)

    def evidence(self, target: Target) -> tuple[Evidence, ...]:
        """Return the evidence of each path, for a decision record."""
        return tuple(self._path_evidence(target.mark, ip, path) for ip, path in target.paths.items())

    def _path_evidence(self, mark: int, ip: Ip, path: Path) -> Evidence:
        link = self._view.links.get(path.link.ifindex) if path.link else None
        if link is None or link.key != path.link:
            return Evidence(ip=ip, condition=path.condition, verdict=path.verdict, withdrawn=path.withdrawn)
        neighbor = link.neighbors.get(ip)
        detail = format_mac(neighbor.mac) if neighbor and neighbor.mac else ""
        taken = self._tables.taken_by(mark, ip) if path.condition is Condition.ROUTE_MISSING else None
        if taken is not None:
            detail = f"table {mark} metric {taken.metric} holds a route of protocol {taken.protocol}"
        return Evidence(
            ip=ip,
            condition=path.condition,
            ifname=link.name,
            ifindex=link.ifindex,
            neighbor=neighbor.state.name.lower() if neighbor else "",
            detail=detail,
            verdict=path.verdict,
            withdrawn=path.withdrawn,
        )

    # Changes of the view, and repairs

    def note(self, changes: ViewChanges) -> None:
        """Record links that lost a subnet to a newer link, and neighbours that moved."""
        if self._config.superseded_link_down and self._config.owns_paths:
            self._disowned.update(dict.fromkeys(changes.disowned))
        self._moved += [
            NeighborMoved(ifindex=ifindex, ip=ip, old_mac=old, new_mac=new)
            for ifindex, ip, old, new in changes.moved_neighbors
        ]
        for ifindex in changes.family_back:
            self.neighbors.family_back(ifindex)

    def link_set_down(self, event: LinkSetDown) -> None:
        """Record the outcome of setting a link down."""
        if event.reason:
            self._subnets_down.pop(event.link, None)

    def acknowledged(self, route: Route) -> bool:
        """Return whether an acknowledged route still exists: its link lost nothing since the request."""
        losses = self._view.losses(route.oif, ipv4=route.ipv4)
        return losses >= 0 and self._asked.pop(route, losses) == losses

    def take_repairs(self, now: float) -> list[Effect]:
        """Return the repairs in order: flushes of stale entries, routes, fallbacks, rules, deletions, neighbours."""
        effects = self.neighbors.take_flushes()
        (added, replaced, stale_routes), (rules, stale_rules) = self._tables.take_changes()
        if added or replaced:
            routes = added + replaced
            self._asked.update((route, self._view.losses(route.oif, ipv4=route.ipv4)) for route in routes if route.oif)
            effects.append(ProgramRoutes(add=tuple(added), replace=tuple(replaced)))
        if rules or stale_rules:
            effects.append(ProgramRules(add=tuple(rules), delete=tuple(stale_rules)))
        if stale_routes:
            effects.append(ProgramRoutes(delete=tuple(stale_routes)))
        return effects + self.neighbors.take_rest(now)

    def take_late_work(self) -> list[Effect]:
        """Return the effects that follow the repairs.

        A superseded link is set down, once, when all its routes have moved and its targets answered the newer link. It
        is set up again when it is no longer superseded.
        """
        effects: list[Effect] = list(self._moved)
        self._moved.clear()
        for key in list(self._disowned):
            link = self._view.links.get(key.ifindex)
            if link is None or not self._may_set_down(link, key):
                del self._disowned[key]
            elif not self._tables.routes_through(key.ifindex) and self._view.answers_elsewhere(link):
                del self._disowned[key]
                self._set_down[key.ifindex] = key
                self._subnets_down[key] = link.order, tuple(link.on_link())
                effects.append(SetLinkDown(link=key, ifname=link.name))
        for key, (order, subnets) in list(self._subnets_down.items()):
            link = self._view.links.get(key.ifindex)
            # The order identifies the link even when its MAC has changed: it is still down.
            if link is not None and link.order != order:
                link = None
            if link is not None and self._view.superseded(link, subnets):
                continue
            del self._subnets_down[key]
            if link is not None:
                effects.append(SetLinkUp(link=key, ifname=link.name))
        return effects

    def _may_set_down(self, link: Link, key: LinkKey) -> bool:
        once = self._set_down.get(key.ifindex) != key
        return once and link.key == key and self._view.superseded(link) and self._view.faces_targets(link)
