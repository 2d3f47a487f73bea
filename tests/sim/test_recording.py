"""Recordings of simulated runs are replayed: the whole, and each file alone. Nothing may be decided otherwise."""

import contextlib
import shutil
from pathlib import Path

import pytest

from lbguard.recording.format import START
from lbguard.recording.reader import find_files, read_header
from lbguard.recording.replay import replay
from lbguard.recording.show import report_text
from tests.sim.campaign import play
from tests.sim.recorded import RecordedAffinityWorld, RecordedManualWorld, RecordedWorld

RUNS, AFFINITY_RUNS = 200, 60
CHUNK = 20


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        *((RecordedWorld, first) for first in range(1, RUNS + 1, CHUNK)),
        *((RecordedAffinityWorld, first) for first in range(1, AFFINITY_RUNS + 1, CHUNK)),
    ],
)
def test_a_replay_decides_the_same_bit_for_bit(
    kind: type[RecordedWorld | RecordedAffinityWorld], first: int, tmp_path: Path
) -> None:
    decisions = continued = drained = families = 0
    for seed in range(first, first + CHUNK):
        directory = tmp_path / str(seed)
        world = kind(seed, directory, checkpoints=0.01)
        # What has to hold in a run is the campaign's business; a run that ends early is replayed all the same.
        with contextlib.suppress(AssertionError):
            play(world)
        world.finish()
        files = find_files([directory])
        for some in ([*files], *([file] for file in files if read_header(file).begins != START)):
            report = replay(some)
            assert report.difference is None, f"seed {seed}: {report_text(report)}"
            assert not report.torn
            decisions += report.decisions
            drained += report.drained.total()
            families += report.families.total()
        continued += sum(read_header(file).begins != START for file in files)
        shutil.rmtree(directory)
    assert decisions > 300
    assert continued > 10
    assert (drained > 0) is (kind is RecordedAffinityWorld)
    # Few runs have a family withdrawn alone.
    assert families > 0 if (kind, first) == (RecordedAffinityWorld, 1) else drained or not families


def test_a_replay_of_operators_commands_decides_the_same(tmp_path: Path) -> None:
    commands = continued = 0
    for seed in range(1, CHUNK + 1):
        directory = tmp_path / str(seed)
        world = RecordedManualWorld(seed, directory, checkpoints=0.01)
        with contextlib.suppress(AssertionError):
            play(world)
        world.finish()
        files = find_files([directory])
        for some in ([*files], *([file] for file in files if read_header(file).begins != START)):
            report = replay(some)
            assert report.difference is None, f"seed {seed}: {report_text(report)}"
        continued += sum(read_header(file).begins != START for file in files)
        commands += sum(count for (_, outcome), count in world.commands.items() if outcome == "done")
        shutil.rmtree(directory)
    assert continued > 10
    assert commands > 50
