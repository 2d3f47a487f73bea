"""Recordings of simulated runs are replayed: the whole, and each file alone. Nothing may be decided otherwise."""

import shutil
from pathlib import Path

import pytest

from lbguard.recording.reader import find_files
from lbguard.recording.replay import replay
from lbguard.recording.show import report_text
from tests.sim.campaign import play
from tests.sim.recorded import RecordedWorld

RUNS = 240
CHUNK = 40


@pytest.mark.parametrize("first", range(1, RUNS + 1, CHUNK))
def test_a_replay_decides_the_same_bit_for_bit(first: int, tmp_path: Path) -> None:
    decisions = continued = 0
    for seed in range(first, first + CHUNK):
        directory = tmp_path / str(seed)
        world = RecordedWorld(seed, directory, checkpoints=0.02)
        play(world)
        world.finish()
        files = find_files([directory])
        for some in ([*files], *([file] for file in files)):
            report = replay(some)
            assert report.difference is None, f"seed {seed}: {report_text(report)}"
            assert not report.torn
            decisions += report.decisions
        continued += sum("-000001." not in file.name for file in files)
        shutil.rmtree(directory)
    assert decisions > 1000
    assert continued > 50
