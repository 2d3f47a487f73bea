import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from lbguard.core.events import (
    Event,
    KernelOutOfSync,
    KernelSnapshot,
    LinkGone,
    LinkSeen,
    NeighborSeen,
    RouteGone,
    RouteSeen,
)
from lbguard.core.model import Route, RouteKind
from lbguard.kernel.codec.encode import DumpKind
from lbguard.kernel.mirror import KernelMirror, MirrorError, MirrorSettings
from tests.unit.kernel import frames
from tests.unit.kernel.fake_kernel import FakeKernel, eventually

UP = 0x10001
MAC = bytes.fromhex("0200000000aa")
V4 = bytes([172, 16, 0, 10])
OTHER_V4 = bytes([172, 16, 0, 11])
QUICK = MirrorSettings(reconcile_interval_s=0, resync_min_interval_s=0.01, resync_max_interval_s=0.02)
LINK = LinkSeen(ifindex=3, name="a", up=True, mac=MAC)


class Log:
    """The sink: collects events, and waits for some."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.more = asyncio.Event()

    def __call__(self, batch: list[Event], received_at: float) -> None:
        assert batch
        assert received_at > 0
        self.events += batch
        self.more.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.more.clear()
                await self.more.wait()

    async def snapshots(self, count: int) -> KernelSnapshot:
        def found() -> list[KernelSnapshot]:
            return [event for event in self.events if isinstance(event, KernelSnapshot)]

        await self.until(lambda: len(found()) >= count)
        return found()[count - 1]

    def losses(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, KernelOutOfSync)]


@asynccontextmanager
async def running(
    kernel: FakeKernel, log: Log, settings: MirrorSettings = QUICK, tables: Callable[[int], bool] = lambda _: True
) -> AsyncIterator[KernelMirror]:
    mirror = KernelMirror(log, tables, settings, open_socket=lambda: kernel)
    await mirror.start()
    try:
        yield mirror
    finally:
        await mirror.stop()
        kernel.close()


def kernel_with_link() -> FakeKernel:
    kernel = FakeKernel()
    kernel.objects[DumpKind.LINKS] = [frames.link_body(3, "a", UP, MAC)]
    return kernel


async def test_snapshot_first_then_changes() -> None:
    kernel, log = kernel_with_link(), Log()
    kernel.objects[DumpKind.ROUTES] = [frames.route_body(5001, gateway=V4, oif=3, metric=2048)]
    async with running(kernel, log) as mirror:
        snapshot = await log.snapshots(1)
        assert mirror.in_sync
        assert snapshot.links == (LINK,)
        assert snapshot.routes == (Route(5001, True, RouteKind.UNICAST, 2048, V4, 3),)
        assert kernel.asked == list(DumpKind)
        kernel.notify(28, frames.neighbor_body(3, V4, 2, MAC))
        await log.until(lambda: len(log.events) == 2)
        assert isinstance(log.events[1], NeighborSeen)
        assert mirror.counters.decoded["NeighborSeen"] == 1


async def test_notification_during_the_dump_has_the_last_word() -> None:
    kernel, log = kernel_with_link(), Log()
    kernel.notify(17, frames.link_body(3, "a", 0, MAC))
    kernel.notify(16, frames.link_body(4, "b", UP, MAC))
    async with running(kernel, log):
        snapshot = await log.snapshots(1)
    assert [link.ifindex for link in snapshot.links] == [4]


async def test_foreign_sender_is_dropped_by_name() -> None:
    kernel, log = kernel_with_link(), Log()
    kernel.notify(17, frames.link_body(3, "a", 0, MAC), port=4711)
    async with running(kernel, log) as mirror:
        snapshot = await log.snapshots(1)
        assert snapshot.links == (LINK,)
        assert mirror.counters.ignored["foreign_sender"] == 1


async def test_interrupted_dump_is_repeated() -> None:
    kernel, log = kernel_with_link(), Log()
    kernel.fault("interrupt_dump", 2)
    async with running(kernel, log) as mirror:
        assert (await log.snapshots(1)).links == (LINK,)
        assert kernel.asked[:4] == [DumpKind.LINKS, DumpKind.LINKS, DumpKind.LINKS, DumpKind.ADDRESSES]
        assert mirror.counters.dumps_interrupted == 2
        assert log.losses() == []


async def test_always_interrupted_dump_is_out_of_sync_until_it_works() -> None:
    kernel, log = kernel_with_link(), Log()
    kernel.fault("interrupt_dump", QUICK.dump_attempts)
    async with running(kernel, log) as mirror:
        await log.snapshots(1)
        assert log.losses() == ["dump_interrupted"]
        assert mirror.counters.resyncs["dump_interrupted"] == 1


async def test_refused_dump_is_retried() -> None:
    kernel, log = kernel_with_link(), Log()
    kernel.fault("refuse_dump")
    async with running(kernel, log):
        await log.snapshots(1)
        assert log.losses() == ["dump_refused"]


async def test_dump_without_an_answer_is_given_up() -> None:
    kernel, log = kernel_with_link(), Log()
    kernel.fault("swallow_dump")
    settings = MirrorSettings(
        reconcile_interval_s=0, resync_min_interval_s=0.01, resync_max_interval_s=0.01, dump_timeout_s=0.05
    )
    async with running(kernel, log, settings):
        await log.snapshots(1)
        assert log.losses()[0] == "dump_timeout"


async def test_overrun_discards_what_is_older_than_the_loss() -> None:
    kernel, log = kernel_with_link(), Log()
    async with running(kernel, log) as mirror:
        await log.snapshots(1)
        # The socket still holds news of a link, whose end was among what the kernel dropped.
        kernel.overrun()
        kernel.notify(16, frames.link_body(9, "ghost", UP, MAC))
        second = await log.snapshots(2)
        assert log.losses() == ["overrun"]
        assert second.links == (LINK,)
        assert mirror.counters.overruns == 1
        assert mirror.counters.ignored["while_draining"] == 1
        assert not any(isinstance(event, LinkSeen) for event in log.events)


async def test_loss_is_told_once_until_the_next_snapshot() -> None:
    kernel, log = kernel_with_link(), Log()
    async with running(kernel, log) as mirror:
        await log.snapshots(1)
        for _ in range(5):
            kernel.overrun()
        await log.snapshots(2)
        assert log.losses() == ["overrun"]
        assert mirror.counters.overruns == 5
        kernel.overrun()
        await log.snapshots(3)
        assert log.losses() == ["overrun", "overrun"]


async def test_dumps_after_losses_are_rate_limited() -> None:
    kernel, log = kernel_with_link(), Log()
    settings = MirrorSettings(reconcile_interval_s=0, resync_min_interval_s=0.3, resync_max_interval_s=0.3)
    started_at = time.monotonic()
    async with running(kernel, log, settings) as mirror:
        await log.snapshots(1)
        for _ in range(10):
            mirror.request_resync("inbox_full")
            await asyncio.sleep(0)
        await log.snapshots(2)
        assert time.monotonic() - started_at >= 0.3
        assert mirror.counters.snapshots == 2
        assert log.losses() == ["inbox_full"]


async def test_truncated_datagram_means_resync() -> None:
    kernel, log = kernel_with_link(), Log()
    async with running(kernel, log) as mirror:
        await log.snapshots(1)
        kernel.notify(16, frames.link_body(4, "b", UP, MAC) + frames.attribute(99, b"\0" * 60000) * 3)
        await log.snapshots(2)
        assert log.losses() == ["truncated"]
        assert mirror.counters.ignored["truncated"] == 1


async def test_reconcile_brings_what_no_message_told_and_stays_in_sync() -> None:
    kernel, log = kernel_with_link(), Log()
    async with running(kernel, log) as mirror:
        await log.snapshots(1)
        kernel.objects[DumpKind.LINKS] = []
        mirror.request_reconcile()
        assert mirror.in_sync
        assert (await log.snapshots(2)).links == ()
        assert log.losses() == []


async def test_periodic_reconcile() -> None:
    kernel, log = kernel_with_link(), Log()
    settings = MirrorSettings(reconcile_interval_s=0.02)
    async with running(kernel, log, settings):
        await log.snapshots(4)
    assert log.losses() == []


async def test_failed_reconcile_does_not_cost_the_sync() -> None:
    kernel, log = kernel_with_link(), Log()
    async with running(kernel, log) as mirror:
        await log.snapshots(1)
        kernel.fault("refuse_dump")
        mirror.request_reconcile()
        await eventually(lambda: bool(mirror.counters.reconciles_abandoned))
        assert mirror.in_sync
        kernel.notify(17, frames.link_body(3, "a", 0, MAC))
        await log.until(lambda: LinkGone(ifindex=3) in log.events)
        assert log.losses() == []


async def test_changes_pass_while_a_reconcile_runs() -> None:
    kernel, log = kernel_with_link(), Log()
    async with running(kernel, log) as mirror:
        await log.snapshots(1)
        kernel.fault("swallow_dump")
        mirror.request_reconcile()
        await eventually(lambda: len(kernel.asked) > len(DumpKind))
        kernel.notify(17, frames.link_body(3, "a", 0, MAC))
        await log.until(lambda: LinkGone(ifindex=3) in log.events)


async def test_replaced_route_is_told_as_gone() -> None:
    kernel, log = kernel_with_link(), Log()
    kernel.objects[DumpKind.ROUTES] = [frames.route_body(5001, gateway=V4, oif=3, metric=2048)]
    async with running(kernel, log):
        await log.snapshots(1)
        kernel.notify(24, frames.route_body(5001, gateway=OTHER_V4, oif=4, metric=2048), flags=frames.REPLACE)
        await log.until(lambda: len(log.events) == 3)
        assert log.events[1:] == [
            RouteGone(route=Route(5001, True, RouteKind.UNICAST, 2048, V4, 3)),
            RouteSeen(route=Route(5001, True, RouteKind.UNICAST, 2048, OTHER_V4, 4)),
        ]


async def test_broken_socket_ends_the_mirror_and_says_so() -> None:
    kernel, log = kernel_with_link(), Log()
    async with running(kernel, log) as mirror:
        await log.snapshots(1)
        kernel.fault("break_socket")
        kernel.notify(17, frames.link_body(3, "a", 0, MAC))
        with pytest.raises(MirrorError, match="broken"):
            await mirror.wait()
        assert not mirror.in_sync
        assert log.losses() == ["mirror_failed"]
        assert kernel.closed


async def test_failing_sink_ends_the_mirror() -> None:
    kernel = kernel_with_link()
    batches: list[list[Event]] = []

    def sink(batch: list[Event], _: float) -> None:
        batches.append(batch)
        if len(batches) == 1:
            raise RuntimeError("inbox closed")

    mirror = KernelMirror(sink, lambda _: True, QUICK, open_socket=lambda: kernel)
    await mirror.start()
    with pytest.raises(MirrorError, match="inbox closed"):
        await mirror.wait()
    assert batches[1] == [KernelOutOfSync(reason="mirror_failed")]
    await mirror.stop()


async def test_resync_requested_from_the_sink() -> None:
    kernel = kernel_with_link()
    log = Log()
    mirrors: list[KernelMirror] = []

    def sink(batch: list[Event], received_at: float) -> None:
        log(batch, received_at)
        if len(log.events) == 1:
            mirrors[0].request_resync("inbox_full")

    mirrors.append(KernelMirror(sink, lambda _: True, QUICK, open_socket=lambda: kernel))
    await mirrors[0].start()
    await log.snapshots(2)
    assert [type(event) for event in log.events] == [KernelSnapshot, KernelOutOfSync, KernelSnapshot]
    await mirrors[0].stop()
    await mirrors[0].wait()


async def test_stop_is_clean_at_any_time() -> None:
    kernel, log = kernel_with_link(), Log()
    kernel.fault("swallow_dump")
    async with running(kernel, log) as mirror:
        await mirror.stop()
        await mirror.stop()
        await mirror.wait()
    assert log.events == []


async def test_caught_up_is_what_the_socket_says() -> None:
    kernel, log = kernel_with_link(), Log()
    mirror = KernelMirror(log, lambda _: True, QUICK, open_socket=lambda: kernel)
    assert mirror.caught_up()
    async with running(kernel, log) as mirror:
        await log.snapshots(1)
        assert mirror.caught_up()
        kernel.notify(17, frames.link_body(3, "a", 0, MAC))
        assert not mirror.caught_up()
        await log.until(lambda: isinstance(log.events[-1], LinkGone))
        assert mirror.caught_up()
    assert mirror.caught_up()
