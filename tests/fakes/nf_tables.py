"""A working model of nf_tables behind a netlink socket: counts generations, answers dumps, has faults on demand."""

import struct
from collections import deque
from enum import StrEnum

_GET_GENERATION, _NEW_GENERATION = 10 << 8 | 16, 10 << 8 | 15
_BATCH_BEGIN, _BATCH_END = 16, 17
_ERROR, _DONE = 2, 3
_ACK, _DUMP = 0x4, 0x300
_INTERRUPTED, _CAPPED, _TLVS = 0x10, 0x100, 0x200
ENOMEM, ENOBUFS, EMSGSIZE = 12, 105, 90


class Fault(StrEnum):
    """What goes wrong once."""

    NO_MEMORY = "no memory for the first request of the transaction"
    COMMIT_REFUSED = "the transaction as a whole is refused"
    INTERRUPTED = "the dump is interrupted by another transaction"
    STRANGER = "another process sends an answer first"
    STALE = "an answer to an earlier request comes first"
    SILENT = "no answer"
    OVERRUN = "the answer is dropped"
    TOO_LONG = "the datagram does not fit"


class FakeNfTables:
    """Takes datagrams and answers them at once, like the kernel. `objects` is what each dump returns."""

    def __init__(self, send_buffer_bytes: int = 65536) -> None:
        self.send_buffer_bytes = send_buffer_bytes
        self.generation = 7
        self.objects: list[bytes] = []
        self.transactions: list[list[bytes]] = []
        self.faults: set[Fault] = set()
        self.closed = False
        self._answers: deque[tuple[bytes, int] | OSError] = deque()

    def send(self, data: bytes | bytearray) -> None:
        if self._fails(Fault.TOO_LONG):
            raise OSError(EMSGSIZE, "Message too long")
        messages = _split(bytes(data))
        kind, flags, sequence = struct.unpack_from("=HHI", messages[0], 4)
        if self._fails(Fault.STALE):
            self._answer(_ERROR, sequence - 1, struct.pack("=i", -ENOMEM) + bytes(16))
        if self._fails(Fault.STRANGER):
            self._answer(_ERROR, sequence, struct.pack("=i", -ENOMEM) + bytes(16), port=4711)
        if self._fails(Fault.SILENT):
            return
        if self._fails(Fault.OVERRUN):
            self._answers.append(OSError(ENOBUFS, "No buffer space available"))
        elif kind == _BATCH_BEGIN:
            self._transact(messages)
        elif kind == _GET_GENERATION:
            answer = struct.pack("!BBH", 0, 0, 0) + struct.pack("=HH", 8, 1) + self.generation.to_bytes(4, "big")
            self._answer(_NEW_GENERATION, sequence, answer)
        else:
            assert flags & _DUMP == _DUMP
            self._dump(sequence)

    def _transact(self, messages: list[bytes]) -> None:
        kinds = [struct.unpack_from("=H", message, 4)[0] for message in messages]
        assert kinds[-1] == _BATCH_END
        headers = [struct.unpack_from("=HHI", message, 4) for message in messages]
        first = headers[0][2]
        assert [sequence for _, _, sequence in headers] == list(range(first, first + len(messages)))
        if self._fails(Fault.NO_MEMORY):
            text = b"out of \xff memory\0"
            tlv = struct.pack("=HH", 4 + len(text), 1) + text + bytes(-len(text) % 4)
            body = struct.pack("=i", -ENOMEM) + messages[1][:16] + tlv
            self._answer(_ERROR, first + 1, body, flags=_CAPPED | _TLVS)
        elif self._fails(Fault.COMMIT_REFUSED):
            self._answer(_ERROR, first, struct.pack("=i", -ENOMEM) + messages[0][:16], flags=_CAPPED)
        else:
            self.transactions.append(messages[1:-1])
            self.generation += 1
        for message in messages:
            _, flags, sequence = struct.unpack_from("=HHI", message, 4)
            if flags & _ACK:
                self._answer(_ERROR, sequence, bytes(4) + message[:16], flags=_CAPPED)

    def _dump(self, sequence: int) -> None:
        flags = _INTERRUPTED if self._fails(Fault.INTERRUPTED) else 0
        found = self.objects[:1] if flags else self.objects
        for body in found:
            self._answer(10 << 8 | 12, sequence, bytes(4) + body, flags=flags)
        self._answer(_DONE, sequence, bytes(4), flags=flags)

    def receive(self, *, wait: bool) -> tuple[bytes, int] | None:
        if not self._answers:
            return None
        answer = self._answers.popleft()
        if isinstance(answer, OSError):
            raise answer
        return answer

    def close(self) -> None:
        self.closed = True

    def _fails(self, fault: Fault) -> bool:
        if fault in self.faults:
            self.faults.remove(fault)
            return True
        return False

    def _answer(self, kind: int, sequence: int, body: bytes, *, flags: int = 0, port: int = 0) -> None:
        message = struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body
        self._answers.append((message + bytes(-len(message) % 4), port))


def _split(data: bytes) -> list[bytes]:
    messages = []
    while data:
        (length,) = struct.unpack_from("=I", data)
        assert length >= 20
        messages.append(data[:length])
        data = data[length + 3 & ~3 :]
    return messages
