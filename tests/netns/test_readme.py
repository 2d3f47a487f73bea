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
    assert "stream-a" in done.stdout
    assert "held" in done.stdout
    assert "recover" in done.stdout
    assert "hold stream-a/1: link_down" in done.stderr
