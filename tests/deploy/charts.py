"""Running Helm and its companions, and reading what they print."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/lbguard"
HERE = ROOT / "tests/deploy"
CASES = sorted(path.stem for path in (HERE / "cases").glob("*.yaml"))

Object = dict[str, Any]

KUBERNETES = "1.36.0"
"""The version that templates are rendered for, whatever Helm's own default is."""


class Helm:
    """One version of Helm, with a home of its own."""

    def __init__(self, binary: Path, home: Path) -> None:
        self.binary = binary
        self._home = home

    def run(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {"HOME": str(self._home), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [self.binary, *argv], capture_output=True, text=True, env=environment, timeout=60, check=False
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def template(self, *values: str | Path, chart: Path = CHART, version: str = KUBERNETES) -> str:
        """Render the chart with files of values (paths) and single ones (`name=value`)."""
        flags: list[str | Path] = ["--kube-version", version]
        for value in values:
            flags += ["--values" if isinstance(value, Path) else "--set", value]
        return self.run("template", "guard", chart, "--namespace", "trench-a", *flags).stdout

    def objects(self, *values: str | Path, chart: Path = CHART, version: str = KUBERNETES) -> list[Object]:
        return parse(self.template(*values, chart=chart, version=version))


def parse(text: str) -> list[Object]:
    return [document for document in yaml.safe_load_all(text) if document]


def case(name: str) -> Path:
    return HERE / f"cases/{name}.yaml"


def find(objects: list[Object], kind: str, suffix: str = "") -> Object:
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, [(item["kind"], item["metadata"]["name"]) for item in objects]
    return found[0]


def patch_of(objects: list[Object], component: str, key: str = "patch.yaml") -> Object:
    """Return the strategic merge patch that adds a component, or removes it (`remove.yaml`)."""
    patch = yaml.safe_load(find(objects, "ConfigMap", f"-{component}-patch")["data"][key])
    assert isinstance(patch, dict)
    return patch


def pod_of(workload: Object) -> Object:
    pod = workload["spec"]["template"]["spec"]
    assert isinstance(pod, dict)
    return pod


def named(items: list[Object], name: str) -> Object:
    found = [item for item in items if item["name"] == name]
    assert len(found) == 1, [item["name"] for item in items]
    return found[0]


def sidecar(pod: Object) -> Object:
    """Return lbguard's container, wherever it is in a pod."""
    return named(pod.get("initContainers", []) + pod.get("containers", []), "lbguard")


def patched(tools: Path, workload: Path, patch: Object, into: Path) -> Object:
    """Apply a strategic merge patch as the API server would, by kubectl."""
    file = into / "patch.yaml"
    file.write_text(yaml.safe_dump(patch))
    argv: list[str | Path] = [
        tools / "kubectl",
        "patch",
        "--local",
        "--filename",
        workload,
        "--patch-file",
        file,
        "--output",
        "yaml",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, env={"HOME": str(into)}, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = parse(done.stdout)
    return result


CUSTOM_KINDS = {"PodMonitor", "ServiceMonitor", "PrometheusRule", "Policy"}
NEW_KINDS = {"MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"}
"""Kinds that Kubernetes has since 1.36 in this form."""


def validate(objects: list[Object], into: Path, version: str = "1.31") -> None:
    """Check objects against the schemas of a Kubernetes version; those of custom kinds have to be checked otherwise."""
    if any(item["kind"] in NEW_KINDS for item in objects):
        version = "1.36"
    tool = shutil.which("kubernetes-validate", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if tool is None:
        pytest.skip("kubernetes-validate is not installed")
    builtin = [item for item in objects if item["kind"] not in CUSTOM_KINDS]
    file = into / "objects.yaml"
    file.write_text(yaml.safe_dump_all(builtin))
    done = subprocess.run(
        [tool, "--strict", "-k", version, str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout + done.stderr
    # A kind without a schema is only warned of, and the tool ends with 0.
    assert done.returncode == 0, said
    assert "warn" not in said.lower(), said
