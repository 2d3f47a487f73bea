"""What has to be in order once nothing has gone wrong for long enough, judged against the kernel itself."""

from lbguard.core.addr import is_ipv4, is_link_local
from lbguard.core.model import (
    BLACKHOLE_METRIC,
    ROUTE_METRIC,
    Condition,
    Route,
    RouteKind,
    Rule,
    StreamSpec,
    TargetSpec,
)
from tests.sim.world import World


def check_settled(world: World) -> None:
    """Check tables, routes, rules, availability and announcements. Raises AssertionError."""
    engine = world.engine
    assert engine.running
    assert engine.in_sync
    listed, served, tables = set(world.streams), set(engine.stream_names()), set(world.distributor.tables)
    assert listed == served == tables, f"listed {listed}, served {served}, tables {tables}"
    routes: set[Route] = set()
    rules: set[Rule] = set()
    for spec in world.streams.values():
        _check_table(world, spec)
        for target in spec.targets:
            mark = spec.mark(target.identifier)
            for ipv4 in (True, False):
                rules.add(Rule(mark, ipv4, mark))
                routes.add(Route(mark, ipv4, RouteKind.BLACKHOLE, BLACKHOLE_METRIC))
            routes |= _routes(world, spec, target)
    ours = world.kernel.ours()
    assert ours[0] == routes, f"left over {ours[0] - routes}, missing {routes - ours[0]}"
    assert ours[1] == rules, f"left over {ours[1] - rules}, missing {rules - ours[1]}"
    _check_announcements(world)


def _check_table(world: World, spec: StreamSpec) -> None:
    """Every target with all its paths is in the table, and none without any.

    Soft evidence alone leaves it open. Of whom one family is lost stays where it was, in or out.
    """
    usable: set[int] = set()
    doubtful: set[int] = set()
    halved: set[int] = set()
    for target in spec.targets:
        if all(world.kernel.ready_link(ip) for ip in target.ips):
            silent = all(ip in world.silent for ip in target.ips)
            (doubtful if silent else usable).add(target.identifier)
        elif any(world.kernel.ready_link(ip) for ip in target.ips):
            halved.add(target.identifier)
    table = world.distributor.tables[spec.name]
    assert world.distributor.vips[spec.name] == spec.vips, f"{spec.name}: the addresses it matches are old"
    assert table.registered == {target.identifier for target in spec.targets}
    assert table.active - doubtful - halved == usable, (
        f"{spec.name}: active {sorted(table.active)}, with a path {sorted(usable)}, doubtful {sorted(doubtful)}"
    )
    # A silent target counts as usable until something has shown that it is silent; then not even a pardon hides it.
    believed = {
        target.key.identifier
        for target in world.engine.targets()
        if target.key.stream == spec.name
        and target.key.identifier in doubtful & table.active
        and any(path.condition is Condition.OK for path in target.paths.values())
    }
    count, listed, config = len(usable | believed), len(spec.targets), world.config
    needed = max(1, min(listed, config.availability_quorum.of(listed)))
    again = max(1, min(listed, needed + config.availability_hysteresis.of(listed)))
    available = world.engine.available(spec.name)
    # Between the two it depends on what was before.
    assert needed <= count < again or available is (count >= needed), f"{spec.name}: {count} give {available}"


def _routes(world: World, spec: StreamSpec, target: TargetSpec) -> set[Route]:
    """Return the routes of a target's addresses, each checked to lead to it over a link that is ready."""
    kernel, found = world.kernel, set()
    for ip in target.ips:
        route = kernel.routes.get((spec.mark(target.identifier), is_ipv4(ip), ROUTE_METRIC))
        ready = kernel.ready_link(ip) is not None
        assert route is not None or not ready, f"{spec.name}/{target.identifier} has no route to {ip.hex()}"
        if route is None:
            continue
        assert route.gateway == ip, f"{spec.name}/{target.identifier}: {route} leads astray"
        if ready:
            link = kernel.links[route.oif]
            assert link.up, f"{route} leads over a link that is down"
            assert link.covers(ip, usable=True), f"{route} leads over a link of another subnet"
        found.add(route)
    return found


def _check_announcements(world: World) -> None:
    """Every usable address was announced with the link-layer address that it has now."""
    for link in world.kernel.links.values():
        for (ip, _), usable in link.addresses.items():
            if link.up and usable and not is_link_local(ip) and link.name != "lo":
                told = (link.ifindex, link.mac, ip) in world.watch.announced_at
                assert told, f"{link.name} never announced {ip.hex()}"
