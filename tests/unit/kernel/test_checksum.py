"""The Internet checksum."""

from lbguard.kernel.codec.checksum import checksum


def test_the_example_in_rfc_1071() -> None:
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == ~0xDDF2 & 0xFFFF


def test_an_odd_byte_is_padded_with_zero() -> None:
    assert checksum(b"\x01\x02\x03") == checksum(b"\x01\x02\x03\x00")
