"""A short campaign, the same runs every time. `python -m tests.sim` plays as many more as wanted."""

import os
import subprocess
import sys

import pytest

from tests.sim.campaign import report

RUNS = 320
CHUNK = 40


@pytest.mark.parametrize("first", range(1, RUNS + 1, CHUNK))
def test_everything_holds_whatever_goes_wrong(first: int) -> None:
    for seed in range(first, first + CHUNK):
        failure = report(seed)
        assert not failure, failure


def test_a_run_is_the_same_in_every_process() -> None:
    """The order of sets of bytes and strings differs between processes; nothing may follow from it."""
    play = (
        "from tests.sim.campaign import play; from tests.sim.world import World\n"
        "for seed in range(1, 9):\n"
        "    world = World(seed); play(world)\n"
        "    print(world.steps, *world.history, sep='\\n')\n"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", play],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert "Decision" in told[0]
