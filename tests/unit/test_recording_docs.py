"""The pages about recording and tuning: every command in them runs, and the format is the one that is written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.tuning.incidents import Outage, record

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("recording.md", "tuning.md")}


def commands() -> list[str]:
    blocks = [block for page in PAGES.values() for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)]
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pages")
    record(directory / "recording", [Outage(1, 0.5), Outage(2, 2.0), Outage(3, None)])
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_every_command_on_the_pages_runs(command: str, place: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=place, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_there_are_commands_on_both_pages() -> None:
    assert any(command.startswith("lbguard replay") for command in commands())
    assert any(command.startswith("lbguard tune") for command in commands())


def test_every_kind_of_line_is_in_the_table() -> None:
    parser = (ROOT / "lbguard/recording/reader.py").read_text()
    kinds = set(re.findall(r'case "(.)"', parser)) | set(re.findall(r'kind == "(.)"', parser))
    assert kinds == set("trdsSkcw=nN")
    described = set(re.findall(r'`\["(.)"', PAGES["recording.md"]))
    assert described == kinds
