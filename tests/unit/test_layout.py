"""The packages of lbguard form a floor plan: no cycle, and every one of them is in the page that describes it."""

import ast
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
