"""The component that puts the interposer into Meridio's pod, and the page about it, held to program and settings."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from lbguard.settings.surroundings import InterposerSettings, ReadinessSettings
from lbguard.sources.interposer.source import InterposerConfig
from tests.deploy.charts import HERE, ROOT, Helm, Object, case, find, named, parse, pod_of, sidecar, validate


@pytest.fixture
def objects(tools: Path, tmp_path: Path) -> list[Object]:
    return built(tools, tmp_path, "meridio")


def built(tools: Path, tmp_path: Path, pod: str) -> list[Object]:
    """Return what the component makes of a pod."""
    shutil.copytree(ROOT / "deploy/meridio", tmp_path / "meridio")
    own = tmp_path / "own"
    own.mkdir()
    shutil.copyfile(HERE / f"pods/{pod}.yaml", own / "pod.yaml")
    (own / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["pod.yaml"], "components": ["../meridio"]}))
    done = subprocess.run(
        [tools / "kubectl", "kustomize", own],
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return parse(done.stdout)


@pytest.mark.timeout(900)
def test_the_component(objects: list[Object], tmp_path: Path) -> None:
    validate(objects, tmp_path)
    program = (ROOT / "deploy/meridio/nfqlb").read_text()
    assert find(objects, "ConfigMap")["data"] == {"nfqlb": program}
    pod = pod_of(find(objects, "Deployment"))
    balancer, guard = named(pod["containers"], "stateless-lb"), sidecar(pod)
    mounts = {mount["mountPath"]: mount["name"] for mount in balancer["volumeMounts"]}
    guard_mounts = {mount["mountPath"]: mount["name"] for mount in guard["volumeMounts"]}
    # Both have the same memory, and the calls where the program and the setting expect them.
    calls = str(InterposerSettings().directory)
    assert f"LBGUARD_NFQLB_DIR:-{calls}}}" in program
    assert mounts[calls] == guard_mounts[calls]
    assert mounts["/dev/shm"] == guard_mounts["/dev/shm"]
    first, *rest = named(balancer["env"], "PATH")["value"].split(":")
    assert mounts[first] == "lbguard-nfqlb"
    assert "/bin" in rest, "the real nfqlb"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes.keys() >= set(mounts.values()) | set(guard_mounts.values())
    assert volumes["lbguard-nfqlb"]["configMap"]["defaultMode"] == 0o555
    assert named(guard["env"], "LBGUARD_SOURCE")["value"] == "interposer"
    assert named(balancer["env"], "NSM_CONDUIT_NAME")["value"] == "conduit-a"


@pytest.mark.timeout(300)
def test_the_component_for_meridio_2(tools: Path, tmp_path: Path) -> None:
    objects = built(tools, tmp_path, "meridio2")
    validate(objects, tmp_path)
    pod = pod_of(find(objects, "Deployment"))
    balancer, router = named(pod["containers"], "loadbalancer"), named(pod["containers"], "router")
    every = [*pod["containers"], *pod.get("initContainers", [])]
    guard = named(every, "lbguard")
    mounts = [
        {mount["mountPath"]: mount["name"] for mount in each["volumeMounts"]} for each in (balancer, router, guard)
    ]
    assert mounts[0]["/dev/shm"] == mounts[2]["/dev/shm"]
    assert mounts[0]["/run/lbguard/interposer"] == mounts[2]["/run/lbguard/interposer"]
    # The load balancer writes where it always does; the router alone reads elsewhere.
    theirs, ours = named(balancer["env"], "MERIDIO_READINESS_DIR")["value"], "/run/lbguard-ready"
    assert named(router["env"], "MERIDIO_READINESS_DIR")["value"] == ours
    assert named(guard["env"], "LBGUARD_READINESS__DIRECTORY")["value"] == ours
    assert str(ReadinessSettings().balancer) == theirs
    assert mounts[0][theirs] == mounts[2][theirs] == "lb-run"
    assert mounts[1][ours] == mounts[2][ours] == "lbguard-ready"
    assert guard["securityContext"]["runAsUser"] == 10005
    assert balancer["securityContext"]["capabilities"]["add"] == ["NET_ADMIN", "IPC_LOCK", "IPC_OWNER"]


@pytest.mark.parametrize("name", ["meridio", "meridio2"])
def test_the_page_speaks_of_what_there_is(name: str) -> None:
    page = (ROOT / f"docs/{name}.md").read_text()
    settings = set(re.findall(r"`(interposer\.[a-z_]+)`", page))
    assert settings
    assert {name.partition(".")[2] for name in settings} <= InterposerSettings.model_fields.keys()
    program = (ROOT / "deploy/meridio/nfqlb").read_text()
    for variable in set(re.findall(r"LBGUARD_NFQLB_[A-Z]+", page + (program if name == "meridio" else ""))):
        assert variable in page, variable
        assert variable in program, variable
    for path in re.findall(r"`((?:deploy|docs|lbguard)/[\w./-]+)`", page):
        assert (ROOT / path).exists(), path


def test_the_patch_for_the_template_is_where_the_page_says(helm4: Helm) -> None:
    (used,) = set(re.findall(r"get configmap (\S+-patch)", (ROOT / "docs/meridio.md").read_text()))
    data = find(helm4.objects(case("interposer")), "ConfigMap", "-patch")
    assert data["metadata"]["name"] == used
    assert data["data"].keys() == {"patch.yaml", "remove.yaml"}


def test_a_call_is_answered_before_its_caller_gives_up() -> None:
    program = (ROOT / "deploy/meridio/nfqlb").read_text()
    _, wait_s = (float(limit_s) for limit_s in re.findall(r"read -r -t ([0-9.]+)", program))
    limits = InterposerSettings.model_fields["answer_timeout"].metadata
    longest = next(limit.le for limit in limits if hasattr(limit, "le"))
    default = InterposerSettings().answer_timeout
    config = InterposerConfig(directory=Path("/"))
    assert config.answer_timeout_s == default < longest < config.removal_timeout_s < wait_s
