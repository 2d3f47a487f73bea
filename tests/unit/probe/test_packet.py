import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.probe import packet

NONCE = b"\x12\x34\x56\x78"


def ones_complement_sum(data: bytes) -> int:
    """Add 16-bit words the slow way, as RFC 1071 describes it."""
    total = 0
    for high, low in zip(data[::2], data[1::2], strict=True):
        total += high << 8 | low
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(token=st.integers(0, packet.TOKEN_MAX), sequence=st.integers(0, 0xFFFF), identifier=st.integers(0, 0xFFFF))
def test_one_head_fits_every_tail(token: int, sequence: int, identifier: int) -> None:
    template = packet.HeadTemplate(ipv4=True, identifier=identifier, nonce=NONCE)
    echo = template.head(sequence) + packet.encode_tail(token)
    assert ones_complement_sum(echo) == 0xFFFF  # a receiver's check (RFC 1071)
    assert packet.decode(echo) == packet.Echo(packet.ICMP_ECHO_REQUEST, identifier, sequence, NONCE, token)


def test_icmpv6_leaves_the_checksum_to_the_kernel() -> None:
    head = packet.HeadTemplate(ipv4=False, identifier=7, nonce=NONCE).head(0x0102)
    assert head == bytes.fromhex("8000000000070102") + NONCE


def test_a_nonce_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="4 bytes"):
        packet.HeadTemplate(ipv4=True, identifier=1, nonce=b"abc")


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[:-1] + b"\x55"]
)
def test_what_is_not_ours_is_told(change: object) -> None:
    echo = packet.HeadTemplate(ipv4=True, identifier=1, nonce=NONCE).head(1) + packet.encode_tail(9)
    assert packet.decode(echo) is not None
    assert packet.decode(change(echo)) is None  # type: ignore[operator]


def test_a_code_other_than_zero_is_no_echo() -> None:
    echo = packet.HeadTemplate(ipv4=True, identifier=1, nonce=NONCE).head(1) + packet.encode_tail(9)
    assert packet.decode(echo[:1] + b"\x01" + echo[2:]) is None


def run_filter(program: bytes, data: bytes) -> int:
    """Interpret a classic BPF program as the kernel does, for the instructions in use."""
    instructions: list[tuple[int, int, int, int]] = list(struct.iter_unpack("=HBBI", program))
    accumulator = index = at = 0
    while True:
        code, if_true, if_false, k = instructions[at]
        at += 1
        match code:
            case 0xB1:
                index = 4 * (data[k] & 0xF)
            case 0x30:
                accumulator = data[k]
            case 0x50:
                accumulator = data[index + k]
            case 0x28:
                accumulator = int.from_bytes(data[k : k + 2])
            case 0x48:
                accumulator = int.from_bytes(data[index + k : index + k + 2])
            case 0x15:
                at += if_true if accumulator == k else if_false
            case 0x06:
                return k
            case _:
                raise AssertionError(f"instruction {code:#x} is not known")


@pytest.mark.parametrize("options_words", [0, 3])
@pytest.mark.parametrize(
    ("kind", "identifier", "passes"), [(0, 77, True), (0, 78, False), (8, 77, False), (3, 77, False)]
)
def test_filter_of_a_raw_ipv4_socket(options_words: int, kind: int, identifier: int, passes: bool) -> None:
    ip_header = bytes([0x45 + options_words]) + bytes(19 + 4 * options_words)
    data = ip_header + struct.pack("!BBHHH", kind, 0, 0, identifier, 1)
    assert bool(run_filter(packet.reply_filter(ipv4=True, identifier=77), data)) is passes


@pytest.mark.parametrize(("kind", "identifier", "passes"), [(129, 77, True), (129, 78, False), (128, 77, False)])
def test_filter_of_a_raw_ipv6_socket(kind: int, identifier: int, passes: bool) -> None:
    data = struct.pack("!BBHHH", kind, 0, 0, identifier, 1)
    assert bool(run_filter(packet.reply_filter(ipv4=False, identifier=77), data)) is passes


def test_echo_types_are_those_of_the_protocols() -> None:
    assert (packet.ICMP_ECHO_REQUEST, packet.ICMP_ECHO_REPLY) == (8, 0)  # RFC 792
    assert (packet.ICMP6_ECHO_REQUEST, packet.ICMP6_ECHO_REPLY) == (128, 129)  # RFC 4443
    assert socket.IPPROTO_ICMPV6 == 58
