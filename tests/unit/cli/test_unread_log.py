"""Standard error that leads to a pipe that nobody reads: real processes, real pipes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

LIMIT_S = 60


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The end to write to of a pipe that is full, and whose reader does not read."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for piece in (b"x" * 4096, b"x"):
        while True:
            try:
                os.write(writer, piece)
            except BlockingIOError:
                break
    os.set_blocking(writer, True)
    yield writer
    os.close(writer)
    os.close(reader)


def test_a_probe_whose_log_nobody_reads_ends_when_it_is_told_to(full_pipe: int) -> None:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("LBGUARD_")}
    environment["LBGUARD_METRICS__LISTEN"] = ""
    probe = subprocess.Popen([sys.executable, "-m", "lbguard", "probe"], env=environment, stderr=full_pipe)
    try:
        wait_until_caught(probe.pid, signal.SIGTERM)
        probe.send_signal(signal.SIGTERM)
        assert probe.wait(LIMIT_S) == 0
    finally:
        probe.kill()
        probe.wait()


def wait_until_caught(pid: int, number: signal.Signals) -> None:
    """Wait until a process has a handler for a signal."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        (caught,) = (
            line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigCgt" in line
        )
        if int(caught, 16) >> (number - 1) & 1:
            return
        time.sleep(0.02)
    raise TimeoutError(f"process {pid} has no handler for {number.name}")
