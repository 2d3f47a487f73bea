"""The lab's stand-in for the `nfqlb` program, with memories in a directory of the test's choice, and with faults.

`FakeNfqlb` installs it in a directory and arms its faults.
"""

import os
import shlex
import signal
import sys
from enum import StrEnum
from pathlib import Path

from lbguard.lab.nfqlb_stand_in import FAILED, Memory, make_memory, parse, run

__all__ = ["FakeNfqlb", "Fault", "Memory", "make_memory"]

HOME = "FAKE_NFQLB_HOME"
SHM_DIR = "FAKE_NFQLB_SHM_DIR"
HANG_LIMIT_S = 60


class Fault(StrEnum):
    """What can go wrong, once, with the next call of a command."""

    REFUSE = "refuse"
    """Exit with status 1 and a complaint, having changed nothing."""
    HANG = "hang"
    """Never end (until killed)."""
    DIE_HALFWAY = "die-halfway"
    """Be killed in the middle of a rebuild: the lookup array is left empty."""
    GARBLE = "garble"
    """Print something that nobody expects, and succeed."""


class FakeNfqlb:
    """The stand-in installed in a directory, with its memories in another one.

    Let `shm_dir` be on a tmpfs, as /dev/shm is: elsewhere stores through a mapping change the modification time.
    """

    def __init__(self, home: Path, shm_dir: Path) -> None:
        self.binary = home / "nfqlb"
        self.shm_dir = shm_dir
        self._home = home
        variables = {HOME: home, SHM_DIR: shm_dir, "PYTHONPATH": Path(__file__).parents[2]}
        environment = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in variables.items())
        python = f"{shlex.quote(sys.executable)} -S -P -m {__name__}"
        self.binary.write_text(f'#!/bin/sh\n{environment} exec {python} "$@"\n')
        self.binary.chmod(0o755)

    def arm(self, command: str, fault: Fault) -> None:
        """Let the next call of a command fail in this way."""
        (self._home / f"fault.{command}").write_text(fault)

    def calls(self) -> list[str]:
        """Return the command lines so far, oldest first, without the program's name."""
        log = self._home / "calls"
        return log.read_text().splitlines() if log.exists() else []


def next_fault(home: Path, command: str) -> str:
    """Take the fault that is armed for a command; it strikes once."""
    path = home / f"fault.{command}"
    if not path.exists():
        return ""
    fault = path.read_text()
    path.unlink()
    return fault


def die_halfway(shm_dir: Path, options: dict[str, str], mark: int) -> None:
    """Do what a change does first, and be killed."""
    memory = Memory(shm_dir / options["shm"])
    memory.active[int(options["index"])] = mark
    memory.clear()
    memory.store()
    os.kill(os.getpid(), signal.SIGKILL)


def main(arguments: list[str]) -> int:
    home, shm_dir = Path(os.environ[HOME]), Path(os.environ[SHM_DIR])
    with (home / "calls").open("a") as log:
        log.write(" ".join(arguments) + "\n")
    fault = next_fault(home, arguments[0])
    if fault == Fault.REFUSE:
        sys.stderr.write("refused on purpose\n")
        return FAILED
    if fault == Fault.GARBLE:
        print("lp0 on fire")
        return 0
    if fault == Fault.HANG:
        signal.alarm(HANG_LIMIT_S)
        signal.pause()
    if fault == Fault.DIE_HALFWAY:
        _, options, words = parse(arguments)
        die_halfway(shm_dir, options, int(words[0]) if words else -1)
    return run(arguments, shm_dir)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
