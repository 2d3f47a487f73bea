"""Simulated runs whose every guard is recorded, with checkpoints at random moments."""

import random
from pathlib import Path

from lbguard.recording.recorder import RecordedEngine
from lbguard.recording.writer import RecordingWriter
from tests.fakes.direct_tape import DirectTape
from tests.sim.affinity import AffinityWorld
from tests.sim.invariants import Watch
from tests.sim.manual import ManualWorld
from tests.sim.world import World


class RestlessTape(DirectTape):
    """Asks for a checkpoint now and then, whatever is going on at that moment."""

    def __init__(self, writer: RecordingWriter, rng: random.Random, share: float) -> None:
        super().__init__(writer)
        self._random = rng
        self._share = share

    @property
    def wanted(self) -> int:
        return 2 if self._random.random() < self._share else 0


class _Recorded(World):
    """Leaves recordings of a run in a directory; the service's restarts begin new ones."""

    def __init__(self, seed: int, directory: Path, checkpoints: float) -> None:
        self._directory = directory
        self._checkpoints = checkpoints
        # Of its own, so that recording changes nothing in the run.
        self._tape_random = random.Random(seed)
        self._writer: RecordingWriter | None = None
        super().__init__(seed)

    def start_guard(self) -> None:
        super().start_guard()
        self.finish()
        self._writer = RecordingWriter(self._directory, self.config, wall_offset=lambda: 1e9)
        tape = RestlessTape(self._writer, self._tape_random, self._checkpoints)
        self.engine = RecordedEngine(self.config, tape)
        self.watch = Watch(self)

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()


class RecordedWorld(_Recorded):
    """A run that is recorded."""


class RecordedManualWorld(_Recorded, ManualWorld):
    """A run with operators that is recorded."""


class RecordedAffinityWorld(_Recorded, AffinityWorld):
    """A run with flow affinity that is recorded: targets drain, families are withdrawn alone, changes wait."""
