"""Memories of nfqlb in a place of their own, and the real program where it is installed."""

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_numbers = itertools.count()


@pytest.fixture
def shm_dir() -> Iterator[Path]:
    """A directory on the tmpfs that real memories are on, removed after the test."""
    with tempfile.TemporaryDirectory(prefix="lbguard-test-", dir="/dev/shm") as directory:
        yield Path(directory)


class RealNfqlb:
    """The real program on one memory of its own in /dev/shm."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, command: str, *arguments: str) -> str:
        line = ["nfqlb", command, f"--shm={self.name}", *arguments]
        return subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture
def real() -> Iterator[RealNfqlb]:
    """The real program; the test is skipped, visibly, where it is not installed."""
    if shutil.which("nfqlb") is None:
        pytest.skip("no nfqlb binary on PATH")
    program = RealNfqlb(f"lbguard-test-{os.getpid()}-{next(_numbers)}")
    yield program
    program("delete")
