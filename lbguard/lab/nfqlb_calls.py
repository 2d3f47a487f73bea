"""Calls of `nfqlb` by a stand-in for a load balancer's process, and what it logs about them and its targets."""

import contextlib
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from lbguard.core.model import StreamSpec
from lbguard.distributor.base import DistributorError
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.memory import StreamMemory
from lbguard.lab.stand_in import log

SLOTS_PER_TARGET = 100
OUT_WITHIN_S = 5.0
"""Time for which the effect of a removal on the table is watched."""
LOOK_AGAIN_S = 0.001


class NfqlbCalls:
    """Calls about one memory. `stream` gives its size, `shm` is its name, `first` the identifier at index 0.

    `environment`: that of the calls; None means our own.
    """

    def __init__(
        self,
        stream: StreamSpec,
        shm: str,
        shm_dir: Path,
        first: int,
        *,
        program: str = "nfqlb",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._program = program
        self._environment = environment
        self._stream = stream
        self._shm = shm
        self._shm_dir = shm_dir
        self._first = first

    def init(self) -> bool:
        """Make the memory; return whether the call succeeded, as every call does."""
        room = self._stream.max_targets
        return self._call("init", "--ownfw=0", f"--shm={self._shm}", f"--M={room * SLOTS_PER_TARGET}", f"--N={room}")

    def activate(self, identifier: int, mark: int) -> bool:
        """Put a target into the table."""
        return self._call("activate", f"--index={identifier - self._first}", f"--shm={self._shm}", str(mark))

    def deactivate(self, identifier: int) -> bool:
        """Take a target out of the table."""
        return self._call("deactivate", f"--index={identifier - self._first}", f"--shm={self._shm}")

    def watch_removal(self, identifier: int, started: float) -> None:
        """Log how long a target stayed in the table after the call began, at that time (monotonic)."""
        while not (out := not self._in_table(identifier)) and time.monotonic() < started + OUT_WITHIN_S:
            time.sleep(LOOK_AGAIN_S)
        log("removed", identifier=identifier, out=out, took_s=time.monotonic() - started)

    def set_flow(self, *options: str) -> bool:
        """Declare a flow to the packet process, which may not listen yet."""
        return self._call("flow-set", *options, expected=False)

    def say(self, identifier: int, action: str, state: str | None) -> None:
        """Log what was decided about a target."""
        log("decision", action=action, identifier=identifier, stream=self._stream.name, state_to=state)

    def _in_table(self, identifier: int) -> bool:
        index = identifier - self._first
        with contextlib.suppress(DistributorError):
            memory = StreamMemory(self._shm_dir / self._shm, self._stream, TableKind.MAGLEV, read_only=True)
            with contextlib.closing(memory):
                return memory.active()[index] >= 0 or index in memory.lookup()
        return True

    def _call(self, *arguments: str, expected: bool = True) -> bool:
        done = subprocess.run(
            [self._program, *arguments], check=False, capture_output=True, text=True, env=self._environment
        )
        if done.returncode != 0 and expected:
            log("refused", call=" ".join(arguments), reason=(done.stderr or done.stdout).strip())
        return done.returncode == 0
