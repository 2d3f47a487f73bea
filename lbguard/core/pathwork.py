"""Judges paths against the kernel view and collects what the kernel has to do about them.

In `observe` mode it judges and collects nothing: a path is then as good as its link and its neighbour entry.
"""

from lbguard.core.addr import Ip, Prefix, format_mac, is_ipv4, prefix_of
from lbguard.core.config import EngineConfig
from lbguard.core.effects import (
    Effect,
    FlushNeighbors,
    NeighborMoved,
    ProbeNeighbors,
    ProgramRoutes,
    ProgramRules,
    ResolveNeighbors,
    SetLinkDown,
    TuneLink,
)
from lbguard.core.kernel_tables import KernelTables
from lbguard.core.model import Condition, Evidence, LinkKey, NeighborState
from lbguard.core.netview import Link, NetView, ViewChanges
from lbguard.core.probing import ProbeWheel
from lbguard.core.state import Path, Target
from lbguard.core.weighing import Weighing

_UNKNOWN = (NeighborState.NONE, NeighborState.FAILED)
_SAME_LINK_WAS_CUT = frozenset({Condition.LINK_DOWN, Condition.NO_ADDRESS, Condition.ADDRESS_TENTATIVE})


def _our_address(link: Link, subnet: Prefix | None, known: Ip) -> Ip:
    """Return our address on a link in a subnet: the one known before, as long as it is still there."""
    if known in link.ready:
        return known
    return next((ip for ip, length in link.addresses if ip in link.ready and prefix_of(ip, length) == subnet), b"")


class PathWork:
    """Paths of all targets: their conditions, routes, neighbours, and links that were superseded."""

    def __init__(self, config: EngineConfig, view: NetView, tables: KernelTables) -> None:
        self._config = config
        self._view = view
        self._tables = tables
        self.weighing = Weighing(config.evidence, view)
        self._wheel = ProbeWheel(0.0 if config.observe else config.neighbor_probe_interval_s)
        self._flush: dict[tuple[int, Ip], None] = {}
        self._resolve: dict[tuple[int, Ip], None] = {}
        self._tuned: dict[int, LinkKey] = {}
        self._to_tune: list[Link] = []
        self._disowned: dict[LinkKey, None] = {}
        self._set_down: dict[int, LinkKey] = {}
        self._moved: list[NeighborMoved] = []

    # Targets come and go

    def register(self, target: Target) -> None:
        """Desire rule and fallback of a target and start probing its addresses."""
        if not self._config.observe:
            self._tables.register(target.mark)
        for ip in target.paths:
            self._wheel.add(ip)

    def retire(self, mark: int) -> None:
        """Desire that nothing of a mark is left in the kernel."""
        if not self._config.observe:
            self._tables.retire(mark)

    def change_ips(self, target: Target, ips: tuple[Ip, ...]) -> None:
        """Re-key a target's paths. A new address of the same family takes the old one's route by one replace."""
        target.paths = {ip: target.paths.get(ip) or Path() for ip in ips}
        for ip in ips:
            self._wheel.add(ip)

    def unfollow(self, ip: Ip) -> None:
        """Stop probing an address that no target has any more."""
        self._wheel.remove(ip)

    # Judging

    def evaluate(self, target: Target, now: float) -> None:
        """Bring the conditions of a target's paths up to date and desire their routes."""
        view, observe = self._view, self._config.observe
        for ip, path in target.paths.items():
            before = path.condition
            link, subnet, condition = view.locate(ip)
            path.subnet = subnet or path.subnet
            if link is not None:
                path.lb_ip = _our_address(link, subnet, path.lb_ip)
            down = self.weighing.weigh(target, path, ip, link, now)
            if link is None:
                path.condition = condition
                if not observe:
                    self._tables.leave_path(target.mark, ip)
                continue
            if not observe and not self._tables.want_path(target.mark, ip, link.ifindex):
                condition = Condition.ROUTE_MISSING
            elif down:
                condition = Condition.VERDICT_DOWN
            elif view.neighbor_failed(link, ip):
                condition = Condition.NEIGHBOR_FAILED
            if path.link != link.key or before in _SAME_LINK_WAS_CUT:
                self._arrived(link, ip, same_link=path.link == link.key)
                path.link = link.key
            path.condition = condition
        if len(target.paths) < 2 and not observe:
            for ipv4 in {True, False} - {is_ipv4(ip) for ip in target.paths}:
                self._tables.drop_family(target.mark, ipv4=ipv4)

    def outdated(self, entries: list[tuple[int, Ip]]) -> None:
        """Flush and resolve exactly these neighbour entries."""
        for entry in entries:
            self._flush[entry] = None
            self._resolve[entry] = None

    def _arrived(self, link: Link, ip: Ip, *, same_link: bool) -> None:
        """Act on a link that took over a path: learn the neighbour at once, trust nothing from before a cut."""
        entry = (link.ifindex, ip)
        if same_link and ip in link.neighbors and link.neighbors[ip].mac:
            self._flush[entry] = None
        self._resolve[entry] = None
        if self._tuned.get(link.ifindex) != link.key:
            self._tuned[link.ifindex] = link.key
            self._to_tune.append(link)

    def evidence(self, target: Target) -> tuple[Evidence, ...]:
        """Return what is known of each path, for a decision record."""
        return tuple(self._path_evidence(ip, path) for ip, path in target.paths.items())

    def _path_evidence(self, ip: Ip, path: Path) -> Evidence:
        link = self._view.links.get(path.link.ifindex) if path.link else None
        if link is None or link.key != path.link:
            return Evidence(ip=ip, condition=path.condition, verdict=path.verdict)
        neighbor = link.neighbors.get(ip)
        return Evidence(
            ip=ip,
            condition=path.condition,
            ifname=link.name,
            ifindex=link.ifindex,
            neighbor=neighbor.state.name.lower() if neighbor else "",
            detail=format_mac(neighbor.mac) if neighbor and neighbor.mac else "",
            verdict=path.verdict,
        )

    # What the kernel has to do

    def note(self, changes: ViewChanges) -> None:
        """Take note of links that lost a subnet to a newer one, and of neighbours that moved."""
        if self._config.superseded_link_down and not self._config.observe:
            self._disowned.update(dict.fromkeys(changes.disowned))
        self._moved += [
            NeighborMoved(ifindex=ifindex, ip=ip, old_mac=old, new_mac=new)
            for ifindex, ip, old, new in changes.moved_neighbors
        ]

    def next_probe(self, now: float) -> float | None:
        """Return when neighbour entries are to be verified next."""
        return self._wheel.next(now)

    def take_repairs(self, now: float) -> list[Effect]:
        """Return the repairs, in order: stale entries out, routes and fallbacks, rules, deletions, then neighbours."""
        effects: list[Effect] = []
        if self._config.observe:
            self._flush.clear()
            self._resolve.clear()
            self._to_tune.clear()
        if self._flush:
            effects.append(FlushNeighbors(entries=tuple(self._flush)))
        (routes, stale_routes), (rules, stale_rules) = self._tables.take_changes()
        if routes:
            effects.append(ProgramRoutes(replace=tuple(routes)))
        if rules or stale_rules:
            effects.append(ProgramRules(add=tuple(rules), delete=tuple(stale_rules)))
        if stale_routes:
            effects.append(ProgramRoutes(delete=tuple(stale_routes)))
        if self._config.tune_neighbors:
            effects += [TuneLink(link=link.key, ifname=link.name) for link in self._to_tune]
        probe = self._probe_due(now)
        if self._resolve:
            effects.append(ResolveNeighbors(entries=tuple(self._resolve)))
        if probe:
            effects.append(ProbeNeighbors(entries=tuple(probe)))
        self._flush.clear()
        self._resolve.clear()
        self._to_tune.clear()
        return effects

    def _probe_due(self, now: float) -> list[tuple[int, Ip]]:
        """Return the entries to verify now; those that the kernel does not know are resolved instead."""
        probe = []
        for ip in self._wheel.due(now):
            link, _, _ = self._view.locate(ip)
            if link is None:
                continue
            neighbor = link.neighbors.get(ip)
            if neighbor is None or neighbor.state in _UNKNOWN:
                self._resolve[link.ifindex, ip] = None
            elif neighbor.state != NeighborState.INCOMPLETE:
                probe.append((link.ifindex, ip))
        return probe

    def take_late_work(self) -> list[Effect]:
        """Return what comes after the repairs: superseded links whose routes have all moved away, set down once."""
        effects: list[Effect] = list(self._moved)
        self._moved.clear()
        for key in list(self._disowned):
            link = self._view.links.get(key.ifindex)
            if link is None or not self._may_set_down(link, key):
                del self._disowned[key]
            elif not self._tables.routes_through(key.ifindex):
                del self._disowned[key]
                self._set_down[key.ifindex] = key
                effects.append(SetLinkDown(link=key, ifname=link.name))
        return effects

    def _may_set_down(self, link: Link, key: LinkKey) -> bool:
        once = self._set_down.get(key.ifindex) != key
        return once and link.key == key and self._view.superseded(link) and self._view.faces_targets(link)
