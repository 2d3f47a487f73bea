"""What stands on disk: rotation, bounds, torn and damaged files, other versions."""

import contextlib
import gzip
import json
import os
import resource
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core import events as ev
from lbguard.core.checkpoint import freeze
from lbguard.core.config import EngineConfig
from lbguard.core.events import KernelSnapshot, LinkGone
from lbguard.core.model import NeighborState
from lbguard.recording.format import Limits, RecordingError
from lbguard.recording.reader import Began, Decided, Ended, Item, Told, find_files, read_file, read_header
from lbguard.recording.recorder import RecordedEngine
from lbguard.recording.writer import Checkpoint, Entry, RecordingWriter
from tests.effort import examples
from tests.fakes.direct_tape import DirectTape
from tests.unit.core.harness import Guard, ipv4_of
from tests.unit.recording.values import values


def writer_in(directory: Path, limits: Limits | None = None) -> RecordingWriter:
    return RecordingWriter(directory, EngineConfig(), limits=limits, wall_offset=lambda: 1_000_000.0)


def record(directory: Path, entries: list[Entry]) -> Path:
    writer = writer_in(directory)
    for entry in entries:
        assert writer.write(entry)
    writer.close()
    (path,) = directory.iterdir()
    return path


def told(items: list[Item]) -> list[tuple[float, object]]:
    return [(item.now, item.event) for item in items if isinstance(item, Told)]


@examples(100)
@given(times=st.lists(st.floats(allow_nan=False, min_value=0, max_value=1e9), min_size=1, max_size=20))
def test_moments_come_back_to_the_last_bit(tmp_path_factory: pytest.TempPathFactory, times: list[float]) -> None:
    path = record(tmp_path_factory.mktemp("t"), [Entry("told", now, LinkGone(ifindex=1)) for now in times])
    assert [now for now, _ in told(list(read_file(path)))] == times


@examples(60)
@given(snapshots=st.lists(values(KernelSnapshot), min_size=1, max_size=5), again=st.integers(1, 3))
def test_full_views_come_back_whole(
    tmp_path_factory: pytest.TempPathFactory, snapshots: list[KernelSnapshot], again: int
) -> None:
    events = [snapshot for snapshot in snapshots for _ in range(again)]
    path = record(tmp_path_factory.mktemp("t"), [Entry("told", 1.0, event) for event in events])
    assert [event for _, event in told(list(read_file(path)))] == events


def test_a_full_view_that_is_as_before_costs_next_to_nothing(tmp_path: Path) -> None:
    neighbors = tuple(
        ev.NeighborSeen(ifindex=1, ip=bytes((10, 0, n // 250, n % 250)), state=NeighborState.STALE, mac=bytes(6))
        for n in range(5000)
    )
    writer = writer_in(tmp_path)
    writer.write(Entry("told", 1.0, KernelSnapshot(neighbors=neighbors)))
    writer.flush()
    first = writer.bytes_written
    writer.write(Entry("told", 11.0, KernelSnapshot(neighbors=neighbors[:4000] + neighbors[4001:])))
    writer.close()
    assert writer.bytes_written - first < 100


def busy_guard(directory: Path, limits: Limits) -> tuple[Guard, RecordingWriter]:
    guard = Guard(start=False)
    writer = RecordingWriter(directory, guard.engine.config, limits=limits, wall_offset=lambda: 1e6)
    guard.engine = RecordedEngine(guard.engine.config, DirectTape(writer))
    guard.tell(KernelSnapshot())
    guard.link(1)
    guard.register(1, 2, 3)
    return guard, writer


def test_files_stay_within_their_limits(tmp_path: Path) -> None:
    other = tmp_path / "lbguard-notes.txt"
    other.write_text("not a recording")
    for run in range(2):
        guard, writer = busy_guard(tmp_path, Limits(file_bytes=6000, files=4))
        for round_ in range(1500):
            guard.now += 1.2345678 + run
            guard.neighbor(ipv4_of(1 + round_ % 3), NeighborState.REACHABLE, number=round_ % 251)
        writer.close()
        kept = sorted(tmp_path.glob("*.jsonl.gz"))
        assert len(kept) == 4
        assert all(path.stat().st_size <= 6000 for path in kept)
        assert all(path.stat().st_size > 2000 for path in kept[:-1])
        numbers = [read_header(path).number for path in kept]
        assert numbers == list(range(numbers[0], numbers[0] + 4))
        assert numbers[0] > 1
    assert other.exists()
    assert {stat.S_IMODE(path.stat().st_mode) & 0o007 for path in tmp_path.glob("*.gz")} == {0}


def test_a_file_is_refused_more_when_it_is_full(tmp_path: Path) -> None:
    writer = writer_in(tmp_path, Limits(file_bytes=8000, files=2))
    now = 0.0
    while writer.write(Entry("told", now, LinkGone(ifindex=int(now * 7919) % 100_003))):
        now += 1.000001
        assert now < 100_000
    assert writer.wanted == 2
    assert not writer.write(Entry("repair", now))
    writer.write(Entry("checkpoint", now, Checkpoint(freeze(Guard().engine), lost=1)))
    assert writer.write(Entry("repair", now))
    writer.close()
    first, second = find_files([tmp_path])
    assert first.stat().st_size <= 8000 + 1000
    header = read_header(second)
    assert (header.begins, header.lost, header.number) == ("after_loss", 1, 2)


def write_to_disk(writer: RecordingWriter, entry: Entry) -> None:
    writer.write(entry)
    writer.flush()


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Make every file of this process refuse to grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_cannot_be_begun_does_not_push_out_what_there_is(tmp_path: Path) -> None:
    good = record(tmp_path, [Entry("told", 1.0, LinkGone(ifindex=1))])
    writer = writer_in(tmp_path, Limits(files=3))
    checkpoint = Checkpoint(freeze(Guard().engine))
    with files_of_at_most(1000):
        for number in range(5):
            with pytest.raises(OSError, match="too large"):
                write_to_disk(writer, Entry("checkpoint", 2.0 + number, checkpoint))
            writer.abandon()
            assert list(tmp_path.iterdir()) == [good]
    assert writer.write(Entry("checkpoint", 9.0, checkpoint))
    writer.close()
    assert len(find_files([tmp_path])) == 2


def test_what_only_has_the_name_of_a_recording_stops_none_and_stays(tmp_path: Path) -> None:
    good = record(tmp_path, [Entry("told", 1.0, LinkGone(ifindex=1))])
    older = good.with_name(good.name.replace("lbguard-1970", "lbguard-1969"))
    assert older != good
    older.mkdir()
    linked = good.with_name(good.name.replace("lbguard-1970", "lbguard-1968"))
    linked.symlink_to(older)
    writer = writer_in(tmp_path, Limits(files=1))
    write_to_disk(writer, Entry("told", 2.0, LinkGone(ifindex=2)))
    writer.close()
    assert older.is_dir()
    assert linked.is_symlink()
    assert not good.exists()


def test_what_would_be_waited_for_is_no_recording(tmp_path: Path) -> None:
    writer = writer_in(tmp_path, Limits(files=1))
    fifo = tmp_path / "lbguard-0-000000.jsonl.gz"
    os.mkfifo(fifo)
    assert writer.write(Entry("told", 1.0, LinkGone(ifindex=1)))
    writer.close()
    for paths in ([tmp_path], [fifo]):
        with pytest.raises(RecordingError, match="is a FIFO, not a regular file"):
            find_files(paths)


def test_what_was_written_before_the_disk_was_full_stays(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    write_to_disk(writer, Entry("told", 1.0, LinkGone(ifindex=1)))
    for number in range(10):
        write_to_disk(writer, Entry("told", 2.0 + number, LinkGone(ifindex=number)))
    with files_of_at_most(writer.bytes_written + 2), pytest.raises(OSError, match="too large"):
        write_to_disk(writer, Entry("told", 20.0, LinkGone(ifindex=20)))
    writer.abandon()
    (path,) = find_files([tmp_path])
    assert len(told(list(read_file(path)))) == 11


def test_files_are_put_in_the_order_of_writing_whatever_their_names(tmp_path: Path) -> None:
    guard, writer = busy_guard(tmp_path, Limits(file_bytes=6000, files=100))
    for round_ in range(1200):
        guard.now += 1.2345678
        guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, number=round_ % 251)
    writer.close()
    written = find_files([tmp_path])
    assert len(written) > 2
    moved = [path.rename(tmp_path / f"{len(written) - place:03}.jsonl.gz") for place, path in enumerate(written)]
    assert find_files([tmp_path]) == moved
    assert find_files(moved[::-1]) == moved


# Torn and damaged


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A small recording, flushed often, that ends properly."""
    guard, writer = busy_guard(tmp_path, Limits())
    for round_ in range(30):
        guard.now += 1.5
        if round_ % 10 == 3:
            guard.unlink(1)
        elif round_ % 10 == 5:
            guard.link(1)
        guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, number=round_)
        writer.flush()
    writer.close()
    (path,) = tmp_path.iterdir()
    return path


def test_a_torn_file_yields_what_was_written_before(recording: Path, tmp_path: Path) -> None:
    whole = list(read_file(recording))
    data = recording.read_bytes()
    assert whole[-1] == Ended(recording, torn=False)
    torn = tmp_path / "torn.jsonl.gz"
    lengths = set()
    for size in [*range(1600, len(data) - 1, 13), len(data) - 1]:
        torn.write_bytes(data[:size])
        items = list(read_file(torn))
        assert items[-1] == Ended(torn, torn=True)
        # The last decision may be cut off in the middle of what it said.
        kept = items[1:-1]
        assert kept == whole[1 : len(kept) + 1]
        lengths.add(len(kept))
    assert len(lengths) > 20


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
def test_damage_in_the_middle_is_named_with_its_place(recording: Path, share: float) -> None:
    data = bytearray(recording.read_bytes())
    place = int(len(data) * share)
    data[place : place + 8] = bytes(byte ^ 0x5A for byte in data[place : place + 8])
    recording.write_bytes(data)
    with pytest.raises(RecordingError, match=r"jsonl\.gz: line \d+, about byte \d+: .*damaged"):
        list(read_file(recording))


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in change(lines)).encode()))


@pytest.mark.parametrize(
    "line",
    ['["LinkSeen",1]', '["t",1e999]', '["t"]', '["d"]\n["="]', '["="]', '["w","x"]', '["s","links","5+5"]', "[]"],
)
def test_lines_are_named_that_cannot_be_read(recording: Path, line: str) -> None:
    rewrite(recording, lambda lines: [*lines[:10], *line.splitlines(), *lines[10:]])
    with pytest.raises(RecordingError, match=r"line 1[12]"):
        list(read_file(recording))


def test_what_comes_before_the_damage_is_read(recording: Path) -> None:
    whole = list(read_file(recording))
    data = bytearray(recording.read_bytes())
    place = len(data) * 2 // 3
    data[place : place + 8] = bytes(byte ^ 0x5A for byte in data[place : place + 8])
    recording.write_bytes(data)
    items: list[Item] = []
    with pytest.raises(RecordingError):
        # What came before the error stays in the list.
        items.extend(read_file(recording))
    assert 10 < len(items) < len(whole)
    assert items == whole[: len(items)]


def changed_header(**values: object) -> Callable[[list[str]], list[str]]:
    return lambda lines: [json.dumps({**json.loads(lines[0]), **values}), *lines[1:]]


def test_a_file_from_before_commands_of_operators_is_read(recording: Path) -> None:
    """Version 2 wrote decisions without an override, and knew no request of an operator."""

    def older(lines: list[str]) -> list[str]:
        header = json.loads(lines[0])
        types = {
            name: names for name, names in header["types"].items() if name not in ("OverrideRequested", "Override")
        }
        types["Decision"] = [name for name in types["Decision"] if name != "override"]
        rows = [json.loads(line) for line in lines[1:]]
        for row in rows:
            if row[0] == "=" and row[1][0] == "Decision":
                assert row[1].pop() is None
        return [json.dumps({**header, "version": 2, "types": types}), *map(json.dumps, rows)]

    before = [repr(item) for item in read_file(recording)][1:]
    rewrite(recording, older)
    assert [repr(item) for item in read_file(recording)][1:] == before


@pytest.mark.parametrize(
    ("values_", "words"),
    [
        ({"version": 4, "lbguard": "9.1.0"}, "version 4.*reads versions 1 to 3.*lbguard 9.1.0"),
        ({"version": 0}, "version 0"),
        ({"version": 2.0}, "damaged"),
        ({"format": "something"}, "not a recording"),
        ({"types": {"LinkBent": ["a"]}, "lbguard": "9.1.0"}, "9.1.0.*LinkBent"),
        ({"speed": 1}, "damaged"),
        ({"now": "noon"}, "damaged"),
        ({"offset": None}, "damaged"),
        ({"lost": "many"}, "damaged"),
        ({"begins": "somehow"}, "damaged"),
        ({"series": 5}, "damaged"),
        ({"types": 5}, "damaged"),
        ({"types": {"LinkGone": 5}}, "damaged"),
    ],
)
def test_other_versions_are_refused_by_name(recording: Path, values_: dict[str, object], words: str) -> None:
    rewrite(recording, changed_header(**values_))
    with pytest.raises(RecordingError, match=words):
        list(read_file(recording))


# Without the time of day in it, for a test has to have the same name in every process.
@pytest.mark.parametrize(
    "content", [b"", gzip.compress(b"", mtime=0), gzip.compress(b"hello\n", mtime=0), b"hello", b"\x1f\x8b"]
)
def test_what_is_no_recording_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=r"x\.jsonl\.gz"):
        find_files([path])


@pytest.mark.parametrize("size", [0, 5, 100])
def test_a_file_that_was_just_begun_does_not_keep_the_others_from_being_read(recording: Path, size: int) -> None:
    begun = recording.with_name("lbguard-19991231T235959Z-00000000-000001.jsonl.gz")
    begun.write_bytes(recording.read_bytes()[:size])
    files = find_files([recording.parent])
    assert files == [recording, begun]
    assert list(read_file(begun)) == [Ended(begun, torn=True)]


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="No such file"):
        find_files([tmp_path / "none"])
    with pytest.raises(RecordingError, match=r"recording\.enabled"):
        find_files([tmp_path])


@pytest.mark.slow
def test_a_huge_file_is_streamed(tmp_path: Path) -> None:
    path = record(tmp_path, [Entry("told", 1.0, LinkGone(ifindex=1)), Entry("repair", 2.0)])
    head = gzip.decompress(path.read_bytes())
    count = 100_000
    pack = zlib.compressobj(6, zlib.DEFLATED, 31)
    with path.open("wb") as stream:
        stream.write(pack.compress(head))
        for _ in range(count // 1000):
            stream.write(pack.compress(b'["t",1000]\n["LinkGone",7]\n["d"]\n' * 1000))
        stream.write(pack.flush())
    seen, most = 0, 0
    before = sys.getallocatedblocks()
    for item in read_file(path):
        if isinstance(item, Decided):
            seen += 1
            if seen % 5000 == 0:
                most = max(most, sys.getallocatedblocks() - before)
    assert seen == count
    # Whoever kept the lines would hold three blocks for each decision; a chunk of lines is on its way at most.
    assert most < count / 2


def test_a_state_that_was_cut_off_is_not_used(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    writer.write(Entry("checkpoint", 1.0, Checkpoint(freeze(Guard().engine))))
    writer.close()
    (path,) = tmp_path.iterdir()
    rewrite(path, lambda lines: lines[:20])
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    items = list(read_file(path))
    assert not any(isinstance(item, Began) for item in items)
