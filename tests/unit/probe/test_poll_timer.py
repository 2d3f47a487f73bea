import asyncio
import itertools
import os
import time
from collections.abc import Iterator

import pytest

from lbguard.probe.schedule import PollTimer


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)
    os.close(writer)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_steps_when_something_is_due() -> None:
    steps: list[float] = []
    reached = asyncio.Event()
    due = time.monotonic()

    def step() -> None:
        steps.append(time.monotonic())
        if len(steps) == 5:
            reached.set()

    pulse = PollTimer(step, lambda: due + 0.02 * len(steps), time.monotonic, 0.001)
    task = asyncio.create_task(pulse.run([]))
    await asyncio.wait_for(reached.wait(), 10)
    await stop(task)
    assert all(at >= due + 0.02 * number - 0.001 for number, at in enumerate(steps) if number)


async def test_what_is_readable_is_read_but_not_more_often_than_a_tick(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    read: list[bytes] = []
    stepped: list[float] = []
    done = asyncio.Event()

    def step() -> None:
        stepped.append(time.monotonic())
        try:
            read.append(os.read(reader, 100))
        except BlockingIOError:
            return
        if b"".join(read).endswith(b"."):
            done.set()

    pulse = PollTimer(step, lambda: None, time.monotonic, 0.05)
    task = asyncio.create_task(pulse.run([reader]))
    for _ in range(100):
        os.write(writer, b"x")
        await asyncio.sleep(0.001)
    os.write(writer, b".")
    await asyncio.wait_for(done.wait(), 10)
    await stop(task)
    assert b"".join(read) == b"x" * 100 + b"."
    assert all(later - earlier > 0.04 for earlier, later in itertools.pairwise(stepped))


async def test_nothing_is_left_in_the_loop_once_it_ended(pipe: tuple[int, int]) -> None:
    reader, _ = pipe
    pulse = PollTimer(lambda: None, lambda: None, time.monotonic, 0.001)
    await stop(asyncio.create_task(pulse.run([reader])))
    task = asyncio.create_task(pulse.run([reader]))
    await asyncio.sleep(0)
    await stop(task)
    assert not asyncio.get_running_loop().remove_reader(reader)


async def test_an_error_ends_it() -> None:
    def step() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        await asyncio.wait_for(PollTimer(step, lambda: None, time.monotonic, 0.001).run([]), 10)


async def test_a_change_of_what_is_due_is_taken_up() -> None:
    due: list[float] = []
    stepped = asyncio.Event()
    pulse = PollTimer(stepped.set, lambda: due[0] if due else None, time.monotonic, 0.001)
    pulse.arm()  # before it runs: nothing to arm
    task = asyncio.create_task(pulse.run([]))
    await asyncio.wait_for(stepped.wait(), 10)
    stepped.clear()
    due.append(time.monotonic())
    pulse.arm()
    await asyncio.wait_for(stepped.wait(), 10)
    await stop(task)
