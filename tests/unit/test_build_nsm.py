"""Mesh events over real gRPC, from a working model of a manager."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.build_nsm import MeshEvents
from lbguard.core import events as ev
from lbguard.core.netview import NetView
from lbguard.nsm.settings import NsmEventSettings
from lbguard.nsm.watch import WatchEvent
from lbguard.settings import SettingsError, load
from tests.fakes.nsmgr import HUGE_CONNECTIONS, FakeNsmgr, connection
from tests.unit.core.harness import ip
from tests.unit.netlink.fake_kernel import eventually

TARGET = ip("172.16.0.11")
C1 = connection("c1", src=("172.16.0.11/32",), dst=("172.16.0.1/32",), service="proxy.a")


@pytest.fixture
def view() -> NetView:
    made = NetView(excluded_links=(), failures_needed=2)
    made.add_ip(TARGET)
    return made


@contextlib.asynccontextmanager
async def following(manager: FakeNsmgr, view: NetView, path: Path, **settings: object) -> AsyncIterator["Followed"]:
    made = Followed(view, NsmEventSettings.model_validate({"address": f"unix://{path}", "backoff_max": 0.1} | settings))
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
    def __init__(self, view: NetView, settings: NsmEventSettings) -> None:
        self.told: list[WatchEvent] = []
        self.mesh = MeshEvents(settings, view, self.told.extend)


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "nsm.sock"


async def test_a_close_and_a_repair_reach_the_core(view: NetView, socket: Path) -> None:
    manager = FakeNsmgr()
    manager.connections["c1"] = C1
    async with following(manager, view, socket, network_services=("proxy.a",)) as followed:
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


async def test_a_lost_manager_changes_nothing_and_is_found_again(view: NetView, socket: Path) -> None:
    manager = FakeNsmgr()
    manager.connections["c1"] = C1
    async with following(manager, view, socket) as followed:
        await manager.stop()
        await eventually(lambda: followed.mesh.losses > 0)
        await manager.start(socket)
        await eventually(lambda: followed.mesh.events["list"] == 2)
        assert followed.told == []


async def test_a_manager_that_lost_its_memory_changes_nothing(view: NetView, socket: Path) -> None:
    manager = FakeNsmgr()
    manager.connections["c1"] = C1
    async with following(manager, view, socket) as followed:
        await manager.stop(forget=True)
        await manager.start(socket)
        await eventually(lambda: followed.mesh.events["list"] == 2)
        manager.update(C1)
        await eventually(lambda: followed.mesh.events["update"] == 1)
        assert followed.told == []


@pytest.mark.parametrize("fault", ["duplicate_ids", "repeated_initial", "garbage_addresses", "huge", "abrupt_end"])
async def test_whatever_a_manager_does_the_close_that_follows_is_heard(view: NetView, socket: Path, fault: str) -> None:
    manager = FakeNsmgr()
    manager.connections["c1"] = C1
    async with following(manager, view, socket) as followed:
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
