"""Frames compared with bytes written out from the layouts of RFC 8200, RFC 4443 and RFC 4861."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.announce.ndp import icmpv6_checksum, solicitation, unsolicited_advertisement

MAC = bytes.fromhex("02a1b2c3d4e5")
IP = bytes.fromhex("fd000000000000000000000000000010")

# The checksum fields below were added up by hand: pseudo-header (fd00 + 0010, ff02 + 0001, length 0020, next header
# 003a), message (8800, flags, fd00 + 0010), option (0201, 02a1 + b2c3 + d4e5).
#   fd10 + ff03 + 005a = 1fc6d; + 8800 + fd10 = 3817d; + 0201 = 3837e; + 02a1 + b2c3 + d4e5 = 50dc7
#   with the override flag alone, + 2000 = 52dc7; folded 2dcc; complement d233
#   with the router flag too, + a000 = 5adc7; folded adcc; complement 5233
BEFORE_CHECKSUM = bytes.fromhex(
    "333300000001"  # Ethernet destination: all nodes
    "02a1b2c3d4e5"  # Ethernet source
    "86dd"  # type IPv6
    "60000000"  # version 6, traffic class 0, flow label 0
    "0020"  # payload length 32
    "3a"  # next header ICMPv6
    "ff"  # hop limit 255
    "fd000000000000000000000000000010"  # source: the address itself
    "ff020000000000000000000000000001"  # destination: all nodes
    "88"  # type 136, neighbour advertisement
    "00"  # code 0
)
AFTER_FLAGS = bytes.fromhex(
    "fd000000000000000000000000000010"  # target address
    "02"  # option: target link-layer address
    "01"  # its length in units of 8 bytes
    "02a1b2c3d4e5"
)


def test_host_form_sets_override_only() -> None:
    expected = BEFORE_CHECKSUM + bytes.fromhex("d23320000000") + AFTER_FLAGS
    assert unsolicited_advertisement(MAC, IP, router=False) == expected


def test_router_form_sets_override_and_router() -> None:
    expected = BEFORE_CHECKSUM + bytes.fromhex("5233a0000000") + AFTER_FLAGS
    assert unsolicited_advertisement(MAC, IP, router=True) == expected


# By hand: source (fd00 + 0010), group (ff02 + 0001 + ffab + cdef), 0020, 003a; message (8700, target fd00 + 12ab +
# cdef), option (0101, 02a1 + b2c3 + d4e5).
#   fd10 + 2cc9d + 005a = 3ca07; + 8700 = 45107; + 1dd9a = 62ea1; + 0101 = 62fa2; + 18a49 = 7b9eb; folded b9f2
#   complement 460d
def test_a_solicitation_asks_the_solicited_node_group_in_our_own_name() -> None:
    expected = bytes.fromhex(
        "3333ffabcdef"  # Ethernet destination: 33:33 and the last four bytes of the group
        "02a1b2c3d4e5"
        "86dd"
        "60000000"
        "0020"
        "3a"
        "ff"
        "fd000000000000000000000000000010"  # source: our address
        "ff0200000000000000000001ffabcdef"  # destination: solicited-node multicast address of the target
        "87"  # type 135, neighbour solicitation
        "00"
        "460d"
        "00000000"  # reserved
        "fd000000000000000000000012abcdef"  # target address
        "01"  # option: source link-layer address
        "01"
        "02a1b2c3d4e5"
    )
    target = bytes.fromhex("fd000000000000000000000012abcdef")
    assert solicitation(MAC, IP, target) == expected


def ones_complement_sum(data: bytes) -> int:
    """Add 16-bit words with end-around carry after each, as RFC 1071 defines it."""
    total = 0
    for index in range(0, len(data), 2):
        total += data[index] * 256 + (data[index + 1] if index + 1 < len(data) else 0)
        if total > 0xFFFF:
            total = (total + 1) % 0x10000
    return total


def pseudo_header(source: bytes, destination: bytes, length: int) -> bytes:
    return source + destination + length.to_bytes(4, "big") + bytes([0, 0, 0, 58])


@given(mac=st.binary(min_size=6, max_size=6), ip=st.binary(min_size=16, max_size=16), router=st.booleans())
def test_receivers_find_the_checksum_valid(mac: bytes, ip: bytes, router: bool) -> None:
    frame = unsolicited_advertisement(mac, ip, router=router)
    source, destination, message = frame[22:38], frame[38:54], frame[54:]
    assert ones_complement_sum(pseudo_header(source, destination, len(message)) + message) == 0xFFFF


@given(
    source=st.binary(min_size=16, max_size=16),
    destination=st.binary(min_size=16, max_size=16),
    body=st.binary(max_size=120),
)
def test_checksum_is_valid_for_any_message(source: bytes, destination: bytes, body: bytes) -> None:
    checksum = icmpv6_checksum(source, destination, bytes([136, 0, 0, 0]) + body)
    message = bytes([136, 0]) + checksum.to_bytes(2, "big") + body
    assert ones_complement_sum(pseudo_header(source, destination, len(message)) + message) == 0xFFFF


def test_wrong_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="Ethernet address"):
        unsolicited_advertisement(bytes(20), IP, router=False)
    with pytest.raises(ValueError, match="IPv6"):
        unsolicited_advertisement(MAC, bytes(4), router=False)
