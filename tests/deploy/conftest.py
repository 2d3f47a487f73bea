import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.charts import HERE, ROOT, Helm


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


@pytest.fixture(scope="session")
def operator_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that checks objects of the Prometheus operator's kinds, with the packages that it needs."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    place = tmp_path_factory.mktemp("models") / "operator_models"
    shutil.copytree(HERE / "operator_models", place)
    argv = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(argv, cwd=place, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        pytest.skip(f"no models of the Prometheus operator: {done.stderr.strip().splitlines()[-1]}")
    return place / "check.mjs"
