"""docs/deployment.md: its commands run, its files exist, and its example builds."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.charts import CASES, CHART, HERE, ROOT, Object, parse, pod_of, sidecar
from tests.pages import run_blocks

pytestmark = pytest.mark.timeout(900)

PAGE = (ROOT / "docs/deployment.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"(?ms)^ *```{kind}\n(.*?)^ *```$", PAGE)


def test_commands_that_need_no_cluster_run(tools: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/helm").symlink_to(tools / "helm4")
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    assert run_blocks("docs/deployment.md", ROOT, environment)


def test_every_block_is_run_or_marked() -> None:
    kinds = re.findall(r"(?m)^ *```(\S.*)$", PAGE)
    assert set(kinds) <= {"sh", "sh build", "sh cluster", "yaml"}


def test_the_build_arguments_exist() -> None:
    (command,) = blocks("sh build")
    dockerfile = (ROOT / "Dockerfile").read_text()
    named_there = set(re.findall(r"--build-arg (\w+)=", PAGE))
    assert {"BASE", "VERSION", "PIP_NO_INDEX"} <= named_there
    assert named_there <= set(re.findall(r"(?m)^ARG (\w+)", dockerfile)), command


def test_the_table_of_forms_names_the_cases() -> None:
    listed = set(re.findall(r"`tests/deploy/cases/([\w-]+)\.yaml` \|", PAGE))
    assert listed == set(CASES) - {"default", "tuned"}


def test_the_kustomization_builds(tools: Path, tmp_path: Path) -> None:
    (example,) = blocks("yaml")
    place = tmp_path / "own"
    place.mkdir()
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    kustomization: Object = yaml.safe_load(example)
    kustomization["components"] = [f"../{path}" for path in kustomization["components"]]
    (place / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    (place / "load-balancer.yaml").write_text((HERE / "pods/load-balancer.yaml").read_text())
    (place / "targets.yaml").write_text("streams: []\n")
    argv: list[str | Path] = [tools / "kubectl", "kustomize", "--load-restrictor=LoadRestrictionsNone", place]
    done = subprocess.run(argv, capture_output=True, text=True, env={"HOME": str(tmp_path)}, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (deployment,) = [item for item in parse(done.stdout) if item["kind"] == "Deployment"]
    sidecar(pod_of(deployment))


@pytest.mark.parametrize(("words", "key"), [("`NET_ADMIN`", "capabilities"), ("10002", "runAsUser")])
def test_the_privileges_are_those_of_the_chart(words: str, key: str) -> None:
    context = yaml.safe_load((CHART / "values.yaml").read_text())["guard"]["securityContext"]
    assert words in PAGE
    assert words.strip("`") in str(context[key])
