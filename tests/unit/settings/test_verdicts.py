from pathlib import Path

import pytest

from lbguard.core.addr import parse_prefix
from lbguard.settings.model import SettingsError, load
from lbguard.settings.peers import PeerRule
from lbguard.settings.verdicts import VerdictLimits

RULES = (
    PeerRule("unix", (parse_prefix("10.0.0.0/8"),)),
    PeerRule("spiffe://example.org/ns/*/proxy", (parse_prefix("172.16.0.0/16"), parse_prefix("fd00::/8"))),
)
FILES = {"verdicts.tls_cert": "/tls.crt", "verdicts.tls_key": "/tls.key", "verdicts.tls_client_ca": "/ca.crt"}


def refused(flags: dict[str, object]) -> str:
    with pytest.raises(SettingsError) as caught:
        load(flags=flags)
    return str(caught.value)


def test_nothing_is_listened_to_on_tcp_by_default() -> None:
    verdicts = load().settings.verdicts
    assert verdicts.listen == ""
    assert verdicts.policy == ()
    assert not verdicts.names_tcp_peers


def test_rules_come_from_text_and_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "lbguard.yaml"
    config.write_text(
        "verdicts:\n"
        "  policy:\n"
        "    - {peer: unix, subnets: [10.0.0.0/8]}\n"
        '    - peer: "spiffe://example.org/ns/*/proxy"\n'
        '      subnets: [172.16.0.0/16, "fd00::/8"]\n'
    )
    loaded = load(config=config)
    assert loaded.settings.verdicts.policy == RULES
    assert loaded.settings.verdicts.names_tcp_peers
    text = "unix=10.0.0.0/8, spiffe://example.org/ns/*/proxy=172.16.0.0/16 fd00::/8"
    monkeypatch.setenv("LBGUARD_VERDICTS__POLICY", text)
    assert load().settings.verdicts.policy == RULES


@pytest.mark.parametrize("rule", ["proxy=10.0.0.0/8", "unix", "unix=10.0.0.1/8"])
def test_a_wrong_rule_is_refused_with_an_example(rule: str) -> None:
    text = refused({"verdicts.policy": rule})
    assert text.startswith("verdicts.policy = ")
    assert "spiffe://example.org/ns/*/proxy=172.16.0.0/16 fd00::/8" in text


def test_plaintext_tcp_is_refused_by_name() -> None:
    text = refused({"verdicts.listen": ":7443"})
    assert "verdicts.listen = :7443 (flag): plaintext TCP is not served" in text
    assert "verdicts.spiffe_socket" in text


@pytest.mark.parametrize("missing", list(FILES))
def test_certificates_are_whole(missing: str) -> None:
    flags = {name: value for name, value in FILES.items() if name != missing}
    assert refused({"verdicts.listen": ":7443", **flags}).startswith(f"{missing} = unset")


def test_certificates_come_from_one_place() -> None:
    text = refused({**FILES, "verdicts.spiffe_socket": "unix:///run/agent.sock"})
    assert text.startswith("verdicts.spiffe_socket = ")
    assert load(flags={"verdicts.listen": ":7443", **FILES}).settings.verdicts.tls_key == Path("/tls.key")
    assert load(flags={"verdicts.listen": ":7443", "verdicts.spiffe_socket": "unix:///run/agent.sock"})


def test_a_burst_holds_a_full_request() -> None:
    assert refused({"verdicts.burst": "100", "verdicts.max_per_request": "101"}).startswith("verdicts.burst = 100")


def test_the_service_gets_what_was_set() -> None:
    flags = {"max_message": 5000, "max_per_request": 6, "rate": 7, "burst": 8, "max_reporters": 9, "max_calls": 10}
    flags |= {"max_subjects": 11, "max_subjects_total": 12}
    verdicts = load(flags={f"verdicts.{name}": value for name, value in flags.items()}).settings.verdicts
    assert verdicts.limits == VerdictLimits(
        message_bytes_max=5000,
        per_request_max=6,
        rate=7,
        burst=8,
        reporters_max=9,
        calls_max=10,
        subjects_max=11,
        subjects_total_max=12,
    )
