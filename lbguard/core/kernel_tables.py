"""Desired and actual routes and fwmark rules of the targets.

Every registered target has, per family, one rule and one blackhole default route (also in a family in which it has no
address: its mark must never reach the main table and loop with the gateway), and a default route through each of its
addresses whose subnet has an owner. Routes without an owner are left unchanged; the kernel removes them with their
link.

Another program's route with the table and metric of one of ours stays: the kernel holds one such route, so ours waits
until that is gone. It serves the path if it leads to the same address through the same link.

The comparison is level-triggered, so a lost, repeated or reordered notification costs at most one idempotent operation.
A key is unmanaged until a value is desired for it, and an unmanaged key is never changed.
"""

from collections.abc import Hashable, Iterable, Mapping
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

from lbguard.core.addr import Ip, is_ipv4
from lbguard.core.model import BLACKHOLE_METRIC, ROUTE_METRIC, ROUTE_PROTOCOL, Route, RouteKind, Rule

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Changes(NamedTuple, Generic[K, V]):
    """Values to put (add or replace) and keys to delete, in the order in which they became due."""

    put: list[V]
    delete: list[V]


class Delta(Generic[K, V]):
    """Desired and actual values by key, and the keys whose change has not been requested yet."""

    def __init__(self) -> None:
        self.actual: dict[K, V] = {}
        self._desired: dict[K, V | None] = {}
        self._due: dict[K, None] = {}

    def want(self, key: K, value: V) -> None:
        """Desire a value for a key."""
        if self._desired.get(key) != value:
            self._desired[key] = value
            self._compare(key)

    def want_absent(self, key: K) -> None:
        """Desire that a key has no value; when it has none, the key is unmanaged again."""
        self._desired[key] = None
        self._compare(key)

    def release(self, key: K) -> None:
        """Stop managing a key and leave its actual value unchanged."""
        self._desired.pop(key, None)
        self._due.pop(key, None)

    def satisfied(self, key: K) -> bool:
        """Return whether a managed key holds the desired value."""
        wanted = self._desired.get(key)
        return wanted is not None and self.actual.get(key) == wanted

    def saw(self, key: K, value: V) -> bool:
        """Record the actual value of a key; return whether it differs from the known one."""
        if self.actual.get(key) == value:
            return False
        self.actual[key] = value
        self._compare(key)
        return True

    def gone(self, key: K, value: V) -> bool:
        """Record that this value is gone (another value of the key stays); return whether it was known."""
        if self.actual.get(key) != value:
            return False
        del self.actual[key]
        self._compare(key)
        return True

    def replace_actual(self, actual: Mapping[K, V]) -> set[K]:
        """Replace all actual values by a full view; return the keys whose value changed."""
        before, self.actual = self.actual, dict(actual)
        changed = {key for key in before.keys() | actual.keys() if before.get(key) != actual.get(key)}
        for key in list(self._desired):
            self._compare(key)
        return changed

    def retry(self, key: K) -> None:
        """Request a key again if it still differs."""
        self._compare(key)

    def take_changes(self) -> Changes[K, V]:
        """Return the changes to make, each once; a key is returned again when its values change or on `retry`."""
        changes: Changes[K, V] = Changes([], [])
        for key in self._due:
            wanted = self._desired.get(key)
            if wanted is not None:
                changes.put.append(wanted)
            elif key in self.actual:
                changes.delete.append(self.actual[key])
        self._due.clear()
        return changes

    def _compare(self, key: K) -> None:
        if key not in self._desired:
            return
        wanted = self._desired[key]
        if self.actual.get(key) == wanted:
            self._due.pop(key, None)
            if wanted is None:
                del self._desired[key]
        else:
            self._due[key] = None


class RouteKey(NamedTuple):
    """Key of a default route in the kernel: a new route with the same key replaces the old one."""

    table: int
    ipv4: bool
    metric: int


class RuleKey(NamedTuple):
    """Key of one of our rules."""

    mark: int
    ipv4: bool


def route_key(route: Route) -> RouteKey:
    """Return a route's key."""
    return RouteKey(route.table, route.ipv4, route.metric)


def rule_key(rule: Rule) -> RuleKey:
    """Return a rule's key."""
    return RuleKey(rule.mark, rule.ipv4)


@lru_cache(maxsize=16_384)
def _path_objects(mark: int, ip: Ip, ifindex: int) -> tuple[RouteKey, RuleKey, Route]:
    """Return the keys and the route of a path through a link: they are compared at each evaluation."""
    ipv4 = is_ipv4(ip)
    route = Route(mark, ipv4, RouteKind.UNICAST, ROUTE_METRIC, ip, ifindex)
    return RouteKey(mark, ipv4, ROUTE_METRIC), RuleKey(mark, ipv4), route


class RouteChanges(NamedTuple):
    """Routes to add, to replace and to delete."""

    add: list[Route]
    replace: list[Route]
    delete: list[Route]


_METRICS = frozenset({ROUTE_METRIC, BLACKHOLE_METRIC})


class KernelTables:
    """Our routes and rules, and the marks affected by a change."""

    def __init__(self) -> None:
        self.routes: Delta[RouteKey, Route] = Delta()
        self.rules: Delta[RuleKey, Rule] = Delta()
        self._by_oif: dict[int, set[RouteKey]] = {}
        self._foreign: dict[RouteKey, Route] = {}
        self.changed_marks: set[int] = set()

    # Desired

    def register(self, mark: int) -> None:
        """Desire the rule and the fallback of a target, in both families."""
        for ipv4 in (True, False):
            self.rules.want(RuleKey(mark, ipv4), Rule(mark, ipv4, mark))
            fallback = Route(mark, ipv4, RouteKind.BLACKHOLE, BLACKHOLE_METRIC)
            self.routes.want(route_key(fallback), fallback)

    def retire(self, mark: int) -> None:
        """Desire the removal of everything of a target."""
        for ipv4 in (True, False):
            self.rules.want_absent(RuleKey(mark, ipv4))
            for metric in (ROUTE_METRIC, BLACKHOLE_METRIC):
                self.routes.want_absent(RouteKey(mark, ipv4, metric))

    def want_path(self, mark: int, ip: Ip, ifindex: int) -> bool:
        """Desire a path's route through its owning link; return whether the kernel has both rule and route."""
        key, rule, route = _path_objects(mark, ip, ifindex)
        self.routes.want(key, route)
        foreign = self._foreign.get(key)
        if foreign is None:
            routed = self.routes.actual.get(key) == route
        else:
            routed = (foreign.gateway, foreign.oif) == (ip, ifindex)
        return routed and self.rules.satisfied(rule)

    def taken_by(self, mark: int, ip: Ip) -> Route | None:
        """Return another program's route that has the table and metric of a path's route."""
        return self._foreign.get(RouteKey(mark, is_ipv4(ip), ROUTE_METRIC))

    def forwarding_link(self, mark: int, ip: Ip) -> int:
        """Return the ifindex through which a path's packets leave now; 0 when they are not forwarded."""
        ipv4 = is_ipv4(ip)
        route = self.routes.actual.get(RouteKey(mark, ipv4, ROUTE_METRIC))
        if route is None or route.gateway != ip:
            return 0
        return route.oif if self.rules.satisfied(RuleKey(mark, ipv4)) else 0

    def leave_path(self, mark: int, ip: Ip) -> None:
        """Leave the route of a path without an owner unchanged, unless it leads to another address."""
        key = RouteKey(mark, is_ipv4(ip), ROUTE_METRIC)
        route = self.routes.actual.get(key)
        if route is None or route.gateway == ip:
            self.routes.release(key)
        else:
            self.routes.want_absent(key)

    def drop_family(self, mark: int, *, ipv4: bool) -> None:
        """Desire that a target has no route in a family in which it has no address."""
        key = RouteKey(mark, ipv4, ROUTE_METRIC)
        if key in self.routes.actual:
            self.routes.want_absent(key)
        else:
            self.routes.release(key)

    # Actual

    def route_seen(self, route: Route) -> bool:
        """Record a route; return whether it changes one of ours."""
        key = route_key(route)
        if route.protocol != ROUTE_PROTOCOL:
            return self._foreign_seen(key, route)
        if self._foreign.pop(key, None) is not None:
            self.changed_marks.add(route.table)
        self._unindex(key)
        if route.oif:
            self._by_oif.setdefault(route.oif, set()).add(key)
        return self._news(route.table, self.routes.saw(key, route))

    def route_gone(self, route: Route) -> bool:
        """Record that a route is gone; return whether it was one of ours."""
        key = route_key(route)
        if route.protocol != ROUTE_PROTOCOL:
            return self._foreign_gone(key, route)
        if self.routes.actual.get(key) == route:
            self._unindex(key)
        return self._news(route.table, self.routes.gone(key, route))

    def link_lost(self, ifindex: int) -> None:
        """Record that the kernel dropped every route through a link."""
        for key in list(self._by_oif.get(ifindex, ())):
            self.route_gone(self.routes.actual[key])

    def routes_through(self, ifindex: int) -> int:
        """Return how many of our routes lead through a link."""
        return len(self._by_oif.get(ifindex, ()))

    def rule_seen(self, rule: Rule) -> bool:
        """Record a rule; return whether it changes one of ours."""
        if rule.protocol != ROUTE_PROTOCOL:
            return False
        return self._news(rule.mark, self.rules.saw(rule_key(rule), rule))

    def rule_gone(self, rule: Rule) -> bool:
        """Record that a rule is gone; return whether it was one of ours."""
        if rule.protocol != ROUTE_PROTOCOL:
            return False
        return self._news(rule.mark, self.rules.gone(rule_key(rule), rule))

    def replace(self, routes: Iterable[Route], rules: Iterable[Rule]) -> None:
        """Replace all actual values by a full view."""
        routes = tuple(routes)
        ours = {route_key(route): route for route in routes if route.protocol == ROUTE_PROTOCOL}
        before, self._foreign = self._foreign, {}
        for route in routes:
            if route.protocol != ROUTE_PROTOCOL and route.metric in _METRICS:
                self._foreign[route_key(route)] = route
        self.changed_marks.update(
            key.table for key in before.keys() | self._foreign.keys() if before.get(key) != self._foreign.get(key)
        )
        self._by_oif = {}
        for key, route in ours.items():
            if route.oif:
                self._by_oif.setdefault(route.oif, set()).add(key)
        self.changed_marks.update(key.table for key in self.routes.replace_actual(ours))
        our_rules = {rule_key(rule): rule for rule in rules if rule.protocol == ROUTE_PROTOCOL}
        self.changed_marks.update(key.mark for key in self.rules.replace_actual(our_rules))

    def marks(self) -> set[int]:
        """Return the marks for which the kernel has a route or rule of ours."""
        return {key.table for key in self.routes.actual} | {key.mark for key in self.rules.actual}

    def take_changes(self) -> tuple[RouteChanges, Changes[RuleKey, Rule]]:
        """Return the changes to make in the kernel, each once."""
        routes = self.routes.take_changes()
        changes = RouteChanges([], [], routes.delete)
        for route in routes.put:
            key = route_key(route)
            if key not in self._foreign:
                (changes.replace if key in self.routes.actual else changes.add).append(route)
        return changes, self.rules.take_changes()

    def _foreign_seen(self, key: RouteKey, route: Route) -> bool:
        if route.metric not in _METRICS or self._foreign.get(key) == route:
            return False
        self._foreign[key] = route
        return self._news(route.table, True)

    def _foreign_gone(self, key: RouteKey, route: Route) -> bool:
        known = self._foreign.get(key)
        # The kernel may report each next hop of a multipath route alone; adding ours too early is only refused.
        of_several = known is not None and known.kind is RouteKind.UNICAST and not known.gateway
        if known != route and not of_several:
            return False
        del self._foreign[key]
        self.routes.retry(key)
        return self._news(route.table, True)

    def _news(self, mark: int, news: bool) -> bool:
        if news:
            self.changed_marks.add(mark)
        return news

    def _unindex(self, key: RouteKey) -> None:
        old = self.routes.actual.get(key)
        if old is not None and old.oif:
            through = self._by_oif[old.oif]
            through.discard(key)
            if not through:
                del self._by_oif[old.oif]
