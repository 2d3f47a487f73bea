"""A package that is entered before it is executed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbguard.kernel.library import defer_package

NAME = "lbguard_test_library"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package whose `__init__` imports a submodule that is rarely used."""
    root = tmp_path / NAME
    root.mkdir()
    (root / "__init__.py").write_text(
        f"from {NAME}.parts import part\n"
        f"from {NAME}.heavy import Database\n"
        "__all__ = ['Database', 'part']\n"
        "__version__ = '1.2'\n"
    )
    (root / "parts.py").write_text(f"from {NAME} import shared\npart = shared.VALUE\n")
    (root / "shared.py").write_text("VALUE = 7\n")
    (root / "heavy.py").write_text("class Database: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


def loaded() -> set[str]:
    return {name.partition(".")[2] for name in sys.modules if name.startswith(f"{NAME}.")}


def run(statement: str) -> dict[str, object]:
    names: dict[str, object] = {}
    exec(statement, names)
    return names


def test_a_submodule_is_imported_alone(package: Path) -> None:
    defer_package(NAME)
    assert run(f"from {NAME}.parts import part")["part"] == 7
    assert loaded() == {"parts", "shared"}, "also from within, where the package is asked for a submodule"


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        (f"from {NAME} import Database", "Database"),
        (f"from {NAME} import *", "Database"),
        (f"from {NAME} import __version__", "__version__"),
        (f"import {NAME} as whole; found = whole.Database", "found"),
    ],
)
def test_any_other_name_executes_the_package(package: Path, statement: str, name: str) -> None:
    defer_package(NAME)
    assert name in run(statement)
    assert loaded() == {"parts", "shared", "heavy"}
    assert run(f"from {NAME} import part")["part"] == 7


def test_a_name_that_nothing_has_is_an_error_as_usual(package: Path) -> None:
    defer_package(NAME)
    whole = __import__(NAME)
    for _ in range(2):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = whole.nothing
    with pytest.raises(ImportError, match="nothing"):
        run(f"from {NAME} import nothing")


def test_a_package_that_is_loaded_or_absent_stays_as_it_is(package: Path) -> None:
    whole = __import__(NAME)
    defer_package(NAME)
    assert sys.modules[NAME] is whole
    defer_package(f"{NAME}_absent")
    assert f"{NAME}_absent" not in sys.modules


def test_a_package_that_cannot_be_executed_says_why(package: Path) -> None:
    (package / "heavy.py").write_text("raise OSError('no database')\n")
    defer_package(NAME)
    with pytest.raises(OSError, match="no database"):
        run(f"from {NAME} import Database")
    assert run(f"from {NAME}.shared import VALUE")["VALUE"] == 7


def test_the_service_loads_no_part_of_the_library_that_it_does_not_use() -> None:
    program = (
        "import sys, lbguard.cli.main, lbguard.cli.host_check, lbguard.service.process\n"
        "import lbguard.service.affinity, lbguard.service.parking, lbguard.service.servers, lbguard.probe.service\n"
        "print('\\n'.join(sys.modules))\n"
        "from pyroute2 import IPRoute, NDB\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "pyroute2.netlink.nlsocket" in modules
    assert not modules & {"pyroute2.ndb", "pyroute2.ndb.main", "pyroute2.ipset", "pyroute2.plan9", "sqlite3"}
