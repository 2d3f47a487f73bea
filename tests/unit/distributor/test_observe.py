# ruff: noqa: ASYNC240 (the files here are memory: they do not block)
import logging
from pathlib import Path

import pytest

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.shm import NfqlbShmDistributor
from lbguard.distributor.select import ObserveDistributor
from tests.fakes.nfqlb import make_memory

STREAM = StreamSpec(name="a", max_targets=8)


def table(active: set[int]) -> StreamTable:
    return StreamTable(stream=STREAM, registered=frozenset(active), active=frozenset(active))


@pytest.fixture
def memory(shm_dir: Path) -> Path:
    path = shm_dir / "tshm-a"
    make_memory(path, 101, 8)
    return path


async def test_it_reads_and_never_writes(memory: Path) -> None:
    writer = NfqlbShmDistributor(TableKind.ANCHORED, memory.parent)
    await writer.commit([table({1, 2})])
    await writer.close()
    before = memory.read_bytes()
    # The reader could write, so what stays unchanged is so because nobody asked.
    observer = ObserveDistributor(NfqlbShmDistributor(TableKind.ANCHORED, memory.parent))
    await observer.attach(STREAM)
    assert await observer.read_active(STREAM) == {1, 2}
    [result] = await observer.commit([table({5})])
    assert (result.stream, result.slots_changed, result.error) == ("a", 0, "")
    assert await observer.read_active(STREAM) == {1, 2}
    await observer.detach(STREAM, withdraw=True)
    await observer.close()
    assert memory.read_bytes() == before


async def test_without_a_table_it_reads_as_empty_and_says_so_once(
    shm_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    observer = ObserveDistributor(NfqlbShmDistributor(TableKind.ANCHORED, shm_dir, read_only=True))
    with caplog.at_level(logging.WARNING):
        await observer.attach(STREAM)
        for _ in range(3):
            assert await observer.read_active(STREAM) == frozenset()
    [message] = [record.getMessage() for record in caplog.records]
    assert "does not exist" in message
    [result] = await observer.commit([table({1})])
    assert result.error == ""
    await observer.close()


async def test_it_finds_a_table_that_comes_later_and_notices_its_loss(memory: Path) -> None:
    memory.rename(memory.with_name("hidden"))
    observer = ObserveDistributor(NfqlbShmDistributor(TableKind.ANCHORED, memory.parent, read_only=True))
    assert await observer.read_active(STREAM) == frozenset()
    assert await observer.lost_streams() == {}
    memory.with_name("hidden").rename(memory)
    assert await observer.read_active(STREAM) == frozenset()
    memory.unlink()
    assert "removed" in (await observer.lost_streams())["a"]
    await observer.detach(STREAM, withdraw=False)
    assert await observer.lost_streams() == {}
    await observer.close()
