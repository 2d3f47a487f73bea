"""The source with real FIFOs and files, a core whose every word a test says, and callers that are not a program."""

import asyncio
import contextlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from lbguard.core.addr import Ip, parse_ip
from lbguard.core.events import CommitDone, CommitFailed, DistributorLost, SourceSnapshot
from lbguard.core.model import TargetKey
from lbguard.sources.interposer.registrations import FoundTable
from lbguard.sources.interposer.source import InterposerConfig, InterposerSource

IPS = (parse_ip("172.16.1.11"), parse_ip("fd00:1::b"))
INIT = "init --ownfw=0 --shm=tshm-a --M=1000 --N=10"


class Desk:
    """What the source has to do with: the core, the routes, the tables."""

    def __init__(self) -> None:
        self.ready = self.caught_up = self.known = True
        self.draining: set[int] = set()
        self.learning = False
        self.lost: set[int] = set()
        self.sound: dict[int, float] = {}
        self.routes: dict[int, tuple[Ip, ...]] = {}
        self.rerouted: set[int] = set()
        self.tables: dict[str, FoundTable] = {"a": FoundTable(max_targets=10, marks=[-1] * 10)}
        self.lists: list[dict[str, set[int]]] = []
        self.on_list: Callable[[SourceSnapshot], None] = lambda _: None

    def path_lost(self, target: TargetKey, within_s: float) -> bool:
        assert within_s == 1.0
        return target.identifier in self.lost

    def sound_for_s(self, target: TargetKey) -> float:
        return self.sound.get(target.identifier, 0.0)

    def drains(self, target: TargetKey) -> bool:
        return target.identifier in self.draining

    def learns(self, stream: str) -> bool:
        assert stream == "a"
        return self.learning

    def gateways(self, table: int) -> tuple[Ip, ...]:
        return self.routes.get(table, ())

    def take_changed(self) -> set[int]:
        changed, self.rerouted = self.rerouted, set()
        return changed

    def read_tables(self) -> Mapping[str, FoundTable]:
        return self.tables

    def emit(self, snapshot: SourceSnapshot) -> None:
        self.lists.append({spec.name: {target.identifier for target in spec.targets} for spec in snapshot.streams})
        self.on_list(snapshot)


class World:
    """A source that runs, with a core that commits at once (unless a test stops it)."""

    def __init__(self, directory: Path, desk: Desk, *, passive: bool = False) -> None:
        self.directory = directory
        self.desk = desk
        config = InterposerConfig(
            directory=directory, answer_timeout_s=5.0, removal_timeout_s=5.0, passive=passive, confirm_timeout_s=0.3
        )
        self.source = InterposerSource(config, desk.emit, core=desk, routes=desk, tables=desk.read_tables)
        desk.on_list = self.commit
        self._served: set[str] = set()

    def commit(self, snapshot: SourceSnapshot) -> None:
        listed = {spec.name: frozenset(target.identifier for target in spec.targets) for spec in snapshot.streams}
        for name in self._served - listed.keys():
            self.source.observe([CommitDone(stream=name, registered=frozenset(), active=frozenset())])
        for name, who in listed.items():
            self.source.observe([CommitDone(stream=name, registered=who, active=who)])
        self._served = set(listed)

    def be_patient(self) -> None:
        """Wait longer for a commit than a test waits for an answer."""
        self.source._config = replace(self.source._config, answer_timeout_s=120.0, removal_timeout_s=120.0)

    async def ask(self, call: str) -> str:
        """Ask as the program does; return the answer without its version."""
        name = str(uuid.uuid4())
        path = self.directory / "answers" / name
        os.mkfifo(path)
        waiting = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        try:
            (self.directory / "requests").write_text(f"\n1 {name} {call}\n")
            async with asyncio.timeout(30):
                while True:
                    with contextlib.suppress(BlockingIOError):
                        return os.read(waiting, 1000).decode().rstrip("\n").removeprefix("1 ")
                    await asyncio.sleep(0.002)
        finally:
            os.close(waiting)
            path.unlink(missing_ok=True)

    def miss(self, *calls: str) -> None:
        with (self.directory / "missed").open("a") as file:
            file.write("".join(f"1 {call}\n" for call in calls))

    def kept(self) -> dict[str, dict[int, bool]]:
        """Return who is in the file, and whether confirmed."""
        streams = json.loads((self.directory / "registry.json").read_text())["streams"]
        return {
            name: {int(identifier): entry["confirmed"] for identifier, entry in stream["targets"].items()}
            for name, stream in streams.items()
        }

    @property
    def calls(self) -> dict[tuple[str, str], int]:
        return dict(self.source.counters.calls)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError("it did not come true in 30 s")


@contextlib.asynccontextmanager
async def running(world: World) -> AsyncIterator[World]:
    task = asyncio.create_task(world.source.run())
    try:
        await until(lambda: (world.directory / "requests").exists() or task.done())
        yield world
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert not (world.directory / "requests").exists()


@pytest.fixture
def desk() -> Desk:
    made = Desk()
    made.routes = {5000 + identifier: IPS for identifier in range(1, 11)}
    return made


@pytest.fixture
async def world(tmp_path: Path, desk: Desk) -> AsyncIterator[World]:
    """A source that has a stream with targets 1 and 2."""
    async with running(World(tmp_path, desk)) as made:
        assert await made.ask(INIT) == "pass"
        for identifier in (1, 2):
            assert await made.ask(activate(identifier)) == "done"
        yield made


def activate(identifier: int, offset: int = 5000) -> str:
    return f"activate --index={identifier - 1} --shm=tshm-a {offset + identifier}"


def deactivate(identifier: int) -> str:
    return f"deactivate --index={identifier - 1} --shm=tshm-a"


async def test_activation_is_answered_when_it_is_committed(world: World, desk: Desk) -> None:
    assert desk.lists[-1] == {"a": {1, 2}}
    assert world.kept() == {"a": {1: True, 2: True}}
    desk.on_list = lambda _: None
    question = asyncio.create_task(world.ask(activate(3)))
    await until(lambda: desk.lists[-1] == {"a": {1, 2, 3}})
    await asyncio.sleep(0.02)
    assert not question.done()
    world.source.observe([CommitDone(stream="a", registered=frozenset({1, 2, 3}), active=frozenset({1, 2}))])
    await asyncio.sleep(0.02)
    assert not question.done()
    world.source.observe([CommitDone(stream="a", registered=frozenset({1, 2, 3}), active=frozenset({1, 2, 3}))])
    assert await question == "done"
    told = len(desk.lists)
    assert await world.ask(activate(3)) == "done", "it is active already"
    assert len(desk.lists) == told
    assert world.calls == {("init", "new"): 1, ("activate", "admitted"): 4}


async def test_a_target_that_may_not_come_in_yet_is_accepted(tmp_path: Path, desk: Desk) -> None:
    """The core has its reasons, such as damping; it is not the caller's to wait for them."""
    world = World(tmp_path, desk)
    world.source._config = InterposerConfig(directory=tmp_path, answer_timeout_s=0.05)
    desk.on_list = lambda _: None
    async with running(world):
        await world.ask(INIT)
        assert await world.ask(activate(1)) == "done"
        assert world.calls["activate", "accepted"] == 1


async def test_a_deactivation_of_a_broken_path_is_a_failed_verification(world: World, desk: Desk) -> None:
    desk.lost = {1}
    told = len(desk.lists)
    assert await world.ask(deactivate(1)) == "done"
    assert len(desk.lists) == told, "for the core, nothing has changed"
    assert world.kept() == {"a": {1: False, 2: True}}
    desk.lost = set()
    assert await world.ask(activate(1)) == "done"
    assert world.kept() == {"a": {1: True, 2: True}}
    assert world.calls["deactivate", "held"] == 1


async def test_any_other_deactivation_is_a_removal(world: World, desk: Desk) -> None:
    desk.on_list = lambda _: None
    question = asyncio.create_task(world.ask(deactivate(1)))
    await until(lambda: desk.lists[-1] == {"a": {2}})
    assert world.kept() == {"a": {2: True}}
    await asyncio.sleep(0.02)
    assert not question.done(), "it is still in the table"
    world.source.observe([CommitDone(stream="a", registered=frozenset({2}), active=frozenset({2}))])
    assert await question == "done"
    assert await world.ask(deactivate(1)) == "pass", "whom we do not know is not ours to decide"


async def test_a_removal_that_drains_is_answered_at_once_and_stays_so(world: World, desk: Desk) -> None:
    """Nothing is committed, and the real program would take the target out of the table."""
    world.be_patient()
    desk.on_list = lambda snapshot: desk.draining.add(1)
    assert await world.ask(deactivate(1)) == "done"
    assert desk.lists[-1] == {"a": {2}}
    assert await world.ask(deactivate(1)) == "done"
    assert world.calls["deactivate", "draining"] == 2
    assert await world.ask(activate(1)) == "done", "it is in the table all along"
    assert desk.lists[-1] == {"a": {1, 2}}


async def test_a_removal_that_drains_late_is_not_left_to_the_real_program(world: World, desk: Desk) -> None:
    """On a busy machine the core may need longer for a removal than an activate is given."""
    world.source._config = replace(world.source._config, answer_timeout_s=0.02, removal_timeout_s=120.0)
    desk.on_list = lambda _: None
    desk.caught_up = False
    question = asyncio.create_task(world.ask(deactivate(1)))
    await asyncio.sleep(0.1)
    desk.caught_up = True
    await until(lambda: desk.lists[-1] == {"a": {2}})
    await asyncio.sleep(0.1)
    assert not question.done()
    desk.draining.add(1)
    world.source.observe([CommitDone(stream="a", registered=frozenset({1, 2}), active=frozenset({1, 2}))])
    assert await question == "done"
    assert world.calls["deactivate", "draining"] == 1


async def test_changes_that_wait_for_flows_are_answered_at_once(world: World, desk: Desk) -> None:
    """A target that is removed is inactive at once, one that is new will be active later."""
    world.be_patient()

    def commit_the_active(snapshot: SourceSnapshot) -> None:
        desk.learning = True
        active = frozenset(target.identifier for target in snapshot.streams[0].targets)
        world.source.observe([CommitDone(stream="a", registered=both, active=active & both)])

    both = frozenset({1, 2})
    desk.on_list = commit_the_active
    assert await world.ask(activate(3)) == "done"
    assert await world.ask(deactivate(1)) == "done"
    assert world.calls["activate", "accepted"] == 1
    assert world.calls["deactivate", "removed"] == 1


async def test_who_is_sound_and_not_activated_again_is_removed(world: World, desk: Desk) -> None:
    desk.lost = {1, 2}
    await world.ask(deactivate(1))
    await world.ask(deactivate(2))
    desk.sound = {1: 3600.0}
    await until(lambda: world.kept() == {"a": {2: False}})
    assert desk.lists[-1] == {"a": {2}}


async def test_a_table_is_emptied_before_it_is_made_anew_or_deleted(world: World, desk: Desk) -> None:
    expected: list[tuple[str, dict[str, dict[int, bool]]]] = [(INIT, {"a": {}}), ("delete --shm=tshm-a", {})]
    for call, kept in expected:
        await world.ask(activate(1))
        desk.on_list = lambda _: None
        question = asyncio.create_task(world.ask(call))
        await until(lambda: desk.lists[-1] == {})
        await asyncio.sleep(0.02)
        assert not question.done()
        world.source.observe([CommitDone(stream="a", registered=frozenset(), active=frozenset())])
        assert await question == "pass"
        assert world.kept() == kept
        desk.on_list = world.commit


async def test_a_distributor_that_fails_leaves_the_calls_to_the_real_program(world: World, desk: Desk) -> None:
    desk.on_list = lambda _: None
    world.source.observe([DistributorLost(stream="a", reason="gone"), CommitFailed(stream="a", reason="no permission")])
    assert await world.ask(activate(3)) == "pass"
    assert await world.ask(deactivate(1)) == "pass"
    desk.lost = {2}
    assert await world.ask(deactivate(2)) == "pass"
    assert world.kept() == {"a": {3: True}}


async def test_activation_without_a_route(world: World, desk: Desk) -> None:
    desk.routes.clear()
    assert (await world.ask(activate(3))) == "fail no route to the target in table 5003"
    assert await world.ask(activate(1)) == "done", "its addresses are known from before"
    # While nobody knows what the kernel holds, the real program does it, and the target is taken up afterwards.
    desk.caught_up = False
    assert await world.ask(activate(4)) == "pass"
    assert world.kept() == {"a": {1: True, 2: True}}
    desk.routes[5004] = IPS[:1]
    await until(lambda: world.kept() == {"a": {1: True, 2: True, 4: True}})
    assert desk.lists[-1] == {"a": {1, 2, 4}}


async def test_a_core_that_is_not_ready(tmp_path: Path, desk: Desk) -> None:
    desk.ready = False
    async with running(World(tmp_path, desk)) as world:
        for call in (INIT, activate(1), activate(2), deactivate(2)):
            assert await world.ask(call) == "pass"
        assert world.kept() == {"a": {1: True}}
        assert desk.lists[-1] == {"a": {1}}


async def test_passive(tmp_path: Path, desk: Desk) -> None:
    desk.lost = {2}
    async with running(World(tmp_path, desk, passive=True)) as world:
        for call in (INIT, activate(1), activate(2), deactivate(2)):
            assert await world.ask(call) == "pass"
        assert desk.lists[-1] == {"a": {1}}


async def test_missed_calls_are_facts(world: World, desk: Desk) -> None:
    desk.lost = {1}
    world.miss(activate(3), deactivate(1), "flowlb", "activate --shm=x")
    with (world.directory / "missed").open("ab") as file:
        file.write(b"\xff\0\n")
    await until(lambda: desk.lists[-1] == {"a": {2, 3}})
    assert world.source.counters.dropped["command"] == 1
    # Before a question is looked at, what was missed is.
    desk.lost = set()
    world.miss(deactivate(3))
    assert await world.ask(activate(3)) == "done"
    assert world.kept() == {"a": {2: True, 3: True}}
    world.miss("init --ownfw=0 --shm=tshm-a --M=500 --N=5", activate(5, 6000), "delete --shm=tshm-b")
    desk.routes[6005] = IPS
    await until(lambda: desk.lists[-1] == {"a": {5}})
    world.miss("delete --shm=tshm-a")
    await until(lambda: desk.lists[-1] == {})


async def test_a_restart(tmp_path: Path, desk: Desk) -> None:
    async with running(World(tmp_path, desk)) as world:
        await world.ask(INIT)
        for identifier in (1, 2, 3):
            await world.ask(activate(identifier))
        desk.lost = {1}
        await world.ask(deactivate(1))
    # Meanwhile the load balancer goes on, and the kernel has taken target 1's routes.
    del desk.routes[5001]
    world.miss(deactivate(2), activate(4))
    desk.tables["a"] = FoundTable(max_targets=10, marks=[5001, -1, 5003, 5004, *[-1] * 6])
    async with running(World(tmp_path, desk)) as world:
        assert desk.lists[-1] == {"a": {1, 3, 4}}
        entry = world.source.registrations.registry.entry("a", 1)
        assert entry is not None
        assert entry.ips == IPS
        assert not entry.confirmed
    # And once more, after the streams were deleted.
    del desk.tables["a"]
    async with running(World(tmp_path, desk)):
        assert desk.lists[-1] == {}


@pytest.mark.parametrize("content", [None, b"garbage", b'{"format": 99}'])
async def test_without_a_registry_the_tables_tell(tmp_path: Path, desk: Desk, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "registry.json").write_bytes(content)
    desk.tables = {
        "a": FoundTable(max_targets=4, marks=[5001, -1, 5003, -1]),
        "b": FoundTable(max_targets=4, marks=[-1] * 4),
        "c": FoundTable(max_targets=4, marks=[7001, 7777, -1, -1]),
    }
    del desk.routes[5003]
    async with running(World(tmp_path, desk)) as world:
        assert desk.lists == [{"a": {1}}]
        assert world.source.registrations.registry.streams["a"].max_targets == 4


async def test_a_stream_whose_init_nobody_saw(tmp_path: Path, desk: Desk) -> None:
    desk.routes[6001] = IPS
    async with running(World(tmp_path, desk)) as world:
        assert await world.ask(activate(1)) == "done"
        assert await world.ask("activate --index=0 --shm=tshm-unknown 6001") == "pass"
        assert await world.ask("activate --index=0 --shm=tshm-unknown 7001") == "pass"
        assert world.source.registrations.registry.streams["a"].max_targets == 10


async def test_activations_out_of_place(world: World, desk: Desk) -> None:
    desk.routes |= {6003: IPS, 5011: IPS}
    assert (await world.ask(activate(3, 6000))).startswith("fail ")
    assert await world.ask(activate(11)) == "pass", "the real program says what is wrong with the index"
    assert world.kept() == {"a": {1: True, 2: True}}


async def test_lines_that_are_none(world: World) -> None:
    (world.directory / "requests").write_bytes(b"\xff\n1 x y\n2\n\n" + b"z" * 3000 + b"\n")
    assert await world.ask("show --shm=tshm-a") == "pass"
    assert await world.ask(activate(1)) == "done"
    # A caller that was killed: its request counts for nothing.
    (world.directory / "requests").write_text(f"1 {uuid.uuid4()} {deactivate(1)}\n")
    assert await world.ask(activate(2)) == "done"
    assert world.kept() == {"a": {1: True, 2: True}}
    assert world.source.counters.dropped["caller_gone"] == 1


async def test_hundreds_of_calls_at_once(world: World, desk: Desk) -> None:
    desk.tables["b"] = FoundTable(max_targets=400, marks=[-1] * 400)
    desk.routes |= {20_000 + number: IPS for number in range(1, 401)}
    calls = [f"activate --index={number} --shm=tshm-b {20_001 + number}" for number in range(400)]
    answers = await asyncio.gather(*map(world.ask, calls))
    assert set(answers) == {"done"}
    assert desk.lists[-1] == {"a": {1, 2}, "b": set(range(1, 401))}


async def test_calls_that_wait_when_the_service_ends_are_left_to_the_real_program(tmp_path: Path, desk: Desk) -> None:
    desk.on_list = lambda _: None
    world = World(tmp_path, desk)
    desk.on_list = lambda _: None
    async with running(world):
        await world.ask(INIT)
        question = asyncio.create_task(world.ask(activate(1)))
        await until(lambda: desk.lists[-1] == {"a": {1}})
    assert await question == ""


async def test_a_fifo_that_is_taken_away_is_made_anew(world: World) -> None:
    (world.directory / "requests").unlink()
    (world.directory / "missed").unlink()
    await until((world.directory / "requests").exists)
    assert await world.ask(activate(1)) == "done"
    assert (world.directory / "missed").exists()


async def test_a_list_is_told_again_when_asked(world: World, desk: Desk) -> None:
    told = len(desk.lists)
    world.source.reload()
    assert desk.lists[told:] == [{"a": {1, 2}}]


async def test_a_registry_that_cannot_be_written_through_a_tampered_name_is_kept_all_the_same(
    world: World, desk: Desk
) -> None:
    (world.directory / ".registry.json.new").mkdir()
    (world.directory / "registry.json").unlink()
    (world.directory / "registry.json").mkdir()
    assert await world.ask(activate(3)) == "done"
    assert desk.lists[-1] == {"a": {1, 2, 3}}
    assert world.kept() == {"a": {1: True, 2: True, 3: True}}


async def test_a_directory_that_is_replaced_is_used_and_one_that_is_none_is_told(world: World, desk: Desk) -> None:
    world.directory.rename(world.directory.with_name("old"))
    world.directory.symlink_to(world.directory.with_name("old"))
    await until(lambda: world.source.problem)
    assert str(world.directory) in world.source.problem
    world.directory.unlink()
    await until(lambda: (world.directory / "requests").exists() and not world.source.problem)
    assert await world.ask(activate(3)) == "done"
    assert desk.lists[-1] == {"a": {1, 2, 3}}
    assert world.kept() == {"a": {1: True, 2: True, 3: True}}


async def test_a_start_with_a_directory_that_cannot_be_used_begins_when_it_can(tmp_path: Path, desk: Desk) -> None:
    place = tmp_path / "shared"
    place.write_text("somebody's file")
    world = World(place, desk)
    task = asyncio.create_task(world.source.run())
    await until(lambda: world.source.problem)
    assert desk.lists == [], "nothing is told before it is known who is registered"
    place.unlink()
    await until((place / "requests").exists)
    assert await world.ask(INIT) == "pass"
    assert world.source.problem == ""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
