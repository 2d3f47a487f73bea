import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lbguard.settings.model import Settings
from lbguard.settings.sources import leaves
from tests.deploy.charts import (
    CASES,
    CHART,
    CUSTOM_KINDS,
    HERE,
    KUBERNETES,
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

pytestmark = pytest.mark.timeout(900)  # the first test may have to get Helm

LEAVES = {leaf.name: leaf for leaf in leaves(Settings)}
UPDATE = os.environ.get("LBGUARD_UPDATE_GOLDEN") == "1"


def without_blank_lines(text: str) -> str:
    """Helm 3 and 4 put different blank lines between documents."""
    return "".join(line for line in text.splitlines(keepends=True) if line.strip())


@pytest.mark.parametrize("name", CASES)
def test_every_documented_combination_renders_as_recorded(helm: Helm, name: str) -> None:
    helm.run("lint", "--strict", CHART, "--kube-version", KUBERNETES, "--values", case(name))
    rendered = without_blank_lines(helm.template(case(name)))
    golden = HERE / f"golden/{name}.yaml"
    if UPDATE:
        golden.write_text(rendered)
    assert rendered == golden.read_text(), f"LBGUARD_UPDATE_GOLDEN=1 records it; look at the difference of {golden}"


PODS = {
    "meridio2": "meridio2",
    "existing-memory": "own-memory",
    "admission": "meridio",
    "interposer": "meridio",
    "companion": "meridio",
    "owner": "meridio",
    "registry": "meridio",
}


def workload_of(name: str, component: str) -> Path:
    """Return the pod template that a case is for."""
    return HERE / f"pods/{'proxy' if component == 'probe' else PODS.get(name, 'load-balancer')}.yaml"


@pytest.mark.parametrize("name", CASES)
def test_what_is_rendered_is_what_kubernetes_takes(helm4: Helm, name: str, tools: Path, tmp_path: Path) -> None:
    objects = helm4.objects(case(name))
    for component in ("guard", "probe"):
        if any(item["metadata"]["name"].endswith(f"-{component}-patch") for item in objects):
            objects.append(patched(tools, workload_of(name, component), patch_of(objects, component), tmp_path))
    for item in objects:
        if item["kind"] in CUSTOM_KINDS - {"Policy"}:
            check_custom(item)
    validate(objects, tmp_path)


def check_custom(item: Object) -> None:
    """Check the fields of the Prometheus operator's kinds that the chart uses (the operator's API reference)."""
    assert item["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(item) == {"apiVersion", "kind", "metadata", "spec"}
    spec = item["spec"]
    if item["kind"] == "PrometheusRule":
        assert set(spec) == {"groups"}
        for group in spec["groups"]:
            assert group["name"]
            assert all(("alert" in rule) != ("record" in rule) and rule["expr"] for rule in group["rules"])
        return
    endpoints = {"PodMonitor": "podMetricsEndpoints", "ServiceMonitor": "endpoints"}[item["kind"]]
    assert set(spec) == {"selector", endpoints}
    assert set(spec["selector"]) == {"matchLabels"}
    for endpoint in spec[endpoints]:
        assert set(endpoint) == {"port", "path", "interval"}
        assert re.fullmatch(r"\d+(ms|s|m)", endpoint["interval"])


def checked_by_operator(models: Path, objects: list[Object]) -> subprocess.CompletedProcess[str]:
    given = json.dumps([item for item in objects if item["kind"] in CUSTOM_KINDS])
    argv = ["node", str(models)]
    return subprocess.run(argv, input=given, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ["monitors", "rules"])
def test_what_is_rendered_is_what_the_prometheus_operator_takes(helm4: Helm, name: str, operator_models: Path) -> None:
    objects = helm4.objects(case(name))
    assert CUSTOM_KINDS & {item["kind"] for item in objects}
    done = checked_by_operator(operator_models, objects)
    assert done.returncode == 0, done.stderr
    for item in objects:
        item.get("spec", {}).pop("selector", None)
        for group in item.get("spec", {}).get("groups", ()):
            group["rules"][0]["expr"] = ["not", "text"]
    assert "must " in checked_by_operator(operator_models, objects).stderr


def test_the_patch_puts_the_guard_beside_the_load_balancer(helm4: Helm, tools: Path, tmp_path: Path) -> None:
    patch = patch_of(helm4.objects(case("targets")), "guard")
    pod = pod_of(patched(tools, HERE / "pods/load-balancer.yaml", patch, tmp_path))
    assert {container["name"] for container in pod["containers"]} == {"stateless-lb", "router"}
    assert [container["name"] for container in pod["initContainers"]] == ["lbguard"]
    balancer, guard = named(pod["containers"], "stateless-lb"), sidecar(pod)
    assert balancer["image"] == "stateless-lb:1"
    shared = {"name": "lbguard-shm", "mountPath": "/dev/shm"}
    assert shared in balancer["volumeMounts"]
    assert shared in guard["volumeMounts"]
    assert {"name": "shared-data", "mountPath": "/var/lib/meridio"} in balancer["volumeMounts"]
    assert named(pod["volumes"], "lbguard-shm")["emptyDir"]["medium"] == "Memory"
    containers = pod["containers"] + pod["initContainers"]
    mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", ())}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", CASES)
def test_a_pod_has_every_volume_that_it_mounts(helm4: Helm, name: str, tools: Path, tmp_path: Path) -> None:
    objects = helm4.objects(case(name))
    for component in ("guard", "probe"):
        if any(item["metadata"]["name"].endswith(f"-{component}-patch") for item in objects):
            pod = pod_of(patched(tools, workload_of(name, component), patch_of(objects, component), tmp_path))
            volumes = {volume["name"] for volume in pod["volumes"]}
            for container in pod["containers"] + pod.get("initContainers", []):
                places = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
                assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
                assert len(places) == len(set(places))


def test_a_patch_applied_twice_changes_nothing_more(helm4: Helm, tools: Path, tmp_path: Path) -> None:
    patch = patch_of(helm4.objects(case("targets")), "guard")
    once = patched(tools, HERE / "pods/load-balancer.yaml", patch, tmp_path)
    (tmp_path / "once.yaml").write_text(yaml.safe_dump(once))
    assert patched(tools, tmp_path / "once.yaml", patch, tmp_path) == once


def without_empty_lists(workload: Object) -> Object:
    """Return a workload as the API server keeps it, that is without empty lists in its pod."""
    pod = pod_of(workload)
    workload["spec"]["template"]["spec"] = {key: value for key, value in pod.items() if value != []}
    return workload


@pytest.mark.parametrize("name", CASES)
def test_what_was_put_there_can_be_removed_without_a_trace(helm4: Helm, name: str, tools: Path, tmp_path: Path) -> None:
    objects = helm4.objects(case(name))
    for component in ("guard", "probe"):
        if not any(item["metadata"]["name"].endswith(f"-{component}-patch") for item in objects):
            continue
        before = workload_of(name, component)
        with_it = tmp_path / f"with-{component}.yaml"
        with_it.write_text(yaml.safe_dump(patched(tools, before, patch_of(objects, component), tmp_path)))
        assert "lbguard" in with_it.read_text().replace("lbguard.io", "")
        after = patched(tools, with_it, patch_of(objects, component, "remove.yaml"), tmp_path)
        assert without_empty_lists(after) == yaml.safe_load(before.read_text())
        # Removing what is not there does no harm, so that an upgrade may always remove first.
        again = patched(tools, before, patch_of(objects, component, "remove.yaml"), tmp_path)
        assert without_empty_lists(again) == without_empty_lists(after)


def test_the_guard_gets_only_the_privileges_it_needs(helm4: Helm) -> None:
    guard = sidecar(pod_of(patch_of(helm4.objects(), "guard")))
    context = guard["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert context["readOnlyRootFilesystem"] is True
    assert context["runAsNonRoot"] is True
    assert context["allowPrivilegeEscalation"] is False
    probe = named(pod_of(patch_of(helm4.objects(case("probe")), "probe"))["containers"], "lbguard")
    assert probe["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_RAW"]}
    assert probe["args"] == ["probe"]


def test_targets_are_a_file_that_the_guard_is_told_of(helm4: Helm, tmp_path: Path) -> None:
    from lbguard.sources.file import TargetsFile

    objects = helm4.objects(case("targets"))
    config_map = find(objects, "ConfigMap", "-targets")
    pod = pod_of(patch_of(objects, "guard"))
    guard = sidecar(pod)
    assert named(pod["volumes"], "lbguard-targets")["configMap"]["name"] == config_map["metadata"]["name"]
    mount = named(guard["volumeMounts"], "lbguard-targets")["mountPath"]
    assert named(guard["env"], "LBGUARD_TARGETS_FILE")["value"] == f"{mount}/targets.yaml"
    (tmp_path / "targets.yaml").write_text(config_map["data"]["targets.yaml"])
    (stream,) = TargetsFile(tmp_path / "targets.yaml").read()
    assert [target.identifier for target in stream.targets] == [1, 2]


def test_the_policy_lets_in_what_the_guard_serves(helm4: Helm) -> None:
    policy = find(helm4.objects(case("verdicts")), "NetworkPolicy", "-guard")["spec"]
    ports = {rule["ports"][0]["port"]: rule.get("from") for rule in policy["ingress"]}
    assert ports[7443] == [{"podSelector": {"matchLabels": {"app": "proxy"}}}]
    assert ports[9464] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert ports[8080] is None
    probe = find(helm4.objects(case("verdicts")), "NetworkPolicy", "-probe")["spec"]
    assert 7443 not in {rule["ports"][0]["port"] for rule in probe["ingress"]}


def test_a_service_monitor_finds_its_service(helm4: Helm) -> None:
    objects = helm4.objects(case("monitors"))
    for component in ("guard", "probe"):
        wanted = find(objects, "ServiceMonitor", f"-{component}")["spec"]["selector"]["matchLabels"].items()
        services = [item for item in objects if item["kind"] == "Service"]
        (service,) = [item for item in services if wanted <= item["metadata"]["labels"].items()]
        container = sidecar(pod_of(patch_of(objects, component)))
        named(container["ports"], service["spec"]["ports"][0]["targetPort"])


def test_the_drop_in_brings_the_program_that_stands_before_nfqlb(helm: Helm) -> None:
    objects = helm.objects(case("interposer"), "settings.interposer.directory=/srv/calls")
    program = find(objects, "ConfigMap", "-nfqlb")
    assert program["data"]["nfqlb"] == (ROOT / "deploy/meridio/nfqlb").read_text()
    pod = pod_of(patch_of(objects, "guard"))
    balancer, guard = named(pod["containers"], "stateless-lb"), sidecar(pod)
    mounts = {mount["name"]: mount["mountPath"] for mount in balancer["volumeMounts"]}
    assert named(pod["volumes"], "lbguard-nfqlb")["configMap"]["name"] == program["metadata"]["name"]
    assert named(balancer["env"], "PATH")["value"].startswith(f"{mounts['lbguard-nfqlb']}:")
    # Both sides look for the calls in one place.
    assert mounts["lbguard-calls"] == "/srv/calls"
    assert named(balancer["env"], "LBGUARD_NFQLB_DIR")["value"] == "/srv/calls"
    assert named(guard["env"], "LBGUARD_INTERPOSER__DIRECTORY")["value"] == "/srv/calls"
    assert named(guard["volumeMounts"], "lbguard-calls")["mountPath"] == "/srv/calls"


def test_the_program_comes_only_with_the_drop_in(helm4: Helm) -> None:
    assert "nfqlb" not in {item["metadata"]["name"].rpartition("-")[2] for item in helm4.objects(case("owner"))}


def test_recordings_have_a_volume_that_they_cannot_fill(helm4: Helm) -> None:
    recording = ("settings.recording.enabled=true", "settings.recording.max_files=3")
    pod = pod_of(patch_of(helm4.objects(*recording, "settings.recording.max_file=2000000"), "guard"))
    assert int(named(pod["volumes"], "lbguard-recording")["emptyDir"]["sizeLimit"]) > 4 * 2000000
    mount = named(sidecar(pod)["volumeMounts"], "lbguard-recording")
    assert mount["mountPath"] == LEAVES["recording.directory"].show(LEAVES["recording.directory"].default)
    own = "guard.extraVolumeMounts[0].name=disk,guard.extraVolumeMounts[0].mountPath=/var/lib/lbguard"
    mounts = sidecar(pod_of(patch_of(helm4.objects(*recording, own), "guard")))["volumeMounts"]
    assert {mount["name"] for mount in mounts} == {"lbguard-run", "lbguard-shm", "disk"}


def test_the_device_for_parking_is_mounted_where_it_is_used(helm4: Helm) -> None:
    parking = "settings.parking.enabled=true"
    objects = helm4.objects(parking)
    pod = pod_of(patch_of(objects, "guard"))
    assert named(pod["volumes"], "lbguard-tun")["hostPath"] == {"path": "/dev/net/tun", "type": "CharDevice"}
    mounts = sidecar(pod)["volumeMounts"]
    assert named(mounts, "lbguard-tun")["mountPath"] == "/dev/net/tun"
    for without in ((), (parking, "settings.mode=observe")):
        pod = pod_of(patch_of(helm4.objects(*without), "guard"))
        assert "lbguard-tun" not in {volume["name"] for volume in pod["volumes"]}


NSP = ("settings.source=nsp", "settings.nsp.trench=a", "settings.nsp.conduit=b")
SOCKETS = [
    ("availability.socket", ("settings.availability.socket=/var/lib/meridio/lb.sock",)),
    ("nsm.address", ("settings.nsm.enabled=true",)),
    ("nsp.spiffe_socket", (*NSP, "settings.nsp.spiffe_socket=unix:///run/spire/agent.sock")),
    ("nsp.address", (*NSP, "settings.nsp.address=unix:///run/nsp.sock")),
    ("verdicts.spiffe_socket", ("settings.verdicts.spiffe_socket=unix:///run/spire/agent.sock",)),
    ("probe.nsm.address", ("probe.enabled=true", "settings.probe.connections=nsm")),
    ("probe.report_to", ("probe.enabled=true", "settings.probe.report_to[0]=unix:///run/lbguard/lbguard.sock")),
    ("probe.spiffe_socket", ("probe.enabled=true", "settings.probe.spiffe_socket=unix:///run/spire/agent.sock")),
]


@pytest.mark.parametrize(("setting", "flags"), SOCKETS)
def test_a_socket_without_a_volume_is_refused(helm4: Helm, setting: str, flags: tuple[str, ...]) -> None:
    given = [word for flag in flags for word in ("--set", flag)]
    done = helm4.run("template", "guard", CHART, *given, check=False)
    component = "probe" if setting.startswith("probe.") else "guard"
    assert re.search(
        rf"settings\.{re.escape(setting)} = /\S+: no volume is mounted there; .*{component}\.extra", done.stderr
    )
    mount = f"{component}.extraVolumeMounts[0].name=sockets,{component}.extraVolumeMounts[0].mountPath=/var/lib"
    other = f"{component}.extraVolumeMounts[1].name=run,{component}.extraVolumeMounts[1].mountPath=/run"
    helm4.run("template", "guard", CHART, *given, "--set", mount, "--set", other)


def test_objects_of_the_api_are_read_with_no_more_rights_than_needed(helm4: Helm) -> None:
    objects = helm4.objects(case("services"))
    role, binding = find(objects, "Role"), find(objects, "RoleBinding")
    assert role["rules"] == [
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}
    ]
    account = find(objects, "ServiceAccount")["metadata"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    pod = pod_of(patch_of(objects, "guard"))
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == (account["name"], True)
    assert pod_of(patch_of(objects, "guard", "remove.yaml"))["serviceAccountName"] is None
    objects = helm4.objects(case("gateway"))
    role, binding = find(objects, "Role"), find(objects, "RoleBinding")
    assert [rule["resources"] for rule in role["rules"]] == [["loadbalancerendpointslices"]]
    assert {role["metadata"]["namespace"], binding["metadata"]["namespace"]} == {"trench-b"}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "load-balancer", "namespace": "trench-a"}]
    assert "serviceAccountName" not in pod_of(patch_of(objects, "guard"))
    for without in (("rbac.create=false",), ("settings.source=file",), ("guard.enabled=false", "probe.enabled=true")):
        kinds = {item["kind"] for item in helm4.objects(case("services"), *without)}
        assert not kinds & {"Role", "RoleBinding", "ServiceAccount"}


def test_injection_at_admission_gives_no_service_account(helm4: Helm) -> None:
    policy = ("--set", "admission.policy=kubernetes", "--set", "guard.podSelector.app=lb")
    for name, accepted in (("services", False), ("gateway", True)):
        done = helm4.run(
            "template", "guard", CHART, "--kube-version", KUBERNETES, *policy, "--values", case(name), check=False
        )
        assert (done.returncode == 0) is accepted, done.stderr
        assert accepted or "admission.policy = kubernetes: it sets no service account" in done.stderr


RULES = """\
groups:
  - name: lbguard
    rules:
      - alert: LbguardAbsent
        expr: absent(up{job="lbguard"})
        annotations:
          summary: "{{ $labels.pod }} is {{ $value }}"
"""


def test_rules_are_taken_as_they_are(helm: Helm, tmp_path: Path) -> None:
    chart = tmp_path / "lbguard"
    shutil.copytree(CHART, chart)
    shutil.rmtree(chart / "files", ignore_errors=True)
    refused = helm.run("template", "guard", chart, "--set", "prometheusRule.enabled=true", check=False)
    assert "this build of the chart holds no rules" in refused.stderr
    (chart / "files/prometheus").mkdir(parents=True)
    (chart / "files/prometheus/one.yaml").write_text(RULES)
    (chart / "files/prometheus/two.yaml").write_text(RULES.replace("name: lbguard", "name: other"))
    rule = find(helm.objects("prometheusRule.enabled=true", chart=chart), "PrometheusRule")
    check_custom(rule)
    assert [group["name"] for group in rule["spec"]["groups"]] == ["lbguard", "other"]
    assert rule["spec"]["groups"][0] == yaml.safe_load(RULES)["groups"][0]


def test_alerts_lead_to_where_the_runbook_is_published(helm: Helm) -> None:
    page = "https://docs.example/runbook.html"
    rule = find(helm.objects("prometheusRule.enabled=true", f"prometheusRule.runbookUrl={page}"), "PrometheusRule")
    alerts = [rule for group in rule["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    assert alerts
    for alert in alerts:
        assert alert["annotations"]["runbook_url"] == f"{page}#{alert['alert'].lower()}"


def test_it_is_packaged_whole(helm: Helm, tmp_path: Path) -> None:
    helm.run("package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.glob("*.tgz")
    assert helm.objects(case("verdicts"), chart=package) == helm.objects(case("verdicts"))


PARENT = """\
kind: Pod
metadata: {name: balancer}
spec:
  containers:
    - name: balancer
      env:
        {{- include "lbguard.guard.loadBalancerEnv" .Subcharts.lbguard | nindent 8 }}
      volumeMounts:
        {{- include "lbguard.guard.loadBalancerMounts" .Subcharts.lbguard | nindent 8 }}
  volumes:
    {{- include "lbguard.guard.volumes" .Subcharts.lbguard | nindent 4 }}
  initContainers:
    {{- include "lbguard.guard.initContainer" .Subcharts.lbguard | nindent 4 }}
"""


@pytest.mark.parametrize("name", ["tuned", "interposer"])
def test_another_chart_can_include_the_container(helm: Helm, tmp_path: Path, name: str) -> None:
    parent = tmp_path / "parent"
    (parent / "templates").mkdir(parents=True)
    (parent / "templates/pod.yaml").write_text(PARENT)
    (parent / "Chart.yaml").write_text(
        "{apiVersion: v2, name: parent, version: 1.0.0, dependencies: [{name: lbguard, version: 0.1.0}]}\n"
    )
    (parent / "values.yaml").write_text(
        yaml.safe_dump({"lbguard": {"patch": {"enabled": False}} | yaml.safe_load(case(name).read_text())})
    )
    shutil.copytree(CHART, parent / "charts/lbguard")
    spec = find(helm.objects(chart=parent), "Pod", "balancer")["spec"]
    alone = pod_of(patch_of(helm.objects(case(name)), "guard"))
    assert sidecar(spec) == sidecar(alone)
    assert spec["volumes"] == alone["volumes"]
    own = named(spec["containers"], "balancer")
    patch = named(alone["containers"], "stateless-lb")
    assert (own["volumeMounts"], own["env"] or []) == (patch["volumeMounts"], patch.get("env", []))
    assert {"name": "lbguard-shm", "mountPath": "/dev/shm"} in own["volumeMounts"]


REFUSED = [
    ("settings.grace.windw=5s", "windw"),
    ("settings.grace.window=soon", "settings.grace.window"),
    ("settings.grace.window=-1", "settings.grace.window"),
    ("settings.grace.window=2h", "settings.grace.window = 2h: out of bounds; allowed: a duration from 0s to 60m"),
    ("settings.neighbors.retrans=500us", "settings.neighbors.retrans = 500us: out of bounds"),
    ("settings.mode=of", "settings.mode"),
    ("settings.freeze.threshold=1.5", "settings.freeze.threshold"),
    ("settings.grace.adaptive=maybe", "settings.grace.adaptive"),
    ("settings.neighbors.ucast_probes=0", "settings.neighbors.ucast_probes"),
    ("settings.links.exclude=lo", "settings.links.exclude"),
    ("image.digest=sha256:abc", "image.digest"),
    ("guard.enable=true", "enable"),
    ("prometheusRule.alerts.LbguardHeldInVane.enabled=false", "LbguardHeldInVane"),
    ("prometheusRule.alerts.LbguardFlapping.for=soon", "prometheusRule.alerts.LbguardFlapping.for"),
    ("podMonitor.enabled=true", "guard.podSelector: the labels of the pods are needed for podMonitor"),
]


@pytest.mark.parametrize(("value", "words"), REFUSED)
def test_wrong_values_are_refused_by_name(helm: Helm, value: str, words: str) -> None:
    done = helm.run("template", "guard", CHART, "--set", value, check=False)
    assert done.returncode != 0
    said = done.stderr.replace("/", ".")  # Helm 4 writes at '/settings/grace/window'
    assert words in said, done.stderr


STREAM = "targets.streams[0].name=a"
CLASHES = [
    ((STREAM, "targets.streams[1].name=a"), "the name a is used twice"),
    (
        (STREAM, "targets.streams[1].name=b", "targets.streams[1].identifier_offset=5099"),
        "a and b share marks; allowed: an identifier_offset of 5100 or more for b",
    ),
    (
        (
            STREAM,
            "targets.streams[0].max_targets=2",
            "targets.streams[0].targets[0].identifier=3",
            "targets.streams[0].targets[0].ips[0]=10.0.0.1",
        ),
        "target 3 of a is outside 1 to max_targets, which is 2",
    ),
    ((STREAM, "targets.streams[0].targets[0].identifier=1"), "targets.streams.0"),
    ((STREAM, "targets.streams[0].vip[0]=10.0.0.1"), "vip"),
    ((STREAM, "targets.streams[0].vips[0]=ten"), "targets.streams.0.vips.0"),
]


@pytest.mark.parametrize(("flags", "words"), CLASHES)
def test_targets_that_lbguard_would_refuse_are_refused(helm: Helm, flags: tuple[str, ...], words: str) -> None:
    given = [word for flag in flags for word in ("--set", flag)]
    done = helm.run("template", "guard", CHART, *given, check=False)
    assert done.returncode != 0
    assert words in done.stderr.replace("/", "."), done.stderr


def test_an_offset_of_its_own_lets_two_streams_be(helm: Helm) -> None:
    helm.template(STREAM, "targets.streams[1].name=b", "targets.streams[1].identifier_offset=5100")


@pytest.mark.parametrize("name", CASES)
def test_the_test_pod_checks_the_settings_of_its_container(helm4: Helm, name: str, tmp_path: Path) -> None:
    objects = helm4.objects(case(name))
    for component in ("guard", "probe"):
        pods = [item for item in objects if item["metadata"]["name"].endswith(f"-{component}-check-config")]
        given = yaml.safe_load(case(name).read_text())
        assert bool(pods) is given.get(component, {}).get("enabled", component == "guard")
        for pod in pods:
            assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
            (container,) = pod["spec"]["containers"]
            assert "add" not in container["securityContext"]["capabilities"]
            environment = {item["name"]: item["value"] for item in container.get("env", ())}
            argv = [Path(sys.executable).parent / "lbguard", *container["args"]]
            done = subprocess.run(
                argv,
                env={**environment, "HOME": str(tmp_path)},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr


def test_secrets_for_the_registry_reach_every_pod(helm: Helm, tools: Path, tmp_path: Path) -> None:
    objects = helm.objects("image.pullSecrets[0].name=registry", "probe.enabled=true")
    for component, workload in (("guard", "load-balancer"), ("probe", "proxy")):
        pod = pod_of(patched(tools, HERE / f"pods/{workload}.yaml", patch_of(objects, component), tmp_path))
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert find(objects, "Pod", f"-{component}-check-config")["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_the_chart_says_what_it_is(helm: Helm) -> None:
    chart = yaml.safe_load(helm.run("show", "chart", CHART).stdout)
    assert {"icon", "home", "sources", "maintainers", "annotations", "keywords"} <= chart.keys()
    _, _, picture = chart["icon"].partition("base64,")
    assert base64.b64decode(picture) == (ROOT / "docs/icon.svg").read_bytes()


@pytest.mark.parametrize("flags", [("guard.healthChecks=http",), ("guard.enabled=false", "probe.enabled=true")])
@pytest.mark.parametrize(("listen", "words"), [("", "is empty"), ("127.0.0.1:9464", "cannot reach it")])
def test_http_checks_need_something_to_ask(helm4: Helm, flags: tuple[str, ...], listen: str, words: str) -> None:
    given = [word for flag in (f"settings.metrics.listen={listen}", *flags) for word in ("--set", flag)]
    assert f"{words}: choose another" in helm4.run("template", "guard", CHART, *given, check=False).stderr


def test_a_proxy_is_ready_without_its_monitor(helm4: Helm) -> None:
    probe = named(pod_of(patch_of(helm4.objects(case("probe")), "probe"))["containers"], "lbguard")
    assert "readinessProbe" not in probe
    assert probe["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "lbg-metrics"}


def test_the_notes_say_what_is_left_to_do(helm4: Helm) -> None:
    # Without a cluster only Helm 4 makes a dry run.
    def notes(*flags: str) -> str:
        run = helm4.run("install", "guard", CHART, "--dry-run=client", "--namespace", "trench-a", *flags)
        return run.stdout.partition("\nNOTES:\n")[2]

    assert "No targets are configured" in notes()
    assert "No targets are configured" not in notes("--values", str(case("registry")))
    said = notes("--values", str(case("targets")), "--set", "settings.mode=observe")
    assert "No targets are configured" not in said
    assert "changes nothing" in said
    assert "operator" not in said
    said = notes("--values", str(case("companion")))
    assert "it only counts and logs all other decisions" in said
    assert "patch the template (docs/meridio.md)" in said
    command = re.search(r"get configmap (\S+)-guard-patch", said)
    assert command is not None
    find(helm4.objects(case("targets")), "ConfigMap", f"{command[1]}-guard-patch")
    assert "settings.probe.enabled is false" in notes("--set", "probe.enabled=true")


def test_plain_yaml_comes_out(helm4: Helm) -> None:
    assert parse(helm4.template("guard.enabled=false")) == []


def test_the_tools_are_those_that_were_asked_for(tools: Path) -> None:
    versions = {"helm3": "v3.", "helm4": "v4."}
    for name, version in versions.items():
        done = subprocess.run([tools / name, "version", "--short"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(version)
