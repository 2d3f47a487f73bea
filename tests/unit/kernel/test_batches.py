import errno

import pytest

from lbguard.core.effects import FlushNeighbors, ProbeNeighbors, ProgramRoutes, ProgramRules
from lbguard.core.events import RouteFailed, RoutesProgrammed, RuleFailed, RuleGone, RuleSeen
from lbguard.core.model import Route, RouteKind, Rule
from lbguard.kernel.batches import NeighborFailure, Neighbors, RouteTable
from lbguard.kernel.channel import NetlinkChannel
from tests.unit.kernel.fake_kernel import FakeKernel

ROUTES = [Route(5001 + n, True, RouteKind.UNICAST, 2048, bytes([10, 0, 0, n]), 3) for n in range(4)]
RULES = [Rule(5001 + n, True, 5001 + n) for n in range(4)]


async def test_refused_routes_are_told_one_by_one() -> None:
    kernel = FakeKernel()
    kernel.refusals = {
        1: (errno.ENODEV, "Device does not exist"),
        2: (errno.ESRCH, ""),
        3: (errno.EPERM, ""),
    }
    table = RouteTable(NetlinkChannel(kernel))
    events = await table.program(ProgramRoutes(replace=tuple(ROUTES[:2]), delete=tuple(ROUTES[2:])))
    assert events == [
        RoutesProgrammed(added=(ROUTES[0],), deleted=(ROUTES[2],)),
        RouteFailed(route=ROUTES[1], reason="ENODEV: Device does not exist"),
        RouteFailed(route=ROUTES[3], reason="EPERM: Operation not permitted"),
    ]
    kernel.close()


async def test_nothing_is_called_programmed_when_the_answers_were_lost() -> None:
    kernel = FakeKernel()
    kernel.overrun()
    [event] = await RouteTable(NetlinkChannel(kernel)).program(ProgramRoutes(replace=(ROUTES[0],)))
    assert isinstance(event, RouteFailed)
    assert event.reason.startswith("ENOBUFS")
    kernel.close()


async def test_rules_exist_or_are_absent_already() -> None:
    kernel = FakeKernel()
    kernel.refusals = {0: (errno.EEXIST, ""), 1: (errno.ENOMEM, ""), 2: (errno.ENOENT, "")}
    table = RouteTable(NetlinkChannel(kernel))
    events = await table.program_rules(ProgramRules(add=tuple(RULES[:2]), delete=tuple(RULES[2:])))
    assert events == [
        RuleSeen(rule=RULES[0]),
        RuleFailed(rule=RULES[1], reason="ENOMEM: Cannot allocate memory"),
        RuleGone(rule=RULES[2]),
        RuleGone(rule=RULES[3]),
    ]
    kernel.close()


async def test_foreign_routes_are_never_asked_for() -> None:
    kernel = FakeKernel()
    table = RouteTable(NetlinkChannel(kernel))
    with pytest.raises(AssertionError, match="not ours"):
        await table.program(ProgramRoutes(delete=(ROUTES[0]._replace(protocol=3),)))
    assert kernel.batches == []
    kernel.close()


ENTRIES = tuple((3, bytes([10, 0, 0, n])) for n in range(4))


async def test_flushing_what_is_absent_succeeds() -> None:
    kernel = FakeKernel()
    kernel.refusals = {0: (errno.ENOENT, ""), 1: (errno.ENODEV, ""), 2: (errno.EPERM, "")}
    failures = await Neighbors(NetlinkChannel(kernel)).flush(FlushNeighbors(entries=ENTRIES))
    assert failures == [NeighborFailure(ifindex=3, ip=ENTRIES[2][1], reason="EPERM: Operation not permitted")]
    kernel.close()


async def test_probing_what_is_unresolved_resolves_it() -> None:
    kernel = FakeKernel()
    kernel.refusals = {0: (errno.ENOENT, ""), 2: (errno.EINVAL, ""), 3: (errno.ENODEV, "")}
    failures = await Neighbors(NetlinkChannel(kernel)).probe(ProbeNeighbors(entries=ENTRIES))
    assert [len(batch) for batch in kernel.batches] == [4, 2]
    assert failures == [NeighborFailure(ifindex=3, ip=ENTRIES[3][1], reason="ENODEV: No such device")]
    kernel.close()
