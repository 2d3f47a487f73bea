"""The rules of this repository, evaluated by promtool over made-up series."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.charts import ROOT

RULE_FILES = sorted((ROOT / "deploy/prometheus").glob("*.yaml"))


def promtool_or_skip() -> str:
    """Return the path of promtool; without it the test is skipped."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    return found


def evaluate(promtool: str, tests: list[dict[str, Any]], into: Path) -> str:
    """Let promtool run unit tests; return what it says of failures, empty when there are none."""
    file = into / "tests.yaml"
    files = [str(path) for path in RULE_FILES]
    file.write_text(yaml.safe_dump({"rule_files": files, "evaluation_interval": "30s", "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr
