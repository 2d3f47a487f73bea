"""Netlink sockets and the request channel: batches out, one result per message back."""

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple, Protocol

from lbguard.core.events import KernelChange
from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.decode import decode
from lbguard.kernel.filter import attach

KERNEL_PORT: Final = 0
"""The port id of the kernel. Any process may send to a netlink socket; only the kernel is believed."""

_FLAGS: Final = Struct("=H")
_SEQUENCE: Final = Struct("=I")
_BUFFER_BYTES: Final = 65536


class KernelSocket(Protocol):
    """Interface of a netlink socket; tests put a working model of the kernel behind it."""

    def fileno(self) -> int:
        """Return the descriptor that polls readable when a datagram waits."""

    def send(self, data: bytes | bytearray) -> None:
        """Send requests to the kernel, which carries them out before this returns.

        Raises:
            OSError: the kernel refuses the datagram as a whole.
        """

    def receive_into(self, buffer: bytearray) -> tuple[int, int]:
        """Receive one datagram: its full length (more than the buffer: it was cut) and the sender's port id.

        Raises:
            BlockingIOError: none waits.
            OSError: ENOBUFS when the kernel had to drop messages.
        """

    def close(self) -> None:
        """Close the socket."""


class NetlinkSocket:
    """A non-blocking NETLINK_ROUTE socket in the network namespace of the calling thread.

    It listens to `groups` (RTNLGRP_*), as far as the BPF `program`, if there is one, lets their messages pass.
    """

    def __init__(self, *, receive_buffer_bytes: int, groups: Sequence[int] = (), program: bytes = b"") -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._socket.setblocking(False)
            # The plain option is clipped by net.core.rmem_max; the forced one needs CAP_NET_ADMIN.
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, c.SO_RCVBUFFORCE, receive_buffer_bytes)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            for option in (c.NETLINK_CAP_ACK, c.NETLINK_EXT_ACK, c.NETLINK_GET_STRICT_CHK):
                # Older kernels lack one or the other: then errors carry no text and dumps are not checked.
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(c.SOL_NETLINK, option, 1)
            if program:
                # Without it more messages come than are needed, and nothing else changes.
                with contextlib.suppress(OSError):
                    attach(self._socket, program)
            self._socket.bind((0, sum(1 << (group - 1) for group in groups)))
        except BaseException:
            self._socket.close()
            raise

    @property
    def port(self) -> int:
        """The port id that the kernel gave to this socket."""
        return int(self._socket.getsockname()[0])

    @property
    def receive_buffer_bytes(self) -> int:
        """The receive buffer that the kernel granted (it doubles what is asked, for its own overhead)."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def fileno(self) -> int:
        """See KernelSocket."""
        return self._socket.fileno()

    def send(self, data: bytes | bytearray) -> None:
        """See KernelSocket."""
        self._socket.sendto(data, (KERNEL_PORT, 0))

    def receive_into(self, buffer: bytearray) -> tuple[int, int]:
        """See KernelSocket."""
        length, (port, _groups) = self._socket.recvfrom_into(buffer, 0, socket.MSG_TRUNC)
        return length, port

    def close(self) -> None:
        """See KernelSocket."""
        self._socket.close()


class Ack(NamedTuple):
    """The kernel's answer to one message: an errno (0: done), its text, and what a query returned."""

    error: int = 0
    text: str = ""
    found: KernelChange | None = None

    @property
    def reason(self) -> str:
        """The error by name with the kernel's own words; empty on success."""
        if not self.error:
            return ""
        return f"{errno.errorcode.get(self.error, str(self.error))}: {self.text or os.strerror(self.error)}"


class NetlinkChannel:
    """Sends requests in batches and maps the answers back. All adapters of the data path share one.

    The kernel works through a datagram of many messages before `send` returns, one after another, and goes on after an
    error. Only the last message of a chunk asks for an acknowledgement; errors of the others come unasked. Chunks of
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
        self._sequence = 0
        self._lock = asyncio.Lock()

    async def submit(self, messages: Sequence[bytes], *, turn_s: float = 0.0) -> list[Ack]:
        """Carry out messages in order and return one result for each.

        Nothing raises for an error of the kernel: a message without an answer has the errno of the failed send,
        ENOBUFS (answers dropped) or ETIMEDOUT. The loop gets a turn after every chunk, or, for what everything else
        has to wait for, after the first chunk that ends `turn_s` or more after the last turn.
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
        first = self._next_sequences(count)
        datagram = bytearray(b"".join(messages))
        start = 0
        for sequence, message in enumerate(messages, first):
            _SEQUENCE.pack_into(datagram, start + 8, sequence)
            start += len(message)
        assert start % 4 == 0, "every message is padded to a multiple of four"
        last = start - len(messages[-1])
        (flags,) = _FLAGS.unpack_from(datagram, last + 6)
        _FLAGS.pack_into(datagram, last + 6, flags | c.NLM_F_ACK)
        try:
            self._kernel.send(datagram)
        except OSError as error:
            return [Ack(error.errno or errno.EIO, "the request could not be sent")] * count
        return await self._collect(first, count)

    def _next_sequences(self, count: int) -> int:
        if self._sequence + count > 0xFFFFFFFF:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += count
        return first

    async def _collect(self, first: int, count: int) -> list[Ack]:
        """Read answers until that of the last message; what has none by then went well."""
        answers: dict[int, Ack] = {}
        found: dict[int, KernelChange] = {}
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
            for change in decoded.changes:
                found[change.sequence] = change.event
            for control in decoded.controls:
                if first <= control.sequence <= last and not control.done:
                    answers[control.sequence] = Ack(control.error, control.text)
        if len(answers) == 1 and not found and not answers[last].error:
            return [_DONE] * count
        acks = [answers.get(sequence, _DONE) for sequence in range(first, last + 1)]
        return [ack._replace(found=found[first + n]) if first + n in found else ack for n, ack in enumerate(acks)]

    @staticmethod
    def _without_answer(answers: dict[int, Ack], first: int, count: int, code: int, text: str) -> list[Ack]:
        unknown = Ack(code, text)
        return [answers.get(sequence, unknown) for sequence in range(first, first + count)]

    async def _readable(self) -> bool:
        """Wait until an answer can be read; False when none came in time."""
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
