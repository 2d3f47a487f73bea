"""Policies that put lbguard into pods at admission: they make of a pod what the patch makes of its Deployment."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.charts import (
    CHART,
    HERE,
    Helm,
    Object,
    case,
    find,
    named,
    patch_of,
    patched,
    pod_of,
    sidecar,
    validate,
)

pytestmark = pytest.mark.timeout(300)

INTERPOSER = ("admission.policy=kubernetes", "guard.podSelector.app=stateless-lb-frontend")
MERIDIO_2 = ("admission.policy=kubernetes", "guard.podSelector.app=stateless-load-balancer")
OWN_MEMORY = ("guard.podSelector.app=load-balancer", "admission.policy=kubernetes")


def evaluate(text: str, pod: Object, variables: Object) -> Any:
    """Evaluate an expression of a policy; objects become maps."""
    celpy = pytest.importorskip("celpy", reason="cel-python is not installed")
    # A type that is a prefix of another one is no type for this library, so that the dots go.
    dotted = re.compile(r"\bObject(?:\.\w+)*(?=\{)")
    flat = dotted.sub(lambda name: name[0].replace(".", "_"), text)
    types = {*re.findall(r"\bObject_\w+(?=\{)", flat), "JSONPatch"}

    def make(fields: Any) -> Any:
        return celpy.celtypes.MapType(fields)

    def index_of(items: Any, wanted: Any) -> Any:
        return celpy.celtypes.IntType(list(items).index(wanted) if wanted in items else -1)

    environment = celpy.Environment(annotations=dict.fromkeys(types, make))
    program = environment.program(environment.compile(flat), functions={"indexOf": index_of})
    activation = {"object": celpy.json_to_cel(pod), "variables": celpy.json_to_cel(variables)}
    return plain(program.evaluate(activation))


def plain(value: Any) -> Any:
    """Return a value of CEL as one of Python: its whole numbers and switches are subclasses of int."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if type(value).__name__ == "BoolType" or isinstance(value, bool):
        return bool(value)
    return int(value) if isinstance(value, int) else str(value)


def admitted(policy: Object, pod: Object) -> Object | None:
    """Return the pod that a policy makes of a pod; None where a condition does not match."""
    spec = policy["spec"]
    pod = copy.deepcopy(pod)
    for condition in spec["matchConditions"]:
        if not evaluate(condition["expression"], pod, {}):
            return None
    for mutation in spec["mutations"]:
        assert mutation["patchType"] == "JSONPatch"
        variables = {item["name"]: evaluate(item["expression"], pod, {}) for item in spec.get("variables", ())}
        for operation in evaluate(mutation["jsonPatch"]["expression"], pod, variables):
            assert operation["op"] == "add"
            *parents, last = operation["path"].lstrip("/").split("/")
            place: Any = pod
            for part in parents:
                place = place[int(part) if isinstance(place, list) else part]
            place[last] = operation["value"]
    return pod


def by_name(pod: Object) -> Object:
    """Return a pod's spec with its lists as maps: their order is another matter."""

    def keyed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: keyed(item) for key, item in value.items()}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return {item.get("mountPath") or item.get("containerPort") or item["name"]: keyed(item) for item in value}
        return value

    made = keyed(pod)
    assert isinstance(made, dict)
    return made


PLAIN = ("admission.policy=kubernetes", "guard.podSelector.app=stateless-lb")
VOLUMES = ("settings.parking.enabled=true", "settings.affinity.mode=all", "settings.recording.enabled=true")
POLICIES: list[tuple[str, str, tuple[str, ...]]] = [
    ("admission", "meridio", ()),
    ("owner", "meridio", INTERPOSER),
    ("meridio2", "meridio2", MERIDIO_2),
    ("existing-memory", "own-memory", OWN_MEMORY),
    ("container", "load-balancer", PLAIN),
    ("tuned", "load-balancer", (*PLAIN, *VOLUMES)),
]


@pytest.mark.parametrize(("name", "workload", "flags"), POLICIES)
def test_kubernetes_makes_the_pod_that_the_patch_makes(
    helm: Helm, tools: Path, tmp_path: Path, name: str, workload: str, flags: tuple[str, ...]
) -> None:
    objects = helm.objects(case(name), *flags)
    deployment = HERE / f"pods/{workload}.yaml"
    by_patch = patched(tools, deployment, patch_of(objects, "guard"), tmp_path)
    template = yaml.safe_load(deployment.read_text())["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
    policy = find(objects, "MutatingAdmissionPolicy", "-guard")
    made = admitted(policy, pod)
    assert made is not None
    assert by_name(made["spec"]) == by_name(pod_of(by_patch))
    assert admitted(policy, made) is None, "it is put there once"
    validate([made], tmp_path, "1.36")
    labels = find(objects, "MutatingAdmissionPolicyBinding")["spec"]["matchResources"]["objectSelector"]["matchLabels"]
    assert labels.items() <= template["metadata"]["labels"].items()


def test_what_the_pod_sets_itself_is_replaced_and_the_rest_kept(helm4: Helm) -> None:
    policy = find(helm4.objects(case("admission")), "MutatingAdmissionPolicy")
    pod: Object = {
        "spec": {
            "initContainers": [{"name": "sysctl-init"}],
            "containers": [
                {"name": "nsc"},
                {
                    "name": "stateless-lb",
                    "env": [{"name": "PATH", "value": "/usr/bin"}, {"name": "A", "value": "b"}],
                    "volumeMounts": [{"name": "own", "mountPath": "/dev/shm"}],
                },
            ],
        }
    }
    made = admitted(policy, pod)
    assert made is not None
    assert [item["name"] for item in made["spec"]["initContainers"]] == ["lbguard", "sysctl-init"]
    assert made["spec"]["containers"][0] == {"name": "nsc"}
    balancer = made["spec"]["containers"][1]
    assert [item["name"] for item in balancer["env"]].count("PATH") == 1
    assert named(balancer["env"], "A")["value"] == "b"
    places = [mount["mountPath"] for mount in balancer["volumeMounts"]]
    assert len(places) == len(set(places))
    assert made["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    pod["spec"]["containers"].pop()
    assert admitted(policy, pod) is None, "a pod without a load balancer"


@pytest.mark.parametrize(
    ("version", "api"), [("1.36.0", "v1"), ("1.35.4", "v1beta1"), ("1.34.0", "v1beta1"), ("1.32.0", "v1alpha1")]
)
def test_the_version_of_the_api_is_the_one_that_the_cluster_has(helm: Helm, version: str, api: str) -> None:
    policy = find(helm.objects(case("admission"), version=version), "MutatingAdmissionPolicy")
    assert policy["apiVersion"] == f"admissionregistration.k8s.io/{api}"


def test_an_older_cluster_is_refused(helm4: Helm) -> None:
    flags = ("--kube-version", "1.31.0", "--values", case("admission"))
    done = helm4.run("template", "guard", CHART, *flags, check=False)
    assert "admission.policy = kubernetes: Kubernetes v1.31.0 has no MutatingAdmissionPolicy" in done.stderr


def test_kyverno_merges_what_the_patch_merges(helm: Helm) -> None:
    objects = helm.objects(case("kyverno"), "patch.enabled=true")
    for component in ("guard", "probe"):
        policy = find(objects, "Policy", f"-{component}")
        assert policy["apiVersion"] == "kyverno.io/v1"
        assert set(policy["spec"]) == {"failurePolicy", "rules"}
        merged: Object = {}
        for rule in policy["spec"]["rules"]:
            assert set(rule) == {"name", "match", "mutate"}
            (chosen,) = rule["match"]["any"]
            assert chosen["resources"]["kinds"] == ["Pod"]
            for field, items in rule["mutate"]["patchStrategicMerge"]["spec"].items():
                # The anchor restricts the rule to the container of this name.
                merged.setdefault(field, []).extend(
                    {("name" if key == "(name)" else key): value for key, value in item.items()} for item in items
                )
        assert by_name(merged) == by_name(pod_of(patch_of(objects, component)))
    assert "autogen-controllers" in json.dumps(policy["metadata"]["annotations"])


def test_the_pods_have_to_be_named(helm4: Helm) -> None:
    for policy in ("kubernetes", "kyverno"):
        flags = ("--kube-version", "1.36.0", "--set", f"admission.policy={policy}")
        done = helm4.run("template", "guard", CHART, *flags, check=False)
        assert f"guard.podSelector: the labels of the pods are needed for admission.policy {policy}" in done.stderr


@pytest.mark.parametrize(
    ("version", "chosen", "native"),
    [("1.36.0", "auto", True), ("1.29.0", "auto", True), ("1.28.9", "auto", False), ("1.36.0", "container", False)],
)
def test_the_guard_is_a_native_sidecar_where_kubernetes_knows_it(
    helm: Helm, version: str, chosen: str, native: bool
) -> None:
    pod = pod_of(patch_of(helm.objects(f"guard.sidecar={chosen}", version=version), "guard"))
    assert ("initContainers" in pod) is native
    assert sidecar(pod).get("restartPolicy") == ("Always" if native else None)


def test_a_native_sidecar_is_refused_where_kubernetes_does_not_know_it(helm4: Helm) -> None:
    flags = ("--kube-version", "1.28.0", "--set", "guard.sidecar=native")
    done = helm4.run("template", "guard", CHART, *flags, check=False)
    assert "guard.sidecar = native: Kubernetes v1.28.0 runs no native sidecars; allowed: auto" in done.stderr
