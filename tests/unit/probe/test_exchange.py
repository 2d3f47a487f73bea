import asyncio
import errno
import itertools
import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.addr import parse_ip
from lbguard.core.model import ConnectionSubject
from lbguard.probe.connections import Connection, Pair
from lbguard.probe.datapath import ProbeCounters
from lbguard.probe.exchange import Exchange, PollTimer, Wheel, next_start, ping_offset_s, spread_starts, tick_s
from lbguard.probe.failure_detector import DetectorSettings, RoundsDetector
from lbguard.probe.icmp import SEND_BATCH
from lbguard.probe.watch import Watch
from tests.fakes.echo import EchoNetwork, Time


def test_pings_are_spread_over_the_round_and_never_meet() -> None:
    first = [ping_offset_s(number, 0.5, 0.0) for number in range(4)]
    last = [ping_offset_s(number, 0.5, 0.999) for number in range(4)]
    assert first == [0.0, 0.5, 1.0, 1.5]
    assert all(early < late < early + 0.05 for early, late in zip(first, last, strict=True))


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (11.0, 12.0),
        (12.0, 12.0),
        (12.02, 12.0),  # judged a tick late: still in step, not one round later
        (17.9, 18.0),  # long without CPU: what is past is skipped, the phase is kept
        (30.1, 30.0),
    ],
)
def test_rounds_keep_their_phase(now: float, expected: float) -> None:
    assert next_start(10.0, 2.0, now) == expected


def test_connections_that_come_together_start_evenly() -> None:
    assert list(spread_starts(4, 2.0, 100.0)) == [100.0, 100.5, 101.0, 101.5]
    assert list(spread_starts(0, 2.0, 100.0)) == []


def test_ticks_have_bounds() -> None:
    assert tick_s(0.0125) == 0.001
    assert tick_s(0.1) == pytest.approx(0.005)
    assert tick_s(10.0) == 0.01


def test_a_wheel_gives_back_what_is_due_in_order() -> None:
    wheel: Wheel[str] = Wheel(0.5)
    assert wheel.next() is None
    for at, item in ((3.0, "c"), (1.1, "a"), (1.4, "b"), (9.0, "d")):
        wheel.add(at, item)
    assert wheel.next() == 1.5
    assert wheel.pop_due(1.4) == []
    assert wheel.pop_due(3.0) == [(1.5, ["a", "b"]), (3.0, ["c"])]
    assert wheel.next() == 9.0


@given(st.lists(st.floats(0, 1000), max_size=50), st.lists(st.floats(0, 1001), max_size=20))
def test_nothing_is_early_nothing_is_lost(moments: list[float], looks: list[float]) -> None:
    wheel: Wheel[float] = Wheel(0.01)
    for at in moments:
        wheel.add(at, at)
    seen: list[float] = []
    for now in [*sorted(looks), 1002.0]:
        for planned, items in wheel.pop_due(now):
            assert planned <= now
            assert all(planned - 0.01001 <= item <= planned + 1e-9 for item in items)
            seen += items
    assert sorted(seen) == sorted(moments)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)
    os.close(writer)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_steps_when_something_is_due() -> None:
    steps: list[float] = []
    reached = asyncio.Event()
    due = time.monotonic()

    def step() -> None:
        steps.append(time.monotonic())
        if len(steps) == 5:
            reached.set()

    pulse = PollTimer(step, lambda: due + 0.02 * len(steps), time.monotonic, 0.001)
    task = asyncio.create_task(pulse.run([]))
    await asyncio.wait_for(reached.wait(), 10)
    await stop(task)
    assert all(at >= due + 0.02 * number - 0.001 for number, at in enumerate(steps) if number)


async def test_what_is_readable_is_read_but_not_more_often_than_a_tick(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    read: list[bytes] = []
    stepped: list[float] = []
    done = asyncio.Event()

    def step() -> None:
        stepped.append(time.monotonic())
        try:
            read.append(os.read(reader, 100))
        except BlockingIOError:
            return
        if b"".join(read).endswith(b"."):
            done.set()

    pulse = PollTimer(step, lambda: None, time.monotonic, 0.05)
    task = asyncio.create_task(pulse.run([reader]))
    for _ in range(100):
        os.write(writer, b"x")
        await asyncio.sleep(0.001)
    os.write(writer, b".")
    await asyncio.wait_for(done.wait(), 10)
    await stop(task)
    assert b"".join(read) == b"x" * 100 + b"."
    assert all(later - earlier > 0.04 for earlier, later in itertools.pairwise(stepped))


async def test_nothing_is_left_in_the_loop_once_it_ended(pipe: tuple[int, int]) -> None:
    reader, _ = pipe
    pulse = PollTimer(lambda: None, lambda: None, time.monotonic, 0.001)
    await stop(asyncio.create_task(pulse.run([reader])))
    task = asyncio.create_task(pulse.run([reader]))
    await asyncio.sleep(0)
    await stop(task)
    assert not asyncio.get_running_loop().remove_reader(reader)


async def test_an_error_ends_it() -> None:
    def step() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        await asyncio.wait_for(PollTimer(step, lambda: None, time.monotonic, 0.001).run([]), 10)


async def test_a_change_of_what_is_due_is_taken_up() -> None:
    due: list[float] = []
    stepped = asyncio.Event()
    pulse = PollTimer(stepped.set, lambda: due[0] if due else None, time.monotonic, 0.001)
    pulse.arm()  # before it runs: nothing to arm
    task = asyncio.create_task(pulse.run([]))
    await asyncio.wait_for(stepped.wait(), 10)
    stepped.clear()
    due.append(time.monotonic())
    pulse.arm()
    await asyncio.wait_for(stepped.wait(), 10)
    await stop(task)


class World:
    """An exchange over a network in time that is told."""

    def __init__(self) -> None:
        self.time = Time()
        self.network = EchoNetwork(self.time)
        self.counters = ProbeCounters()
        self.exchange = Exchange(self.network.open_socket, self.counters, self.time)

    def watch(self, number: int = 1, ifname: str = "") -> Watch:
        pair = Pair(parse_ip("10.0.0.1"), parse_ip(f"10.1.{number // 256}.{number % 256}"))
        connection = Connection(id=str(number), subject=ConnectionSubject(id="c"), pairs=(pair,), ifname=ifname)
        watch = Watch(connection, 1, RoundsDetector(DetectorSettings(), [True]))
        self.exchange.join(watch)
        watch.begin_round(self.time.now, 2.0, 4)
        return watch

    def ping(self, *watches: Watch) -> None:
        for watch in watches:
            self.exchange.queue(watch)
        self.exchange.send(self.time.now)

    def wait(self, seconds: float) -> list[Watch]:
        self.time.now += seconds
        return self.exchange.receive()


def test_more_pings_than_a_batch_all_find_back() -> None:
    world = World()
    watches = [world.watch(number) for number in range(2 * SEND_BATCH + 3)]
    world.ping(*watches)
    world.wait(0.1)
    assert [len(watch.pairs[0].rtts) for watch in watches] == [1] * len(watches)
    assert {watch.pairs[0].last_sequence for watch in watches[:SEND_BATCH]} != {watches[-1].pairs[0].last_sequence}


def test_who_waits_for_replies_is_told_of_the_first() -> None:
    world = World()
    eager, patient = world.watch(1), world.watch(2)
    eager.eager = True
    world.ping(eager, patient)
    assert world.wait(0.1) == [eager]
    world.ping(eager, patient)
    assert world.wait(0.1) == []


def test_sequence_numbers_wrap() -> None:
    world = World()
    watch = world.watch()
    for _ in range(0x10000 + 5):
        world.ping(watch)
        world.wait(0.0006)
        watch.begin_round(world.time.now, 2.0, 4)
    assert world.counters.replies[True] == 0x10000 + 5
    assert world.counters.stray_replies == 0


def test_a_reply_to_who_left_is_stray() -> None:
    world = World()
    watch = world.watch()
    world.ping(watch)
    world.exchange.leave(watch)
    assert world.wait(0.1) == []
    assert (world.counters.stray_replies, world.counters.replies[True]) == (1, 0)


def test_a_second_reply_to_one_ping_is_stray() -> None:
    world = World()
    watch = world.watch()
    world.ping(watch)
    world.network.sockets[0].arrivals *= 2
    world.wait(0.1)
    assert (world.counters.stray_replies, world.counters.replies[True]) == (1, 1)


@pytest.mark.parametrize(
    ("code", "untested", "sent"), [(errno.ENOBUFS, True, 0), (errno.ENETUNREACH, False, 1), (errno.EINVAL, False, 1)]
)
def test_what_did_not_leave(code: int, untested: bool, sent: int) -> None:
    world = World()
    watch = world.watch()
    world.network.fail_next_send = code
    world.ping(watch)
    assert (watch.untested, watch.pairs[0].sent, watch.silent()) == (untested, sent, not untested)
    assert world.counters.pings[True] == 0
    assert world.counters.send_errors == {errno.errorcode[code]: 1}


def test_nothing_leaves_without_the_link() -> None:
    world = World()
    watch = world.watch(ifname="nsm-1")
    world.ping(watch)
    assert world.network.asked == {}
    assert world.counters.send_errors == {"ENODEV": 1}
    world.network.links["nsm-1"] = 4
    world.exchange.follow_link(watch)
    world.ping(watch)
    assert sum(world.network.asked.values()) == 1


def test_lost_replies_are_noticed_once_and_remembered() -> None:
    world = World()
    world.network.drops_next = {True: 5}
    began = world.time.now
    world.time.now += 1
    assert world.exchange.lost_replies(began)
    assert world.exchange.lost_replies(began)
    assert not world.exchange.lost_replies(world.time.now + 0.1)
    assert world.counters.overflows == 5


def test_sockets_are_closed() -> None:
    world = World()
    world.exchange.close()
    assert all(sock.closed for sock in world.network.sockets)


def test_what_is_refused_leaves_no_socket_behind() -> None:
    network = EchoNetwork(Time())
    opened = network.open_socket

    def refuse(*, ipv4: bool) -> object:
        if not ipv4:
            raise PermissionError(errno.EPERM, "not allowed")
        return opened(ipv4=ipv4)

    with pytest.raises(PermissionError):
        Exchange(refuse, ProbeCounters(), network.time)  # type: ignore[arg-type]
    assert [sock.closed for sock in network.sockets] == [True]
