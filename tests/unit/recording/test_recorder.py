"""The recorder's thread: order, drop policy, a disk that refuses, and an end in good time."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lbguard.core.checkpoint import freeze
from lbguard.core.config import EngineConfig
from lbguard.core.events import KernelSnapshot, LinkGone
from lbguard.core.model import NeighborState, TargetKey
from lbguard.recording.format import Limits, RecordingError
from lbguard.recording.reader import Committed, Item, PacketsRead, Told, find_files, read_file, read_header
from lbguard.recording.recorder import RecordedEngine, Recorder
from lbguard.recording.replay import replay
from lbguard.recording.writer import RecordingWriter
from tests.unit.core.harness import Guard, ipv4_of

CONFIG = EngineConfig(neighbor_probe_interval_s=0.0, solicit_neighbors=False)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come true in 30 s"
        time.sleep(0.005)


def items_in(directory: Path) -> list[Item]:
    return [item for path in find_files([directory]) for item in read_file(path)]


def make(directory: Path, clock: Clock, *, limits: Limits | None = None, queue_limit: int = 1000) -> Recorder:
    writer = RecordingWriter(directory, CONFIG, limits=limits, wall_offset=lambda: 1e6)
    return Recorder(writer, queue_limit=queue_limit, flush_s=0.02, clock=clock)


def test_everything_that_was_put_is_there_in_order_after_close(tmp_path: Path) -> None:
    recorder = make(tmp_path, Clock())
    recorder.start()
    for number in range(900):
        recorder.put("told", 1.0 + number, LinkGone(ifindex=number))
    recorder.put("commit", 950.0, ("stream-a", 12, 997, 0.001, ""))
    recorder.put_packets(951.0, {TargetKey("stream-a", 1): (10, 2), TargetKey("stream-a", 2): (5, 0)})
    recorder.put_packets(956.0, {TargetKey("stream-a", 1): (20, 2), TargetKey("stream-a", 2): (5, 0)})
    recorder.close()
    items = items_in(tmp_path)
    assert [item.event for item in items if isinstance(item, Told)] == [LinkGone(ifindex=n) for n in range(900)]
    assert Committed(950.0, "stream-a", 12, 997, 0.001, "") in items
    assert [item for item in items if isinstance(item, PacketsRead)] == [
        PacketsRead(951.0, {("stream-a", 1): (10, 2), ("stream-a", 2): (5, 0)}),
        PacketsRead(956.0, {("stream-a", 1): (20, 2)}),
    ]
    assert recorder.recorded == 903
    assert not recorder.dropped
    assert recorder.bytes_written == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_what_was_put_is_on_disk_soon(tmp_path: Path) -> None:
    clock = Clock()
    recorder = make(tmp_path, clock)
    recorder.start()
    recorder.put("told", 1.0, LinkGone(ifindex=7))

    def on_disk() -> bool:
        try:
            return any(tmp_path.iterdir()) and Told(1.0, LinkGone(ifindex=7)) in items_in(tmp_path)
        except RecordingError:
            return False  # the file is there, and its first line is not yet

    try:
        until(on_disk)
    finally:
        recorder.close()


def test_a_full_queue_makes_a_gap_that_is_counted_and_a_new_file_after_it(tmp_path: Path) -> None:
    clock = Clock()
    recorder = make(tmp_path, clock, queue_limit=50)
    guard = Guard(CONFIG, start=False)
    guard.engine = RecordedEngine(CONFIG, recorder)
    guard.tell(KernelSnapshot())
    guard.link(1)
    guard.register(1, 2)
    # Nobody writes yet, so the queue fills up.
    for number in range(200):
        guard.now += 0.01
        guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, number=number)
    dropped = recorder.dropped["queue_full"]
    assert dropped > 100
    assert recorder.wanted == 0
    recorder.start()
    until(lambda: recorder.wanted == 2)
    guard.now += 1.0
    guard.unlink(1)
    guard.wait(10.0)
    assert recorder.wanted == 0
    recorder.close()
    first, second = find_files([tmp_path])
    header = read_header(second)
    assert header.begins == "after_loss"
    assert header.lost == recorder.dropped["queue_full"] >= dropped
    report = replay([first, second])
    assert report.difference is None
    assert report.lost == header.lost
    assert replay([second]).decisions > 0


def test_a_disk_that_refuses_is_counted_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "recording"
    place.write_text("a file where the directory should be")
    clock = Clock()
    recorder = make(place, clock)
    recorder.start()
    recorder.put("told", 1.0, LinkGone(ifindex=1))
    until(lambda: recorder.dropped["disk"] == 1)
    recorder.put("told", 2.0, LinkGone(ifindex=2))
    assert recorder.dropped["disk"] == 2
    assert recorder.wanted == 0
    clock.now += 60
    assert recorder.wanted == 2
    place.unlink()
    recorder.put("checkpoint", 3.0, freeze(Guard(CONFIG).engine))
    recorder.put("told", 4.0, LinkGone(ifindex=4))
    recorder.close()
    (path,) = find_files([place])
    assert read_header(path).lost == 2
    assert [item.now for item in read_file(path) if isinstance(item, Told)] == [4.0]
    assert [record.message for record in caplog.records].count("recording cannot be written") == 1


def test_files_that_are_too_small_for_the_state_do_not_make_one_checkpoint_after_another(tmp_path: Path) -> None:
    clock = Clock()
    recorder = make(tmp_path, clock, limits=Limits(file_bytes=500, files=3))
    recorder.start()
    recorder.put("checkpoint", 1.0, freeze(Guard(CONFIG).engine))
    until(lambda: recorder.bytes_written > 500)
    assert recorder.wanted == 0
    recorder.put("repair", 2.0)
    until(lambda: recorder.dropped["file_full"] == 1)
    assert recorder.wanted == 0
    clock.now += 60
    assert recorder.wanted == 2
    recorder.close()


def test_putting_never_waits_for_the_writer(tmp_path: Path) -> None:
    # Without a thread at work nothing is taken from the queue, and put returns all the same.
    recorder = make(tmp_path, Clock(), queue_limit=10)
    for number in range(100):
        recorder.put("told", float(number), LinkGone(ifindex=number))
    assert recorder.recorded == 10
    assert recorder.dropped["queue_full"] == 90
    recorder.close()
    assert not list(tmp_path.iterdir())
