import math
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.verdicts.convert import InvalidField, verdict_from_proto
from lbguard.core.model import (
    ConnectionSubject,
    FamilyEvidence,
    LinkSubject,
    TargetSubject,
    Verdict,
    VerdictState,
)

TARGET = pb.Subject(target_ip="172.16.1.10")


def message(**changes: object) -> pb.Verdict:
    """Return a message that is all right but for the changes."""
    values: dict[str, object] = {
        "subject": TARGET,
        "state": pb.VERDICT_STATE_DOWN,
        "generation": 3,
        "sequence": 17,
        "lease_s": 10.0,
    }
    return pb.Verdict(**(values | changes))  # type: ignore[arg-type]


def connection(**changes: object) -> pb.Verdict:
    values: dict[str, object] = {"id": "nsc-1", "lb_ips": ["172.16.1.1", "fd00:1::1"], "peer_ips": ["172.16.1.2"]}
    return message(subject=pb.Subject(connection=pb.ConnectionSubject(**(values | changes))))  # type: ignore[arg-type]


def family(**changes: object) -> pb.Verdict:
    values: dict[str, object] = {"family": 4, "sent": 4, "received": 2, "rtt_min_s": 0.001, "rtt_median_s": 0.002}
    entry = pb.FamilyEvidence(**(values | {"rtt_max_s": 0.003} | changes))  # type: ignore[arg-type]
    return message(evidence=[entry])


def test_a_whole_verdict_arrives_whole() -> None:
    verdict = verdict_from_proto(
        message(
            subject=pb.Subject(link=pb.LinkSubject(lb_ip="fd00:1::1", proxy_ip="fd00:0001::2")),
            state=pb.VERDICT_STATE_HEALING,
            heal_s=15.0,
            generation=2**64 - 1,
            new_mac=bytes.fromhex("020000000009"),
            evidence=[
                pb.FamilyEvidence(
                    family=6,
                    sent=4,
                    received=1,
                    rtt_min_s=0.1,
                    rtt_median_s=0.2,
                    rtt_max_s=0.4,
                    since_reply_s=1.5,
                ),
                pb.FamilyEvidence(family=4, sent=4),
            ],
        )
    )
    assert verdict == Verdict(
        subject=LinkSubject(lb_ip=ip_address("fd00:1::1").packed, proxy_ip=ip_address("fd00:1::2").packed),
        state=VerdictState.HEALING,
        generation=18446744073709551615,
        sequence=17,
        lease_s=10.0,
        heal_s=15.0,
        evidence=(
            FamilyEvidence(
                ipv4=False, sent=4, received=1, rtt_min_s=0.1, rtt_median_s=0.2, rtt_max_s=0.4, since_reply_s=1.5
            ),
            FamilyEvidence(ipv4=True, sent=4, received=0),
        ),
        new_mac=b"\x02\x00\x00\x00\x00\x09",
    )


def test_targets_and_connections_are_subjects_too() -> None:
    target = verdict_from_proto(message())
    assert target.subject == TargetSubject(ip=bytes([172, 16, 1, 10]))
    subject = verdict_from_proto(connection()).subject
    assert isinstance(subject, ConnectionSubject)
    assert subject.id == "nsc-1"
    assert subject.lb_ips == (bytes([172, 16, 1, 1]), ip_address("fd00:1::1").packed)
    assert subject.peer_ips == (bytes([172, 16, 1, 2]),)


def test_only_an_ended_connection_has_no_address() -> None:
    nameless = pb.Subject(connection=pb.ConnectionSubject(id="nsc-1"))
    ended = verdict_from_proto(message(subject=nameless, state=pb.VERDICT_STATE_ENDED))
    assert ended.subject == ConnectionSubject(id="nsc-1")
    with pytest.raises(InvalidField, match="unless state is VERDICT_STATE_ENDED"):
        verdict_from_proto(message(subject=nameless))


def test_every_state_is_known() -> None:
    states = {
        number: verdict_from_proto(message(state=number)).state.value
        for name, number in pb.VerdictState.items()
        if number != pb.VERDICT_STATE_UNSPECIFIED
    }
    assert states == {1: "up", 2: "degraded", 3: "down", 4: "healing", 5: "ended"}


def link(lb_ip: str, proxy_ip: str) -> pb.Verdict:
    return message(subject=pb.Subject(link=pb.LinkSubject(lb_ip=lb_ip, proxy_ip=proxy_ip)))


@pytest.mark.parametrize(
    ("wrong", "path", "allowed"),
    [
        (message(state=pb.VERDICT_STATE_UNSPECIFIED), "state", "VERDICT_STATE_UP, VERDICT_STATE_DEGRADED"),
        (message(state=99), "state = 99", "VERDICT_STATE_ENDED"),
        (message(lease_s=0), "lease_s", "above 0, at most 300"),
        (message(lease_s=-1), "lease_s", "above 0"),
        (message(lease_s=300.001), "lease_s", "at most 300"),
        (message(lease_s=math.nan), "lease_s = nan", "above 0"),
        (message(lease_s=math.inf), "lease_s = inf", "above 0"),
        (message(heal_s=5), "heal_s", "0 unless state is VERDICT_STATE_HEALING"),
        (message(state=pb.VERDICT_STATE_HEALING, heal_s=301), "heal_s", "0 to 300"),
        (message(state=pb.VERDICT_STATE_HEALING, heal_s=math.nan), "heal_s", "0 to 300"),
        (message(new_mac=b"\x02\0\0\0\0"), "new_mac = '02:00:00:00:00'", "6 bytes"),
        (message(new_mac=b"\x03\0\0\0\0\1"), "new_mac", "unicast"),
        (message(new_mac=bytes(6)), "new_mac", "other than 0"),
        (message(subject=pb.Subject()), "subject.kind", "link, target_ip, connection"),
        (pb.Verdict(state=pb.VERDICT_STATE_UP, lease_s=1), "subject.kind", "link, target_ip, connection"),
        (link("172.16.1.1", "fd00::1"), "subject.link.proxy_ip", "family of lb_ip"),
        (link("172.16.1.1", "172.16.1.1"), "subject.link.proxy_ip", "another address"),
        (link("", "172.16.1.1"), "subject.link.lb_ip = ''", "unicast"),
        (connection(id=""), "subject.connection.id", "1 to 253 printable"),
        (connection(id="x" * 254), "subject.connection.id", "1 to 253"),
        (connection(id="a\nb"), "subject.connection.id", "printable"),
        (connection(lb_ips=["172.16.1.1", "x"]), "subject.connection.lb_ips[1]", "unicast"),
        (connection(peer_ips=["172.16.1.1"] * 17), "subject.connection.peer_ips", "at most 16"),
        (family(family=0), "evidence[0].family", "4 or 6"),
        (family(received=5), "evidence[0].received", "at most sent, which is 4"),
        (family(rtt_min_s=-0.1), "evidence[0].rtt_min_s", "0 or more"),
        (family(rtt_max_s=math.inf), "evidence[0].rtt_max_s", "finite"),
        (family(rtt_median_s=math.nan), "evidence[0].rtt_median_s", "finite"),
        (family(rtt_median_s=0.004), "evidence[0].rtt_median_s", "between rtt_min_s and rtt_max_s"),
        (family(since_reply_s=math.nan), "evidence[0].since_reply_s", "absent, or 0 to"),
        (family(since_reply_s=-1), "evidence[0].since_reply_s", "absent, or 0 to"),
        (message(evidence=[pb.FamilyEvidence(family=4)] * 2), "evidence[1].family", "another family"),
        (message(evidence=[pb.FamilyEvidence(family=4)] * 3), "evidence", "at most one for each family"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(wrong: pb.Verdict, path: str, allowed: str) -> None:
    with pytest.raises(InvalidField) as caught:
        verdict_from_proto(wrong, 7)
    text = str(caught.value)
    assert text.startswith(f"verdicts[7].{path}")
    assert allowed in text.partition("; allowed: ")[2]
    assert caught.value.path == f"verdicts[7].{path.partition(' ')[0]}"


@pytest.mark.parametrize(
    "text",
    [
        "172.16.1.10/32",
        "172.16.1",
        "172.16.1.010",
        " 172.16.1.1",
        "fe80::1%eth0",
        "fd00::1%eth0",
        "fd00::/8",
        "host.example",
        "1" * 500,
        "17\u0662.16.1.1",
        "a\x00b",
    ],
)
def test_only_the_plain_address_of_one_host_is_taken(text: str) -> None:
    with pytest.raises(InvalidField) as caught:
        verdict_from_proto(message(subject=pb.Subject(target_ip=text)))
    assert caught.value.path == "verdicts[0].subject.target_ip"
    assert len(str(caught.value)) < 300


FORBIDDEN = [
    ip_network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8")
]


@given(st.ip_addresses() | st.sampled_from(FORBIDDEN).flatmap(lambda network: st.ip_addresses(network=network)))
def test_addresses_are_read_as_everybody_reads_them(address: IPv4Address | IPv6Address) -> None:
    sound = message(subject=pb.Subject(target_ip=str(address)))
    if any(address in network for network in FORBIDDEN):
        with pytest.raises(InvalidField):
            verdict_from_proto(sound)
    else:
        assert verdict_from_proto(sound).subject == TargetSubject(ip=address.packed)


FAMILIES = st.builds(
    pb.FamilyEvidence,
    family=st.integers(0, 10),
    sent=st.integers(0, 2**32 - 1),
    received=st.integers(0, 2**32 - 1),
    rtt_min_s=st.floats(),
    rtt_median_s=st.floats(),
    rtt_max_s=st.floats(),
    since_reply_s=st.none() | st.floats(),
)
TEXTS = st.text(max_size=300) | st.ip_addresses().map(str)
SUBJECTS = st.one_of(
    st.builds(pb.Subject),
    st.builds(pb.Subject, target_ip=TEXTS),
    st.builds(pb.Subject, link=st.builds(pb.LinkSubject, lb_ip=TEXTS, proxy_ip=TEXTS)),
    st.builds(
        pb.Subject,
        connection=st.builds(
            pb.ConnectionSubject, id=TEXTS, lb_ips=st.lists(TEXTS, max_size=20), peer_ips=st.lists(TEXTS, max_size=20)
        ),
    ),
)
VERDICTS = st.builds(
    pb.Verdict,
    subject=SUBJECTS,
    state=st.integers(0, 6) | st.integers(-(2**31), 2**31 - 1),
    generation=st.integers(0, 2**64 - 1),
    sequence=st.integers(0, 2**64 - 1),
    lease_s=st.floats(),
    heal_s=st.floats() | st.just(0.0),
    evidence=st.lists(FAMILIES, max_size=3),
    new_mac=st.binary(max_size=7),
)


@given(VERDICTS)
def test_any_message_is_a_sound_verdict_or_named(any_message: pb.Verdict) -> None:
    try:
        verdict = verdict_from_proto(any_message, 1)
    except InvalidField as invalid:
        event(invalid.path)
        return
    assert 0 < verdict.lease_s <= 300
    assert 0 <= verdict.heal_s <= 300
    assert len(verdict.new_mac) in {0, 6}
    assert len({entry.ipv4 for entry in verdict.evidence}) == len(verdict.evidence)
    assert all(math.isfinite(entry.rtt_max_s) and entry.received <= entry.sent for entry in verdict.evidence)
