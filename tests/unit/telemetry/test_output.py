"""Output that cannot be written, is not read, or has an encoding of few characters."""

import subprocess
import sys
from pathlib import Path

import pytest

LBGUARD = f"{sys.executable} -m lbguard"


def sh(command: str, **variables: str) -> tuple[int, str, str]:
    """Run a command of the shell; return exit status, output and errors."""
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, check=False, env={"PATH": "/usr/bin"} | variables
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


@pytest.mark.parametrize(
    ("command", "stdout", "reason"),
    [
        ("version", ">&-", "Bad file descriptor"),
        ("check-config", "> /dev/full", "No space left"),
        ("--help", "> /dev/full", "No space left"),
    ],
)
def test_output_that_cannot_be_written_is_a_failure_in_one_line(command: str, stdout: str, reason: str) -> None:
    status, _, errors = sh(f"{LBGUARD} {command} {stdout}")
    assert status == 1
    assert errors.startswith(f"lbguard: the output cannot be written: {reason}")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "> /dev/full 2> /dev/full"])
def test_the_exit_status_stands_where_nothing_can_be_said(streams: str) -> None:
    assert sh(f"{LBGUARD} check-config {streams}") == (1, "", "")
    assert sh(f"{LBGUARD} check-config --set nonsense=1 {streams}") == (2, "", "")


def test_errors_never_go_where_output_belongs(tmp_path: Path) -> None:
    assert sh(f"{LBGUARD} status --socket {tmp_path}/none 2>&-") == (1, "", "")


def test_a_command_that_writes_nothing_needs_no_output(tmp_path: Path) -> None:
    """Nor does a file that it opens get the number of the output that was closed."""
    status, _, errors = sh(f"{LBGUARD} health --socket {tmp_path}/none >&-")
    assert status == 1
    assert "cannot be written" not in errors


def test_a_reader_that_goes_away_changes_no_exit_status(tmp_path: Path) -> None:
    for options, expected in (("", 0), ("--strict", 1)):
        status, _, errors = sh(f"{LBGUARD} check-config {options} | true; exit ${{PIPESTATUS[0]}}")
        assert (status, errors) == (expected, "")


@pytest.mark.parametrize(
    "variables",
    [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "latin-1"}],
)
def test_an_encoding_of_few_characters_is_enough(variables: dict[str, str]) -> None:
    status, output, errors = sh(f"{LBGUARD} check-config --set links.exclude=lö█", **variables)
    assert (status, errors) == (0, "")
    assert "links.exclude" in output
