"""Routes and rules of targets against a naive model of what should stand in the kernel."""

from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.addr import Ip, is_ipv4
from lbguard.core.kernel_tables import Delta, KernelTables
from lbguard.core.model import (
    BLACKHOLE_METRIC,
    ROUTE_METRIC,
    ROUTE_PROTOCOL,
    RULE_PRIORITY,
    Route,
    RouteKind,
    Rule,
)
from tests.effort import examples
from tests.unit.core.harness import ip

keys = st.sampled_from("abc")
values = st.integers(0, 3)
delta_steps = st.one_of(
    st.tuples(st.just("want"), keys, values),
    st.tuples(st.just("absent"), keys, st.none()),
    st.tuples(st.just("release"), keys, st.none()),
    st.tuples(st.just("world_sets"), keys, values),
    st.tuples(st.just("world_drops"), keys, st.none()),
    st.tuples(st.just("silent_drop"), keys, st.none()),
    st.tuples(st.just("carry_out"), st.none(), st.none()),
    st.tuples(st.just("lose_what_is_asked"), st.none(), st.none()),
    st.tuples(st.just("full_view"), st.none(), st.none()),
)


class World:
    """Keys are letters, values are (key, number), so that a value tells its key."""

    def __init__(self) -> None:
        self.delta: Delta[str, tuple[str, int]] = Delta()
        self.actual: dict[str, tuple[str, int]] = {}
        self.desired: dict[str, tuple[str, int] | None] = {}
        self.lost: set[str] = set()
        self.touched: list[str] = []

    def step(self, what: str, key: str | None, number: int | None) -> None:
        if what == "carry_out" or what == "lose_what_is_asked":
            self.carry_out(lose=what != "carry_out")
        elif what == "full_view":
            self.delta.replace_actual(self.actual)
        else:
            assert key is not None
            self.keyed(what, key, (key, number if number is not None else 0))

    def keyed(self, what: str, key: str, value: tuple[str, int]) -> None:
        if what == "want":
            self.desired[key] = value
            self.delta.want(key, value)
        elif what == "absent":
            self.desired[key] = None
            self.delta.want_absent(key)
        elif what == "release":
            self.desired.pop(key, None)
            self.delta.release(key)
        elif what == "world_sets":
            self.actual[key] = value
            self.delta.saw(key, value)
        elif key in self.actual:
            old = self.actual.pop(key)
            if what == "world_drops":
                self.delta.gone(key, old)

    def carry_out(self, *, lose: bool) -> None:
        changes = self.delta.take_changes()
        for key, number in changes.put:
            self.touched.append(key)
            assert self.desired.get(key) == (key, number), "what nobody desires is put"
            if not lose:
                self.actual[key] = (key, number)
                self.delta.saw(key, (key, number))
        for key, number in changes.delete:
            self.touched.append(key)
            assert self.desired.get(key, "?") is None, "what nobody wants away is deleted"
            if not lose:
                self.actual.pop(key, None)
                self.delta.gone(key, (key, number))


@examples(400)
@given(st.lists(delta_steps, max_size=30))
def test_after_a_full_view_and_one_round_everything_is_as_desired(
    sequence: list[tuple[str, str | None, int | None]],
) -> None:
    world = World()
    for what, key, number in sequence:
        world.step(what, key, number)
        if what == "full_view":
            # A key whose absence was reached is nobody's again.
            for gone in [k for k, wanted in world.desired.items() if wanted is None and k not in world.actual]:
                del world.desired[gone]
    world.delta.replace_actual(world.actual)
    world.carry_out(lose=False)
    for key, wanted in world.desired.items():
        if wanted is not None:
            assert world.actual.get(key) == wanted
            assert world.delta.satisfied(key)
    assert world.delta.take_changes() == ([], [])


def test_nothing_unmanaged_is_ever_asked_for() -> None:
    delta: Delta[str, int] = Delta()
    delta.saw("a", 1)
    delta.replace_actual({"a": 2, "b": 3})
    assert delta.take_changes() == ([], [])
    delta.want("a", 5)
    delta.release("a")
    assert delta.take_changes() == ([], [])


def test_what_was_asked_for_is_asked_again_only_on_news_or_retry() -> None:
    delta: Delta[str, int] = Delta()
    delta.want("a", 1)
    assert delta.take_changes() == ([1], [])
    delta.want("a", 1)
    assert delta.take_changes() == ([], [])
    delta.retry("a")
    assert delta.take_changes() == ([1], [])
    delta.saw("a", 1)
    delta.retry("a")
    assert delta.take_changes() == ([], [])


def test_the_loss_of_an_older_value_is_no_loss() -> None:
    delta: Delta[str, int] = Delta()
    delta.want("a", 2)
    delta.saw("a", 1)
    delta.saw("a", 2)
    assert not delta.gone("a", 1)
    assert delta.satisfied("a")


def test_an_absence_that_is_reached_leaves_the_key_to_others() -> None:
    delta: Delta[str, int] = Delta()
    delta.saw("a", 1)
    delta.want_absent("a")
    assert delta.take_changes() == ([], [1])
    delta.gone("a", 1)
    delta.saw("a", 7)
    assert delta.take_changes() == ([], [])


MARKS = (5001, 5002)
ADDRESSES = (ip("172.16.0.10"), ip("172.16.0.11"), ip("fd00::10"))
marks, addresses, oifs = st.sampled_from(MARKS), st.sampled_from(ADDRESSES), st.sampled_from((2, 3))

steps = st.one_of(
    st.tuples(st.just("register"), marks, st.none(), st.none()),
    st.tuples(st.just("retire"), marks, st.none(), st.none()),
    st.tuples(st.just("path"), marks, addresses, oifs),
    st.tuples(st.just("leave"), marks, addresses, st.none()),
    st.tuples(st.just("drop_family"), marks, addresses, st.none()),
    st.tuples(st.just("link_lost"), st.none(), st.none(), oifs),
    st.tuples(st.just("carry_out"), st.none(), st.none(), st.none()),
    st.tuples(st.just("full_view"), st.none(), st.none(), st.none()),
)


def via(mark: int, gateway: Ip, oif: int) -> Route:
    return Route(mark, is_ipv4(gateway), RouteKind.UNICAST, ROUTE_METRIC, gateway, oif)


def fallback(mark: int, ipv4: bool) -> Route:
    return Route(mark, ipv4, RouteKind.BLACKHOLE, BLACKHOLE_METRIC)


FOREIGN = Route(5001, True, RouteKind.UNICAST, 100, ADDRESSES[0], 2, protocol=4)
FOREIGN_RULE = Rule(5001, True, 5001, priority=100, protocol=0)


class Kernel:
    """What stands in the kernel, and what should, kept the obvious way."""

    def __init__(self) -> None:
        self.tables = KernelTables()
        self.routes: dict[tuple[int, bool, int], Route] = {(5001, True, 100): FOREIGN}
        self.rules: set[Rule] = {FOREIGN_RULE}
        self.registered: set[int] = set()
        self.paths: dict[tuple[int, bool], tuple[Ip, int] | None] = {}
        self.tables.replace(self.routes.values(), self.rules)

    def apply(self, what: str, mark: int | None, address: Ip | None, oif: int | None) -> None:
        tables = self.tables
        match what, mark, address, oif:
            case "register", int(), _, _:
                tables.register(mark)
                self.registered.add(mark)
            case "retire", int(), _, _:
                tables.retire(mark)
                self.registered.discard(mark)
                self.paths = {key: path for key, path in self.paths.items() if key[0] != mark}
            case "path", int(), bytes(), int() if mark in self.registered:
                stands = tables.want_path(mark, address, oif)
                self.paths[mark, is_ipv4(address)] = (address, oif)
                route = self.routes.get((mark, is_ipv4(address), ROUTE_METRIC))
                rule = Rule(mark, is_ipv4(address), mark, RULE_PRIORITY, ROUTE_PROTOCOL)
                assert stands == (route == via(mark, address, oif) and rule in self.rules)
            case "leave", int(), bytes(), _ if mark in self.registered:
                tables.leave_path(mark, address)
                self.paths[mark, is_ipv4(address)] = None
            case "drop_family", int(), bytes(), _ if mark in self.registered:
                tables.drop_family(mark, ipv4=is_ipv4(address))
                self.paths[mark, is_ipv4(address)] = None
            case "link_lost", _, _, int():
                self.routes = {k: r for k, r in self.routes.items() if r.oif != oif or r.protocol != ROUTE_PROTOCOL}
                tables.link_lost(oif)
            case "carry_out", _, _, _:
                self.carry_out()
            case "full_view", _, _, _:
                tables.replace(self.routes.values(), self.rules)

    def carry_out(self) -> None:
        routes, rules = self.tables.take_changes()
        for route in routes.add:
            assert (route.table, route.ipv4, route.metric) not in self.routes
        for route in (*routes.add, *routes.replace):
            assert route.protocol == ROUTE_PROTOCOL
            self.routes[route.table, route.ipv4, route.metric] = route
            self.tables.route_seen(route)
        for rule in rules.put:
            self.rules.add(rule)
            self.tables.rule_seen(rule)
        for rule in rules.delete:
            assert rule.protocol == ROUTE_PROTOCOL
            self.rules.discard(rule)
            self.tables.rule_gone(rule)
        for route in routes.delete:
            assert route.protocol == ROUTE_PROTOCOL
            assert self.routes.pop((route.table, route.ipv4, route.metric), None) in (route, None)
            self.tables.route_gone(route)


@examples(400)
@given(st.lists(steps, max_size=40))
def test_the_kernel_ends_up_as_desired_and_nothing_foreign_is_touched(
    sequence: list[tuple[str, int | None, Ip | None, int | None]],
) -> None:
    kernel = Kernel()
    for step in sequence:
        kernel.apply(*step)
        for oif in (2, 3):
            known = [r for r in kernel.tables.routes.actual.values() if r.oif == oif]
            assert kernel.tables.routes_through(oif) == len(known)
    kernel.carry_out()
    assert FOREIGN in kernel.routes.values()
    assert FOREIGN_RULE in kernel.rules
    ours = {route for route in kernel.routes.values() if route.protocol == ROUTE_PROTOCOL}
    for mark in MARKS:
        for ipv4 in (True, False):
            rule = Rule(mark, ipv4, mark, RULE_PRIORITY, ROUTE_PROTOCOL)
            registered = mark in kernel.registered
            assert (rule in kernel.rules) == registered
            assert (fallback(mark, ipv4) in ours) == registered
            path = kernel.paths.get((mark, ipv4))
            unicast = {r for r in ours if (r.table, r.ipv4, r.metric) == (mark, ipv4, ROUTE_METRIC)}
            if path is not None:
                assert unicast == {via(mark, *path)}
            elif not registered:
                assert unicast == set()
    assert {r.table for r in ours} <= kernel.registered == kernel.tables.marks()


def test_the_marks_of_a_change_are_named_once() -> None:
    tables = KernelTables()
    tables.register(5001)
    route = via(5001, ADDRESSES[0], 2)
    tables.want_path(5001, ADDRESSES[0], 2)
    assert tables.route_seen(route)
    assert tables.changed_marks == {5001}
    tables.changed_marks.clear()
    assert not tables.route_seen(route)
    assert not tables.route_seen(FOREIGN)
    assert not tables.rule_seen(FOREIGN_RULE)
    assert tables.changed_marks == set()
    tables.link_lost(2)
    assert tables.changed_marks == {5001}


def test_the_route_of_a_path_without_an_owner_stays_while_it_leads_to_its_address() -> None:
    tables = KernelTables()
    tables.register(5001)
    tables.want_path(5001, ADDRESSES[0], 2)
    tables.take_changes()
    tables.route_seen(via(5001, ADDRESSES[0], 2))
    tables.leave_path(5001, ADDRESSES[0])
    assert tables.take_changes()[0] == ([], [], [])
    tables.leave_path(5001, ADDRESSES[1])
    assert tables.take_changes()[0].delete == [via(5001, ADDRESSES[0], 2)]
