"""The image: built as the Dockerfile says, then run with no more than a pod would give it."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker

from lbguard import __version__
from tests.deploy.charts import ROOT
from tests.deploy.images import UID, Buildah, Container, download_wheels, make_base, missing

BOTH = ("NET_ADMIN", "NET_RAW")
READY_LIMIT_S = 90.0
"""Only a bound for a test; what is aimed at is 1.5 s."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    place = tmp_path_factory.mktemp("image")
    wheels = place / "wheels"
    wheels.mkdir()
    try:
        download_wheels(wheels)
        archive = make_base(ROOT / "out/image")
    except AssertionError as error:
        pytest.skip(f"what the image is made of cannot be had: {error}")
    buildah = Buildah(place / "store", archive)
    buildah.build(wheels, VERSION=__version__)
    yield buildah
    buildah.close()
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def tree(buildah: Buildah) -> Path:
    return buildah.tree()


def test_it_says_what_it_is_and_runs_as_nobody_special(buildah: Buildah) -> None:
    config = buildah.config()
    assert config["User"] == f"{UID}:{UID}"
    assert config["Entrypoint"] == ["/opt/lbguard/bin/lbguard"]
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    assert not {"Healthcheck", "Volumes"} & {key for key, value in config.items() if value}


def test_it_holds_what_is_locked_and_no_tools_of_the_build(tree: Path, tmp_path: Path) -> None:
    listing = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({d.name.lower().replace('_', '-'): d.version for d in m.distributions()}))"
    )
    status, said = Container(tree, tmp_path).run("/opt/lbguard/bin/python3", "-I", "-c", listing)
    assert status == 0, said
    lock = (ROOT / "requirements.lock").read_text()
    lines = re.findall(r"(?m)^([a-z0-9-]+)==(\S+)(?: ; (.*))? \\$", lock)
    assert json.loads(said) == {name: version for name, version, when in lines if not when or Marker(when).evaluate()}
    for tool in ("gcc", "cc", "pip", "pip3", "setcap"):
        assert not list(tree.glob(f"usr/*bin/{tool}")), tool
    for leftover in ("root/.cache", "build", "wheels", "var/cache/apt"):
        assert not list((tree / leftover).glob("**/*.*")), leftover
    sources = list(tree.glob("opt/lbguard/lib/python3*/site-packages/lbguard/**/*.py"))
    assert len(sources) > 50
    for source in sources:
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")), source


def test_commands_need_no_privilege(tree: Path, tmp_path: Path) -> None:
    assert Container(tree, tmp_path).run("lbguard", "version") == (0, f"lbguard {__version__}\n")
    status, said = Container(tree, tmp_path).run("lbguard", "check-config", "--all")
    assert status == 0, said
    assert re.search(r"(?m)^grace\.window +3s +3s +default", said)


def test_a_missing_capability_is_named(tree: Path, tmp_path: Path) -> None:
    status, said = Container(tree, tmp_path, add=["NET_ADMIN"]).run("lbguard", "check-config", "--host", "--json")
    assert status == 1, said
    assert '"no_cap_net_raw"' in said
    assert '"no_cap_net_admin"' not in said


@pytest.mark.parametrize("uid", [UID, 0, 4711])
def test_two_capabilities_do_without_privilege_escalation(tree: Path, tmp_path: Path, uid: int) -> None:
    status, said = Container(tree, tmp_path, uid=uid, add=BOTH).run("lbguard", "check-config", "--host", "--json")
    assert status == 0, said
    assert "no_cap_" not in said
    assert "no_nftables" not in said


def records(said: str) -> dict[str, dict[str, object]]:
    """Return log records by event."""
    return {record["event"]: record for record in map(json.loads, said.splitlines())}


def test_the_service_gets_ready_on_a_read_only_root(tree: Path, tmp_path: Path) -> None:
    guard = Container(tree, tmp_path, add=BOTH)
    began = time.time()
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/targets.yaml").write_text("streams: []\n")
    service = guard.popen("lbguard", "run", "--targets-file", "/etc/lbguard/targets/targets.yaml")
    try:
        while guard.exec("lbguard", "health", "--ready")[0] != 0:
            assert service.poll() is None, service.stdout and service.stdout.read()
            assert time.time() < began + READY_LIMIT_S, "not ready"
            time.sleep(0.1)
        assert guard.exec("lbguard", "health", "--live") == (0, "")
        status, said = guard.exec("touch", "/x")
        assert status != 0
        assert "Read-only file system" in said
    finally:
        guard.kill()
        said, _ = service.communicate(timeout=60)
    assert service.returncode == 0, said
    print(f"ready {float(str(records(said)['ready']['ts'])) - began:.2f} s after the container was asked for")


def test_certificates_of_a_spiffe_agent_need_nothing_that_the_image_lacks(tree: Path, tmp_path: Path) -> None:
    given = {
        "LBGUARD_SOURCE": "nsp",
        "LBGUARD_NSP__TRENCH": "trench-a",
        "LBGUARD_NSP__CONDUIT": "conduit-a",
        "LBGUARD_NSP__SPIFFE_SOCKET": "unix:///run/lbguard/agent.sock",
    }
    guard = Container(tree, tmp_path, add=BOTH, env=given)
    service = guard.popen("lbguard", "run")
    began = time.time()
    try:
        while guard.exec("lbguard", "status")[0] != 0:
            assert service.poll() is None, service.stdout and service.stdout.read()
            assert time.time() < began + READY_LIMIT_S, "it does not serve"
            time.sleep(0.1)
        status, said = guard.exec("lbguard", "health", "--ready")
        assert status == 1, said
    finally:
        guard.kill()
        said, _ = service.communicate(timeout=60)
    assert 'SPIFFE socket file \\"/run/lbguard/agent.sock\\" does not exist' in said, said


def test_the_probe_needs_one_capability(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/connections.yaml").write_text("connections: []\n")
    given = {
        "LBGUARD_PROBE__ENABLED": "true",
        "LBGUARD_PROBE__CONNECTIONS_FILE": "/etc/lbguard/targets/connections.yaml",
    }
    probe = Container(tree, tmp_path, add=["NET_RAW"], env=given)
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/readyz', timeout=3).status)"
    service = probe.popen("lbguard", "probe")
    began = time.time()
    try:
        while probe.exec("/opt/lbguard/bin/python3", "-I", "-c", ask) != (0, "200\n"):
            assert service.poll() is None, service.stdout and service.stdout.read()
            assert time.time() < began + READY_LIMIT_S, "not ready"
            time.sleep(0.1)
    finally:
        probe.kill()
        said, _ = service.communicate(timeout=60)
    assert service.returncode == 0, said
    assert "probing" in records(said)
