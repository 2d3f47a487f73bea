"""The pages about recording and tuning: every command in them runs, and the format is the one that is written."""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.pages import run_blocks, text
from tests.unit.tuning.incidents import Outage, record

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pages")
    record(directory / "recording", [Outage(1, 0.5), Outage(2, 2.0), Outage(3, None)])
    return directory


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_the_commands_about_recording_run(place: Path, environment: dict[str, str]) -> None:
    assert all(done.stdout for done in run_blocks("docs/recording.md", place, environment))


@pytest.mark.slow
def test_the_commands_about_tuning_run(place: Path, environment: dict[str, str]) -> None:
    assert all(done.stdout for done in run_blocks("docs/tuning.md", place, environment))


def test_every_kind_of_line_is_in_the_table() -> None:
    parser = (ROOT / "lbguard/recording/reader.py").read_text()
    kinds = set(re.findall(r'case "(.)"', parser)) | set(re.findall(r'kind == "(.)"', parser))
    assert kinds == set("trdsSkcw=nN")
    described = set(re.findall(r'`\["(.)"', text("docs/recording.md")))
    assert described == kinds
