"""The choice between nfqlb's memory and nftables, with two fakes in their places."""

from pathlib import Path

import pytest

from lbguard.core.model import StreamSpec, StreamTable, TargetSpec
from lbguard.distributor.base import DistributorError
from lbguard.distributor.select import AutoDistributor
from tests.fakes.distributor import FakeDistributor

A, B = (
    StreamSpec(name=name, shm_name=f"tshm-{name}", targets=(TargetSpec(identifier=1, ips=(b"\xac\x10\0\x0a",)),))
    for name in ("a", "b")
)


class World:
    """The distributor under test, its two fakes and the directory in which memories appear."""

    def __init__(self, shm_dir: Path) -> None:
        self.shm_dir = shm_dir
        self.memory = FakeDistributor("nfqlb-shm")
        self.embedded = FakeDistributor("nftables")
        self.made = 0
        self.auto = AutoDistributor(shm_dir, self.memory, self._make)

    def _make(self) -> FakeDistributor:
        self.made += 1
        return self.embedded

    def appear(self, stream: StreamSpec) -> None:
        (self.shm_dir / f"tshm-{stream.name}").touch()

    def vanish(self, stream: StreamSpec) -> None:
        (self.shm_dir / f"tshm-{stream.name}").unlink()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def table(stream: StreamSpec, *active: int) -> StreamTable:
    return StreamTable(stream=stream, registered=frozenset({1, 2}), active=frozenset(active))


async def test_a_stream_with_a_memory_needs_no_nftables(world: World) -> None:
    world.appear(A)
    await world.auto.attach(A)
    assert [result.error for result in await world.auto.commit([table(A, 1)])] == [""]
    assert world.memory.tables["a"][1] == {1}
    assert await world.auto.lost_streams() == {}
    assert world.made == 0


async def test_each_stream_has_its_own_choice_and_results_keep_their_order(world: World) -> None:
    world.appear(B)
    for stream in (A, B):
        await world.auto.attach(stream)
    world.memory.fault("refuse_table")
    results = await world.auto.commit([table(B, 1), table(A, 2)])
    assert [(result.stream, result.error) for result in results] == [("b", "refused"), ("a", "")]
    assert await world.auto.read_active(A) == {2}
    assert await world.auto.read_active(B) == frozenset()


async def test_one_distributor_that_fails_as_a_whole_takes_no_other_along(world: World) -> None:
    world.appear(B)
    for stream in (A, B):
        await world.auto.attach(stream)
    world.embedded.fault("commit")
    results = await world.auto.commit([table(A, 1), table(B, 1)])
    assert [(result.stream, result.error) for result in results] == [("a", "commit refused"), ("b", "")]


async def test_a_memory_that_appears_takes_the_stream_over_without_a_gap(world: World) -> None:
    await world.auto.attach(A)
    await world.auto.commit([table(A, 1, 2)])
    assert await world.auto.lost_streams() == {}
    world.appear(A)
    assert await world.auto.lost_streams() == {"a": "nfqlb memory appeared"}
    await world.auto.attach(A)
    # The new memory is empty: what nftables holds is what packets get until it was committed.
    assert await world.auto.read_active(A) == frozenset()
    assert world.embedded.tables["a"][1] == {1, 2}
    assert [result.error for result in await world.auto.commit([table(A, 1, 2)])] == [""]
    assert world.memory.tables["a"][1] == {1, 2}
    assert "a" not in world.embedded.tables
    assert await world.auto.lost_streams() == {}


async def test_a_memory_that_cannot_be_used_leaves_the_stream_where_it_is(world: World) -> None:
    await world.auto.attach(A)
    await world.auto.commit([table(A, 1)])
    world.appear(A)
    world.memory.fault("attach")
    with pytest.raises(DistributorError):
        await world.auto.attach(A)
    assert world.embedded.tables["a"][1] == {1}
    assert await world.auto.lost_streams() == {"a": "nfqlb memory appeared"}
    await world.auto.attach(A)
    await world.auto.commit([table(A, 1)])
    assert "a" not in world.embedded.tables


async def test_a_commit_is_not_done_until_nftables_let_go(world: World) -> None:
    await world.auto.attach(A)
    world.appear(A)
    await world.auto.attach(A)
    world.embedded.fault("detach")
    results = await world.auto.commit([table(A, 1)])
    assert "nftables still takes its packets" in results[0].error
    assert [result.error for result in await world.auto.commit([table(A, 1)])] == [""]
    assert "a" not in world.embedded.tables


async def test_a_memory_that_comes_and_goes_before_the_commit_changes_nothing(world: World) -> None:
    await world.auto.attach(A)
    await world.auto.commit([table(A, 1)])
    world.appear(A)
    await world.auto.attach(A)
    world.vanish(A)
    world.memory.lose("a")
    assert await world.auto.lost_streams() == {"a": "removed"}
    await world.auto.attach(A)
    assert await world.auto.read_active(A) == {1}
    assert [result.error for result in await world.auto.commit([table(A, 1)])] == [""]
    assert world.embedded.tables["a"][1] == {1}


@pytest.mark.parametrize("withdraw", [True, False])
async def test_a_stream_that_leaves_while_it_moves_leaves_both(world: World, withdraw: bool) -> None:
    await world.auto.attach(A)
    await world.auto.commit([table(A, 1)])
    world.appear(A)
    await world.auto.attach(A)
    await world.auto.detach(A, withdraw=withdraw)
    assert ("a" in world.embedded.tables, "a" in world.memory.tables) == (not withdraw, not withdraw)
    assert world.embedded.attached == world.memory.attached == set()


async def test_a_refused_removal_can_be_tried_again(world: World) -> None:
    await world.auto.attach(A)
    world.embedded.fault("detach")
    with pytest.raises(DistributorError):
        await world.auto.detach(A, withdraw=True)
    await world.auto.detach(A, withdraw=True)
    assert "a" not in world.embedded.tables


async def test_trouble_with_nftables_hides_no_loss_of_a_memory(world: World) -> None:
    world.appear(B)
    for stream in (A, B):
        await world.auto.attach(stream)
    world.memory.lose("b")
    world.embedded.fault("lost_streams")
    assert await world.auto.lost_streams() == {"b": "removed"}
    world.memory.attached.clear()
    world.embedded.fault("lost_streams")
    with pytest.raises(DistributorError):
        await world.auto.lost_streams()


async def test_leftovers_in_nftables_go_also_beside_nfqlb(world: World) -> None:
    """A stream that an earlier run kept in nftables, and that nfqlb has now, would go on taking its packets."""
    world.embedded.tables = {"a": (frozenset({1}), frozenset({1})), "old": (frozenset(), frozenset())}
    world.appear(A)
    await world.auto.attach(A)
    assert await world.auto.prune(["a"]) == ["a", "old"]
    assert world.embedded.tables == {}


async def test_what_nftables_serves_is_no_leftover(world: World) -> None:
    for stream in (A, B):
        await world.auto.attach(stream)
    world.appear(B)
    await world.auto.attach(B)
    world.embedded.tables["old"] = (frozenset(), frozenset())
    assert await world.auto.prune(["a", "b"]) == ["old"]
    assert set(world.embedded.tables) == {"a", "b"}


async def test_beside_nfqlb_a_missing_nftables_library_is_no_trouble(world: World) -> None:
    world.appear(A)
    await world.auto.attach(A)
    world.embedded.fault("prune")
    assert await world.auto.prune(["a"]) == ()
    assert world.embedded.closed
    assert await world.auto.lost_streams() == {}


async def test_a_refused_pruning_of_nftables_in_use_is_told(world: World) -> None:
    await world.auto.attach(A)
    world.embedded.fault("prune")
    with pytest.raises(DistributorError):
        await world.auto.prune(["a"])


async def test_close_closes_both_and_leaves_the_tables(world: World) -> None:
    world.appear(B)
    for stream in (A, B):
        await world.auto.attach(stream)
    await world.auto.close()
    assert world.memory.closed
    assert world.embedded.closed
    assert set(world.embedded.tables) == {"a"}
