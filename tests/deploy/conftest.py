import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.charts import ROOT, Helm


@pytest.fixture(scope="session")
def tools() -> Path:
    """Where helm3, helm4 and kubectl are."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/fetch-helm")], capture_output=True, text=True, timeout=240, check=False
    )
    if done.returncode:
        pytest.skip(f"no Helm: {done.stderr.strip().splitlines()[-1]}")
    return ROOT / "out/tools"


@pytest.fixture(scope="session", params=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest, tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(tools / request.param, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def helm4(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(tools / "helm4", tmp_path_factory.mktemp("home"))
