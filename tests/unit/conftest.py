"""What every test of a part alone has: settings at their defaults, and commands in this process."""

import os
from pathlib import Path

import pytest

from tests.effort import register_profiles
from tests.unit.shell import Shell

register_profiles()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("LBGUARD_")]:
        monkeypatch.delenv(variable)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def targets_file(tmp_path: Path) -> Path:
    file = tmp_path / "targets.yaml"
    file.write_text("streams:\n  - {name: stream-a, targets: [{identifier: 1, ips: [172.16.1.10]}]}\n")
    return file
