"""The quick start of the README works line by line."""

import os
import sys
from pathlib import Path

import pytest

from tests.pages import run_blocks

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def test_the_quick_start(sandbox: None, tmp_path: Path) -> None:
    # The commands run elsewhere, so that the file they write is not written into the repository.
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "lbguard").symlink_to(Path(sys.executable).parent / "lbguard")
    environment = {**os.environ, "LBGUARD_LOG__FORMAT": "text", "COLUMNS": "160"}
    # `make setup` is what made the environment that runs this.
    (done,) = run_blocks("README.md", tmp_path, environment, without="make setup\n")
    assert "Nothing to warn of." in done.stdout
    assert "stream-a/1 has been held for " in done.stdout
    assert "hold stream-a/1: link_down" in done.stdout
    assert "recover stream-a/1: link_down" in done.stdout
    assert "stream-a/2 gets no new connections for 10m" in done.stdout
    assert "stream-a/1 is released (state now: active)" in done.stdout
    # The window of 30 s ends in less than 20 s after its change.
    _, changed = done.stdout.split("It is withdrawn in ", 1)
    assert float(changed.split(" s", 1)[0]) > 20
    [until] = [line for line in changed.splitlines() if line.startswith("stream-a/1") and " held " in line]
    assert float(until.split(" in ")[1].split(" s")[0]) < 20
    assert sorted(each.name for each in tmp_path.iterdir()) == [".venv"]
