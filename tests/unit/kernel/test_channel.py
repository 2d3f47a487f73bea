import asyncio
import errno

from lbguard.kernel.channel import NetlinkChannel
from lbguard.kernel.codec.encode import delete_neighbor
from tests.unit.kernel import frames
from tests.unit.kernel.fake_kernel import FakeKernel, eventually

MESSAGES = [delete_neighbor(3, bytes([10, 0, 0, number])) for number in range(10)]


async def test_one_acknowledgement_per_chunk_and_results_by_sequence() -> None:
    kernel = FakeKernel()
    kernel.refusals = {1: (errno.ENOENT, ""), 5: (errno.EINVAL, "No link layer address given")}
    channel = NetlinkChannel(kernel, chunk_messages=4)
    acks = await channel.submit(MESSAGES)
    assert [len(batch) for batch in kernel.batches] == [4, 4, 2]
    assert [[bool(flags & 0x4) for _, flags, _ in batch] for batch in kernel.batches] == [
        [False, False, False, True],
        [False, False, False, True],
        [False, True],
    ]
    assert [ack.error for ack in acks] == [0, errno.ENOENT, 0, 0, 0, errno.EINVAL, 0, 0, 0, 0]
    assert acks[1].reason == "ENOENT: No such file or directory"
    assert acks[5].reason == "EINVAL: No link layer address given"
    assert acks[0].reason == ""
    kernel.close()


async def test_nothing_to_do() -> None:
    kernel = FakeKernel()
    assert await NetlinkChannel(kernel).submit([]) == []
    assert kernel.batches == []
    kernel.close()


async def test_lost_answers_are_no_success() -> None:
    kernel = FakeKernel()
    channel = NetlinkChannel(kernel, chunk_messages=4)
    kernel.overrun()
    acks = await channel.submit(MESSAGES)
    assert [ack.error for ack in acks] == [errno.ENOBUFS] * 4 + [0] * 6
    kernel.close()


async def test_no_answer_in_time_and_late_answers_are_not_mixed_up() -> None:
    kernel = FakeKernel()
    channel = NetlinkChannel(kernel, answer_timeout_s=0.02)
    kernel.fault("swallow_answers")
    assert [ack.error for ack in await channel.submit(MESSAGES[:2])] == [errno.ETIMEDOUT] * 2
    kernel.deliver(frames.error(2, errno.EPERM))
    assert [ack.error for ack in await channel.submit(MESSAGES[:2])] == [0, 0]
    kernel.close()


async def test_answers_that_come_late_are_waited_for() -> None:
    kernel = FakeKernel()
    channel = NetlinkChannel(kernel)
    kernel.fault("swallow_answers")
    pending = asyncio.create_task(channel.submit(MESSAGES[:2]))
    await eventually(lambda: bool(kernel.batches))
    kernel.deliver(frames.error(1, errno.ENOENT))
    kernel.deliver(frames.error(2, 0))
    assert [ack.error for ack in await pending] == [errno.ENOENT, 0]
    kernel.close()


async def test_foreign_answers_are_not_believed() -> None:
    kernel = FakeKernel()
    kernel.deliver(frames.error(1, errno.EPERM), port=4711)
    assert [ack.error for ack in await NetlinkChannel(kernel).submit(MESSAGES[:1])] == [0]
    kernel.close()


async def test_callers_share_the_channel() -> None:
    kernel = FakeKernel()
    kernel.refusals = {0: (errno.ENOENT, "")}
    channel = NetlinkChannel(kernel, chunk_messages=3)
    results = await asyncio.gather(*(channel.submit(MESSAGES) for _ in range(5)))
    assert [len(acks) for acks in results] == [10] * 5
    assert sum(ack.error == errno.ENOENT for acks in results for ack in acks) == 1
    kernel.close()
