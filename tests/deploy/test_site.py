"""docs/ as a site: it builds without a warning, from what the lock file names."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.charts import ROOT


@pytest.mark.timeout(600)
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    argv = [ROOT / "scripts/build-site", tmp_path / "site"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=580, check=False)
    if done.returncode == 3:
        pytest.skip(f"no mkdocs: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        name = "index.html" if page.name == "README.md" else f"{page.stem}.html"
        assert (tmp_path / "site" / name).exists(), name
    five_minutes = (tmp_path / "site/five-minutes.html").read_text()
    assert re.search(r'<img [^>]*src="demo.svg"', five_minutes)
    assert (tmp_path / "site/targets.schema.json").read_bytes() == (ROOT / "docs/targets.schema.json").read_bytes()
