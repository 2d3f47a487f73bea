import asyncio
import errno

import pytest

from lbguard.core.effects import FlushNeighbors, ProbeNeighbors, ProgramRoutes, ProgramRules
from lbguard.core.events import RouteFailed, RoutesProgrammed, RuleFailed, RuleGone, RuleSeen
from lbguard.core.model import Route, RouteKind, Rule
from lbguard.kernel.batches import NeighborFailure, Neighbors, NetlinkChannel, RouteTable
from lbguard.kernel.codec.encode import delete_neighbor
from tests.unit.kernel import frames
from tests.unit.kernel.fake_kernel import FakeKernel, eventually

MESSAGES = [delete_neighbor(3, bytes([10, 0, 0, number])) for number in range(10)]


async def test_one_acknowledgement_per_chunk_and_results_by_sequence() -> None:
    kernel = FakeKernel()
    kernel.refusals = {1: (errno.ENOENT, ""), 5: (errno.EINVAL, "No link layer address given")}
    channel = NetlinkChannel(kernel, chunk_messages=4)
    acks = await channel.submit(MESSAGES)
    assert [len(batch) for batch in kernel.batches] == [4, 4, 2]
    assert [[bool(flags & 0x4) for _, flags, _ in batch] for batch in kernel.batches] == [
        [False, False, False, True],
        [False, False, False, True],
        [False, True],
    ]
    assert [ack.error for ack in acks] == [0, errno.ENOENT, 0, 0, 0, errno.EINVAL, 0, 0, 0, 0]
    assert acks[1].reason == "ENOENT: No such file or directory"
    assert acks[5].reason == "EINVAL: No link layer address given"
    assert acks[0].reason == ""
    kernel.close()


async def test_nothing_to_do() -> None:
    kernel = FakeKernel()
    assert await NetlinkChannel(kernel).submit([]) == []
    assert kernel.batches == []
    kernel.close()


async def test_lost_answers_are_no_success() -> None:
    kernel = FakeKernel()
    channel = NetlinkChannel(kernel, chunk_messages=4)
    kernel.overrun()
    acks = await channel.submit(MESSAGES)
    assert [ack.error for ack in acks] == [errno.ENOBUFS] * 4 + [0] * 6
    kernel.close()


async def test_no_answer_in_time_and_late_answers_are_not_mixed_up() -> None:
    kernel = FakeKernel()
    channel = NetlinkChannel(kernel, answer_timeout_s=0.02)
    kernel.fault("swallow_answers")
    assert [ack.error for ack in await channel.submit(MESSAGES[:2])] == [errno.ETIMEDOUT] * 2
    kernel.deliver(frames.error(2, errno.EPERM))
    assert [ack.error for ack in await channel.submit(MESSAGES[:2])] == [0, 0]
    kernel.close()


async def test_answers_that_come_late_are_waited_for() -> None:
    kernel = FakeKernel()
    channel = NetlinkChannel(kernel)
    kernel.fault("swallow_answers")
    pending = asyncio.create_task(channel.submit(MESSAGES[:2]))
    await eventually(lambda: bool(kernel.batches))
    kernel.deliver(frames.error(1, errno.ENOENT))
    kernel.deliver(frames.error(2, 0))
    assert [ack.error for ack in await pending] == [errno.ENOENT, 0]
    kernel.close()


async def test_foreign_answers_are_not_believed() -> None:
    kernel = FakeKernel()
    kernel.deliver(frames.error(1, errno.EPERM), port=4711)
    assert [ack.error for ack in await NetlinkChannel(kernel).submit(MESSAGES[:1])] == [0]
    kernel.close()


async def test_callers_share_the_channel() -> None:
    kernel = FakeKernel()
    kernel.refusals = {0: (errno.ENOENT, "")}
    channel = NetlinkChannel(kernel, chunk_messages=3)
    results = await asyncio.gather(*(channel.submit(MESSAGES) for _ in range(5)))
    assert [len(acks) for acks in results] == [10] * 5
    assert sum(ack.error == errno.ENOENT for acks in results for ack in acks) == 1
    kernel.close()


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
