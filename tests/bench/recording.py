"""What recording costs: in the loop, in the recorder's thread, on disk; and how fast a recording is read again.

The stream of events is what a service sees all day: neighbour entries of its targets that are verified once a second,
in calls that take four events each. The state at the beginning of a file is measured with dual-stack targets.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from lbguard.core import events as ev
from lbguard.core.addr import parse_ip
from lbguard.core.checkpoint import freeze
from lbguard.core.config import EngineConfig
from lbguard.core.model import NeighborState, StreamSpec, TargetSpec
from lbguard.recording.codec import encode_nodes
from lbguard.recording.format import Limits
from lbguard.recording.reader import find_files
from lbguard.recording.recorder import RecordedEngine, Recorder
from lbguard.recording.replay import replay
from lbguard.recording.writer import Entry, RecordingWriter
from tests.bench.results import Row, Say, Scale, Summary
from tests.bench.world import STREAM_SIZE, target_ips
from tests.fakes.direct_tape import DirectTape
from tests.unit.core.harness import Guard

NAME = "recording"
_SIZES = {Scale.FULL: (100_000, 1000, 10), Scale.QUICK: (20_000, 1000, 3), Scale.SMOKE: (400, 100, 1)}
_PER_CALL = 4
_BETWEEN_CALLS_S = 0.0125
_STATES = (NeighborState.PROBE, NeighborState.REACHABLE)


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Measure each step of an event's way into a file and back, and the checkpoint."""
    events, targets, repetitions = _SIZES[scale]
    say(f"{events} events of {targets} targets")
    guard = _guard(targets, directory / "files")
    stream = list(_stream(events, targets))
    return [
        _put(stream, directory),
        *_write(stream, directory / "written"),
        _frozen(guard, targets, repetitions),
        _replayed(guard, stream, directory / "files"),
    ]


def _guard(targets: int, directory: Path) -> Guard:
    config = EngineConfig()
    guard = Guard(config, start=False)
    writer = RecordingWriter(directory, config, limits=Limits(file_bytes=2**30))
    guard.engine = RecordedEngine(config, DirectTape(writer))
    guard.tell(ev.KernelSnapshot())
    guard.link(1)
    addresses = (("172.16.255.254", 16), ("fd00::1:1", 64))
    guard.tell(*(ev.AddressSeen(ifindex=1, ip=parse_ip(ip), prefix_length=length) for ip, length in addresses))
    specs = [
        StreamSpec(
            name=f"stream-{first}",
            identifier_offset=5000 + first,
            targets=tuple(TargetSpec(identifier=n - first + 1, ips=target_ips(n)) for n in range(first, last)),
        )
        for first, last in ((first, min(targets, first + STREAM_SIZE)) for first in range(0, targets, STREAM_SIZE))
    ]
    guard.source(*specs)
    return guard


def _stream(count: int, targets: int) -> Iterator[Entry]:
    now = 1000.0
    for number in range(count):
        if number % _PER_CALL == 0:
            now += _BETWEEN_CALLS_S
        target, state = number // 2 % targets, _STATES[number % 2]
        mac = bytes((2, 0, 0, 0, target >> 8, target & 0xFF))
        event = ev.NeighborSeen(ifindex=1, ip=target_ips(target)[0], state=state, mac=mac)
        yield Entry("told", now, event)
        if number % _PER_CALL == _PER_CALL - 1:
            yield Entry("repair", now)
            yield Entry("decide", now, [])


def _events(stream: list[Entry]) -> int:
    return sum(entry.kind == "told" for entry in stream)


def _put(stream: list[Entry], directory: Path) -> Row:
    recorder = Recorder(RecordingWriter(directory, EngineConfig()), queue_limit=2**30)
    began = time.perf_counter()
    for kind, now, payload in stream:
        recorder.put(kind, now, payload)
    took = time.perf_counter() - began
    return _row("an event on its way to the recorder, in the loop", "us", took / _events(stream) * 1e6, aim=5.0)


def _write(stream: list[Entry], directory: Path) -> Iterator[Row]:
    writer = RecordingWriter(directory, EngineConfig(), limits=Limits(file_bytes=2**30))
    began = time.process_time()
    for entry in stream:
        writer.write(entry)
    writer.close()
    took = time.process_time() - began
    yield _row("an event written, in the recorder's thread (CPU)", "us", took / _events(stream) * 1e6, aim=50.0)
    yield _row("an event on disk", "bytes", writer.bytes_written / _events(stream), aim=16.0)


def _frozen(guard: Guard, targets: int, repetitions: int) -> Row:
    samples = []
    for _ in range(repetitions):
        began = time.perf_counter()
        nodes = freeze(guard.engine)
        samples.append((time.perf_counter() - began) * 1e3)
    summary = Summary.of(samples)
    size = sum(len(json.dumps(row)) for row in encode_nodes(nodes))
    return Row(
        benchmark=NAME,
        what=f"a checkpoint of {targets} dual-stack targets, in the loop",
        unit="ms",
        measured=summary.median,
        p95=summary.p95,
        repetitions=summary.count,
        details={"json_bytes": size},
    )


def _replayed(guard: Guard, stream: list[Entry], directory: Path) -> Row:
    engine = guard.engine
    for kind, now, payload in stream:
        if kind == "told":
            engine.observe(payload, now)
        elif kind == "repair":
            engine.repair(now)
        else:
            engine.decide(now)
    assert isinstance(engine, RecordedEngine)
    assert isinstance(engine.tape_recorder, DirectTape)
    engine.tape_recorder.close()
    began = time.perf_counter()
    report = replay(find_files([directory]))
    took = time.perf_counter() - began
    assert report.difference is None
    return _row("events replayed a second", "1/s", report.events / took, aim=10_000, at_least=True)


def _row(what: str, unit: str, measured: float, *, aim: float, at_least: bool = False) -> Row:
    return Row(benchmark=NAME, what=what, unit=unit, measured=measured, aim=aim, at_least=at_least)
