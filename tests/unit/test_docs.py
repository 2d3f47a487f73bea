import re
import shutil
import subprocess
import sys
from pathlib import Path

from lbguard.core.fsm import TRANSITIONS
from lbguard.core.model import Action
from tests.pages import blocks

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_pages_are_what_the_code_says(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts/generate-docs"), "--out", str(tmp_path)], check=True)
    for page in ("settings.md", "metrics.md", "concepts.md", "api.md", "targets-file.md", "targets.schema.json"):
        assert (ROOT / "docs" / page).read_text() == (tmp_path / page).read_text(), f"{page}: run scripts/generate-docs"


def test_the_diagram_shows_every_transition_that_does_something() -> None:
    (diagram,) = blocks("docs/concepts.md", "mermaid")
    drawn = set(re.findall(r"(?m)^ *(\S+) --> (\S+): .* / (\w+)$", diagram))
    assert drawn == {
        (state, transition.state or "[*]", transition.action)
        for (state, _), transition in TRANSITIONS.items()
        if transition.action is not Action.STAY
    }


def test_the_manual_page_is_what_the_help_says(tmp_path: Path) -> None:
    page = tmp_path / "lbguard.1"
    subprocess.run([sys.executable, str(ROOT / "scripts/generate-man"), "--out", str(page)], check=True)
    assert (ROOT / "docs/lbguard.1").read_text() == page.read_text(), "run scripts/generate-man"
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", page], capture_output=True, text=True, check=True)
        assert done.stderr == ""
