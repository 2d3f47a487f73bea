"""The source beside the load balancer of Meridio-2: its names, identifiers, restarts and changes of addresses."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lbguard.core.addr import Ip, parse_ip
from lbguard.core.events import SourceSnapshot
from lbguard.core.model import StreamSpec
from lbguard.sources.flavour import Flavour
from lbguard.sources.interposer.registrations import FoundTable
from tests.unit.sources.interposer.test_source import Desk, World, running, until

INIT = "init --ownfw=0 --shm=a --M=1000 --N=10"
OFFSET = 5000


def ips_of(identifier: int, *, new: bool = False) -> tuple[Ip, Ip]:
    host = identifier + (101 if new else 11)
    return parse_ip(f"172.16.1.{host}"), parse_ip(f"fd00:1::{host:x}")


def activate(identifier: int, offset: int = OFFSET) -> str:
    return f"activate --index={identifier} --shm=a {offset + identifier}"


def deactivate(identifier: int) -> str:
    return f"deactivate --index={identifier} --shm=a"


class Watched(Desk):
    """A desk that keeps the last list whole."""

    last: tuple[StreamSpec, ...] = ()

    def emit(self, snapshot: SourceSnapshot) -> None:
        self.last = snapshot.streams
        super().emit(snapshot)

    def ips(self) -> dict[int, tuple[Ip, ...]]:
        return {target.identifier: target.ips for stream in self.last for target in stream.targets}

    def reroute(self, identifier: int, *ips: Ip) -> None:
        self.routes[OFFSET + identifier] = ips
        self.rerouted.add(OFFSET + identifier)


@pytest.fixture
def desk() -> Watched:
    made = Watched()
    made.tables = {"a": FoundTable(max_targets=10, marks=[-1] * 10, flavour=Flavour.MERIDIO_2)}
    made.routes = {OFFSET + identifier: ips_of(identifier) for identifier in range(10)}
    return made


@pytest.fixture
async def world(tmp_path: Path, desk: Watched) -> AsyncIterator[World]:
    """A source that has a stream with targets 0 and 1."""
    async with running(World(tmp_path, desk)) as made:
        assert await made.ask(INIT) == "pass"
        for identifier in (0, 1):
            assert await made.ask(activate(identifier)) == "done"
        yield made


async def test_names_and_identifiers_are_those_of_the_load_balancer(world: World, desk: Watched) -> None:
    (stream,) = desk.last
    assert (stream.name, stream.shm_name, stream.first_identifier) == ("a", "a", 0)
    assert [stream.mark(target.identifier) for target in stream.targets] == [5000, 5001]
    assert world.kept() == {"a": {0: True, 1: True}}


async def test_every_deactivation_is_a_removal(world: World, desk: Watched) -> None:
    """It verifies no path, so a lost link is never the reason."""
    desk.lost = {0}
    assert await world.ask(deactivate(0)) == "done"
    assert desk.lists[-1] == {"a": {1}}
    assert world.calls["deactivate", "removed"] == 1


async def test_a_table_made_again_has_the_targets_of_before_with_the_first_of_them(world: World, desk: Watched) -> None:
    assert await world.ask(INIT) == "pass"
    assert desk.lists[-1] == {}
    assert await world.ask(activate(1)) == "done"
    assert desk.lists[-1] == {"a": {0, 1}}
    assert world.kept() == {"a": {0: False, 1: True}}
    assert await world.ask(activate(0)) == "done"
    assert world.kept() == {"a": {0: True, 1: True}}


async def test_a_target_that_the_load_balancer_does_not_know_after_its_restart_is_removed(
    world: World, desk: Watched
) -> None:
    await world.ask(INIT)
    desk.sound = {0: 3600.0, 1: 3600.0}
    desk.routes[6001] = ips_of(1)
    await world.ask(activate(1, 6000))
    assert desk.last[0].identifier_offset == 6000, "another order of the tables"
    assert desk.ips() == {0: ips_of(0), 1: ips_of(1)}
    await until(lambda: desk.lists[-1] == {"a": {1}})


async def test_a_table_of_another_size_or_one_that_the_real_program_made_begins_empty(
    world: World, desk: Watched
) -> None:
    await world.ask(INIT.replace("--N=10", "--N=9"))
    await world.ask(activate(1))
    assert desk.lists[-1] == {"a": {1}}
    await world.ask(activate(0))
    world.miss(INIT, activate(1))
    await until(lambda: desk.lists[-1] == {"a": {1}})


async def test_a_deleted_stream_leaves_nobody(world: World, desk: Watched) -> None:
    await world.ask("delete --shm=a")
    assert desk.lists[-1] == {}
    await world.ask(INIT)
    await world.ask(activate(1))
    assert desk.lists[-1] == {"a": {1}}


async def test_changed_addresses_are_read_from_the_routes(world: World, desk: Watched) -> None:
    desk.reroute(0, *ips_of(0, new=True))
    await until(lambda: desk.ips() == {0: ips_of(0, new=True), 1: ips_of(1)})
    # First one family, then the other.
    desk.reroute(1, ips_of(1)[1], ips_of(1, new=True)[0])
    await until(lambda: desk.ips()[1] == (ips_of(1, new=True)[0], ips_of(1)[1]))


async def test_routes_that_went_with_their_link_leave_the_addresses(world: World, desk: Watched) -> None:
    desk.lost = {1}
    desk.reroute(0)
    desk.reroute(1, ips_of(1)[0])
    await asyncio.sleep(1.0)
    assert desk.ips() == {0: ips_of(0), 1: ips_of(1)}


async def test_a_family_whose_route_is_deleted_loses_its_address(world: World, desk: Watched) -> None:
    desk.reroute(1, ips_of(1)[0])
    await until(lambda: desk.ips() == {0: ips_of(0), 1: ips_of(1)[:1]})
    desk.reroute(1, *ips_of(1))
    await until(lambda: desk.ips() == {0: ips_of(0), 1: ips_of(1)})


async def test_a_second_memory_of_one_stream_is_the_real_programs(world: World, desk: Watched) -> None:
    assert await world.ask("init --ownfw=0 --shm=tshm-a --M=1000 --N=10") == "pass"
    assert await world.ask("activate --index=0 --shm=tshm-a 5001") == "pass"
    assert desk.lists[-1] == {"a": {0, 1}}
    assert world.calls["activate", "out_of_place"] == 1


async def test_a_restart_of_lbguard_keeps_names_and_identifiers(world: World, desk: Watched, tmp_path: Path) -> None:
    later = Watched()
    later.tables = {"a": FoundTable(max_targets=10, marks=[5000, 5001] + [-1] * 8, flavour=Flavour.MERIDIO_2)}
    again = World(tmp_path, later)
    world.source.registrations.report()
    again.source.registrations._file._directory.open()
    again.source.registrations.load()
    again.source.registrations.compare(later.tables)
    again.source.registrations.report()
    assert later.last == desk.last


def test_a_table_that_was_there_before_is_adopted(desk: Watched, tmp_path: Path) -> None:
    source = World(tmp_path, desk).source
    marks = [5000, -1, 5002] + [-1] * 7
    source.registrations._file._directory.open()
    source.registrations.compare({"a": FoundTable(max_targets=10, marks=marks, flavour=Flavour.MERIDIO_2)})
    source.registrations.report()
    assert desk.ips() == {0: ips_of(0), 2: ips_of(2)}
