"""A small working model of the kernel behind a netlink socket, with one-shot faults by name."""

import asyncio
import errno
import os
import struct
from collections import deque
from collections.abc import Callable

from lbguard.kernel.codec.encode import DumpKind
from tests.unit.kernel import frames

REPLY_TYPES = {
    DumpKind.LINKS: 16,
    DumpKind.ADDRESSES: 20,
    DumpKind.ROUTES: 24,
    DumpKind.NEIGHBORS: 28,
    DumpKind.RULES: 32,
}
FAULTS = frozenset({"interrupt_dump", "refuse_dump", "swallow_dump", "break_socket", "swallow_answers"})


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, with a generous bound."""
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


class FakeKernel:
    """Holds objects as message bodies by kind, answers dumps, queues notifications and fails as told.

    Faults: `interrupt_dump` flags the next dump; `refuse_dump` answers it with EBUSY; `swallow_dump` never answers it;
    `break_socket` makes the next read fail with EIO; `swallow_answers` loses the answers to the next batch.
    """

    def __init__(self) -> None:
        self.objects: dict[DumpKind, list[bytes]] = {kind: [] for kind in DumpKind}
        self.faults: list[str] = []
        self.asked: list[DumpKind] = []
        self.batches: list[list[tuple[int, int, int]]] = []
        self.refusals: dict[int, tuple[int, str]] = {}
        self.closed = False
        self._queue: deque[tuple[bytes | OSError, int]] = deque()
        self._ready = os.eventfd(0, os.EFD_NONBLOCK)

    def fault(self, name: str, times: int = 1) -> None:
        assert name in FAULTS
        self.faults += [name] * times

    def _strikes(self, name: str) -> bool:
        if name in self.faults:
            self.faults.remove(name)
            return True
        return False

    def notify(self, kind: int, body: bytes, *, flags: int = 0, port: int = 0, sequence: int = 0) -> None:
        self.deliver(frames.message(kind, body, flags=flags, sequence=sequence), port=port)

    def overrun(self) -> None:
        self.deliver(OSError(errno.ENOBUFS, "dropped"))

    def deliver(self, datagram: bytes | OSError, *, port: int = 0) -> None:
        self._queue.append((datagram, port))
        os.eventfd_write(self._ready, 1)

    # --- the socket

    def fileno(self) -> int:
        return self._ready

    def send(self, data: bytes | bytearray) -> None:
        headers = []
        offset = 0
        while offset < len(data):
            length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, offset)
            headers.append((kind, flags, sequence))
            offset += length + -length % 4
        kind, flags, sequence = headers[0]
        if flags & 0x300 == 0x300 and kind in {dump.value for dump in DumpKind}:
            self._dump(DumpKind(kind), sequence)
        else:
            self._carry_out(headers)

    def _dump(self, kind: DumpKind, sequence: int) -> None:
        self.asked.append(kind)
        if self._strikes("swallow_dump"):
            return
        if self._strikes("refuse_dump"):
            self.deliver(frames.error(sequence, errno.EBUSY))
            return
        flags = frames.MULTI | (frames.INTERRUPTED if self._strikes("interrupt_dump") else 0)
        for body in self.objects[kind]:
            self.deliver(frames.message(REPLY_TYPES[kind], body, flags=flags, sequence=sequence))
        self.deliver(frames.done(sequence, flags=flags))

    def _carry_out(self, headers: list[tuple[int, int, int]]) -> None:
        self.batches.append(headers)
        if self._strikes("swallow_answers"):
            return
        position = sum(len(batch) for batch in self.batches[:-1])
        for number, (_, flags, sequence) in enumerate(headers, position):
            if number in self.refusals:
                self.deliver(frames.error(sequence, *self.refusals[number]))
            elif flags & 0x4:
                self.deliver(frames.error(sequence, 0))

    def receive_into(self, buffer: bytearray) -> tuple[int, int]:
        if self._strikes("break_socket"):
            raise OSError(errno.EIO, "broken")
        if not self._queue:
            raise BlockingIOError
        item, port = self._queue.popleft()
        if not self._queue:
            os.eventfd_read(self._ready)
        if isinstance(item, OSError):
            raise item
        cut = item[: len(buffer)]
        buffer[: len(cut)] = cut
        return len(item), port

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._ready)
