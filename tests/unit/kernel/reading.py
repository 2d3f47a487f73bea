"""What `decode` reads of frames, and the addresses that stand in them."""

from lbguard.kernel.codec.decode import Decoded, decode

MAC = bytes.fromhex("0200000000aa")
V4 = bytes([172, 16, 0, 10])
V6 = bytes.fromhex("fd000000000000000000000000000010")
UP, LOWER_UP = 0x1, 0x10000


def of_streams(table: int) -> bool:
    return 5000 < table <= 5100


def read(data: bytes) -> Decoded:
    return decode(data, len(data), of_streams)


def events(data: bytes) -> list[object]:
    decoded = read(data)
    assert not decoded.ignored
    return [change.event for change in decoded.changes]


def reasons(data: bytes) -> list[str]:
    decoded = read(data)
    assert not decoded.changes
    return [reason.value for reason in decoded.ignored]
