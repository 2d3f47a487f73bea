import asyncio
from pathlib import Path

import pytest

from lbguard.core.addr import parse_ip
from lbguard.core.model import ConnectionSubject, LinkSubject, TargetSubject
from lbguard.probe.connections import (
    Connection,
    ConnectionList,
    ConnectionsFile,
    ConnectionsFileError,
    ConnectionsFileSource,
    ConnectionsLost,
    Pair,
    pairs_of,
)
from lbguard.settings.yaml_file import SHOWN_PROBLEMS
from tests.unit.kernel.fake_kernel import eventually
from tests.unit.probe.verdicts import ip

V4_A, V4_B, V4_C = (parse_ip(f"10.0.0.{n}") for n in (1, 2, 3))
V6_A, V6_B = parse_ip("fd00::1"), parse_ip("fd00::2")


def test_each_source_with_each_destination_of_its_family() -> None:
    assert pairs_of([V4_A, V6_A], [V4_B, V6_B, V4_C]) == (Pair(V4_A, V4_B), Pair(V4_A, V4_C), Pair(V6_A, V6_B))


def test_an_address_that_is_listed_twice_counts_once() -> None:
    assert pairs_of([V4_A, V4_A], [V4_B]) == (Pair(V4_A, V4_B),)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ((), "no address pair"),
        ((Pair(V4_A, V4_B), Pair(V4_A, V4_B)), "twice"),
        ((Pair(V4_A, V6_B),), "one family"),
        ((Pair(b"abc", b"abc"),), "one family"),
    ],
)
def test_what_cannot_be_pinged_is_refused_by_name(pairs: tuple[Pair, ...], words: str) -> None:
    with pytest.raises(ValueError, match=f"'c1'.*{words}"):
        Connection(id="c1", subject=TargetSubject(ip=V4_B), pairs=pairs)


GOOD = """
connections:
  - id: lb-a
    local: [172.16.0.2, "fd00:0::2"]
    remote: [172.16.0.1, "fd00:0::1"]
    interface: nsm-0
"""


def parse(text: str) -> tuple[Connection, ...]:
    return ConnectionsFile(Path("connections.yaml")).parse(text.encode())


def entry(id: str = "a", local: str = "[10.0.0.2]", remote: str = "[10.0.0.1]", more: str = "") -> str:
    return f"  - {{id: {id}, local: {local}, remote: {remote}{', ' + more if more else ''}}}\n"


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(ConnectionsFileError) as caught:
        parse(text)
    return caught.value.problems


def test_the_documented_example_pings_each_family_and_judges_the_connection_as_a_whole() -> None:
    assert parse(GOOD) == (
        Connection(
            id="lb-a",
            subject=ConnectionSubject(id="lb-a"),
            pairs=(Pair(ip("172.16.0.2"), ip("172.16.0.1")), Pair(ip("fd00::2"), ip("fd00::1"))),
            ifname="nsm-0",
        ),
    )
    subject = parse(GOOD)[0].subject
    assert isinstance(subject, ConnectionSubject)
    assert subject.lb_ips == (ip("172.16.0.1"), ip("fd00::1"))
    assert subject.peer_ips == (ip("172.16.0.2"), ip("fd00::2"))


def test_a_link_is_judged_pair_by_pair() -> None:
    connections = parse("connections:\n" + entry(remote="[10.0.0.1, 10.0.0.3]", more="subject: link"))
    assert [connection.subject for connection in connections] == [
        LinkSubject(lb_ip=ip("10.0.0.1"), proxy_ip=ip("10.0.0.2")),
        LinkSubject(lb_ip=ip("10.0.0.3"), proxy_ip=ip("10.0.0.2")),
    ]
    assert [connection.pairs for connection in connections] == [
        (Pair(ip("10.0.0.2"), ip("10.0.0.1")),),
        (Pair(ip("10.0.0.2"), ip("10.0.0.3")),),
    ]
    assert len({connection.id for connection in connections}) == 2


def test_targets_are_judged_by_their_own_address_at_either_end() -> None:
    both = 'local: [10.0.0.2, "fd00::2"], remote: [10.0.0.1, "fd00::1"]'
    (far_4, far_6) = parse(f"connections: [{{id: a, {both}, subject: target}}]")
    (own_4, own_6) = parse(f"connections: [{{id: a, {both}, subject: self}}]")
    assert (far_4.subject, far_6.subject) == (TargetSubject(ip=ip("10.0.0.1")), TargetSubject(ip=ip("fd00::1")))
    assert (own_4.subject, own_6.subject) == (TargetSubject(ip=ip("10.0.0.2")), TargetSubject(ip=ip("fd00::2")))
    assert own_6.pairs == (Pair(ip("fd00::2"), ip("fd00::1")),)


def test_no_connections_is_a_valid_list() -> None:
    assert parse("connections: []") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no 'connections:' list"),
        ("[]", "holds no 'connections:' list"),
        ("connections: 3", "connections must be a list"),
        ("connections: {}", "connections must be a list"),
        ("connections: [3]", "connection number 1:"),
        ("others: []", "connections is missing"),
        ("connections:\n" + entry() + entry(), "connection 'a' is listed 2 times"),
        ("connections:\n" + entry(local="[]"), "connection 'a': local must not be empty"),
        ("connections:\n" + entry(remote="[300.0.0.1]"), "connection 'a': remote[1] "),
        ("connections:\n" + entry(remote="[10.0.0.0/24]"), "connection 'a': remote[1] "),
        ("connections:\n" + entry(remote="[224.0.0.1]"), "cannot be pinged"),
        ("connections:\n" + entry(remote='["fd00::1"]'), "local and remote have no address family in common"),
        ("connections:\n" + entry(more="subject: proxy"), "subject must be connection, link, target or self"),
        ("connections:\n" + entry(more="colour: red"), "connection 'a': colour unknown key"),
        ("connections:\n" + entry(id='""'), "id must not be empty"),
        ("connections:\n" + entry(more="interface: much-too-long-a-name"), "interface is too long"),
        (
            "connections:\n" + entry(more="subject: target") + entry("b", more="subject: target"),
            "connection 'b': what it judges (subject target) is judged by another one too",
        ),
        ("connections: [", "is not valid YAML"),
        ("connections: " + "[" * 3000, "is nested deeper than 20 levels"),
        ("connections: &a [*a]", "line 1, column 14: anchors (&a) are refused"),
        ("connections: []\nconnections: []", "line 2, column 1: the key connections is given twice"),
        ("connections:\n" + entry(remote='["::ffff:10.0.0.1"]'), "is an IPv4-mapped address; write 10.0.0.1"),
        ("connections:\n" + entry(local='["fe80::1%eth0"]'), "has a zone"),
        ("connections:\n" + entry(local=f"[{'10.0.0.1, ' * 65}]"), "local has too many addresses"),
    ],
)
def test_what_is_refused_and_how_it_is_said(text: str, words: str) -> None:
    problems = problems_of(text)
    assert any(words in problem for problem in problems), problems


def test_every_problem_is_listed_and_the_text_stays_short() -> None:
    text = "connections:\n" + "".join(entry(f"c{n}", local="[]") for n in range(50))
    with pytest.raises(ConnectionsFileError) as caught:
        parse(text)
    assert len(caught.value.problems) == 50
    assert f"and {50 - SHOWN_PROBLEMS} more" in str(caught.value)


def test_the_pairs_of_addresses_are_bounded() -> None:
    many = ", ".join(f"10.0.0.{n}" for n in range(1, 65))
    text = "connections:\n" + "".join(entry(f"c{n}", f"[{many}]", f"[{many}]") for n in range(50))
    assert problems_of(text) == ("lists 204,800 pairs of addresses; at most 200,000 are possible",)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConnectionsFileError, match=r"absent\.yaml: cannot be read: No such file"):
        ConnectionsFile(tmp_path / "absent.yaml").read()


async def test_changes_are_told_and_a_failure_keeps_the_last_list(tmp_path: Path) -> None:
    path = tmp_path / "connections.yaml"
    told: list[ConnectionList | ConnectionsLost] = []
    source = ConnectionsFileSource(path, told.append, poll_interval_s=0.01, still_s=0.05)
    running = asyncio.create_task(source.run())
    try:
        await eventually(lambda: len(told) == 1)
        assert isinstance(told[0], ConnectionsLost)
        path.write_text(GOOD)
        await eventually(lambda: len(told) == 2)
        path.write_text("connections: nonsense")
        await eventually(lambda: len(told) == 3)
        (tmp_path / "new").write_text("connections: []")
        (tmp_path / "new").replace(path)
        await eventually(lambda: len(told) == 4)
        source.reload()
        await eventually(lambda: len(told) == 5)
    finally:
        running.cancel()
    assert told[1] == ConnectionList(connections=parse(GOOD))
    assert isinstance(told[2], ConnectionsLost)
    assert told[3] == told[4] == ConnectionList(connections=())
