from dataclasses import replace
from pathlib import Path

import pytest

from lbguard.core.events import KernelOutOfSync
from lbguard.core.model import TargetKey, TargetState
from lbguard.distributor.nftables.queueing import FILTER, MANGLE
from lbguard.service.build import assumed_queue, make_distributor
from lbguard.service.build_interposer import InterposerCore, find_tables, make_interposer_source
from lbguard.service.foreign_routes import TargetRoutes
from lbguard.settings.model import Settings, SettingsError, load
from lbguard.sources.flavour import Flavour
from lbguard.sources.interposer.registrations import FoundTable
from tests.fakes.nfqlb import make_memory
from tests.unit.core.harness import STREAM, Guard, ipv4_of

ONE, TWO, NOBODY = TargetKey(STREAM, 1), TargetKey(STREAM, 2), TargetKey("other", 1)


@pytest.fixture
def guard() -> Guard:
    return Guard()


@pytest.fixture
def view(guard: Guard) -> InterposerCore:
    return InterposerCore(guard.engine, lambda: 0, clock=lambda: guard.now)


def test_a_path_is_lost_with_its_link_and_for_a_moment_after(guard: Guard, view: InterposerCore) -> None:
    assert not view.path_lost(ONE, 1.0)
    guard.wait(1)
    guard.unlink(1)
    assert view.path_lost(ONE, 1.0)
    guard.wait(1)
    guard.link(2)
    assert guard.state(1) is TargetState.ACTIVE
    assert view.path_lost(ONE, 1.0)
    guard.wait(2)
    assert not view.path_lost(ONE, 1.0)
    assert not view.path_lost(NOBODY, 1.0)


def test_a_link_that_is_down_counts_and_a_neighbour_does_not(guard: Guard, view: InterposerCore) -> None:
    """The load balancer's check looks at routes alone: it never takes a target out because nobody answers."""
    guard.fail_neighbor(ipv4_of(1))
    assert not view.path_lost(ONE, 1.0)
    guard.cut(1)
    assert view.path_lost(TWO, 1.0)


def test_while_nobody_knows_every_path_counts_as_lost(guard: Guard, view: InterposerCore) -> None:
    assert view.ready
    assert view.caught_up
    guard.tell(KernelOutOfSync(reason="overrun"))
    assert view.path_lost(ONE, 1.0)
    assert not view.caught_up
    assert view.sound_for_s(ONE) == 0


def test_an_inbox_that_is_not_empty(guard: Guard) -> None:
    assert not InterposerCore(guard.engine, lambda: 1).caught_up


def test_how_long_a_target_is_sound(guard: Guard, view: InterposerCore) -> None:
    guard.wait(5)
    assert view.sound_for_s(ONE) == pytest.approx(5)
    assert view.sound_for_s(NOBODY) == 0
    guard.unlink(1)
    assert view.sound_for_s(ONE) == 0


def settings(tmp_path: Path, **flags: object) -> Settings:
    values = {"source": "interposer", "distributor.shm_dir": str(tmp_path), "interposer.directory": str(tmp_path / "x")}
    return load(flags=values | flags).settings


def test_the_tables_that_are_there(tmp_path: Path) -> None:
    make_memory(tmp_path / "tshm-a", 97, 5)
    make_memory(tmp_path / "other", 97, 5)
    (tmp_path / "tshm-bad").write_bytes(b"garbage")
    (tmp_path / "tshm-dir").mkdir()
    found = FoundTable(max_targets=5, marks=[-1] * 5)
    of_meridio_2 = replace(found, flavour=Flavour.MERIDIO_2)
    assert find_tables(settings(tmp_path)) == {"a": found, "other": of_meridio_2}
    assert find_tables(settings(tmp_path, **{"interposer.flavour": "meridio"})) == {"a": found}
    told = find_tables(settings(tmp_path, **{"interposer.flavour": "meridio-2"}))
    assert told == {"tshm-a": of_meridio_2, "other": of_meridio_2}
    assert find_tables(settings(tmp_path / "nowhere")) == {}


def test_of_two_memories_of_one_stream_that_of_meridio_counts(tmp_path: Path) -> None:
    make_memory(tmp_path / "tshm-a", 97, 5)
    make_memory(tmp_path / "a", 97, 7)
    assert find_tables(settings(tmp_path))["a"] == FoundTable(max_targets=5, marks=[-1] * 5)


def test_the_queue_that_is_assumed_until_one_is_seen(tmp_path: Path) -> None:
    assert assumed_queue(settings(tmp_path)) == MANGLE
    assert assumed_queue(settings(tmp_path, **{"interposer.flavour": "meridio-2"})) == FILTER
    assert assumed_queue(settings(tmp_path, **{"interposer.flavour": "meridio-2", "source": "file"})) == MANGLE
    beside = {"kernel_source.flavour": "meridio-2", "source": "kernel", "mode": "companion"}
    assert assumed_queue(settings(tmp_path, **beside)) == FILTER


async def test_auto_means_the_memory_and_nftables_is_refused(tmp_path: Path) -> None:
    """Written into nftables, a call would be answered as done, and the load balancer's packets know nothing of it."""
    distributor = make_distributor(settings(tmp_path))
    assert distributor.kind == "nfqlb-shm"
    await distributor.close()
    with pytest.raises(SettingsError, match="nftables"):
        settings(tmp_path, **{"distributor.kind": "nftables"})


@pytest.mark.parametrize(
    ("flags", "passive"),
    [({}, False), ({"mode": "observe"}, True), ({"distributor.kind": "observe"}, True)],
)
async def test_where_nothing_is_touched_calls_are_only_noted(
    tmp_path: Path, guard: Guard, flags: dict[str, object], passive: bool
) -> None:
    made = settings(tmp_path, **flags)
    source = make_interposer_source(made, lambda _: None, guard.engine, lambda: 0, TargetRoutes())
    assert source._config.passive is passive
    assert source._config.directory == tmp_path / "x"
