"""Mesh events over real gRPC, from a working model of a manager."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig, FreezeConfig
from lbguard.core.engine import Engine
from lbguard.core.engine_state import EngineState
from lbguard.core.model import StreamSpec, TargetSpec
from lbguard.nsm import WatchEvent
from lbguard.service.build_nsm import MeshEvents, _Addresses
from lbguard.settings.model import SettingsError, load
from lbguard.settings.surroundings import NsmEventSettings
from tests.fakes.nsmgr import HUGE_CONNECTIONS, FakeNsmgr, connection
from tests.unit.core.harness import Guard, ip
from tests.unit.kernel.fake_kernel import eventually

TARGET = ip("172.16.0.11")
C1 = connection("c1", src=("172.16.0.11/32",), dst=("172.16.0.1/32",), service="proxy.a")


@pytest.fixture
def engine() -> EngineState:
    made = Engine(EngineConfig(excluded_links=()))
    target = TargetSpec(identifier=1, ips=(TARGET,))
    made.observe(ev.SourceSnapshot(streams=(StreamSpec(name="stream-a", targets=(target,)),)), 0.0)
    return made


@contextlib.asynccontextmanager
async def following(
    manager: FakeNsmgr, engine: EngineState, path: Path, **settings: object
) -> AsyncIterator["Followed"]:
    made = Followed(
        engine, NsmEventSettings.model_validate({"address": f"unix://{path}", "backoff_max": 0.1} | settings)
    )
    await manager.start(path)
    task = asyncio.create_task(made.mesh.run())
    try:
        await eventually(lambda: made.mesh.events["list"] == 1)
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await manager.stop()


class Followed:
    def __init__(self, engine: EngineState, settings: NsmEventSettings) -> None:
        self.told: list[WatchEvent] = []
        self.mesh = MeshEvents(settings, engine, self.told.extend)


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "nsm.sock"


async def test_a_close_and_a_repair_reach_the_core(engine: EngineState, socket: Path) -> None:
    manager = FakeNsmgr()
    manager.connections["c1"] = C1
    async with following(manager, engine, socket, network_services=("proxy.a",)) as followed:
        assert list(manager.selectors[0].network_services) == ["proxy.a"]
        down = pb.Connection()
        down.CopyFrom(C1)
        down.state = pb.DOWN
        manager.update(down)
        await eventually(lambda: len(followed.told) == 1)
        assert isinstance(followed.told[0], ev.VerdictReported)
        manager.delete("c1")
        await eventually(lambda: len(followed.told) == 2)
        assert followed.told[1] == ev.NeighborsOutdated(ips=(TARGET,))
        assert followed.mesh.outdated == 1
        assert followed.mesh.events == {"list": 1, "update": 1, "delete": 1}


async def test_a_lost_manager_changes_nothing_and_is_found_again(engine: EngineState, socket: Path) -> None:
    manager = FakeNsmgr()
    manager.connections["c1"] = C1
    async with following(manager, engine, socket) as followed:
        await manager.stop()
        await eventually(lambda: followed.mesh.losses > 0)
        await manager.start(socket)
        await eventually(lambda: followed.mesh.events["list"] == 2)
        assert followed.told == []


async def test_a_loss_counts_once_whatever_comes_up_until_the_manager_is_back(
    engine: EngineState, socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> int:
        return sum(record.message.startswith("mesh manager lost") for record in caplog.records)

    manager = FakeNsmgr()
    async with following(manager, engine, socket) as followed:
        await manager.stop()
        await eventually(lambda: told() >= 2)
        assert followed.mesh.losses == 1
        await manager.start(socket)
        await eventually(lambda: followed.mesh.events["list"] == 2)
        assert followed.mesh.losses == 1
        await manager.stop()
        await eventually(lambda: followed.mesh.losses == 2)


async def test_a_manager_that_lost_its_memory_changes_nothing(engine: EngineState, socket: Path) -> None:
    manager = FakeNsmgr()
    manager.connections["c1"] = C1
    async with following(manager, engine, socket) as followed:
        await manager.stop(forget=True)
        await manager.start(socket)
        await eventually(lambda: followed.mesh.events["list"] == 2)
        manager.update(C1)
        await eventually(lambda: followed.mesh.events["update"] == 1)
        assert followed.told == []


@pytest.mark.parametrize("fault", ["duplicate_ids", "repeated_initial", "garbage_addresses", "huge", "abrupt_end"])
async def test_whatever_a_manager_does_the_close_that_follows_is_heard(
    engine: EngineState, socket: Path, fault: str
) -> None:
    manager = FakeNsmgr()
    manager.connections["c1"] = C1
    async with following(manager, engine, socket) as followed:
        manager.fail_once(fault)
        manager.update(C1)
        await eventually(lambda: sum(followed.mesh.events.values()) >= 2)
        assert followed.mesh.events.total() < HUGE_CONNECTIONS
        manager.update(C1)
        await eventually(lambda: sum(followed.mesh.events.values()) >= 3)
        before = len(followed.told)
        manager.delete("c1")
        await eventually(lambda: followed.mesh.events["delete"] == 1)
        assert followed.told[before:] == [ev.NeighborsOutdated(ips=(TARGET,))]


def test_half_of_the_tls_files_is_refused_by_name() -> None:
    with pytest.raises(SettingsError) as refused:
        load(flags={"nsm.tls_cert": "/x", "targets_file": "/y"})
    assert [problem.setting for problem in refused.value.problems] == ["nsm.tls_key"]


OUR_END = connection("our-end", src=("172.16.0.200/32",), dst=("172.16.0.1/32",), service="lb")


def state_of(state: "pb.State.ValueType") -> pb.Connection:
    made = pb.Connection()
    made.CopyFrom(OUR_END)
    made.state = state
    return made


@pytest.mark.parametrize("link", ["there before the manager", "new"])
@pytest.mark.parametrize("first", ["repair", "loss"])
async def test_a_repair_of_our_own_link_is_waited_for_whatever_is_told_first(
    socket: Path, link: str, first: str
) -> None:
    config = EngineConfig(neighbor_probe_interval_s=0.0, solicit_neighbors=False, freeze=FreezeConfig(threshold=1.0))
    guard = Guard(config, start=False)
    came: tuple[ev.Event, ...] = (ev.KernelSnapshot(), guard.link_seen(1), guard.address(1, "172.16.0.1/24"))
    if link == "there before the manager":
        guard.tell(*came)
    manager = FakeNsmgr()
    manager.connections["our-end"] = state_of(pb.UP)
    async with following(manager, guard.engine, socket, heal_time=15) as followed:
        if link == "new":
            followed.mesh.observe_kernel(came)
            guard.tell(*came)
        guard.register(1)
        if first == "loss":
            guard.unlink(1)
        manager.update(state_of(pb.DOWN))
        await eventually(lambda: len(followed.told) == 1)
        guard.tell(*followed.told)
        if first == "repair":
            guard.unlink(1)
        deadline = guard.deadline(1)
        assert deadline is not None
        assert deadline - guard.now == pytest.approx(15.0)


def test_addresses_of_ours_are_remembered_within_bounds(engine: EngineState) -> None:
    addresses = _Addresses(engine)
    seen = [ev.AddressSeen(ifindex=7, ip=number.to_bytes(4), prefix_length=24) for number in range(5000)]
    addresses.observe_kernel(seen)
    addresses.observe_kernel([ev.KernelSnapshot(addresses=(seen[0],))])
    known = [event.ip for event in seen if addresses.is_ours(event.ip)]
    assert (len(known), known[0], known[1]) == (4096, seen[0].ip, seen[905].ip)
