import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.charts import ROOT


def test_the_dockerfile_is_clean() -> None:
    tool = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([tool, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
