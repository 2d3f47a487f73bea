import errno

import pytest

from lbguard.distributor.nftables.nfnetlink import (
    GET_SET,
    NEW_ELEMENTS,
    Nfnetlink,
    NftError,
    Request,
    netfilter_message,
)
from lbguard.kernel.codec.framing import attributes
from tests.fakes.nf_tables import FakeNfTables, Fault

REQUESTS = [Request(netfilter_message(NEW_ELEMENTS, bytes(size)), f"add {size}") for size in (8, 3, 0)]


@pytest.fixture
def fake() -> FakeNfTables:
    return FakeNfTables()


@pytest.fixture
def kernel(fake: FakeNfTables) -> Nfnetlink:
    return Nfnetlink(fake)


def test_a_transaction_is_one_batch_in_order(fake: FakeNfTables, kernel: Nfnetlink) -> None:
    kernel.transact(REQUESTS)
    kernel.transact([])
    (sent,) = fake.transactions
    assert [len(each) for each in sent] == [28, 23, 20]
    assert kernel.generation() == 8


def test_the_limit_leaves_room_for_the_frame_of_the_batch(fake: FakeNfTables, kernel: Nfnetlink) -> None:
    assert kernel.transaction_bytes_max == 65536 - 32 - 2 * 20


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault.NO_MEMORY, errno.ENOMEM, "add 8: Cannot allocate memory (out of \ufffd memory)"),
        (Fault.COMMIT_REFUSED, errno.ENOMEM, "add 8, ...: Cannot allocate memory"),
        (Fault.SILENT, errno.ETIMEDOUT, "no answer in 5 s"),
        (Fault.OVERRUN, errno.ENOBUFS, "answer is lost: No buffer space"),
        (Fault.TOO_LONG, errno.EMSGSIZE, "Message too long: raise net.core.wmem_max"),
    ],
)
def test_what_goes_wrong_is_named(fake: FakeNfTables, kernel: Nfnetlink, fault: Fault, code: int, words: str) -> None:
    fake.faults.add(fault)
    with pytest.raises(NftError) as raised:
        kernel.transact(REQUESTS)
    assert raised.value.code == code
    assert words in str(raised.value)
    assert not fake.transactions
    kernel.transact(REQUESTS)
    assert len(fake.transactions) == 1


@pytest.mark.parametrize("fault", [Fault.STRANGER, Fault.STALE])
def test_only_the_kernels_answer_to_this_request_counts(fake: FakeNfTables, kernel: Nfnetlink, fault: Fault) -> None:
    kernel.generation()
    fake.objects = [b"\x05\x00\x01\x00x\x00\x00\x00"]
    for work in (lambda: kernel.transact(REQUESTS), kernel.generation, lambda: kernel.dump(GET_SET)):
        fake.faults.add(fault)
        work()
        assert not fake.faults
    assert len(fake.transactions) == 1


def test_an_interrupted_dump_is_begun_again(fake: FakeNfTables, kernel: Nfnetlink) -> None:
    fake.objects = [b"abcd", b"efgh"]
    fake.faults.add(Fault.INTERRUPTED)
    assert [bytes(body) for body in kernel.dump(GET_SET) or ()] == [b"abcd", b"efgh"]
    assert not fake.faults


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.OVERRUN, Fault.TOO_LONG])
def test_a_failed_reading_is_an_error(fake: FakeNfTables, kernel: Nfnetlink, fault: Fault) -> None:
    for work in (kernel.generation, lambda: kernel.dump(GET_SET)):
        fake.faults.add(fault)
        with pytest.raises(NftError):
            work()
        work()


def test_attributes_that_do_not_fit_end_the_list() -> None:
    good = b"\x05\x00\x01\x80x\x00\x00\x00"
    for broken in (b"", b"\x03\x00\x02\x00", b"\xff\x00\x02\x00", b"\x00"):
        assert [(kind, bytes(data)) for kind, data in attributes(memoryview(good + broken))] == [(1, b"x")]


def test_closing_closes_the_socket(fake: FakeNfTables, kernel: Nfnetlink) -> None:
    kernel.close()
    assert fake.closed
