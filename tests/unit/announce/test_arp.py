"""Frames compared with bytes written out from the layouts of RFC 826 and RFC 5227."""

import pytest

from lbguard.announce.arp import gratuitous_reply, gratuitous_request, request

MAC = bytes.fromhex("02a1b2c3d4e5")
IP = bytes([172, 16, 0, 254])


HEAD = (
    "ffffffffffff"  # Ethernet destination: broadcast
    "02a1b2c3d4e5"  # Ethernet source
    "0806"  # type ARP
    "0001"  # hardware type Ethernet
    "0800"  # protocol type IPv4
    "06"  # hardware address length
    "04"  # protocol address length
)
REQUEST, REPLY = "0001", "0002"
OURS = "02a1b2c3d4e5" + "ac1000fe"
"""A hardware address and the protocol address 172.16.0.254: of the sender first, then of the target."""


def test_request_form_is_the_announcement_of_rfc_5227() -> None:
    assert gratuitous_request(MAC, IP).hex() == HEAD + REQUEST + OURS + "000000000000" + "ac1000fe"


def test_reply_form_names_itself_as_the_target() -> None:
    assert gratuitous_reply(MAC, IP).hex() == HEAD + REPLY + OURS + OURS


def test_a_question_asks_for_another_in_our_own_name() -> None:
    asked = "000000000000" + "ac10000a"  # 172.16.0.10
    assert request(MAC, IP, bytes((172, 16, 0, 10))).hex() == HEAD + REQUEST + OURS + asked


@pytest.mark.parametrize("build", [gratuitous_request, gratuitous_reply])
def test_wrong_lengths_are_refused(build: object) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match="Ethernet address"):
        build(b"", IP)
    with pytest.raises(ValueError, match="IPv4"):
        build(MAC, bytes(16))
