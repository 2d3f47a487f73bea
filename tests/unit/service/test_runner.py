"""The loop, around a real engine whose world the test holds in its hands: time, lanes and the kernel's socket."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig, FreezeConfig
from lbguard.core.model import NeighborState, TargetSubject, Verdict, VerdictState
from lbguard.core.observation import LOOK_S
from lbguard.kernel.mirror import KernelMirror, MirrorSettings
from lbguard.service.actuators import DistributorEffect, KernelEffect, NeighborEffect, WorkQueue
from lbguard.service.runner import Runner
from tests.unit.core.harness import Guard, ip, ipv4_of, mac
from tests.unit.kernel import frames
from tests.unit.kernel.fake_kernel import FakeKernel, eventually

CONFIG = EngineConfig(
    neighbor_probe_interval_s=0.0,
    solicit_neighbors=False,
    freeze=FreezeConfig(threshold=1.0),
    availability_grace_s=3600.0,
)
STRANGER = ip("172.16.0.200")

Information = fx.Record | fx.Ignored | fx.NeighborMoved | fx.SetAvailability


async def _nothing(_: object) -> Sequence[ev.Event]:
    return ()


class World:
    """A runner around an engine, and all that it handed out, in order. No lane runs: effects are only kept."""

    def __init__(self, guard: Guard, *, inbox_limit: int = 65_536, verdicts_limit: int = 8_192) -> None:
        self.guard = guard
        self.effects: list[fx.Effect] = []
        self.heard: list[tuple[Information, float]] = []
        self.answers: list[fx.VerdictAnswered] = []
        self.resyncs: list[str] = []
        self.waiting_at_announcement: list[int] = []
        self.steps: list[int] = []
        self.stalls: list[float] = []
        self.caught_up: Callable[[], bool] = lambda: True
        kernel: WorkQueue[KernelEffect] = WorkQueue("kernel", _nothing, lambda _: None)
        neighbors: WorkQueue[NeighborEffect] = WorkQueue("neighbors", _nothing, lambda _: None)
        distributor: WorkQueue[DistributorEffect] = WorkQueue("distributor", _nothing, lambda _: None)
        self.runner = Runner(
            guard.engine,
            announce=lambda _: self.waiting_at_announcement.append(self.runner.inbox_depth),
            kernel=kernel,
            neighbors=neighbors,
            distributor=distributor,
            event_reporter=self,
            resync=self.resyncs.append,
            caught_up=lambda: self.caught_up(),
            answer=self.answers.append,
            inbox_limit=inbox_limit,
            verdicts_limit=verdicts_limit,
            clock=lambda: guard.now,
        )

    # The event_reporter

    def reported(self, effect: Information, now: float) -> None:
        self.heard.append((effect, now))

    def performed(self, effect: fx.Effect) -> None:
        self.effects.append(effect)

    def stepped(self, events: int, lag_s: float, duration_s: float) -> None:
        self.steps.append(events)

    def stalled(self, duration_s: float) -> None:
        self.stalls.append(duration_s)

    # What the test does and asks

    def post(self, *events: ev.Event) -> None:
        self.runner.post_kernel(events, self.guard.now)

    def link_is_back(self) -> ev.LinkSeen:
        return self.guard.link_seen(1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.runner.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled(), task.exception()

    async def until(self, condition: Callable[[], bool]) -> None:
        await eventually(condition)

    async def turn_by_turn_until(self, condition: Callable[[], bool]) -> None:
        """Give the loop one turn at a time until a condition holds."""
        async with asyncio.timeout(20):
            while True:
                if condition():
                    return
                await asyncio.sleep(0)

    def actions(self) -> list[str]:
        return [effect.decision.action.value for effect, _ in self.heard if isinstance(effect, fx.Record)]

    def moves_told(self) -> int:
        return sum(isinstance(effect, fx.NeighborMoved) for effect, _ in self.heard)

    def kinds(self) -> list[str]:
        return [type(effect).__name__ for effect in self.effects]

    def states(self) -> set[str]:
        return set(self.guard.states().values())


def held(targets: int = 2) -> Guard:
    """Return an engine whose targets are all held, for a link without carrier, until second 103."""
    guard = Guard(CONFIG, targets=targets)
    guard.cut(1)
    assert set(guard.states().values()) == {"held"}
    assert guard.deadline(1) == 103.0
    return guard


def neighbor_events(count: int) -> list[ev.Event]:
    states = (NeighborState.REACHABLE, NeighborState.STALE)
    return [ev.NeighborSeen(ifindex=1, ip=STRANGER, state=states[n % 2], mac=mac(9)) for n in range(count)]


# --- order


async def test_announcements_leave_before_repairs_and_those_before_decisions() -> None:
    guard = Guard(CONFIG)
    guard.unlink(1)
    world = World(guard)
    async with world.running():
        world.post(guard.link_seen(7, new_mac=7), guard.address(7, "172.16.0.7/24"))
        await world.until(lambda: "ProgramRoutes" in world.kinds())
        kinds = world.kinds()
        assert kinds.index("Announce") < kinds.index("ProgramRoutes")
        # The kernel's word that the routes stand brings the decision.
        routes = next(effect for effect in world.effects if isinstance(effect, fx.ProgramRoutes))
        world.runner.post([ev.RoutesProgrammed(added=routes.put)])
        await world.until(lambda: "recover" in world.actions())


async def test_an_announcement_leaves_before_the_rest_of_the_batch_is_looked_at() -> None:
    guard = Guard(CONFIG)
    guard.unlink(1)
    world = World(guard)
    async with world.running():
        world.post(guard.link_seen(7, new_mac=7), guard.address(7, "172.16.0.7/24"), *neighbor_events(5))
        await world.until(lambda: "ProgramRoutes" in world.kinds())
    assert world.waiting_at_announcement == [5]


# --- deadlines against news


async def test_a_deadline_waits_for_what_the_kernel_has_said_already() -> None:
    world = World(held())
    asked = 0

    def read_at_the_third_time() -> bool:
        nonlocal asked
        asked += 1
        if asked == 3:
            world.post(world.link_is_back())
        return asked > 3

    world.caught_up = read_at_the_third_time
    world.guard.now = 103.0
    async with world.running():
        await world.until(lambda: len(world.actions()) == 2)
    assert asked >= 3
    assert world.actions() == ["recover", "recover"]


async def test_a_deadline_does_not_fire_while_its_cancellation_waits_in_the_socket() -> None:
    kernel, world = FakeKernel(), World(held())
    snapshots = 0

    def sink(events: list[ev.Event], received_at: float) -> None:
        nonlocal snapshots
        changes = [event for event in events if not isinstance(event, ev.KernelSnapshot)]
        snapshots += len(events) - len(changes)
        world.runner.post_kernel(changes, received_at)

    mirror = KernelMirror(sink, lambda _: True, MirrorSettings(reconcile_interval_s=0), open_socket=lambda: kernel)
    await mirror.start()
    world.caught_up = mirror.caught_up
    try:
        await eventually(lambda: snapshots == 1)
        async with world.running():
            world.post()
            await asyncio.sleep(0)
            # The runner is woken before the loop looks at the socket.
            world.runner.post([])
            kernel.notify(16, frames.link_body(1, "nse-1", 0x10001, mac(1)))
            world.guard.now = 103.0
            await world.until(lambda: len(world.actions()) == 2)
        assert world.actions() == ["recover", "recover"]
    finally:
        await mirror.stop()
        kernel.close()


async def test_a_deadline_waits_for_what_is_behind_a_full_batch_in_the_inbox() -> None:
    world = World(held())
    world.guard.now = 103.0
    world.post(*neighbor_events(10_000), world.link_is_back())
    async with world.running():
        await world.until(lambda: len(world.actions()) == 2)
    assert world.actions() == ["recover", "recover"]
    assert len(world.steps) > 1, "one batch held it all: the test shows nothing"


async def test_a_flood_without_end_puts_no_deadline_off_for_ever() -> None:
    world = World(held())
    world.caught_up = lambda: False
    async with world.running():
        world.guard.now = 103.5
        world.post(*neighbor_events(1))
        await world.until(lambda: bool(world.steps))
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.states() == {"held"}
        for _ in range(10):
            world.guard.now += 0.2
            world.post(*neighbor_events(1))
            steps = len(world.steps)
            await world.until(lambda before=steps: len(world.steps) > before)  # type: ignore[misc]
        assert world.states() == {"withdrawn"}


async def test_a_deadline_fires_when_nothing_waits() -> None:
    world = World(held())
    async with world.running():
        world.guard.now = 103.0
        world.runner.post([])
        await world.until(lambda: world.actions() == ["withdraw", "withdraw"])


# --- stalls


async def test_a_stall_is_found_and_what_waits_is_read_before_anything_is_judged() -> None:
    world = World(held())
    reads = 0

    def read_at_the_third_time() -> bool:
        nonlocal reads
        reads += 1
        if reads == 3:
            world.post(world.link_is_back())
        return reads > 3

    async with world.running():
        world.runner.post([])
        world.post(*neighbor_events(1))
        await world.until(lambda: world.steps == [1])
        world.caught_up = read_at_the_third_time
        world.guard.now += 6.0
        world.runner.post([])
        await world.until(lambda: len(world.actions()) == 2)
    assert world.actions() == ["recover", "recover"]
    assert world.stalls == [6.0]


async def test_a_loop_that_is_blocked_has_stalled() -> None:
    world = World(held())
    async with world.running():
        world.post(*neighbor_events(1))
        await world.until(lambda: world.steps == [1])
        world.guard.now += 10.0
        # Nobody posts anything: the runner looks by itself, though its next deadline was far away.
        await world.until(lambda: bool(world.stalls))
        assert world.states() == {"held"}
    assert world.stalls == [10.0]
    assert world.guard.deadline(1) == 103.0 + 10.0 - LOOK_S


# --- overflow


async def test_a_full_inbox_is_out_of_sync_until_the_next_full_view() -> None:
    world = World(held(), inbox_limit=64)
    world.post(*neighbor_events(64))
    world.post(*neighbor_events(10), world.link_is_back())
    assert world.resyncs == ["inbox_full"]
    assert world.runner.inbox_dropped == 11
    assert world.runner.inbox_depth == 65
    async with world.running():
        await world.until(lambda: not world.runner.inbox_depth and not world.guard.engine.in_sync)
        assert world.guard.engine.sync_reason == "inbox_full"
        # Nothing is believed before the full view, and nothing is withdrawn without one.
        world.post(world.guard.link_seen(9))
        world.guard.now = 110.0
        world.runner.post([])
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.states() == {"held"}
        assert world.runner.inbox_dropped == 12
        address = world.guard.address(1, "172.16.0.1/24")
        routes = tuple(world.guard.routes)
        world.post(
            ev.KernelSnapshot(
                links=(world.link_is_back(),), addresses=(address,), routes=routes, rules=tuple(world.guard.rules)
            )
        )
        await world.until(lambda: world.actions() == ["recover", "recover"])
        assert world.guard.engine.in_sync
        world.post(*neighbor_events(1))
        await world.until(lambda: world.steps[-1:] == [1])
    assert world.runner.inbox_dropped == 12
    assert world.resyncs == ["inbox_full"]


async def test_results_and_lists_always_find_room() -> None:
    world = World(Guard(CONFIG), inbox_limit=64)
    world.post(*neighbor_events(100))
    world.runner.post([ev.SourceLost(reason="gone")])
    async with world.running():
        await world.until(lambda: world.guard.engine.source_reason == "gone")


# --- verdicts


def verdict(sequence: int) -> ev.VerdictReported:
    return ev.VerdictReported(
        reporter="proxy-a",
        verdict=Verdict(
            subject=TargetSubject(ip=ipv4_of(1)), state=VerdictState.UP, generation=1, sequence=sequence, lease_s=60.0
        ),
        ticket=sequence,
    )


async def test_verdicts_never_hold_up_the_kernels_word() -> None:
    world = World(held(), verdicts_limit=5_000)
    taken = [world.runner.post_verdict(verdict(n)) for n in range(1, 6_001)]
    assert taken == [True] * 5_000 + [False] * 1_000
    world.post(world.link_is_back())
    answered_at_repair: list[int] = []
    async with world.running():
        await world.until(lambda: bool(world.steps))
        answered_at_repair.append(len(world.answers))
        await world.until(lambda: len(world.answers) == 5_000)
    assert 0 < answered_at_repair[0] < 5_000
    assert [answer.ticket for answer in world.answers] == list(range(1, 5_001))


async def test_a_storm_of_the_kernel_does_not_silence_verdicts() -> None:
    world = World(held())
    world.runner.post_verdict(verdict(1))
    world.post(*neighbor_events(50_000))
    async with world.running():
        await world.until(lambda: bool(world.answers))
        assert world.runner.inbox_depth > 0


# --- telling


async def test_decisions_are_told_a_few_at_a_time_and_the_rest_at_the_end() -> None:
    guard = Guard(CONFIG, targets=200)
    world = World(guard)
    async with world.running():
        world.post(guard.link_seen(1, up=False))
        await world.turn_by_turn_until(lambda: bool(world.actions()))
        assert len(world.actions()) < 200
    assert len(world.actions()) < 200
    world.runner.flush()
    assert world.actions() == ["hold"] * 200
    world.runner.flush()
    assert world.actions() == ["hold"] * 200


async def test_what_is_told_late_is_told_with_the_moment_of_telling() -> None:
    guard = Guard(CONFIG, targets=200)
    world = World(guard)
    async with world.running():
        world.post(guard.link_seen(1, up=False))
        await world.turn_by_turn_until(lambda: bool(world.actions()))
    guard.now = 107.0
    world.runner.flush()
    records = [(effect, now) for effect, now in world.heard if isinstance(effect, fx.Record)]
    assert {effect.decision.at for effect, _ in records} == {100.0}
    assert {now for _, now in records} == {100.0, 107.0}


async def test_a_flood_of_information_is_told_as_fast_as_it_comes() -> None:
    targets, turns = 200, 100
    guard = Guard(CONFIG, targets=targets)
    world = World(guard)
    async with world.running():
        for turn in range(turns):
            world.post(
                *(
                    ev.NeighborSeen(ifindex=1, ip=ipv4_of(n), state=NeighborState.REACHABLE, mac=mac(turn))
                    for n in range(1, targets + 1)
                )
            )
            await world.turn_by_turn_until(lambda: not world.runner.inbox_depth)
        told = world.moves_told()
        await world.until(lambda: world.moves_told() == targets * (turns - 1))
    assert told > targets * turns / 2
