import json
import os
from pathlib import Path
from typing import Any

import pytest

from lbguard.core.addr import parse_ip
from lbguard.core.events import OpenOverride
from lbguard.core.model import ManualAction
from lbguard.service.override_file import OverrideFile

LEFT = (
    OpenOverride(
        stream="stream-a",
        identifier=1,
        ips=(parse_ip("172.16.0.11"), parse_ip("fd00::11")),
        action=ManualAction.WITHDRAW,
        age_s=10.0,
        left_s=100.0,
        who="anna",
        reason="rack 7",
    ),
)


@pytest.fixture
def file(tmp_path: Path) -> OverrideFile:
    return OverrideFile(tmp_path / "lbguard.sock")


def test_what_is_saved_is_loaded_and_its_time_runs_on(file: OverrideFile, tmp_path: Path) -> None:
    assert file.save(LEFT, 1000.0) == ""
    [loaded] = OverrideFile(tmp_path / "lbguard.sock").load(1000.0 + 30.0)
    assert (loaded.age_s, loaded.left_s) == (40.0, 70.0)
    assert (loaded.ips, loaded.action, loaded.who, loaded.reason) == (
        LEFT[0].ips,
        ManualAction.WITHDRAW,
        "anna",
        "rack 7",
    )
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_an_hour_without_a_process_does_not_matter_and_what_has_ended_is_gone(file: OverrideFile) -> None:
    file.save(LEFT, 1000.0)
    assert file.load(1099.0)
    assert file.load(1101.0) == ()


def test_without_overrides_there_is_no_file(file: OverrideFile) -> None:
    file.save(LEFT, 1000.0)
    assert file.save((), 1001.0) == ""
    assert not file.path.exists()
    assert file.save((), 1002.0) == ""
    assert file.load(1003.0) == ()


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    file = OverrideFile(tmp_path / "missing" / "lbguard.sock")
    assert "missing" in file.save(LEFT, 1000.0)
    assert file.load(1000.0) == ()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "lbguard-overrides-9"},
        {"boot": "another"},
        {"namespace": [0, 0]},
        {"at": 2000.0},
        {"at": "now"},
        {"overrides": [["stream-a", 1]]},
        {"overrides": [["stream-a", 1, ["172.16.0.11"], "release", 1, 1, "", ""]]},
        {"overrides": [["stream-a", 1, ["172.16.0.11"], "explode", 1, 1, "", ""]]},
        {"overrides": [["stream-a", "1", ["172.16.0.11"], "hold", 1, 1, "", ""]]},
        {"overrides": [["stream-a", 1, ["nowhere"], "hold", 1, 1, "", ""]]},
        {"overrides": [["stream-a", 1, ["172.16.0.11"], "hold", 1, -1, "", ""]]},
        {"overrides": [["stream-a", 1, ["172.16.0.11"], "hold", 1, 1, 7, ""]]},
        {"overrides": 7},
    ],
)
def test_a_file_of_another_form_or_place_is_ignored(file: OverrideFile, change: dict[str, Any]) -> None:
    file.save(LEFT, 1000.0)
    file.path.write_text(json.dumps(json.loads(file.path.read_text()) | change))
    assert file.load(1001.0) == ()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_ignored(file: OverrideFile, content: bytes) -> None:
    file.path.write_bytes(content)
    assert file.load(1001.0) == ()


def test_a_file_that_others_may_write_or_that_is_none_is_ignored(file: OverrideFile) -> None:
    file.save(LEFT, 1000.0)
    file.path.chmod(0o666)
    assert file.load(1001.0) == ()
    file.path.unlink()
    os.mkfifo(file.path)
    assert file.load(1001.0) == ()
