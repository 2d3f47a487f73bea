"""The file of identifiers: what is saved is loaded, and nothing of another form is."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from lbguard.core.addr import parse_ip
from lbguard.service.identifier_file import IdentifierFile
from lbguard.sources.kubernetes.identifiers import RememberedStream, RememberedTarget

MEMORY = {
    "web": RememberedStream(
        offset=5000,
        size=10,
        targets=(
            RememberedTarget(key="uid/a", identifier=1, ips=(parse_ip("10.0.0.1"), parse_ip("fd00::1"))),
            RememberedTarget(key="uid/b", identifier=2, ips=(parse_ip("10.0.0.2"),), draining=True),
        ),
        resting={"uid/c": 3},
    ),
    "dns": RememberedStream(offset=5010, size=10),
}


@pytest.fixture
def file(tmp_path: Path) -> IdentifierFile:
    return IdentifierFile(tmp_path / "identifiers", "services default")


def test_what_is_saved_is_loaded(file: IdentifierFile) -> None:
    assert file.load() == {}
    file.save(MEMORY)
    assert file.load() == MEMORY
    assert file.path.stat().st_mode & 0o777 == 0o600
    file.save({})
    assert file.load() == {}


def test_identifiers_of_other_objects_are_not_used(file: IdentifierFile) -> None:
    file.save(MEMORY)
    assert IdentifierFile(file.path, "services elsewhere").load() == {}


def spoiled(**changes: Any) -> str:
    row = {"offset": 5000, "size": 10, "targets": [[1, "a", ["10.0.0.1"], False]], "resting": {}} | changes
    return json.dumps({"format": "lbguard-identifiers-1", "whose": "services default", "streams": {"web": row}})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"format": "lbguard-identifiers-2"}',
        '{"format": "lbguard-identifiers-1", "whose": "services default", "streams": []}',
        '{"format": "lbguard-identifiers-1", "whose": "services default", "streams": {"web": 7}}',
        spoiled(offset=-1),
        spoiled(offset=2**32),
        spoiled(size="10"),
        spoiled(size=True),
        spoiled(other=1),
        spoiled(targets=[[1, "a", ["10.0.0"], False]]),
        spoiled(targets=[[1, 2, ["10.0.0.1"], False]]),
        spoiled(targets=[["1", "a", ["10.0.0.1"], False]]),
        spoiled(targets=[[1]]),
        spoiled(targets=7),
        spoiled(resting={"c": "3"}),
        spoiled(resting=[]),
    ],
)
def test_a_file_of_another_form_is_ignored_and_said(
    file: IdentifierFile, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    file.path.write_text(content)
    file.path.chmod(0o600)
    with caplog.at_level(logging.WARNING):
        assert file.load() == {}
    assert [r.message for r in caplog.records] == ["identifiers of an earlier run are ignored: targets may get others"]


def test_a_file_that_others_may_write_or_that_is_none_is_ignored(file: IdentifierFile, tmp_path: Path) -> None:
    file.save(MEMORY)
    file.path.chmod(0o666)
    assert file.load() == {}
    file.path.unlink()
    file.path.symlink_to(tmp_path / "other")
    (tmp_path / "other").write_text(spoiled())
    assert file.load() == {}
    file.path.unlink()
    os.mkfifo(file.path)
    assert file.load() == {}


def test_a_directory_that_is_missing_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = IdentifierFile(tmp_path / "missing" / "identifiers", "services default")
    with caplog.at_level(logging.WARNING):
        assert not file.save(MEMORY)
        assert not file.save({})
    (record,) = caplog.records
    assert "kubernetes.identifiers" in record.fields["remedy"]  # type: ignore[attr-defined]
    file.path.parent.mkdir()
    assert file.save(MEMORY)
    assert file.load() == MEMORY
