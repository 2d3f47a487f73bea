"""The pages for people, and the blocks of commands in them."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def pages() -> list[str]:
    """Return the paths of all pages, relative to the repository."""
    found = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def text(page: str) -> str:
    """Return a page."""
    return (ROOT / page).read_text()


def fenced(page: str) -> list[tuple[str, str]]:
    """Return the kind (`sh`, `sh cluster`, `yaml`, ...) and the contents of every fenced block, also indented ones."""
    return re.findall(r"(?ms)^ *```([^\n`]*)\n(.*?)^ *```$", text(page))


def blocks(page: str, kind: str) -> list[str]:
    """Return the contents of every block of a kind."""
    return [contents for its_kind, contents in fenced(page) if its_kind == kind]


def run_blocks(
    page: str, cwd: Path, environment: Mapping[str, str], *, without: str = ""
) -> list[subprocess.CompletedProcess[str]]:
    """Run every `sh` block of a page, each in a shell that ends at the first failure; `without` is left out."""
    ended = []
    for commands in blocks(page, "sh"):
        assert without in commands
        script = "set -eu -o pipefail\n" + commands.replace(without, "", 1)
        done = subprocess.run(
            ["bash", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, f"{page}:\n{commands}\n{done.stdout}{done.stderr}"
        ended.append(done)
    return ended


def prose(page: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"(?ms)^ *```.*?^ *```$", "", text(page))
