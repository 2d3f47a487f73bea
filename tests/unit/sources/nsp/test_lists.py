from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.api.gen.meridio.nsp.v1 import nsp_pb2 as pb
from lbguard.core.addr import Prefix
from lbguard.core.model import TargetKey
from lbguard.sources.nsp.lists import Place, read_streams, read_targets, read_vips
from lbguard.sources.skipped import Reason, Skipped
from tests.fakes.nsp import GARBAGE_IPS, conduit, stream, target, vip

HERE = Place("trench-a", "load-balancer")
ELSEWHERE = conduit("other")


def ip(text: str) -> bytes:
    return ip_address(text).packed


def key(identifier: int, of: str = "stream-a") -> TargetKey:
    return TargetKey(of, identifier)


def reasons(skipped: Sequence[Skipped]) -> list[Reason]:
    return [entry.reason for entry in skipped]


def test_streams_keep_the_order_of_the_list_and_their_sizes() -> None:
    read = read_streams(pb.StreamResponse(streams=[stream("b", 7), stream("a"), stream("old", 0)]), HERE)
    assert list(read.value.items()) == [("b", 7), ("a", 100), ("old", 100)]
    assert read.skipped == ()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (stream("x", of=ELSEWHERE), Reason.FOREIGN_CONDUIT),
        (stream("x", of=conduit(trench="trench-b")), Reason.FOREIGN_CONDUIT),
        (pb.Stream(name="x"), Reason.FOREIGN_CONDUIT),
        (stream("../../etc/passwd"), Reason.BAD_STREAM_NAME),
        (stream(""), Reason.BAD_STREAM_NAME),
        (stream("x" * 100), Reason.BAD_STREAM_NAME),
        (stream("x", 2**31), Reason.BAD_MAX_TARGETS),
        (stream("good", 3), Reason.DUPLICATE_STREAM),
    ],
)
def test_a_stream_that_cannot_be_used_is_named_and_skipped(bad: pb.Stream, reason: Reason) -> None:
    read = read_streams(pb.StreamResponse(streams=[stream("good", 5), bad]), HERE)
    assert read.value == {"good": 5}
    assert reasons(read.skipped) == [reason]


def test_vips() -> None:
    vips = [vip("v4", "20.0.0.1/32"), vip("bad", "20.0.0.1/24"), vip("x", "no"), vip("v6", "2000::1/128"),
            vip("foreign", "20.0.0.9/32", "trench-b")]  # fmt: skip
    read = read_vips(pb.VipResponse(vips=vips), HERE)
    assert list(read.value) == [Prefix(ip("20.0.0.1"), 32), Prefix(ip("2000::1"), 128)]
    assert reasons(read.skipped) == [Reason.BAD_VIP, Reason.BAD_VIP, Reason.FOREIGN_CONDUIT]
    assert read.skipped[0].what == "VIP 'bad': '20.0.0.1/24': 20.0.0.1/24 has host bits set"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("::ffff:20.0.0.1/128", "it is an IPv4-mapped address; write 20.0.0.1"),
        ("127.0.0.1/32", "it is a loopback address"),
        ("2000::1%nsm0/128", "has a zone"),
        ("224.0.0.0/4", "it is a multicast address"),
    ],
)
def test_a_vip_that_no_client_can_reach_is_named_and_skipped(address: str, why: str) -> None:
    vip = pb.Vip(name="v", address=address, trench=pb.Trench(name=HERE.trench))
    read = read_vips(pb.VipResponse(vips=[vip]), HERE)
    assert read.value == {}
    assert reasons(read.skipped) == [Reason.BAD_VIP]
    assert why in read.skipped[0].what


def test_addresses_come_with_the_length_of_the_proxys_subnet_and_are_put_in_order() -> None:
    response = pb.TargetResponse(targets=[target(7, "fd00::a/64", "172.16.0.10/24"), target(8, "172.16.0.11")])
    assert read_targets(response, HERE).value.served == {
        key(7): (ip("172.16.0.10"), ip("fd00::a")),
        key(8): (ip("172.16.0.11"),),
    }


def test_only_enabled_targets_of_the_default_type_are_served() -> None:
    others = [target(2, "10.0.0.2/24", status=pb.Target.DISABLED), target(3, "10.0.0.3/24", kind=pb.Target.FRONTEND)]
    read = read_targets(pb.TargetResponse(targets=[target(1, "10.0.0.1/24"), *others]), HERE)
    assert read.value.served == {key(1): (ip("10.0.0.1"),)}
    assert read.skipped == ()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (target(None, "10.0.0.9/24"), Reason.NO_IDENTIFIER),
        (target("", "10.0.0.9/24"), Reason.BAD_IDENTIFIER),
        (target("one", "10.0.0.9/24"), Reason.BAD_IDENTIFIER),
        (target("１", "10.0.0.9/24"), Reason.BAD_IDENTIFIER),
        (target("9" * 5000, "10.0.0.9/24"), Reason.BAD_IDENTIFIER),
        (target(9), Reason.NO_ADDRESS),
        *((target(9, "10.0.0.9/24", text), Reason.BAD_ADDRESS) for text in GARBAGE_IPS),
        *(
            (target(9, text), Reason.BAD_ADDRESS)
            for text in ("10.0.0.1/33", "10.0.0.1/24/24", "fd00::1%eth0/64", "1\0")
        ),
        (target(9, "10.0.0.9/24", place=ELSEWHERE), Reason.FOREIGN_CONDUIT),
    ],
)
def test_a_target_that_cannot_be_used_is_named_and_skipped(bad: pb.Target, reason: Reason) -> None:
    read = read_targets(pb.TargetResponse(targets=[bad, target(1, "10.0.0.1/24")]), HERE)
    assert read.value.served == {key(1): (ip("10.0.0.1"),)}
    assert reasons(read.skipped) == [reason]
    assert len(read.skipped[0].what) < 300


def test_a_second_address_of_a_family_is_named_and_not_used() -> None:
    read = read_targets(pb.TargetResponse(targets=[target(1, "10.0.0.1/24", "10.0.0.2/24", "fd00::1/64")]), HERE)
    assert read.value.served == {key(1): (ip("10.0.0.1"), ip("fd00::1"))}
    assert reasons(read.skipped) == [Reason.SURPLUS_ADDRESS]


def test_of_two_with_one_identifier_the_last_counts_as_in_meridio() -> None:
    read = read_targets(pb.TargetResponse(targets=[target(1, "10.0.0.1/24"), target(1, "10.0.0.2/24")]), HERE)
    assert read.value.served == {key(1): (ip("10.0.0.2"),)}
    assert reasons(read.skipped) == [Reason.DUPLICATE_IDENTIFIER]


def test_one_identifier_in_two_streams_is_two_targets() -> None:
    response = pb.TargetResponse(targets=[target(1, "10.0.0.1/24"), target(1, "10.0.0.1/24", of="stream-b")])
    assert read_targets(response, HERE).value.served.keys() == {key(1), key(1, "stream-b")}


def test_what_could_be_read_of_an_unreadable_entry_is_kept() -> None:
    entries = read_targets(
        pb.TargetResponse(targets=[target(1, "garbage"), target(None, "fd00::2/64", "10.0.0.2/24")]), HERE
    ).value
    assert entries.unreadable_keys == {key(1)}
    assert entries.unreadable_ips == {("stream-a", (ip("10.0.0.2"), ip("fd00::2")))}


SPECIAL = (
    "127.9.9.9", "169.254.0.1", "239.255.255.255", "240.0.0.1", "0.0.0.0", "0.0.0.1", "255.255.255.255",
    "::", "::1", "::2", "ff02::1", "fe80::1", "febf::1", "fec0::1", "::ffff:10.0.0.1", "::fffe:10.0.0.1",
)  # fmt: skip


@given(st.ip_addresses() | st.sampled_from([ip_address(text) for text in SPECIAL]))
def test_which_addresses_can_be_a_targets(address: IPv4Address | IPv6Address) -> None:
    read = read_targets(pb.TargetResponse(targets=[target(1, f"{address}/8")]), HERE)
    refused = address.is_multicast or address.is_unspecified or address.is_loopback or address.is_link_local
    refused |= address == ip_address("255.255.255.255") or getattr(address, "ipv4_mapped", None) is not None
    assert read.value.served == ({} if refused else {key(1): (address.packed,)})


text = st.text(max_size=20) | st.sampled_from(["1", "10.0.0.1/24", "fd00::1/64", "stream-a"])
places = st.sampled_from([conduit(), ELSEWHERE, pb.Conduit()])
streams = st.builds(stream, text, st.integers(0, 2**32 - 1), places)
targets = st.builds(
    lambda identifier, ips, of, place: target(identifier, *ips, of=of, place=place),
    text | st.none(),
    st.lists(text, max_size=4),
    text,
    places,
)


@given(st.lists(streams, max_size=5), st.lists(targets, max_size=5), st.lists(st.builds(vip, text, text), max_size=5))
def test_no_list_breaks_the_reader(some: list[pb.Stream], more: list[pb.Target], vips: list[pb.Vip]) -> None:
    read_vips(pb.VipResponse(vips=vips), HERE)
    assert all(0 < room <= 1_000_000 for room in read_streams(pb.StreamResponse(streams=some), HERE).value.values())
    served = read_targets(pb.TargetResponse(targets=more), HERE).value.served
    assert all([len(ip) for ip in ips] in ([4], [16], [4, 16]) for ips in served.values())
