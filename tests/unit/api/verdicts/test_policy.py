from ipaddress import ip_address

import pytest

from lbguard.api.verdicts.policy import (
    Denied,
    DenyReason,
    Policy,
    Subnets,
    addresses,
    check_subject,
    identity_of,
    reporter_of,
)
from lbguard.core.addr import Ip, parse_prefix
from lbguard.core.model import ConnectionSubject, LinkSubject, Subject, TargetSubject
from lbguard.settings.peers import PeerRule, is_host_name, is_spiffe_id, parse_rule


def ip(text: str) -> Ip:
    return ip_address(text).packed


def policy(*rules: str) -> Policy:
    return Policy([parse_rule(rule) for rule in rules])


def reason_of(rules: tuple[str, ...], *names: str) -> DenyReason:
    with pytest.raises(Denied) as caught:
        policy(*rules).admit(names)[1]
    return caught.value.reason


@pytest.mark.parametrize(
    "value",
    [
        "spiffe://example.org/ns/*/proxy=172.16.0.0/16 fd00::/8",
        " spiffe://example.org/ns/*/proxy = 172.16.0.0/16   fd00::/8 ",
        {"peer": "spiffe://example.org/ns/*/proxy", "subnets": ["172.16.0.0/16", "fd00::/8"]},
    ],
)
def test_a_rule_is_text_or_a_mapping(value: object) -> None:
    rule = parse_rule(value)
    assert rule.peer == "spiffe://example.org/ns/*/proxy"
    assert rule.subnets == (parse_prefix("172.16.0.0/16"), parse_prefix("fd00::/8"))
    assert parse_rule(str(rule)) == rule
    assert parse_rule(rule) is rule


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("spiffe://example.org", "not a rule PEER=SUBNETS"),
        ("proxy=10.0.0.0/8", "'proxy' is not a peer: unix, spiffe://TRUST-DOMAIN/PATH or dns:NAME"),
        ("dns:=10.0.0.0/8", "not a peer"),
        ("unix=10.0.0.1/8", "'10.0.0.1/8' is not a subnet.*host bits"),
        ("unix=everything", "'everything' is not a subnet"),
        ("dns:a\0.test=10.0.0.0/8", "printable ASCII"),
        ("spiffe://example.org/a\nb=10.0.0.0/8", "printable ASCII"),
        ("spiffe://example.org/a b=10.0.0.0/8", "printable ASCII"),
        ({"peer": "unix"}, "not a mapping of `peer`"),
        ({"peer": "unix", "subnets": "10.0.0.0/8"}, "not a mapping"),
        ({"peer": 7, "subnets": []}, "not a mapping"),
        (7, "not a mapping"),
    ],
)
def test_what_is_no_rule_is_refused_in_words(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_rule(value)


def test_the_socket_is_trusted_until_a_rule_says_otherwise() -> None:
    assert ip("203.0.113.9") in policy().admit(("unix",))[1]
    assert ip("2001:db8::1") in policy("dns:a=10.0.0.0/8").admit(("unix",))[1]
    narrowed = policy("unix=10.0.0.0/8").admit(("unix",))[1]
    assert ip("10.1.2.3") in narrowed
    assert ip("11.1.2.3") not in narrowed
    assert ip("fd00::1") not in narrowed
    assert reason_of(("unix=",), "unix") is DenyReason.PEER_NOT_ALLOWED


def test_peers_on_tcp_need_a_rule_and_a_name() -> None:
    assert reason_of((), "spiffe://example.org/proxy") is DenyReason.PEER_NOT_ALLOWED
    assert reason_of(("dns:*=0.0.0.0/0",)) is DenyReason.NO_IDENTITY
    with pytest.raises(Denied, match=r"no rule of verdicts\.policy lets dns:x report"):
        policy().admit(("dns:x",))[1]


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("spiffe://example.org/ns/*/proxy", "spiffe://example.org/ns/red/proxy", True),
        ("spiffe://example.org/ns/*/proxy", "spiffe://example.org/ns/red/sa/evil/proxy", False),
        ("spiffe://example.org/**", "spiffe://example.org/ns/red/sa/proxy", True),
        ("spiffe://example.org/**", "spiffe://example.org.evil.net/ns/red", False),
        ("spiffe://example.org/Proxy", "spiffe://example.org/proxy", False),
        ("dns:*.proxy.svc", "dns:a.red.proxy.svc", False),
        ("dns:proxy.test", "dns:Proxy.test.", True),
        ("dns:*", "spiffe://example.org", False),
        ("unix", "dns:unix", False),
    ],
)
def test_a_star_stays_within_its_part(pattern: str, name: str, matches: bool) -> None:
    rules = (f"{pattern}=10.0.0.0/8",)
    if matches:
        assert ip("10.0.0.1") in policy(*rules).admit((name,))[1]
    else:
        assert reason_of(rules, name) is DenyReason.PEER_NOT_ALLOWED


@pytest.mark.parametrize(
    "name", ["spiffe://example.org/a\n", "spiffe://example.org/\0", "dns:a\n", "dns:a b", "dns:\N{KELVIN SIGN}"]
)
def test_a_name_that_cannot_be_printed_is_none(name: str) -> None:
    assert (
        reason_of(("spiffe://**=10.0.0.0/8", "dns:**=10.0.0.0/8", "dns:k=10.0.0.0/8"), name) is DenyReason.NO_IDENTITY
    )


def test_a_peer_is_known_by_the_name_that_a_rule_matches() -> None:
    rules = policy("dns:*.proxies.test=10.0.0.0/8")
    assert rules.admit(("spiffe://example.org/other", "dns:A.proxies.test."))[0] == "dns:a.proxies.test"


def test_no_name_makes_one_reporter_look_like_another_ones() -> None:
    assert reporter_of("spiffe://example.org/a", "b", "10.0.0.1") == "spiffe://example.org/a#b"
    assert reporter_of("dns:a", "", "10.0.0.1") == "dns:a@10.0.0.1"
    assert reporter_of("unix", "", "") == "unix"
    for identity in ("unix", "dns:a.test", "spiffe://example.org/a"):
        for name, host in (("", ""), ("b", ""), ("", "::1")):
            assert identity_of(reporter_of(identity, name, host)) == identity
    assert not is_spiffe_id("spiffe://example.org/a#b")
    assert not is_host_name("a@10.0.0.1")


def test_rules_and_names_add_up() -> None:
    subnets = policy("dns:a=10.0.0.0/8", "dns:*=fd00::/8", "dns:b=192.0.2.0/24", "dns:c=0.0.0.0/0").admit(
        ("dns:a", "dns:b")
    )[1]
    assert all(ip(text) in subnets for text in ("10.0.0.1", "fd12::1", "192.0.2.255"))
    assert ip("192.0.3.0") not in subnets
    assert ip("fe00::1") not in subnets


def test_a_subnet_of_one_and_one_of_all() -> None:
    one = Subnets([parse_prefix("10.0.0.1/32"), parse_prefix("fd00::1/128")])
    assert ip("10.0.0.1") in one
    assert ip("10.0.0.2") not in one
    assert ip("fd00::1") in one
    assert ip("fd00::3") not in one
    assert ip("255.255.255.255") in Subnets([parse_prefix("0.0.0.0/0")])
    assert str(Subnets([parse_prefix(f"10.{n}.0.0/16") for n in range(9)])).endswith("10.3.0.0/16, ...")


@pytest.mark.parametrize(
    ("subject", "foreign"),
    [
        (TargetSubject(ip=ip("10.0.0.1")), None),
        (TargetSubject(ip=ip("11.0.0.1")), "11.0.0.1"),
        (LinkSubject(lb_ip=ip("10.0.0.1"), proxy_ip=ip("10.0.0.2")), None),
        (LinkSubject(lb_ip=ip("11.0.0.1"), proxy_ip=ip("10.0.0.2")), "11.0.0.1"),
        (LinkSubject(lb_ip=ip("10.0.0.1"), proxy_ip=ip("11.0.0.2")), "11.0.0.2"),
        (ConnectionSubject(id="c", lb_ips=(ip("10.0.0.1"), ip("fd00::1")), peer_ips=(ip("10.0.0.2"),)), "fd00::1"),
        (ConnectionSubject(id="c", lb_ips=(ip("10.0.0.1"),), peer_ips=(ip("fd00::2"),)), "fd00::2"),
        (ConnectionSubject(id="c"), None),
    ],
)
def test_every_address_of_a_subject_has_to_be_allowed(subject: Subject, foreign: str | None) -> None:
    subnets = Subnets([parse_prefix("10.0.0.0/8")])
    if foreign is None:
        check_subject(subject, subnets, "verdicts[0].subject")
        assert all(address in subnets for address in addresses(subject))
        return
    with pytest.raises(Denied) as caught:
        check_subject(subject, subnets, "verdicts[0].subject")
    assert caught.value.reason is DenyReason.SUBNET_NOT_ALLOWED
    text = f"verdicts[0].subject: verdicts.policy does not let this peer report on {foreign}; allowed: 10.0.0.0/8"
    assert str(caught.value) == text


def test_a_rule_may_hold_an_equals_sign_in_its_name() -> None:
    assert parse_rule("spiffe://example.org/a=b=10.0.0.0/8") == PeerRule(
        "spiffe://example.org/a=b", (parse_prefix("10.0.0.0/8"),)
    )
