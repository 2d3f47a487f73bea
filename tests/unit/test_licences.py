"""The page about licences, and the bill of materials: of what the lock file names."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT

pytest.importorskip("spiffe", reason="the packages of the image are not all installed")

SCRIPT = ROOT / "scripts/generate-licences"
LOCKED = dict(re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^ ;\\]+)", (ROOT / "requirements.lock").read_text()))
OTHER_SYSTEMS = {"colorama", "httpx2-jsfetch", "win-inet-pton"}


def test_the_committed_page_is_what_the_packages_say(tmp_path: Path) -> None:
    page = tmp_path / "licences.md"
    subprocess.run([sys.executable, SCRIPT, "--out", page], check=True)
    assert (ROOT / "docs/licences.md").read_text() == page.read_text(), "run scripts/generate-licences"
    rows = dict(re.findall(r"(?m)^\| `([\w.-]+)` \| ([^ ]+) \| .*[A-Z].* \|$", page.read_text()))
    assert rows == {name: version for name, version in LOCKED.items() if name not in OTHER_SYSTEMS}
    assert "| `pip-nftables` | 1.0.2.post1 | GPL-2.0-only |" in page.read_text()


def test_the_image_carries_the_page() -> None:
    assert "COPY docs/licences.md /usr/share/doc/lbguard/licences.md" in (ROOT / "Dockerfile").read_text()
    assert "!docs/licences.md" in (ROOT / ".dockerignore").read_text()


def test_the_bill_of_materials(tmp_path: Path) -> None:
    file = tmp_path / "sbom.json"
    subprocess.run([sys.executable, SCRIPT, "--sbom", file], check=True)
    bill = json.loads(file.read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    components = {item["name"]: item for item in bill["components"]}
    assert components.keys() == LOCKED.keys() - OTHER_SYSTEMS
    for item in components.values():
        assert item["licenses"][0]["expression"]
        assert item["hashes"]
    assert set(bill["dependencies"][0]["dependsOn"]) == {item["purl"] for item in components.values()}
