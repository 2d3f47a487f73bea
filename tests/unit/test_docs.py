import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", ["settings.md", "metrics.md", "concepts.md", "api.md"])
def test_the_committed_pages_are_what_the_code_says(page: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts/generate-docs"), "--out", str(tmp_path)], check=True)
    assert (ROOT / "docs" / page).read_text() == (tmp_path / page).read_text(), "run scripts/generate-docs"
