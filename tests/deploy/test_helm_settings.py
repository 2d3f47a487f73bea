"""The chart's settings are lbguard's own: generated from them, and read back by them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lbguard.settings.model import Settings, SettingsError, load
from lbguard.settings.sources import Leaf, leaves
from tests.deploy.charts import CASES, CHART, ROOT, Helm, case, patch_of, pod_of, sidecar

pytestmark = pytest.mark.timeout(900)

LEAVES = {leaf.name: leaf for leaf in leaves(Settings)}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("LBGUARD_")]:
        monkeypatch.delenv(variable)


def test_the_committed_chart_is_what_the_code_says(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts/generate-helm"), "--out", str(tmp_path)], check=True)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(written) >= 4
    for path in written:
        assert (CHART / path).read_text() == (tmp_path / path).read_text(), "run scripts/generate-helm"
    copied = {path.name for path in CHART.glob("files/prometheus/*")}
    assert copied == {path.name for path in ROOT.glob("deploy/prometheus/*.yaml")}, "run scripts/generate-helm"


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, value in settings.items():
        names |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return names


def test_values_are_the_settings_one_to_one_with_their_defaults(tmp_path: Path) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["settings"]
    assert set(flat(values)) == set(LEAVES)
    file = tmp_path / "lbguard.yaml"
    file.write_text(yaml.safe_dump(values))
    assert load(config=file).settings == load().settings


TOGETHER_REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("grace.window", {"grace": {"window": "40s"}}),
    ("grace.window", {"grace": {"window": "400ms", "max": 0.3}}),
    ("grace.neighbor_window", {"grace": {"neighbor_window": "1m"}}),
    ("grace.verdict_window", {"grace": {"verdict_window": "30.001s"}}),
    ("distributor.kind", {"distributor": {"kind": "nfqlb-cli"}}),
    ("distributor.kind", {"source": "interposer", "distributor": {"kind": "nftables"}}),
    ("mode", {"source": "kernel"}),
    ("nsp.trench", {"source": "nsp"}),
    ("nsp.conduit", {"source": "nsp", "nsp": {"trench": "a"}}),
    ("kubernetes.services", {"source": "kubernetes"}),
    ("kubernetes.gateway", {"kubernetes": {"services": ["a"], "gateway": "g"}}),
    ("kubernetes.gateway", {"kubernetes": {"distribution_groups": ["a"]}}),
    ("kubernetes.gateway", {"kubernetes": {"gateway": "a/b/c"}}),
    ("kubernetes.services", {"kubernetes": {"services": ["a", "a"]}}),
    ("kubernetes.services", {"kubernetes": {"services": ["a/b"]}}),
    ("kubernetes.distribution_groups", {"kubernetes": {"gateway": "g", "distribution_groups": ["a", "a"]}}),
    ("kubernetes.vips", {"kubernetes": {"services": ["a"], "vips": ["b=20.0.0.1"]}}),
    ("kubernetes.vips", {"kubernetes": {"services": ["a", "b"], "vips": ["a=20.0.0.1", "b=20.0.0.1"]}}),
    ("kubernetes.vips", {"kubernetes": {"vips": ["20.0.0.1"]}}),
    ("kubernetes.url", {"kubernetes": {"url": "http://api.example.org"}}),
    ("kubernetes.url", {"kubernetes": {"url": "https://a", "kubeconfig": "/k"}}),
    ("kubernetes.namespace", {"kubernetes": {"namespace": "a b"}}),
    ("announce.repeats", {"announce": {"repeats": []}}),
    ("announce.repeats", {"announce": {"repeats": ["100ms", "1s"]}}),
    ("announce.repeats", {"announce": {"repeats": ["0", "1s", "1000ms"]}}),
    ("announce.repeats", {"announce": {"repeats": [0, "61s"]}}),
    ("metrics.listen", {"metrics": {"listen": "9464"}}),
    ("metrics.listen", {"metrics": {"listen": ":65536"}}),
    ("metrics.listen", {"metrics": {"listen": "::1:9464"}}),
    ("verdicts.listen", {"verdicts": {"listen": ":7443"}}),
    ("verdicts.tls_key", {"verdicts": {"tls_cert": "/a"}}),
    ("verdicts.tls_client_ca", {"verdicts": {"tls_cert": "/a", "tls_key": "/b"}}),
    (
        "verdicts.spiffe_socket",
        {"verdicts": {"tls_cert": "/a", "tls_key": "/b", "tls_client_ca": "/c", "spiffe_socket": "unix:///s"}},
    ),
    ("verdicts.burst", {"verdicts": {"burst": 255}}),
    ("nsp.tls_cert", {"nsp": {"tls_ca": "/a"}}),
    ("nsp.spiffe_socket", {"nsp": {"tls_cert": "/a", "tls_key": "/b", "tls_ca": "/c", "spiffe_socket": "unix:///s"}}),
    ("nsm.tls_key", {"nsm": {"tls_cert": "/a", "tls_ca": "/c"}}),
    ("kernel_source.streams", {"kernel_source": {"streams": ["a=5001-5100", "b=5100-5200"]}}),
    ("kernel_source.streams", {"kernel_source": {"streams": ["a=5001-5100", "a=1-2"]}}),
    ("kernel_source.streams", {"kernel_source": {"streams": ["a=2-1"]}}),
    ("kernel_source.streams", {"kernel_source": {"streams": ["a=1-4294967296"]}}),
    ("kernel_source.streams", {"kernel_source": {"streams": ["a.=1-2"]}}),
    ("probe.tls_key", {"probe": {"tls_cert": "/a"}}),
    ("probe.nsm.tls_ca", {"probe": {"nsm": {"tls_cert": "/a", "tls_key": "/b"}}}),
    ("probe.timeout", {"probe": {"timeout": "2.1s"}}),
    ("probe.bad_rounds", {"probe": {"bad_rounds": 4}}),
    ("probe.connections_file", {"probe": {"enabled": True}}),
    ("probe.name", {"probe": {"name": "a b"}}),
    ("nsp.address", {"nsp": {"address": "nsp-service"}}),
    ("nsp.address", {"nsp": {"address": "fd00::1:7778"}}),
    ("nsp.address", {"nsp": {"address": "nsp-service:65536"}}),
    ("nsp.address", {"nsp": {"address": "unix:relative"}}),
    ("nsm.address", {"nsm": {"address": "http://nsm:5001"}}),
    ("verdicts.spiffe_socket", {"verdicts": {"spiffe_socket": "tcp://agent:1"}}),
    ("verdicts.policy", {"verdicts": {"policy": ["proxies=10.0.0.0/8"]}}),
    ("verdicts.policy", {"verdicts": {"policy": ["unix"]}}),
    ("probe.nsm.address", {"probe": {"nsm": {"address": "nsm:0"}}}),
    ("probe.report_to", {"probe": {"report_to": ["lb-a"]}}),
]
"""Settings that do not go together (or are of a form that a schema knows), and the one that is blamed."""


def values_with(settings: dict[str, Any], component: str, **more: Any) -> dict[str, Any]:
    """Return values for one component; volumes of sockets and health checks are another matter."""
    mounts = [{"name": "x", "mountPath": path} for path in ("/s", "/var")]
    components = {name: {"enabled": name == component, "extraVolumeMounts": mounts} for name in ("guard", "probe")}
    components[component] |= {"healthChecks": "none"} | more
    return {"settings": settings, **components}


@pytest.mark.parametrize(("name", "settings"), TOGETHER_REFUSED)
def test_what_lbguard_refuses_is_not_rendered(helm4: Helm, name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(SettingsError) as refused:
        load(config=file)
    assert name in {problem.setting for problem in refused.value.problems}
    component = "probe" if name.startswith("probe.") else "guard"
    file.write_text(yaml.safe_dump(values_with(settings, component)))
    done = helm4.run("template", "guard", CHART, "--values", file, check=False)
    assert done.returncode != 0
    assert f"settings.{name}" in done.stderr.replace("/", ".")


TOGETHER_TAKEN: list[dict[str, Any]] = [
    {"grace": {"window": "300ms", "max": 0.3, "neighbor_window": "", "verdict_window": "0.3"}},
    {"distributor": {"kind": "nfqlb-shm", "table": "maglev"}},
    {"source": "kernel", "mode": "companion", "kernel_source": {"streams": ["a=5001-5100", "b-c=5101-5101"]}},
    {"announce": {"repeats": ["0", 0.5, "1m"]}},
    {"metrics": {"listen": "[::]:0"}, "verdicts": {"burst": 256}},
    {"nsm": {"tls_cert": "/a", "tls_key": "/b", "tls_ca": "/c", "address": "tcp://[fd00::1]:5001"}},
    {"nsp": {"address": "unix:///s/nsp.sock"}, "verdicts": {"policy": ["dns:*.proxy=10.0.0.0/8 fd00::/8", "unix="]}},
    {"probe": {"report_to": ["unix:/s/lb.sock", "lb-a:7443", "[fd00::1]:7443", "link:7443"]}},
    {"probe": {"enabled": True, "connections": "bridge", "timeout": "2s", "bad_rounds": 3, "name": "a-b"}},
]


@pytest.mark.parametrize("settings", TOGETHER_TAKEN)
def test_what_lbguard_takes_is_rendered(helm: Helm, settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(settings))
    load(config=file)
    file.write_text(yaml.safe_dump(values_with(settings, "probe" if "probe" in settings else "guard")))
    helm.template(file)


def test_a_value_from_elsewhere_is_not_taken_for_missing_or_for_the_default(helm4: Helm, tmp_path: Path) -> None:
    elsewhere = {"valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x']"}}}
    names = ("NSM_TRENCH_NAME", "LBGUARD_NSP__CONDUIT", "LBGUARD_GRACE__MAX")
    extra: list[dict[str, Any]] = [{"name": name, **elsewhere} for name in names]
    settings = {"source": "nsp", "grace": {"window": "40s"}}
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values_with(settings, "guard", extraEnv=extra)))
    helm4.template(file)
    extra[2] = {"name": "LBGUARD_GRACE__MAX", "value": "35s"}
    file.write_text(yaml.safe_dump(values_with(settings, "guard", extraEnv=extra)))
    done = helm4.run("template", "guard", CHART, "--values", file, check=False)
    refused = "settings.grace.window = 40s: longer than grace.max; allowed: at most settings.grace.max, which is 35s"
    assert refused in done.stderr


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container.get("env", ())}


def test_defaults_need_no_environment(helm: Helm) -> None:
    assert environment_of(sidecar(pod_of(patch_of(helm.objects(), "guard")))) == {}


def other_value(leaf: Leaf) -> Any:
    """Return a value of a setting, as YAML has it, that is allowed and not the default."""
    if leaf.unit == "choice":
        return next(choice for choice in reversed(leaf.allowed.split(" | ")) if choice != leaf.default)
    if leaf.unit == "switch":
        return not leaf.default
    if leaf.unit == "list of durations":
        return ["0s", "7s"]
    if leaf.unit == "host:port":
        return "127.0.0.1:9999"
    if leaf.unit == "duration":
        low, high = leaf.allowed.split(" to ")
        return low if leaf.default != 0 and leaf.show(leaf.default) != low and low != "0s" else high
    if isinstance(leaf.default, int):
        return int(leaf.allowed.split(" to ")[1])
    if isinstance(leaf.default, float):
        return float(leaf.allowed.split(" to ")[1])
    return None


# Settings whose values have to go together, or have a form of their own, are in the cases.
TOGETHER = {"source", "grace.window", "grace.max", "grace.neighbor_window", "grace.verdict_window", "distributor.kind"}


def test_every_value_reaches_its_setting(helm: Helm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {
        name: value
        for name, leaf in LEAVES.items()
        if (value := other_value(leaf)) is not None
        and name not in TOGETHER
        and not name.startswith(("probe.", "verdicts.", "nsp."))
    }
    assert len(chosen) > 25
    nested: dict[str, Any] = {}
    for name, value in chosen.items():
        *groups, last = name.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    values = tmp_path / "values.yaml"
    guard = {
        "healthChecks": "exec",
        "extraVolumeMounts": [{"name": "mesh", "mountPath": "/var/lib/networkservicemesh"}],
    }
    values.write_text(yaml.safe_dump({"settings": nested, "guard": guard}))
    container = sidecar(pod_of(patch_of(helm.objects(values), "guard")))
    environment = environment_of(container)
    assert set(environment) == {LEAVES[name].variable for name in chosen}
    file = tmp_path / "lbguard.yaml"
    file.write_text(yaml.safe_dump(nested))
    expected = load(config=file).settings
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load().settings == expected


@pytest.mark.parametrize("name", CASES)
def test_the_environment_of_each_case_is_accepted(helm4: Helm, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = helm4.objects(case(name))
    wanted = flat(yaml.safe_load(case(name).read_text()).get("settings", {}))
    for component in ("guard", "probe"):
        if not any(item["metadata"]["name"].endswith(f"-{component}-patch") for item in objects):
            continue
        environment = environment_of(sidecar(pod_of(patch_of(objects, component))))
        with monkeypatch.context() as patch:
            for variable, value in environment.items():
                patch.setenv(variable, value)
            loaded = load()
        assert [note for note in loaded.notes if "GRPC" not in note] == []
        given = {setting for setting, origin in loaded.origins.items() if origin != "default"}
        own = {setting for setting in wanted if setting.startswith("probe.") == (component == "probe")}
        assert own - {"log.level", "log.format"} <= given
