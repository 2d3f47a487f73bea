"""Variables of Meridio's containers that stand in for settings of ours."""

import pytest

from lbguard.settings.model import load


@pytest.fixture
def meridio(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("NSM_NSP_SERVICE", "nsp.example:7778")
    monkeypatch.setenv("NSM_TRENCH_NAME", "trench-a")
    monkeypatch.setenv("NSM_CONDUIT_NAME", "conduit-a")
    return monkeypatch


def test_they_count_where_the_environment_asks_for_the_registry(meridio: pytest.MonkeyPatch) -> None:
    meridio.setenv("LBGUARD_SOURCE", "nsp")
    loaded = load()
    assert (loaded.settings.nsp.trench, loaded.settings.nsp.conduit) == ("trench-a", "conduit-a")
    assert loaded.settings.nsp.address == "nsp.example:7778"
    assert loaded.origins["nsp.trench"] == "environment NSM_TRENCH_NAME"


def test_our_own_variables_come_first(meridio: pytest.MonkeyPatch) -> None:
    meridio.setenv("LBGUARD_SOURCE", "nsp")
    meridio.setenv("LBGUARD_NSP__TRENCH", "ours")
    loaded = load()
    assert loaded.settings.nsp.trench == "ours"
    assert loaded.origins["nsp.trench"] == "environment LBGUARD_NSP__TRENCH"


@pytest.mark.parametrize("source", ["nsp", "interposer", "kernel"])
def test_they_count_beside_meridio_whoever_tells_the_targets(meridio: pytest.MonkeyPatch, source: str) -> None:
    meridio.setenv("LBGUARD_SOURCE", source)
    meridio.setenv("LBGUARD_MODE", "observe")
    meridio.setenv("NSM_REQUEST_TIMEOUT", "15s")
    meridio.setenv("NSM_GRPC_MAX_BACKOFF", "5s")
    meridio.setenv("NSM_IP_RELEASE_DELAY", "20s")
    settings = load().settings
    assert (settings.nsp.trench, settings.nsp.conduit) == ("trench-a", "conduit-a")
    assert (settings.mesh.heal_path_s, settings.mesh.ip_release_delay) == (20.0, 20.0)


def test_they_mean_nothing_elsewhere(meridio: pytest.MonkeyPatch) -> None:
    assert load().settings.nsp.trench == ""
