"""The lab's stand-in for the `nfqlb` program, with memories in a directory of the test's choice."""

import os
import shlex
import sys
from pathlib import Path

from lbguard.lab.nfqlb_stand_in import Memory, make_memory, run

__all__ = ["Memory", "install_nfqlb", "make_memory"]

SHM_DIR = "FAKE_NFQLB_SHM_DIR"


def install_nfqlb(home: Path, shm_dir: Path) -> Path:
    """Write the program into a directory and return its path.

    Let `shm_dir` be on a tmpfs, as /dev/shm is: elsewhere stores through a mapping change the modification time.
    """
    program = home / "nfqlb"
    variables = {SHM_DIR: shm_dir, "PYTHONPATH": Path(__file__).parents[2]}
    environment = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in variables.items())
    program.write_text(f'#!/bin/sh\n{environment} exec {shlex.quote(sys.executable)} -S -P -m {__name__} "$@"\n')
    program.chmod(0o755)
    return program


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], Path(os.environ[SHM_DIR])))
