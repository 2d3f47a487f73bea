"""The packages of lbguard form a floor plan: no cycle, every one of them is in the page that describes it, and nobody
reaches into the engine."""

import ast
from collections.abc import Iterator
from pathlib import Path

import lbguard
from tests.pages import text

ROOT = Path(lbguard.__file__).parent
GENERATED = "lbguard.api.gen"


def imports() -> dict[str, set[str]]:
    """Return which packages (or modules at the root) each package imports, generated code aside."""
    found: dict[str, set[str]] = {}
    for file in ROOT.rglob("*.py"):
        module = file.relative_to(ROOT).with_suffix("").parts
        if module[:2] == ("api", "gen") or module[0].startswith("__"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                parts = name.split(".")
                ours = parts[0] == "lbguard" and len(parts) > 1 and not name.startswith(GENERATED)
                if ours and parts[1] != module[0] and _exists(parts[1]):
                    found.setdefault(module[0], set()).add(parts[1])
    return found


def _exists(name: str) -> bool:
    return (ROOT / name).exists() or (ROOT / f"{name}.py").exists()


def test_no_package_imports_itself_by_way_of_others() -> None:
    left = imports()
    assert left["service"] >= {"core", "kernel"}
    while left:
        free = {name for name, needed in left.items() if not needed & left.keys()}
        assert free, f"a cycle among {sorted(left)}"
        left = {name: needed for name, needed in left.items() if name not in free}


def test_every_package_stands_in_the_floor_plan() -> None:
    plan = text("docs/architecture.md").partition("## Floor plan")[2].partition("\n## ")[0]
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert packages == {name for name in packages if f"`{name}`" in plan}


VALUES = {"config", "sync_reason", "source_reason"}
"""Attributes of the engine that are values: anybody may read them."""


def parts_of_the_engine() -> set[str]:
    """Return the attributes of an engine that are not for others."""
    parts = set()
    for module in ("engine.py", "engine_state.py"):
        for node in ast.walk(ast.parse((ROOT / "core" / module).read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _name(node.value) == "self":
                parts.add(node.attr)
    return parts - VALUES


def _name(node: ast.expr) -> str:
    """Return by what name an expression is known: of a variable, an attribute, or the function that is called."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=func):
            return _name(func)
    return ""


def reaches(source: str, parts: set[str]) -> Iterator[str]:
    """Find where a text reads a part of what is called `engine` or `_engine`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and _name(node.value).lstrip("_") == "engine":
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            if private or node.attr in parts:
                yield f"{node.lineno}: {node.attr}"


def test_nobody_reaches_into_the_engine() -> None:
    parts, tests = parts_of_the_engine(), Path(__file__).parent.parent
    assert parts >= {"stream_registry", "view", "life", "paths", "tables", "_commits"}
    inside = (ROOT / "core", tests / "unit" / "core")
    files = [file for root in (ROOT, tests) for file in root.rglob("*.py") if not any(map(file.is_relative_to, inside))]
    assert len(files) > 300
    found = [f"{file}:{where}" for file in files for where in reaches(file.read_text(), parts)]
    assert not found, "ask the engine by a method of `core/engine_state.py`:\n" + "\n".join(found)


def test_a_reach_into_the_engine_is_found() -> None:
    parts = parts_of_the_engine()
    assert sorted(reaches("a.engine.view.links\nself._engine().tables\nengine._commits", parts)) == [
        "1: view",
        "2: tables",
        "3: _commits",
    ]
    assert not list(reaches("engine.config\nself.engine.target(key)\nview.tables", parts))
