"""Names in certificates: which count, how they are read, and which patterns they fit."""

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.settings.model import Settings
from lbguard.settings.peers import check_pattern, is_host_name, is_spiffe_id, name_matches, names_in_certificate
from tests.unit.api.certificates import Authority

NSP = "spiffe://example.org/ns/red/sa/nsp"
AUTHORITY = Authority()


@pytest.mark.parametrize(
    ("dns", "uris", "names"),
    [
        (("proxy.test", "b.test"), (NSP,), ([NSP], ["proxy.test", "b.test"])),
        ((), (), ([], [])),
        ((), ("https://example.org/x",), ([], [])),
        ((), (NSP, NSP + "2"), ([], [])),
        # Cut at the zero byte, these would be names that somebody trusts.
        (("a.proxies.test\0.evil.test", "b.test"), (), ([], ["b.test"])),
        (("a.proxies.test\n", "a.proxies.test ", "a.proxies.test\x7f", "a..test", ".a.test", ""), (), ([], [])),
        ((), (NSP + "\0",), ([], [])),
        ((), (NSP + "\n",), ([], [])),
        ((), (NSP + " x",), ([], [])),
        ((), (NSP + "\0", NSP), ([], [])),
        (
            ("*.proxies.test", "UPPER.test.", "under_score.test"),
            (),
            ([], ["*.proxies.test", "UPPER.test.", "under_score.test"]),
        ),
    ],
)
def test_names_are_read_whole(dns: tuple[str, ...], uris: tuple[str, ...], names: tuple[list[str], list[str]]) -> None:
    assert names_in_certificate(AUTHORITY.issue(dns=dns, uris=uris).chain) == names


def test_a_name_longer_than_127_bytes_is_read(tmp_path: Path) -> None:
    long = NSP + "/" + "x" * 900
    assert names_in_certificate(AUTHORITY.issue(uris=(long,)).chain) == ([long], [])


@given(st.binary(max_size=80), st.integers(0, 500))
def test_what_is_no_certificate_names_nobody(noise: bytes, at: int) -> None:
    assert names_in_certificate(noise) == ([], [])
    body = base64.b64encode(_DER[:at] + noise)
    names_in_certificate(b"-----BEGIN CERTIFICATE-----\n" + body + b"\n-----END CERTIFICATE-----\n")


_DER = AUTHORITY.issue(dns=("proxy.test",), uris=(NSP,)).chain_der


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        (NSP, True),
        ("spiffe://example.org", True),
        ("spiffe://example.org/", False),
        ("spiffe://example.org//a", False),
        ("spiffe://example.org/a/../b", False),
        ("spiffe://example.org/a#b", False),
        ("spiffe://example.org/a@b", False),
        ("spiffe://example.org/a?b", False),
        ("spiffe://", False),
        ("spiffe:///a", False),
        ("spiffe://user@example.org/a", False),
        (NSP + "\n", False),
        (NSP + "\N{RIGHT-TO-LEFT OVERRIDE}", False),
        ("https://example.org/a", False),
    ],
)
def test_spiffe_ids(name: str, is_one: bool) -> None:
    assert is_spiffe_id(name) is is_one


def test_host_names() -> None:
    assert is_host_name("a.b-c.example.org.")
    assert not any(map(is_host_name, ("", ".", "a..b", "a b", "-a", "a\n", "a@b", "a#b", "\N{KELVIN SIGN}.org")))


@pytest.mark.parametrize(
    ("names", "pattern", "matches"),
    [
        ((NSP,), "", True),
        ((), "", True),
        ((NSP,), "spiffe://example.org/*", True),
        ((NSP,), "spiffe://example.com/*", False),
        ((NSP,), "spiffe://example?org/*", False),
        ((NSP,), "spiffe://example.[o]rg/*", False),
        ((NSP + "\n",), "spiffe://example.org/*", False),
        ((NSP + "\nx",), NSP, False),
        (("a.test\0.example.org",), "*.example.org", False),
        (("evil.test\n.example.org",), "*.example.org", False),
        (("nsp-service", NSP), "nsp-service", True),
        (("nsp-service\0.evil.test",), "nsp-service", False),
        (("*.trench.svc",), "nsp.trench.svc", True),
        (("*.trench.svc",), "*.trench.svc", True),
        (("*.TRENCH.svc.",), "NSP.trench.svc", True),
        (("*.trench.svc",), "nsp.other.svc", False),
        (("*.trench.svc",), "a.nsp.trench.svc", False),
        (("*.svc",), "*.trench.svc", False),
        (("*",), "nsp", False),
        (("nsp.trench.svc",), "*.trench.svc", True),
        (("a.nsp.trench.svc",), "*.trench.svc", False),
        (("a.nsp.trench.svc",), "**.trench.svc", True),
        (("NSP.Trench.svc.",), "nsp.trench.SVC", True),
        (("nsp.trench.svc",), "nsp.trench.svc.", True),
        (("127.0.0.1",), "127.0.0.1", True),
        (("0:0:0:0:0:0:0:1",), "::1", True),
        (("127.0.0.10",), "127.0.0.1", False),
        ((), "nsp-service", False),
    ],
)
def test_patterns_of_server_names(names: tuple[str, ...], pattern: str, matches: bool) -> None:
    assert name_matches(names, pattern) is matches


@pytest.mark.parametrize(
    "pattern", ["a b", "a\nb", "a\0", "\x1b[31m", "spiffe://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher/*"]
)
def test_what_no_name_can_fit_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        check_pattern(pattern)
    groups: list[dict[str, Any]] = [
        {"probe": {"tls_server_name": pattern}},
        {"probe": {"nsm": {"tls_server_name": pattern}}},
        {"nsp": {"tls_server_name": pattern}},
        {"nsm": {"tls_server_name": pattern}},
    ]
    for group in groups:
        with pytest.raises(ValueError, match="printable ASCII"):
            Settings(**group)
