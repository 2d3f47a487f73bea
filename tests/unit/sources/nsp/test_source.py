import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest

from lbguard.api.gen.meridio.nsp.v1 import nsp_pb2 as pb
from lbguard.api.gen.meridio.nsp.v1 import nsp_pb2_grpc as pb_grpc
from lbguard.core.addr import Prefix
from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.core.model import StreamSpec, TargetSpec
from lbguard.rpc.channels import ChannelSpec, open_channel
from lbguard.settings.notation import parse_dial_address
from lbguard.sources.nsp.lists import Place
from lbguard.sources.nsp.source import NspConfig, NspSource
from tests.fakes.nsp import FakeNsp, conduit, stream, target, vip

BOUND_S = 90.0


def ip(text: str) -> bytes:
    return ip_address(text).packed


class Clock:
    """Runs with the loop's clock, and is put forward by hand."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead_s


class Watcher:
    """A source that runs, and what it told."""

    def __init__(self, config: NspConfig, clock: Clock) -> None:
        self.told: list[SourceSnapshot | SourceLost] = []
        self.clock = clock
        self._event = asyncio.Event()
        self.source = NspSource(config, self._take, clock=clock)

    def _take(self, event: SourceSnapshot | SourceLost) -> None:
        self.told.append(event)
        self._event.set()

    @property
    def snapshots(self) -> list[SourceSnapshot]:
        return [event for event in self.told if isinstance(event, SourceSnapshot)]

    @property
    def losses(self) -> list[SourceLost]:
        return [event for event in self.told if isinstance(event, SourceLost)]

    def identifiers(self, name: str = "stream-a") -> set[int]:
        """Return the targets of a stream as they were told last."""
        (spec,) = [spec for spec in self.snapshots[-1].streams if spec.name == name]
        return {target.identifier for target in spec.targets}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not condition():
                self._event.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._event.wait(), 0.02)


def config_for(address: str) -> NspConfig:
    return NspConfig(
        place=Place("trench-a", "load-balancer"),
        channel=ChannelSpec(endpoint=parse_dial_address(address)),
        max_backoff_s=0.1,
    )


@contextlib.asynccontextmanager
async def watching(config: NspConfig) -> AsyncIterator[Watcher]:
    watcher = Watcher(config, Clock())
    task = asyncio.create_task(watcher.source.run())
    try:
        yield watcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def nsp() -> AsyncIterator[FakeNsp]:
    fake = FakeNsp()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def serving(nsp: FakeNsp) -> FakeNsp:
    """Return a registry with one stream and four targets."""
    nsp.configure([stream("stream-a")], [vip("v4", "20.0.0.1/32")])
    nsp.put(*(target(number, f"172.16.0.{number}/24") for number in range(1, 5)))
    return nsp


@pytest.fixture
async def watcher(serving: FakeNsp) -> AsyncIterator[Watcher]:
    async with watching(config_for(serving.address)) as watcher:
        await watcher.until(lambda: bool(watcher.snapshots))
        yield watcher


async def test_the_three_watches_make_one_list(nsp: FakeNsp) -> None:
    nsp.configure(
        [stream("stream-a"), stream("stream-b", 50), stream("foreign", of=conduit("other"))],
        [vip("v4", "20.0.0.1/32"), vip("v6", "2000::1/128")],
    )
    nsp.put(target(3, "172.16.0.3/24", "fd00::3/64"), target(4, "172.16.0.4/24", status=pb.Target.DISABLED))
    async with watching(config_for(nsp.address)) as watcher:
        await watcher.until(lambda: bool(watcher.told))
        await asyncio.sleep(0.1)
    vips = (Prefix(ip("20.0.0.1"), 32), Prefix(ip("2000::1"), 128))
    only = TargetSpec(identifier=3, ips=(ip("172.16.0.3"), ip("fd00::3")))
    assert watcher.told == [
        SourceSnapshot(
            streams=(
                StreamSpec(
                    name="stream-a",
                    max_targets=100,
                    identifier_offset=5000,
                    vips=vips,
                    shm_name="tshm-stream-a",
                    targets=(only,),
                ),
                StreamSpec(
                    name="stream-b", max_targets=50, identifier_offset=5100, vips=vips, shm_name="tshm-stream-b"
                ),
            )
        )
    ]


async def test_the_requests_are_those_of_meridios_load_balancer(watcher: Watcher, serving: FakeNsp) -> None:
    place = pb.Conduit(name="load-balancer", trench=pb.Trench(name="trench-a"))
    assert sorted(map(str, serving.requests)) == sorted(
        map(str, [pb.Stream(conduit=place), pb.Vip(trench=place.trench), pb.Target(stream=pb.Stream(conduit=place))])
    )


async def test_nothing_is_told_before_every_watch_has_answered(serving: FakeNsp) -> None:
    serving.fail_once("slow")
    async with watching(config_for(serving.address)) as watcher:
        await watcher.until(lambda: watcher.source.counters.lists.keys() >= {"streams", "vips"})
        await asyncio.sleep(0.1)
        assert watcher.told == []
        serving.go_on.set()
        await watcher.until(lambda: bool(watcher.told))
        assert watcher.identifiers() == {1, 2, 3, 4}


async def test_a_refresh_that_changes_nothing_tells_nothing(watcher: Watcher, serving: FakeNsp) -> None:
    lists = watcher.source.counters.lists["targets"]
    serving.tell()
    await watcher.until(lambda: watcher.source.counters.lists["targets"] > lists)
    await asyncio.sleep(0.1)
    assert len(watcher.told) == 1


async def test_while_connected_a_removal_counts_at_once_even_of_all(watcher: Watcher, serving: FakeNsp) -> None:
    serving.remove(*list(serving.targets.values()))
    await watcher.until(lambda: watcher.identifiers() == set())
    assert watcher.source.counters.waiting == 0


async def test_an_address_changes_in_one_step(watcher: Watcher, serving: FakeNsp) -> None:
    # A pod registers its new addresses as a new entry, before or after it takes the old one away.
    serving.put(target(2, "172.16.0.99/24"))
    await watcher.until(lambda: len(watcher.snapshots) == 2)
    (spec,) = watcher.snapshots[-1].streams
    assert [entry.ips for entry in spec.targets if entry.identifier == 2] == [(ip("172.16.0.99"),)]
    serving.remove(target(2, "172.16.0.2/24"))
    await watcher.until(lambda: watcher.source.counters.lists["targets"] >= 3)
    await asyncio.sleep(0.1)
    assert len(watcher.snapshots) == 2


async def test_a_target_that_registers_again_is_itself_again(watcher: Watcher, serving: FakeNsp) -> None:
    before = watcher.snapshots[-1]
    again = target(2, "172.16.0.2/24")
    serving.remove(again)
    await watcher.until(lambda: watcher.identifiers() == {1, 3, 4})
    async with open_channel(config_for(serving.address).channel) as session:
        registry = pb_grpc.TargetRegistryStub(session.channel)
        await registry.Register(target(2, "172.16.0.2/24"))  # DISABLED whatever it says
        await registry.Register(target(2, "172.16.0.2/24"))
    await watcher.until(lambda: watcher.identifiers() == {1, 2, 3, 4})
    assert watcher.snapshots[-1] == before


async def test_a_disabled_target_is_not_served(watcher: Watcher, serving: FakeNsp) -> None:
    serving.put(target(2, "172.16.0.2/24", status=pb.Target.DISABLED))
    await watcher.until(lambda: watcher.identifiers() == {1, 3, 4})


async def test_a_lost_registry_changes_nothing_and_is_told_once(watcher: Watcher, serving: FakeNsp) -> None:
    await serving.stop()
    await watcher.until(lambda: bool(watcher.losses))
    await asyncio.sleep(0.5)
    assert [type(event) for event in watcher.told] == [SourceSnapshot, SourceLost]
    assert watcher.losses[0].reason
    assert not watcher.source.counters.connected
    await serving.start(serving.address)
    await watcher.until(lambda: len(watcher.snapshots) == 2)
    assert watcher.told[0] == watcher.told[-1]
    assert (watcher.source.counters.sessions, watcher.source.counters.losses) == (2, 1)


async def test_a_registry_that_comes_back_empty_is_not_believed_until_it_has_settled(
    watcher: Watcher, serving: FakeNsp
) -> None:
    before = watcher.snapshots[0]
    await serving.stop(forget=True)
    await watcher.until(lambda: bool(watcher.losses))
    await serving.start(serving.address)
    await watcher.until(lambda: len(watcher.snapshots) == 2)
    assert watcher.snapshots[1] == before
    assert watcher.source.counters.waiting == 6  # a stream, a VIP, four targets
    watcher.clock.ahead_s = 61.0
    serving.tell()
    serving.put(target(1, "172.16.0.1/24"))
    await watcher.until(lambda: watcher.snapshots[-1].streams == ())
    assert watcher.source.counters.waiting == 0


async def test_a_registry_that_fills_again_never_takes_anything_away(watcher: Watcher, serving: FakeNsp) -> None:
    before = watcher.snapshots[0]
    await serving.stop(forget=True)
    await watcher.until(lambda: bool(watcher.losses))
    await serving.start(serving.address)
    await watcher.until(lambda: len(watcher.snapshots) == 2)
    serving.configure([stream("stream-a")], [vip("v4", "20.0.0.1/32")])
    for number in range(1, 5):
        lists = watcher.source.counters.lists["targets"]
        serving.put(target(number, f"172.16.0.{number}/24"))
        await watcher.until(lambda lists=lists: watcher.source.counters.lists["targets"] > lists)  # type: ignore[misc]
    await watcher.until(lambda: watcher.source.counters.waiting == 0)
    assert set(watcher.snapshots) == {before}
    # Whole again: from now on what it takes away is meant.
    serving.remove(target(4, "172.16.0.4/24"))
    await watcher.until(lambda: watcher.identifiers() == {1, 2, 3})


async def test_few_removals_while_the_registry_was_away_count_at_once(watcher: Watcher, serving: FakeNsp) -> None:
    await serving.stop()
    await watcher.until(lambda: bool(watcher.losses))
    serving.remove(target(4, "172.16.0.4/24"))
    await serving.start(serving.address)
    await watcher.until(lambda: len(watcher.snapshots) == 2)
    assert watcher.identifiers() == {1, 2, 3}


async def test_a_session_that_ends_abruptly_is_a_loss_and_heals(watcher: Watcher, serving: FakeNsp) -> None:
    serving.fail_once("abrupt_end")
    serving.tell()
    await watcher.until(lambda: len(watcher.snapshots) == 2)
    assert [type(event) for event in watcher.told] == [SourceSnapshot, SourceLost, SourceSnapshot]
    assert "goes away" in watcher.losses[0].reason
    assert watcher.told[0] == watcher.told[-1]


@pytest.mark.parametrize(
    ("fault", "reason", "left"),
    [
        ("duplicate_identifiers", "duplicate_identifier", {1, 3, 4}),
        ("garbage_ips", "bad_address", {1, 2, 3, 4}),
        ("missing_identifier", "no_identifier", {1, 2, 3, 4}),
    ],
)
async def test_an_entry_that_cannot_be_read_costs_no_other(
    watcher: Watcher, serving: FakeNsp, fault: str, reason: str, left: set[int]
) -> None:
    serving.fail_once(fault)
    serving.put(target(5, "172.16.0.5/24"))
    await watcher.until(lambda: 5 in watcher.identifiers())
    assert watcher.identifiers() == left | {5}
    assert watcher.source.counters.skipped[reason] >= 1


async def test_an_empty_list_in_mid_session_counts(watcher: Watcher, serving: FakeNsp) -> None:
    serving.fail_once("empty_list")
    serving.tell()
    await watcher.until(lambda: watcher.identifiers() == set())
    serving.tell()
    await watcher.until(lambda: watcher.identifiers() == {1, 2, 3, 4})


async def test_a_registry_without_streams_at_the_start_is_no_list(nsp: FakeNsp) -> None:
    async with watching(config_for(nsp.address)) as watcher:
        await watcher.until(lambda: bool(watcher.told))
        assert watcher.told == [SourceLost(reason="the registry lists no stream yet")]
        nsp.configure([stream("stream-a")])
        await watcher.until(lambda: bool(watcher.snapshots))
        assert watcher.identifiers() == set()


async def test_a_registry_that_cannot_be_reached_at_the_start_is_told_with_its_reason() -> None:
    fake = FakeNsp()
    address = await fake.start()
    await fake.stop()
    async with watching(config_for(address)) as watcher:
        await watcher.until(lambda: bool(watcher.told))
        assert "refused" in watcher.losses[0].reason
        fake.configure([stream("stream-a")])
        await fake.start(address)
        await watcher.until(lambda: bool(watcher.snapshots))
    await fake.stop()


async def test_reload_tells_the_list_again_in_a_new_session(watcher: Watcher) -> None:
    watcher.source.reload()
    await watcher.until(lambda: len(watcher.snapshots) == 2)
    assert watcher.losses == []
    assert watcher.told[0] == watcher.told[1]


async def test_offsets_that_change_under_us_are_followed_where_that_is_asked_for(serving: FakeNsp) -> None:
    seen = {"stream-a": 6000}
    watcher = Watcher(config_for(serving.address), Clock())
    watcher.source = NspSource(
        replace(config_for(serving.address), recheck_s=0.05),
        watcher._take,
        seen_offsets=lambda streams, targets, known: seen,
        follow_offsets=True,
    )
    task = asyncio.create_task(watcher.source.run())
    await watcher.until(lambda: bool(watcher.told))
    seen["stream-a"] = 7000
    await watcher.until(lambda: len(watcher.told) == 3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    told = [[(spec.name, spec.identifier_offset) for spec in event.streams] for event in watcher.snapshots]
    # The core takes other marks only for a stream that was given up before.
    assert told == [[("stream-a", 6000)], [], [("stream-a", 7000)]]


async def test_a_registry_that_minds_pings_is_pinged_less_often(serving: FakeNsp) -> None:
    await serving.stop()
    strict = [("grpc.http2.max_ping_strikes", 1), ("grpc.http2.min_ping_interval_without_data_ms", 300_000)]
    await serving.start(serving.address, options=strict)
    config = config_for(serving.address)
    config = replace(config, channel=replace(config.channel, keepalive_s=0.1))
    async with watching(config) as watcher:
        await watcher.until(lambda: bool(watcher.losses))
        assert watcher.source._keepalive_s == pytest.approx(0.2)


async def test_a_thousand_targets(nsp: FakeNsp) -> None:
    nsp.configure([stream("stream-a", 1000)])
    nsp.put(*(target(n, f"172.16.{n >> 8}.{n & 255}/16", f"fd00::{n:x}/64") for n in range(1, 1001)))
    async with watching(config_for(nsp.address)) as watcher:
        await watcher.until(lambda: bool(watcher.told))
        assert watcher.identifiers() == set(range(1, 1001))
