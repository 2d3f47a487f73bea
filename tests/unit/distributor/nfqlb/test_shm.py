# ruff: noqa: ASYNC240 (the files here are memory: they do not block)
import asyncio
import os
import random
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import DistributorError
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.shm import NfqlbShmDistributor
from tests.fakes.nfqlb import Memory, make_memory
from tests.unit.distributor.conftest import RealNfqlb

SLOTS, TARGETS = 997, 10
STREAM = StreamSpec(name="a", max_targets=TARGETS, identifier_offset=5000)
EVERYONE = frozenset(range(1, TARGETS + 1))


def table(active: frozenset[int], stream: StreamSpec = STREAM, registered: frozenset[int] = EVERYONE) -> StreamTable:
    return StreamTable(stream=stream, registered=registered, active=active)


def stock_lookup(path: Path, indexes: set[int]) -> list[int]:
    """What the stock commands would make of the rows in a memory."""
    memory = Memory(path)
    memory.active = [7 if index in indexes else -1 for index in range(memory.targets)]
    memory.populate()
    return memory.lookup


@pytest.fixture
def memory(shm_dir: Path) -> Path:
    path = shm_dir / "tshm-a"
    make_memory(path, SLOTS, TARGETS)
    return path


@pytest_asyncio.fixture(params=TableKind)
async def distributor(request: pytest.FixtureRequest, shm_dir: Path) -> AsyncIterator[NfqlbShmDistributor]:
    made = NfqlbShmDistributor(request.param, shm_dir)
    yield made
    await made.close()


@pytest_asyncio.fixture
async def anchored(shm_dir: Path) -> AsyncIterator[NfqlbShmDistributor]:
    made = NfqlbShmDistributor(TableKind.ANCHORED, shm_dir)
    yield made
    await made.close()


async def test_commit_fills_the_memory_with_marks_and_slots(distributor: NfqlbShmDistributor, memory: Path) -> None:
    await distributor.attach(STREAM)
    [result] = await distributor.commit([table(EVERYONE)])
    assert (result.error, result.slots_changed, result.slots_total) == ("", SLOTS, SLOTS)
    now = Memory(memory)
    assert now.active == list(range(5001, 5011))
    assert now.lookup == stock_lookup(memory, set(range(10)))
    assert await distributor.read_active(STREAM) == EVERYONE


async def test_maglev_equals_the_stock_table_of_the_active(shm_dir: Path, memory: Path) -> None:
    distributor = NfqlbShmDistributor(TableKind.MAGLEV, shm_dir)
    await distributor.commit([table(EVERYONE)])
    await distributor.commit([table(frozenset({2, 5, 9}))])
    await distributor.close()
    assert Memory(memory).lookup == stock_lookup(memory, {1, 4, 8})
    assert [mark for mark in Memory(memory).active if mark >= 0] == [5002, 5005, 5009]


async def test_anchored_moves_only_the_slots_of_the_withdrawn(anchored: NfqlbShmDistributor, memory: Path) -> None:
    await anchored.commit([table(EVERYONE)])
    before = Memory(memory).lookup
    [result] = await anchored.commit([table(EVERYONE - {3, 7})])
    after = Memory(memory).lookup
    lost = [slot for slot, index in enumerate(before) if index in {2, 6}]
    assert [slot for slot in range(SLOTS) if before[slot] != after[slot]] == lost
    assert result.slots_changed == len(lost)
    [result] = await anchored.commit([table(EVERYONE)])
    assert Memory(memory).lookup == before
    assert result.slots_changed == len(lost)


async def test_attach_changes_nothing(distributor: NfqlbShmDistributor, memory: Path) -> None:
    await distributor.commit([table(frozenset({1, 2}))])
    before = memory.read_bytes()
    second = NfqlbShmDistributor(distributor.table, memory.parent)
    await second.attach(STREAM)
    assert await second.read_active(STREAM) == {1, 2}
    [result] = await second.commit([table(frozenset({1, 2}))])
    await second.close()
    assert (result.slots_changed, result.error) == (0, "")
    assert memory.read_bytes() == before


async def test_only_slots_and_marks_are_written(distributor: NfqlbShmDistributor, memory: Path) -> None:
    before = memory.read_bytes()
    await distributor.commit([table(EVERYONE)])
    after = memory.read_bytes()
    rows_at, active_at = 16 + 4 * SLOTS, 16 + 4 * SLOTS + 4 * SLOTS * TARGETS
    assert after[:16] == before[:16]
    assert after[rows_at:active_at] == before[rows_at:active_at]
    assert after[active_at + 4 * TARGETS :] == before[active_at + 4 * TARGETS :]


async def test_no_active_target_empties_every_slot(distributor: NfqlbShmDistributor, memory: Path) -> None:
    await distributor.commit([table(EVERYONE)])
    await distributor.commit([table(frozenset())])
    assert Memory(memory).lookup == [-1] * SLOTS
    assert Memory(memory).active == [-1] * TARGETS
    assert await distributor.read_active(STREAM) == frozenset()


async def test_what_others_left_in_the_memory_is_put_right(distributor: NfqlbShmDistributor, memory: Path) -> None:
    await distributor.commit([table(frozenset({1, 2, 3}))])
    good = memory.read_bytes()
    other = Memory(memory)
    other.active[8] = 9999
    other.active[0] = 6001
    other.lookup[:100] = [8] * 100
    other.store()
    assert await distributor.read_active(STREAM) == {1, 2, 3, 9}
    await distributor.commit([table(frozenset({1, 2, 3}))])
    assert memory.read_bytes() == good


async def test_another_offset_changes_the_marks_and_no_slot(distributor: NfqlbShmDistributor, memory: Path) -> None:
    await distributor.commit([table(EVERYONE)])
    moved = StreamSpec(name="a", max_targets=TARGETS, identifier_offset=6000)
    [result] = await distributor.commit([table(EVERYONE, moved)])
    assert (result.slots_changed, result.error) == (0, "")
    assert Memory(memory).active == list(range(6001, 6011))


async def test_streams_are_independent(distributor: NfqlbShmDistributor, memory: Path, shm_dir: Path) -> None:
    make_memory(shm_dir / "other", 101, 4, seed=2)
    second = StreamSpec(name="b", max_targets=4, identifier_offset=7000, shm_name="other")
    missing = StreamSpec(name="c")
    results = await distributor.commit(
        [table(EVERYONE), table(frozenset(), missing), table(frozenset({4}), second, frozenset({1, 4}))]
    )
    assert [result.stream for result in results] == ["a", "c", "b"]
    assert [bool(result.error) for result in results] == [False, True, False]
    assert Memory(shm_dir / "other").lookup == [3] * 101
    assert Memory(shm_dir / "other").active == [-1, -1, -1, 7004]


@pytest.mark.parametrize("seed", range(3))
async def test_a_random_walk_ends_where_a_fresh_start_does(
    distributor: NfqlbShmDistributor, memory: Path, shm_dir: Path, seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(10):
        active = frozenset(chance.sample(sorted(EVERYONE), chance.randint(0, TARGETS)))
        await distributor.commit([table(active)])
    fresh = StreamSpec(name="fresh", max_targets=TARGETS)
    make_memory(shm_dir / "tshm-fresh", SLOTS, TARGETS)
    await distributor.commit([table(active, fresh)])
    assert memory.read_bytes() == (shm_dir / "tshm-fresh").read_bytes()


WATCHER = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    fields = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)).cast("i")
slots, targets = fields[1], fields[2]
active_at = 4 + slots + slots * targets
print("ready", flush=True)
looked = 0
while fields[0] == 0:
    for slot in range(4, 4 + slots):
        index = fields[slot]
        if index < 0:
            sys.exit(f"slot {slot - 4} is empty")
        if fields[active_at + index] < 0 and fields[slot] == index and fields[active_at + index] < 0:
            sys.exit(f"slot {slot - 4} points at target {index}, which has no mark")
        looked += 1
print(looked)
"""


async def test_a_reader_never_meets_an_empty_or_dead_slot(distributor: NfqlbShmDistributor, memory: Path) -> None:
    halves = frozenset(range(1, 6)), frozenset(range(6, 11))
    await distributor.commit([table(EVERYONE)])
    watcher = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", WATCHER, memory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert watcher.stdout is not None
    assert await watcher.stdout.readline() == b"ready\n"
    errors = set()
    for turn in range(300):
        [result] = await distributor.commit([table(halves[turn % 2])])
        errors.add(result.error)
    # The watcher stops when the own_fwmark of the memory, which nobody else writes, changes.
    with memory.open("r+b") as file:
        file.write(b"\1")
    looked, complaint = await watcher.communicate()
    assert (errors, complaint.decode(), watcher.returncode) == ({""}, "", 0)
    assert int(looked) > 0


# Loss


def initialise_anew(path: Path) -> None:
    """Rewrite a memory in place as `nfqlb init` does, again if the clock of the file system has not moved on."""
    before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == before:
        make_memory(path, SLOTS, TARGETS)


def replace(path: Path) -> None:
    make_memory(path.with_name("new"), SLOTS, TARGETS)
    path.with_name("new").replace(path)


async def test_nothing_is_lost_while_the_file_stays(distributor: NfqlbShmDistributor, memory: Path) -> None:
    await distributor.attach(STREAM)
    assert await distributor.lost_streams() == {}
    for active in (EVERYONE, frozenset({1}), frozenset({2, 3}), frozenset[int]()):
        await distributor.commit([table(active)])
        assert await distributor.lost_streams() == {}


@pytest.mark.parametrize(
    ("happen", "reason"), [(initialise_anew, "initialised anew"), (replace, "replaced"), (Path.unlink, "removed")]
)
async def test_loss_is_noticed_and_mended_by_the_next_commit(
    distributor: NfqlbShmDistributor, memory: Path, happen: Callable[[Path], None], reason: str
) -> None:
    await distributor.commit([table(EVERYONE)])
    held = memory.read_bytes()
    happen(memory)
    assert reason in (await distributor.lost_streams())["a"]
    assert reason in (await distributor.lost_streams())["a"], "a loss is reported until it is mended"
    if not memory.exists():
        [result] = await distributor.commit([table(EVERYONE)])
        assert "does not exist" in result.error
        assert reason in (await distributor.lost_streams())["a"]
        make_memory(memory, SLOTS, TARGETS)
    assert await distributor.read_active(STREAM) == frozenset()
    [result] = await distributor.commit([table(EVERYONE)])
    assert (result.slots_changed, result.error) == (SLOTS, "")
    assert memory.read_bytes() == held
    assert await distributor.lost_streams() == {}


async def test_a_file_that_shrank_is_an_error_and_no_crash(anchored: NfqlbShmDistributor, memory: Path) -> None:
    await anchored.commit([table(EVERYONE)])
    os.truncate(memory, 16 + 4 * 10)
    [result] = await anchored.commit([table(frozenset({1}))])
    assert "truncated" in result.error
    with pytest.raises(DistributorError, match="truncated"):
        await anchored.read_active(STREAM)


async def test_a_sparse_file_that_claims_more_slots_than_fit_into_memory(
    anchored: NfqlbShmDistributor, memory: Path
) -> None:
    slots = 2**31
    length = 4 * (slots + slots * 2 + 2)
    memory.write_bytes(header(slots, 2, (length + 12) % 2**32))
    os.truncate(memory, length + 16)
    assert "more than" in await refusal(anchored, StreamSpec(name="a", max_targets=2))


VANDAL = """
import os, random, sys, time
path, content = sys.argv[1], open(sys.argv[1], "rb").read()
file = os.open(path, os.O_RDWR)
for _ in range(600):
    os.pwrite(file, content, 0)
    time.sleep(0.003 * random.random())
    os.ftruncate(file, 0)
    time.sleep(0.0005)
"""

COMMITTER = """
import sys
from pathlib import Path
from lbguard.core.model import StreamSpec
from lbguard.distributor.base import DistributorError
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.memory import StreamMemory
path, end = Path(sys.argv[1]), Path(sys.argv[2])
done = refused = 0
print("ready", flush=True)
while not end.exists():
    try:
        memory = StreamMemory(path, StreamSpec(name="a", max_targets=1), TableKind.MAGLEV, read_only=False)
        try:
            while not end.exists():
                memory.write([done % memory.layout.targets] * memory.layout.slots, [done] * memory.layout.targets)
                done += 1
        finally:
            memory.close()
    except DistributorError:
        refused += 1
print(done, refused)
"""


async def test_a_file_that_is_truncated_while_it_is_written_ends_no_process(memory: Path, tmp_path: Path) -> None:
    make_memory(memory, 9973, TARGETS)
    end = tmp_path / "end"
    run, pipe = asyncio.create_subprocess_exec, asyncio.subprocess.PIPE
    committer = await run(sys.executable, "-c", COMMITTER, memory, end, stdout=pipe)
    assert committer.stdout is not None
    assert await committer.stdout.readline() == b"ready\n"
    vandal = await run(sys.executable, "-I", "-c", VANDAL, memory)
    assert await vandal.wait() == 0
    end.touch()
    counts, _ = await committer.communicate()
    assert committer.returncode == 0, "-7: SIGBUS"
    done, refused = map(int, counts.split())
    assert done > 0 < refused


async def test_a_word_that_reaches_beyond_the_end_of_the_file_is_none(shm_dir: Path) -> None:
    """Its arrays end where the file does, and neither of them begins or ends at a multiple of 8 bytes."""
    path = shm_dir / "tshm-a"
    make_memory(path, 101, 10)
    length = 16 + 4 * 101 + 4 * 101 * 10 + 4 * 10
    os.truncate(path, length)
    content = bytearray(path.read_bytes())
    struct.pack_into("=I", content, 12, length - 4)
    path.write_bytes(content)
    rows = bytes(content[16 + 4 * 101 : -40])
    distributor = NfqlbShmDistributor(TableKind.ANCHORED, shm_dir)
    for active in (EVERYONE, frozenset({1, 10}), frozenset({10})):
        [result] = await distributor.commit([table(active)])
        assert result.error == ""
    await distributor.close()
    after = path.read_bytes()
    assert (len(after), after[16 + 4 * 101 : -40]) == (length, rows)
    assert after[-40:] == struct.pack("=10i", *[-1] * 9, 5010)
    assert after[16 : 16 + 4 * 101] == struct.pack("=101i", *[9] * 101)


async def test_a_loss_is_noticed_by_the_name_the_stream_has(anchored: NfqlbShmDistributor, memory: Path) -> None:
    await anchored.commit([table(EVERYONE)])
    make_memory(memory.with_name("elsewhere"), SLOTS, TARGETS)
    moved = StreamSpec(name="a", max_targets=TARGETS, shm_name="elsewhere")
    assert await anchored.read_active(moved) == frozenset()


# Refusals


async def refusal(distributor: NfqlbShmDistributor, stream: StreamSpec = STREAM) -> str:
    with pytest.raises(DistributorError) as caught:
        await distributor.attach(stream)
    [result] = await distributor.commit([table(frozenset(), stream)])
    assert result.error == str(caught.value)
    return result.error


async def test_a_missing_file(anchored: NfqlbShmDistributor, shm_dir: Path) -> None:
    assert f"{shm_dir}/tshm-a does not exist" in await refusal(anchored)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/b", "..", ".", "a\0b"])
async def test_a_name_that_leaves_the_directory(anchored: NfqlbShmDistributor, name: str) -> None:
    assert "not a valid shared memory name" in await refusal(anchored, StreamSpec(name="a", shm_name=name))


async def test_a_stream_name_that_leaves_the_directory(anchored: NfqlbShmDistributor) -> None:
    assert "not a valid shared memory name" in await refusal(anchored, StreamSpec(name="../a"))


async def test_too_little_room(anchored: NfqlbShmDistributor, memory: Path) -> None:
    message = await refusal(anchored, StreamSpec(name="a", max_targets=11))
    assert "N=10" in message
    assert "11" in message


async def test_room_is_checked_again_when_the_stream_grows(anchored: NfqlbShmDistributor, memory: Path) -> None:
    await anchored.attach(STREAM)
    assert "N=10" in await refusal(anchored, StreamSpec(name="a", max_targets=11))


@pytest.mark.parametrize("identifier", [0, -1, 11])
async def test_an_identifier_out_of_range(anchored: NfqlbShmDistributor, memory: Path, identifier: int) -> None:
    before = memory.read_bytes()
    [result] = await anchored.commit([table(frozenset({identifier}))])
    assert "identifiers 1 to 10" in result.error
    assert memory.read_bytes() == before


async def test_a_mark_that_nfqlb_cannot_hold(anchored: NfqlbShmDistributor, memory: Path) -> None:
    stream = StreamSpec(name="a", max_targets=TARGETS, identifier_offset=2**31 - 1)
    [result] = await anchored.commit([table(frozenset({1}), stream)])
    assert "2147483647" in result.error


def header(slots: int, targets: int, length: int) -> bytes:
    return struct.pack("=iIII", 0, slots, targets, length)


BODY = 4 * (SLOTS + SLOTS * TARGETS + TARGETS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (b"\0" * 15, "truncated"),
        (b"\0" * 16, "malformed"),
        (header(0, TARGETS, BODY) + bytes(BODY), "malformed"),
        (header(SLOTS, 0, BODY) + bytes(BODY), "malformed"),
        (header(SLOTS, SLOTS + 1, BODY) + bytes(BODY), "malformed"),
        (header(2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(BODY), "truncated"),
        (header(SLOTS, TARGETS, BODY + 12) + bytes(BODY - 4), "truncated"),
        (header(SLOTS, TARGETS, BODY + 11) + bytes(BODY), "length field"),
        (header(SLOTS, TARGETS, BODY + 13) + bytes(BODY), "length field"),
        (header(SLOTS, TARGETS, BODY + 12) + bytes(BODY), "not initialised"),
        (bytes(range(7, 71)), ""),
    ],
)
async def test_a_malformed_file(anchored: NfqlbShmDistributor, memory: Path, content: bytes, reason: str) -> None:
    memory.write_bytes(content)
    assert reason in await refusal(anchored)
    assert memory.read_bytes() == content


async def test_rows_that_are_no_permutations(anchored: NfqlbShmDistributor, memory: Path) -> None:
    content = bytearray(memory.read_bytes())
    content[16 + 4 * SLOTS : 16 + 8 * SLOTS] = bytes(4 * SLOTS)
    memory.write_bytes(content)
    [result] = await anchored.commit([table(EVERYONE)])
    assert "malformed" in result.error
    assert memory.read_bytes() == content


async def test_a_symbolic_link_and_a_directory(anchored: NfqlbShmDistributor, memory: Path, shm_dir: Path) -> None:
    (shm_dir / "link").symlink_to(memory)
    (shm_dir / "directory").mkdir()
    os.mkfifo(shm_dir / "pipe")
    for name, reason in (("link", "symbolic link"), ("directory", "cannot be opened"), ("pipe", "not a regular file")):
        assert reason in await refusal(anchored, StreamSpec(name="a", shm_name=name))


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Be nobody for a while, if we are root: capabilities go with the effective uid."""
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(65534)
    yield
    os.seteuid(uid)


async def test_a_file_of_somebody_else(unprivileged: None) -> None:
    mine = os.geteuid()
    # Not in the directory of the fixture, which only its owner may enter.
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="lbguard-test-") as directory:
        path = Path(directory) / "tshm-a"
        make_memory(path, SLOTS, TARGETS)
        path.chmod(0o040)
        distributor = NfqlbShmDistributor(TableKind.ANCHORED, Path(directory))
        message = await refusal(distributor)
        await distributor.close()
    assert f"owned by uid {mine} with mode 0040" in message
    assert f"this process runs as uid {mine}" in message
    assert "DAC_OVERRIDE" in message


# Reading only, detaching, closing


async def test_read_only_reads_and_refuses_to_write(memory: Path) -> None:
    writer = NfqlbShmDistributor(TableKind.ANCHORED, memory.parent)
    await writer.commit([table(frozenset({4}))])
    await writer.close()
    before = memory.read_bytes()
    memory.chmod(0o400)
    reader = NfqlbShmDistributor(TableKind.ANCHORED, memory.parent, read_only=True)
    await reader.attach(STREAM)
    assert await reader.read_active(STREAM) == {4}
    [result] = await reader.commit([table(EVERYONE)])
    await reader.close()
    assert "read only" in result.error
    assert memory.read_bytes() == before


@pytest.mark.parametrize("withdraw", [False, True])
async def test_detach(distributor: NfqlbShmDistributor, memory: Path, withdraw: bool) -> None:
    await distributor.commit([table(EVERYONE)])
    await distributor.detach(STREAM, withdraw=withdraw)
    assert set(Memory(memory).active) == ({-1} if withdraw else set(range(5001, 5011)))
    memory.unlink()
    assert await distributor.lost_streams() == {}
    await distributor.detach(STREAM, withdraw=withdraw)


async def test_detach_says_when_it_could_not_withdraw(anchored: NfqlbShmDistributor, memory: Path) -> None:
    memory.write_bytes(b"")
    with pytest.raises(DistributorError, match="truncated"):
        await anchored.detach(STREAM, withdraw=True)


async def test_close_leaves_the_table_and_may_be_repeated(memory: Path) -> None:
    distributor = NfqlbShmDistributor(TableKind.ANCHORED, memory.parent)
    await distributor.commit([table(EVERYONE)])
    before = memory.read_bytes()
    await distributor.close()
    await distributor.close()
    assert memory.read_bytes() == before


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_no_descriptor_is_left_open(memory: Path) -> None:
    before = open_descriptors()
    distributor = NfqlbShmDistributor(TableKind.ANCHORED, memory.parent)
    for _ in range(3):
        await distributor.commit([table(EVERYONE)])
        replace(memory)
    await distributor.close()
    broken = NfqlbShmDistributor(TableKind.ANCHORED, memory.parent)
    with pytest.raises(DistributorError):
        await broken.attach(StreamSpec(name="a", max_targets=1000))
    await broken.close()
    assert open_descriptors() == before


# The real program

REAL_SLOTS, REAL_TARGETS = 9973, 100


def real_stream(real: RealNfqlb) -> StreamSpec:
    real("init", "--ownfw=0", "--M=10000", f"--N={REAL_TARGETS}")
    return StreamSpec(name="r", max_targets=REAL_TARGETS, identifier_offset=5000, shm_name=real.name)


@pytest.mark.nfqlb
@pytest.mark.parametrize("seed", range(3))
async def test_the_real_program_computes_the_same_table(real: RealNfqlb, seed: int) -> None:
    stream, path = real_stream(real), Path("/dev/shm") / real.name
    chance = random.Random(seed)
    active = frozenset(chance.sample(range(1, REAL_TARGETS + 1), [1, 30, 100][seed]))
    for identifier in chance.sample(sorted(active), len(active)):
        real("activate", f"--index={identifier - 1}", str(5000 + identifier))
    theirs = path.read_bytes()
    distributor = NfqlbShmDistributor(TableKind.MAGLEV, Path("/dev/shm"))
    assert await distributor.read_active(stream) == active
    [adopted] = await distributor.commit([table(active, stream, active)])
    assert (adopted.slots_changed, adopted.slots_total, adopted.error) == (0, REAL_SLOTS, "")
    await distributor.commit([table(frozenset(), stream, active)])
    assert path.read_bytes() != theirs
    await distributor.commit([table(active, stream, active)])
    await distributor.close()
    assert path.read_bytes() == theirs


@pytest.mark.nfqlb
async def test_switching_between_the_real_program_and_lbguard(real: RealNfqlb) -> None:
    stream, path = real_stream(real), Path("/dev/shm") / real.name
    distributor = NfqlbShmDistributor(TableKind.MAGLEV, Path("/dev/shm"))
    await distributor.commit([table(frozenset({1, 2, 3, 50}), stream, frozenset())])
    real("deactivate", "--index=1")
    real("activate", "--index=9", "5010")
    theirs = path.read_bytes()
    assert await distributor.read_active(stream) == {1, 3, 10, 50}
    [result] = await distributor.commit([table(frozenset({1, 3, 10, 50}), stream, frozenset())])
    await distributor.close()
    assert (result.slots_changed, result.error) == (0, "")
    assert path.read_bytes() == theirs


@pytest.mark.nfqlb
async def test_anchored_is_the_real_table_when_everyone_is_active(real: RealNfqlb) -> None:
    stream, path = real_stream(real), Path("/dev/shm") / real.name
    registered = frozenset(range(1, 31))
    distributor = NfqlbShmDistributor(TableKind.ANCHORED, Path("/dev/shm"))
    await distributor.commit([table(registered - {4, 5, 30}, stream, registered)])
    await distributor.commit([table(registered, stream, registered)])
    ours = path.read_bytes()
    real("deactivate", "--index=3")
    real("activate", "--index=3", "5004")
    await distributor.close()
    assert path.read_bytes() == ours


@pytest.mark.nfqlb
async def test_the_real_init_on_an_existing_name_is_a_loss(real: RealNfqlb) -> None:
    stream, path = real_stream(real), Path("/dev/shm") / real.name
    distributor = NfqlbShmDistributor(TableKind.ANCHORED, Path("/dev/shm"))
    active = frozenset({1, 2})
    await distributor.commit([table(active, stream, active)])
    held, inode, written = path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == written:
        real("init", "--ownfw=0", "--M=10000", f"--N={REAL_TARGETS}")
    assert path.stat().st_ino == inode
    assert "initialised anew" in (await distributor.lost_streams())["r"]
    [result] = await distributor.commit([table(active, stream, active)])
    assert result.error == ""
    assert await distributor.lost_streams() == {}
    await distributor.close()
    assert path.read_bytes() == held
