"""Frames compared with bytes written out from the layouts of RFC 826 and RFC 5227."""

import pytest

from lbguard.announce.arp import gratuitous_reply, gratuitous_request, request

MAC = bytes.fromhex("02a1b2c3d4e5")
IP = bytes([172, 16, 0, 254])


def test_request_form_is_the_announcement_of_rfc_5227() -> None:
    expected = bytes.fromhex(
        "ffffffffffff"  # Ethernet destination: broadcast
        "02a1b2c3d4e5"  # Ethernet source
        "0806"  # type ARP
        "0001"  # hardware type Ethernet
        "0800"  # protocol type IPv4
        "06"  # hardware address length
        "04"  # protocol address length
        "0001"  # operation request
        "02a1b2c3d4e5"  # sender hardware address
        "ac1000fe"  # sender protocol address 172.16.0.254
        "000000000000"  # target hardware address: zero
        "ac1000fe"  # target protocol address: the same
    )
    assert gratuitous_request(MAC, IP) == expected


def test_reply_form_names_itself_as_the_target() -> None:
    expected = bytes.fromhex(
        "ffffffffffff"
        "02a1b2c3d4e5"
        "0806"
        "0001"
        "0800"
        "06"
        "04"
        "0002"  # operation reply
        "02a1b2c3d4e5"
        "ac1000fe"
        "02a1b2c3d4e5"  # target hardware address: the sender's
        "ac1000fe"
    )
    assert gratuitous_reply(MAC, IP) == expected


def test_a_question_asks_for_another_in_our_own_name() -> None:
    expected = bytes.fromhex(
        "ffffffffffff"
        "02a1b2c3d4e5"
        "0806"
        "0001"
        "0800"
        "06"
        "04"
        "0001"  # operation request
        "02a1b2c3d4e5"
        "ac1000fe"  # sender protocol address: ours
        "000000000000"
        "ac10000a"  # target protocol address: 172.16.0.10
    )
    assert request(MAC, IP, bytes((172, 16, 0, 10))) == expected


@pytest.mark.parametrize("build", [gratuitous_request, gratuitous_reply])
def test_wrong_lengths_are_refused(build: object) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match="Ethernet address"):
        build(b"", IP)
    with pytest.raises(ValueError, match="IPv4"):
        build(MAC, bytes(16))
