"""Channel for batches of netlink requests: one result per message."""

import asyncio
import errno
import itertools
import os
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.decode import decode
from lbguard.kernel.codec.framing import Sequences, add_flags, number_messages
from lbguard.kernel.netlink import KERNEL_PORT, KernelSocket, NetlinkSocket

_BUFFER_BYTES: Final = 65536


def describe_error(error: OSError) -> str:
    """Return an error of the kernel by name, with the kernel's text."""
    return _describe(error.errno or errno.EIO, error.strerror or "")


def _describe(code: int, text: str) -> str:
    return f"{errno.errorcode.get(code, str(code))}: {text or os.strerror(code)}"


class Ack(NamedTuple):
    """The kernel's answer to one message: an errno (0: done) and its text."""

    error: int = 0
    text: str = ""

    @property
    def reason(self) -> str:
        """The error by name with the kernel's text; empty on success."""
        if not self.error:
            return ""
        return _describe(self.error, self.text)


class NetlinkChannel:
    """Sends requests in batches and assigns the answers to them. All adapters of the data path share one.

    The kernel processes the messages of a datagram in order before `send` returns, and continues after an error. Only
    the last message of a chunk asks for an acknowledgement; errors of the others are sent without a request. Chunks of
    different callers may interleave; the messages of one chunk never do.
    """

    def __init__(
        self,
        kernel: KernelSocket | None = None,
        *,
        chunk_messages: int = 64,
        answer_timeout_s: float = 2.0,
        receive_buffer_bytes: int = 2 << 20,
    ) -> None:
        self._kernel = kernel or NetlinkSocket(receive_buffer_bytes=receive_buffer_bytes)
        self._chunk_messages = chunk_messages
        self._answer_timeout_s = answer_timeout_s
        self._buffer = bytearray(_BUFFER_BYTES)
        self._sequences = Sequences()
        self._lock = asyncio.Lock()

    async def submit(self, messages: Sequence[bytes], *, turn_s: float = 0.0) -> list[Ack]:
        """Carry out messages in order and return one result for each.

        Nothing raises for an error of the kernel: a message without an answer has the errno of the failed send,
        ENOBUFS (answers dropped) or ETIMEDOUT. The loop gets a turn after every chunk; with `turn_s`, for urgent
        requests, after the first chunk that ends `turn_s` or more after the last turn.
        """
        results: list[Ack] = []
        turn_at = time.monotonic() + turn_s
        for start in range(0, len(messages), self._chunk_messages):
            if start and time.monotonic() >= turn_at:
                await asyncio.sleep(0)
                turn_at = time.monotonic() + turn_s
            async with self._lock:
                results += await self._exchange(messages[start : start + self._chunk_messages])
        return results

    def close(self) -> None:
        """Close the socket."""
        self._kernel.close()

    async def _exchange(self, messages: Sequence[bytes]) -> list[Ack]:
        count = len(messages)
        first = self._sequences.next(count)
        datagram = bytearray(b"".join(messages))
        starts = [0, *itertools.accumulate(len(message) for message in messages)]
        assert starts.pop() % 4 == 0, "every message is padded to a multiple of four"
        number_messages(datagram, starts, first)
        add_flags(datagram, starts[-1], c.NLM_F_ACK)
        try:
            self._kernel.send(datagram)
        except OSError as error:
            return [Ack(error.errno or errno.EIO, "the request could not be sent")] * count
        return await self._collect(first, count)

    async def _collect(self, first: int, count: int) -> list[Ack]:
        """Read answers up to that of the last message; a message without an answer succeeded."""
        answers: dict[int, Ack] = {}
        last = first + count - 1
        while last not in answers:
            try:
                length, port = self._kernel.receive_into(self._buffer)
            except BlockingIOError:
                if await self._readable():
                    continue
                return self._without_answer(answers, first, count, errno.ETIMEDOUT, "the kernel did not answer")
            except OSError as error:
                code = error.errno or errno.EIO
                return self._without_answer(answers, first, count, code, "the kernel's answers were lost")
            if port != KERNEL_PORT:
                continue
            decoded = decode(self._buffer, min(length, _BUFFER_BYTES), _every_table)
            for control in decoded.controls:
                if first <= control.sequence <= last and not control.done:
                    answers[control.sequence] = Ack(control.error, control.text)
        if len(answers) == 1 and not answers[last].error:
            return [_DONE] * count
        return [answers.get(sequence, _DONE) for sequence in range(first, last + 1)]

    @staticmethod
    def _without_answer(answers: dict[int, Ack], first: int, count: int, code: int, text: str) -> list[Ack]:
        unknown = Ack(code, text)
        return [answers.get(sequence, unknown) for sequence in range(first, first + count)]

    async def _readable(self) -> bool:
        """Wait until an answer can be read; False when none arrived in time."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._kernel.fileno(), ready.set)
        try:
            await asyncio.wait_for(ready.wait(), self._answer_timeout_s)
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._kernel.fileno())
        return True


_DONE: Final = Ack()


def _every_table(_: int) -> bool:
    return True
