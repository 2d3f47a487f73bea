"""The chart's settings are lbguard's own: generated from them, and read back by them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lbguard.settings.model import Settings, load
from lbguard.settings.sources import Leaf, leaves
from tests.deploy.charts import CASES, CHART, ROOT, Helm, case, named, patch_of, pod_of

pytestmark = pytest.mark.timeout(300)

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


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container.get("env", ())}


def test_defaults_need_no_environment(helm: Helm) -> None:
    assert environment_of(named(pod_of(patch_of(helm.objects(), "guard"))["containers"], "lbguard")) == {}


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
    container = named(pod_of(patch_of(helm.objects(values), "guard"))["containers"], "lbguard")
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
        environment = environment_of(named(pod_of(patch_of(objects, component))["containers"], "lbguard"))
        with monkeypatch.context() as patch:
            for variable, value in environment.items():
                patch.setenv(variable, value)
            loaded = load()
        assert [note for note in loaded.notes if "GRPC" not in note] == []
        given = {setting for setting, origin in loaded.origins.items() if origin != "default"}
        own = {setting for setting in wanted if setting.startswith("probe.") == (component == "probe")}
        assert own - {"log.level", "log.format"} <= given
