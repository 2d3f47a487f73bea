"""The source from the settings: where the server is, which objects, and what is refused at the start."""

import subprocess
import sys
from pathlib import Path

import pytest

from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.errors import StartError
from lbguard.service.build_kubernetes import api_address, identifiers_path, make_kubernetes_source
from lbguard.settings.model import Settings, load
from tests.fakes.kubernetes_api import FakeKubernetesApi, group_slice, member, service_slice
from tests.unit.sources.kubernetes.followed import Followed, running

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: one, user: me, namespace: from-the-context}}]
clusters: [{name: one, cluster: {server: "URL"}}]
users: [{name: me, user: {token: secret}}]
"""


def settings(**flags: object) -> Settings:
    names = {f"kubernetes.{name}": value for name, value in flags.items()}
    return load(flags={"source": "kubernetes", "kubernetes.services": "web", **names}).settings


def test_the_address_inside_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    for host, url in (("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        assert api_address(settings().kubernetes).url == url
    assert api_address(settings(url="http://[::1]:1").kubernetes).url == "http://[::1]:1"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    with pytest.raises(StartError, match=r"kubernetes\.url"):
        api_address(settings().kubernetes)


def test_identifiers_are_beside_the_socket_unless_set(tmp_path: Path) -> None:
    assert identifiers_path(load(flags={"socket": "/run/a/b.sock"}).settings) == Path("/run/a/b.sock.identifiers")
    assert identifiers_path(settings(identifiers="/srv/identifiers")) == Path("/srv/identifiers")


@pytest.mark.parametrize("content", [None, "", b"\xff"])
def test_a_namespace_that_nothing_says(tmp_path: Path, content: str | bytes | None) -> None:
    if content is not None:
        (tmp_path / "namespace").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StartError, match=r"kubernetes\.namespace is not set"):
        make_kubernetes_source(settings(url="https://api", account=str(tmp_path)), lambda event: None, lambda: 0.0)


@pytest.mark.parametrize("content", ["", "[]", "contexts: 7", "{", "clusters: []\ncontexts: []"])
def test_a_kubeconfig_of_another_form(tmp_path: Path, content: str) -> None:
    (tmp_path / "config").write_text(content)
    with pytest.raises(StartError, match="config"):
        make_kubernetes_source(settings(kubeconfig=str(tmp_path / "config")), lambda event: None, lambda: 0.0)


async def test_the_namespace_of_the_account_or_of_the_kubeconfig(tmp_path: Path) -> None:
    api = FakeKubernetesApi(token="secret")
    url = await api.start()
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "namespace").write_text("from-the-account\n")
    (tmp_path / "config").write_text(KUBECONFIG.replace("URL", url))
    for place, flags in (
        ("from-the-account", {"url": url, "account": str(tmp_path)}),
        ("from-the-context", {"kubeconfig": str(tmp_path / "config")}),
        ("default", {"url": url, "account": str(tmp_path), "namespace": "default"}),
    ):
        await api.put(service_slice("web", {"addresses": ["10.0.0.1"]}, namespace=place))
        events: list[SourceSnapshot | SourceLost] = []
        chosen = settings(**flags, identifiers=str(tmp_path / f"{place}.identifiers"))
        source = Followed(make_kubernetes_source(chosen, events.append, lambda: 0.0), events)
        async with running(source):
            await source.until(source.targets)
        assert source.targets() == {1: False}
        assert (tmp_path / f"{place}.identifiers").exists()
        assert f"/namespaces/{place}/endpointslices" in api.requests[-1].path
    await api.stop()


async def test_a_context_without_a_user(tmp_path: Path) -> None:
    api = FakeKubernetesApi()
    config = KUBECONFIG.replace("URL", await api.start()).replace(", user: me", "")
    (tmp_path / "config").write_text(config)
    await api.put(service_slice("web", {"addresses": ["10.0.0.1"]}, namespace="from-the-context"))
    events: list[SourceSnapshot | SourceLost] = []
    chosen = settings(kubeconfig=str(tmp_path / "config"), identifiers=str(tmp_path / "identifiers"))
    source = Followed(make_kubernetes_source(chosen, events.append, lambda: 0.0), events)
    async with running(source):
        await source.until(source.targets)
    assert "authorization" not in api.requests[-1].headers
    await api.stop()


async def test_objects_of_a_gateway(tmp_path: Path) -> None:
    api = FakeKubernetesApi()
    url = await api.start()
    await api.put(
        group_slice("a", member("one", 3, "10.0.0.1")),
        group_slice("b", member("two", 4, "10.0.0.2")),
        group_slice("c", member("three", 5, "10.0.0.3"), gateway="other"),
    )
    events: list[SourceSnapshot | SourceLost] = []
    flags = {"services": "", "gateway": "gateway-a", "distribution_groups": "b", "vips": "b=20.0.0.1"}
    places = {"namespace": "default", "url": url, "identifiers": str(tmp_path / "i"), "account": str(tmp_path)}
    source = Followed(make_kubernetes_source(settings(**flags, **places), events.append, lambda: 0.0), events)
    async with running(source):
        await source.until(lambda: source.targets("b") == {4: False})
        (stream,) = source.streams
        assert (stream.shm_name, [str(vip) for vip in stream.vips]) == ("b", ["20.0.0.1/32"])
    await api.stop()


def test_no_other_source_loads_the_client() -> None:
    code = (
        "import sys; sys.modules['lightkube'] = None; sys.modules['httpx2'] = None;"
        "import lbguard.service.daemon, lbguard.service.build_kubernetes, lbguard.sources.kubernetes.source"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_extra_the_error_names_it() -> None:
    code = (
        "import importlib.util as util; find = util.find_spec;"
        "util.find_spec = lambda name: None if name == 'lightkube' else find(name);"
        "from lbguard.service.build_kubernetes import check_client; check_client()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "source = kubernetes needs the extra kubernetes: pip install 'lbguard[kubernetes]'" in ended.stderr
