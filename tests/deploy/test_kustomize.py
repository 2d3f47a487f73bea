"""The kustomize components, built by the kustomize that is part of kubectl, beside what the chart makes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.charts import (
    HERE,
    ROOT,
    Helm,
    Object,
    case,
    find,
    named,
    parse,
    patch_of,
    patched,
    pod_of,
    sidecar,
    validate,
)

pytestmark = pytest.mark.timeout(900)

SETTING_PATCH = """\
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: proxy}
spec:
  template:
    spec:
      containers:
        - name: lbguard
          env:
            - {name: LBGUARD_PROBE__ENABLED, value: "true"}
"""


def build(tools: Path, into: Path, kustomization: Object) -> list[Object]:
    """Build a kustomization that stands beside our components and uses them."""
    shutil.copytree(ROOT / "deploy/kustomize", into / "components")
    shutil.copytree(ROOT / "deploy/meridio", into / "components/interposer")
    shutil.copytree(HERE / "pods", into / "own")
    (into / "own/targets.yaml").write_text("streams: []\n")
    (into / "own/settings.yaml").write_text(SETTING_PATCH)
    (into / "own/kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = subprocess.run(
        [tools / "kubectl", "kustomize", into / "own"],
        capture_output=True,
        text=True,
        env={"HOME": str(into), "PATH": os.environ["PATH"]},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return parse(done.stdout)


CHART_VALUES = {
    "guard": ("targets.existingConfigMap=lbguard-targets",),
    "interposer": ("settings.source=interposer", "fullnameOverride=lbguard"),
    "probe": ("guard.enabled=false", "probe.enabled=true"),
}
MERIDIO_2 = (case("meridio2"), "fullnameOverride=lbguard")


@pytest.mark.parametrize(
    ("component", "workload"),
    [("guard", "load-balancer"), ("interposer", "meridio"), ("interposer", "meridio2"), ("probe", "proxy")],
)
def test_the_components_make_the_pods_that_the_chart_makes(
    tools: Path, helm4: Helm, tmp_path: Path, component: str, workload: str
) -> None:
    file = HERE / f"pods/{workload}.yaml"
    *config_maps, built = build(
        tools, tmp_path, {"resources": [f"{workload}.yaml"], "components": [f"../components/{component}"]}
    )
    chart = helm4.objects(*(MERIDIO_2 if workload == "meridio2" else CHART_VALUES[component]))
    by_chart = patched(tools, file, patch_of(chart, "probe" if component == "probe" else "guard"), tmp_path)
    for config_map in config_maps:
        assert find(chart, "ConfigMap", config_map["metadata"]["name"])["data"] == config_map["data"]

    def by_name(workload: Object, what: str) -> dict[str, Object]:
        return {item["name"]: item for item in pod_of(workload).get(what, ())}

    assert by_name(built, "containers") == by_name(by_chart, "containers")
    assert by_name(built, "initContainers") == by_name(by_chart, "initContainers")
    assert by_name(built, "volumes") == by_name(by_chart, "volumes")
    assert sidecar(pod_of(built)).get("restartPolicy") == (None if component == "probe" else "Always")


def test_both_go_together_with_an_image_targets_and_settings(tools: Path, tmp_path: Path) -> None:
    objects = build(
        tools,
        tmp_path,
        {
            "resources": ["load-balancer.yaml", "proxy.yaml"],
            "components": ["../components/guard", "../components/probe"],
            "images": [{"name": "lbguard", "newName": "registry.example/lbguard", "newTag": "1.2.3"}],
            "configMapGenerator": [
                {"name": "lbguard-targets", "files": ["targets.yaml"], "options": {"disableNameSuffixHash": True}}
            ],
            "patches": [{"path": "settings.yaml"}],
        },
    )
    guard = sidecar(pod_of(find(objects, "Deployment")))
    probe = sidecar(pod_of(find(objects, "DaemonSet")))
    assert guard["image"] == probe["image"] == "registry.example/lbguard:1.2.3"
    assert named(probe["env"], "LBGUARD_PROBE__ENABLED")["value"] == "true"
    assert find(objects, "ConfigMap")["metadata"]["name"] == "lbguard-targets"
    validate(objects, tmp_path)


def test_other_workloads_are_left_alone(tools: Path, tmp_path: Path) -> None:
    (built,) = build(tools, tmp_path, {"resources": ["proxy.yaml"], "components": ["../components/guard"]})
    assert built == yaml.safe_load((HERE / "pods/proxy.yaml").read_text())
