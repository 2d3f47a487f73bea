import re

import pytest

from lbguard.settings.check import check_settings
from lbguard.settings.model import SettingsError, load
from lbguard.settings.probe import ProbeSettings
from lbguard.settings.verdicts import VerdictSettings

ENABLED: dict[str, object] = {
    "probe.enabled": "true",
    "probe.connections_file": "/etc/lbguard/connections.yaml",
    "probe.report_to": "unix:/run/lbguard/lbguard.sock",
}


def test_it_is_off_by_default_and_as_the_issue_asks() -> None:
    probe = load().settings.probe
    assert not probe.enabled
    assert (probe.interval, probe.timeout_in_force, probe.count) == (2.0, 2.0, 4)
    assert (probe.bad_rounds, probe.of_rounds, probe.good_rounds) == (2, 3, 1)
    assert probe.report_backoff_max == 1.0
    assert probe.nsm.backoff_max == 1.0


def test_what_is_shown_as_an_address_to_report_to_has_the_port_that_load_balancers_listen_on() -> None:
    listen = VerdictSettings.model_fields["listen"].json_schema_extra
    report_to = ProbeSettings.model_fields["report_to"].json_schema_extra
    assert isinstance(listen, dict)
    assert isinstance(report_to, dict)
    ports = [set(re.findall(r":(\d{4,})\b", str(extra["allowed"]))) for extra in (listen, report_to)]
    assert ports[0] == ports[1] == {"7443"}


def test_the_environment_reaches_every_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBGUARD_PROBE__ENABLED", "true")
    monkeypatch.setenv("LBGUARD_PROBE__CONNECTIONS", "nsm")
    monkeypatch.setenv("LBGUARD_PROBE__NSM__ADDRESS", "tcp://nsmgr:5001")
    monkeypatch.setenv("LBGUARD_PROBE__NSM__HEAL_TIME", "20s")
    monkeypatch.setenv("LBGUARD_PROBE__NSM__NETWORK_SERVICES", "lb-fe, other")
    monkeypatch.setenv("LBGUARD_PROBE__BRIDGE__NAME", "br1")
    monkeypatch.setenv("LBGUARD_PROBE__REPORT_TO", "link:7443, [fd00::1]:7443")
    loaded = load()
    probe = loaded.settings.probe
    assert (probe.enabled, probe.connections, probe.bridge.name) == (True, "nsm", "br1")
    assert (probe.nsm.address, probe.nsm.heal_time) == ("tcp://nsmgr:5001", 20.0)
    assert probe.nsm.network_services == ("lb-fe", "other")
    assert probe.report_to == ("link:7443", "[fd00::1]:7443")
    assert loaded.origins["probe.nsm.heal_time"] == "environment LBGUARD_PROBE__NSM__HEAL_TIME"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"probe.timeout": "3s"}, "probe.timeout = 3s (flag): rounds would overlap; allowed: at most probe.interval"),
        ({"probe.bad_rounds": "4"}, "probe.bad_rounds = 4 (flag): more than probe.of_rounds"),
        ({"probe.enabled": "true"}, "probe.connections_file = unset (default): needed with probe.connections file"),
        ({"probe.report_to": "lb-a"}, "probe.report_to"),
        ({"probe.nsm.address": "nsmgr"}, "probe.nsm.address"),
        ({"probe.nsm.role": "proxy"}, "probe.nsm.role = 'proxy' (flag): not one of the choices; allowed: client | end"),
        ({"probe.tls_cert": "/a"}, "probe.tls_key = unset (default): needed with probe.tls_cert"),
        ({"probe.nsm.tls_ca": "/a"}, "probe.nsm.tls_cert = unset (default): needed with probe.nsm.tls_ca"),
        (
            {"probe.tls_cert": "/a", "probe.tls_key": "/b", "probe.tls_ca": "/c", "probe.spiffe_socket": "unix:///d"},
            "probe.tls_cert = /a (flag): certificates come from one place only",
        ),
        ({"probe.name": "not a name"}, "probe.name"),
        ({"probe.lease": "400s"}, "probe.lease"),
        ({"probe.nsm.colour": "red"}, "probe.nsm.colour"),
        ({"probe.nsm": "x"}, "a group of settings, not a setting"),
    ],
)
def test_what_is_refused_is_said_in_the_words_of_the_settings(flags: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(flags=flags)
    assert words in str(caught.value)


def warned(flags: dict[str, object]) -> list[str]:
    return [warning.name for warning in check_settings(load(flags=flags).settings)]


def test_a_probe_that_is_well_set_raises_no_warning() -> None:
    assert warned(ENABLED) == []


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("probe-reports-to-nobody", {"probe.report_to": ""}),
        ("probe-reports-in-plaintext", {"probe.report_to": "link:7443"}),
        ("probe-lease-below-two-rounds", {"probe.lease": "3s"}),
        ("probe-file-not-read", {"probe.connections": "bridge"}),
    ],
)
def test_each_bad_combination_is_named(name: str, flags: dict[str, object]) -> None:
    assert warned(ENABLED | flags) == [name]
