"""The quick start of the README works line by line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import blocks

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def quick_start() -> str:
    """Return the commands of the README; `make setup` is what made the environment that runs this."""
    (commands,) = blocks("README.md", "sh")
    assert commands.startswith("make setup\n")
    return commands.removeprefix("make setup\n")


def test_the_quick_start(sandbox: None, tmp_path: Path) -> None:
    # The commands run elsewhere, so that the file they write is not written into the repository.
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "lbguard").symlink_to(Path(sys.executable).parent / "lbguard")
    script = "set -eu -o pipefail\n" + quick_start()
    environment = {**os.environ, "LBGUARD_LOG__FORMAT": "text", "COLUMNS": "160"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stream-a" in done.stdout
    assert "held" in done.stdout
    assert "recover" in done.stdout
    assert "hold stream-a/1: link_down" in done.stderr
