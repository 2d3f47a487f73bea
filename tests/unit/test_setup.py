"""scripts/setup: what it prints. Its environment is a stand-in, whose installer warns as the real one may."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLER = """#!/bin/sh
echo "WARNING: Location 'file:///nowhere/' is ignored" >&2
{more}
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("scripts/setup", "requirements-dev.lock", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    install(tmp_path, "exit 0")
    return tmp_path


def install(copy: Path, more: str) -> None:
    python = copy / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(INSTALLER.format(more=more))
    python.chmod(0o755)


def run(copy: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([copy / "scripts" / "setup", *options], capture_output=True, text=True, check=False)


def test_it_ends_with_what_is_ready_and_hides_warnings(copy: Path) -> None:
    first = run(copy)
    assert (first.returncode, first.stderr) == (0, "")
    heading, ready = first.stdout.splitlines()
    assert heading == "setting up .venv"
    assert ready.startswith(".venv is ready. Next: `make demo`")
    assert run(copy).stdout == "", "other targets call it each time"
    assert run(copy, "--say").stdout == f"{ready}\n"


def test_a_failure_shows_all_that_was_printed(copy: Path) -> None:
    install(copy, "echo 'ERROR: no such package' >&2; exit 1")
    done = run(copy)
    assert done.returncode == 1
    assert "ERROR: no such package" in done.stderr
    assert "is ready" not in done.stdout
    assert "is ready" not in run(copy, "--say").stdout, "it is not taken for done"
