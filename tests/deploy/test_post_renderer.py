"""The post-renderer: another chart is rendered with lbguard in its load balancer, by both versions of Helm."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.charts import HERE, KUBERNETES, ROOT, Object, case, find, named, parse, pod_of, sidecar, validate

pytestmark = pytest.mark.timeout(300)

RENDERER = ROOT / "deploy/helm/post-renderer"


def rendered(tools: Path, into: Path, version: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Render a chart of a load balancer through the post-renderer."""
    chart = into / "balancer"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: balancer, version: 1.0.0}\n")
    shutil.copyfile(HERE / "pods/load-balancer.yaml", chart / "templates/load-balancer.yaml")
    shutil.copyfile(HERE / "pods/proxy.yaml", chart / "templates/proxy.yaml")
    binaries = into / "bin"
    binaries.mkdir()
    (binaries / "helm").symlink_to(tools / version)
    (binaries / "kubectl").symlink_to(tools / "kubectl")
    env = {"HOME": str(into), "PATH": f"{binaries}:{os.environ['PATH']}", "LBGUARD_KUBE_VERSION": KUBERNETES}
    env |= environment
    renderer = str(RENDERER / "lbguard-sidecar")
    if version == "helm4":
        subprocess.run(["helm", "plugin", "install", RENDERER], env=env, capture_output=True, timeout=60, check=True)
        renderer = "lbguard-sidecar"
    argv: list[str | Path] = ["helm", "template", "lb", chart, "--namespace", "trench-a", "--post-renderer", renderer]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("version", ["helm3", "helm4"])
def test_the_load_balancer_of_another_chart_gets_the_sidecar(tools: Path, tmp_path: Path, version: str) -> None:
    done = rendered(tools, tmp_path, version, LBGUARD_VALUES=str(case("targets")))
    assert done.returncode == 0, done.stderr
    objects: list[Object] = parse(done.stdout)
    pod = pod_of(find(objects, "Deployment"))
    assert sidecar(pod)["restartPolicy"] == "Always"
    assert {"name": "lbguard-shm", "mountPath": "/dev/shm"} in named(pod["containers"], "stateless-lb")["volumeMounts"]
    # What the pod mounts comes with it.
    volume = named(pod["volumes"], "lbguard-targets")
    find(objects, "ConfigMap", volume["configMap"]["name"])
    assert "initContainers" not in pod_of(find(objects, "DaemonSet"))
    validate(objects, tmp_path)


def test_a_workload_that_is_not_there_is_named(tools: Path, tmp_path: Path) -> None:
    done = rendered(tools, tmp_path, "helm3", LBGUARD_WORKLOAD="Deployment/other")
    assert done.returncode != 0
    assert "no Deployment/other; set LBGUARD_WORKLOAD" in done.stderr


def test_a_refused_value_ends_the_rendering(tools: Path, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("settings: {grace: {window: 40s}}\n")
    done = rendered(tools, tmp_path, "helm3", LBGUARD_VALUES=str(values))
    assert done.returncode != 0
    assert "settings.grace.window = 40s: longer than grace.max" in done.stderr
