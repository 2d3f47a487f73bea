"""Transactions and dumps of nf_tables over one nfnetlink socket, without libnftables.

libnftables converts elements to text and back, and keeps what it read: for a slot table that takes most of the time and
memory. Elements are the simplest part of the interface, so this module and `elements.py` encode them. libnftables
handles declarations and rules; its errors point at the wrong word.

A transaction is one datagram: NFNL_MSG_BATCH_BEGIN, the requests, NFNL_MSG_BATCH_END. The kernel has applied all of it,
or refused all of it, before the send returns (net/netfilter/nfnetlink.c, nfnetlink_rcv_batch). The datagram must fit
into the socket's send buffer, else EMSGSIZE. Only root of the first user namespace may raise that beyond
net.core.wmem_max, so `transaction_bytes_max` returns the limit, and callers split larger transactions.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from lbguard.distributor.base import DistributorError
from lbguard.kernel.codec.framing import (
    ERROR,
    HEADER,
    Message,
    Sequences,
    add_flags,
    attribute,
    attributes,
    message,
    messages,
    number_messages,
)
from lbguard.kernel.sockets import KERNEL_PORT, open_netlink

NFPROTO_INET: Final = 1
# enum nf_tables_msg_types (include/uapi/linux/netfilter/nf_tables.h), beneath NFNL_SUBSYS_NFTABLES.
_SUBSYSTEM: Final = 10
DELETE_TABLE: Final = _SUBSYSTEM << 8 | 2
GET_CHAIN: Final = _SUBSYSTEM << 8 | 4
DELETE_CHAIN: Final = _SUBSYSTEM << 8 | 5
GET_RULE: Final = _SUBSYSTEM << 8 | 7
DELETE_RULE: Final = _SUBSYSTEM << 8 | 8
GET_SET: Final = _SUBSYSTEM << 8 | 10
DELETE_SET: Final = _SUBSYSTEM << 8 | 11
NEW_ELEMENTS: Final = _SUBSYSTEM << 8 | 12
GET_ELEMENTS: Final = _SUBSYSTEM << 8 | 13
DELETE_ELEMENTS: Final = _SUBSYSTEM << 8 | 14
_NEW_GENERATION: Final = _SUBSYSTEM << 8 | 15
_GET_GENERATION: Final = _SUBSYSTEM << 8 | 16
GET_OBJECT: Final = _SUBSYSTEM << 8 | 19
DELETE_OBJECT: Final = _SUBSYSTEM << 8 | 20
_BATCH_BEGIN: Final = 16
_BATCH_END: Final = 17

_DUMP: Final = 0x300  # NLM_F_DUMP
_ACK: Final = 0x4
_DUMP_INTERRUPTED: Final = 0x10
_ACK_CAPPED: Final = 0x100
_ACK_TLVS: Final = 0x200
_ERROR: Final = 2  # NLMSG_ERROR
_DONE: Final = 3
_ERROR_TEXT: Final = 1  # NLMSGERR_ATTR_MSG

NETLINK_NETFILTER: Final = 12
SEND_BUFFER_BYTES: Final = 4 << 20
"""Requested size; the kernel grants twice that. A table of 9,973 slots takes 430 KiB when every slot changes."""
_SEND_OVERHEAD_BYTES: Final = 32
"""Bytes of the send buffer that netlink_sendmsg reserves."""
_RECEIVE_BYTES: Final = 65536
_DUMP_TRIES: Final = 20
_TIMEOUT_S: Final = 5

_GENERIC: Final = struct.Struct("!BBH")


class NftError(DistributorError):
    """nftables refused; nothing of that transaction took effect. `code` is the errno, 0 when there is none."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class Request(NamedTuple):
    """One message of a transaction, with a description for its error."""

    message: bytes
    what: str


def explain(line: str) -> str:
    """Return the text of an error, with a remedy where there is one."""
    if os.strerror(errno.EPERM) in line:
        return f"nftables: {line}: run as root or with the capability NET_ADMIN in this network namespace"
    if os.strerror(errno.EOPNOTSUPP) in line:
        return f"nftables: {line}: this kernel lacks nf_tables or one of its modules (nft_hash, nft_fib)"
    if os.strerror(errno.EMSGSIZE) in line:
        return f"nftables: {line}: raise net.core.wmem_max on this machine"
    return f"nftables: {line}"


def text_attribute(kind: int, text: str) -> bytes:
    """Return an attribute that holds text with a terminating zero."""
    return attribute(kind, text.encode() + b"\0")


def netfilter_message(
    kind: int, body: bytes, *, flags: int = 0, resource: int = 0, family: int = NFPROTO_INET
) -> bytes:
    """Return a message; the sender sets its sequence number."""
    return message(kind, flags, _GENERIC.pack(family, 0, resource) + body)


_BEGIN: Final = netfilter_message(_BATCH_BEGIN, b"", resource=_SUBSYSTEM, family=0)
_END: Final = netfilter_message(_BATCH_END, b"", resource=_SUBSYSTEM, family=0)


class Datagrams(Protocol):
    """Interface of a socket to nf_tables; tests implement it with a working model of the kernel."""

    send_buffer_bytes: int

    def send(self, data: bytes | bytearray) -> None:
        """Send a datagram, which the kernel processes before this method returns.

        Raises:
            OSError: the kernel refuses the datagram as a whole.
        """

    def receive(self, *, wait: bool) -> tuple[bytes, int] | None:
        """Receive one datagram and its sender's port id; None when there is none, or none arrives in time.

        Raises:
            OSError: ENOBUFS when the kernel had to drop answers.
        """

    def close(self) -> None:
        """Close the socket."""


class NetfilterSocket:
    """A NETLINK_NETFILTER socket in the network namespace of the calling thread."""

    def __init__(self, *, send_buffer_bytes: int = SEND_BUFFER_BYTES) -> None:
        """Open the socket.

        Raises:
            OSError: this kernel has no nfnetlink.
        """
        self._socket = open_netlink(NETLINK_NETFILTER, send_buffer_bytes=send_buffer_bytes)
        # Python's own timeout would wait despite MSG_DONTWAIT.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _TIMEOUT_S, 0))
        self.send_buffer_bytes = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def send(self, data: bytes | bytearray) -> None:
        """See Datagrams."""
        self._socket.sendto(data, (KERNEL_PORT, 0))

    def receive(self, *, wait: bool) -> tuple[bytes, int] | None:
        """See Datagrams."""
        try:
            data, (port, _groups) = self._socket.recvfrom(_RECEIVE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        return data, port

    def close(self) -> None:
        """See Datagrams."""
        self._socket.close()


class Nfnetlink:
    """Blocking transactions and dumps over one socket, for one thread."""

    def __init__(self, datagrams: Datagrams) -> None:
        self._socket = datagrams
        self._sequences = Sequences()

    @property
    def transaction_bytes_max(self) -> int:
        """The bytes of requests that fit into one transaction."""
        return self._socket.send_buffer_bytes - _SEND_OVERHEAD_BYTES - len(_BEGIN) - len(_END)

    def transact(self, requests: Sequence[Request]) -> None:
        """Carry out all of the requests or none, in their order.

        Raises:
            NftError: the kernel refused, with the first request that failed, or gave no answer (then it may be done).
        """
        if not requests:
            return
        first = self._sequences.next(len(requests) + 2)
        datagram = bytearray(_BEGIN)
        starts = [0]
        for request in requests:
            starts.append(len(datagram))
            datagram += request.message
            datagram += bytes(-len(request.message) % 4)
        # One acknowledged request is enough: it confirms the transaction when nothing has failed.
        add_flags(datagram, starts[-1], _ACK)
        starts.append(len(datagram))
        datagram += _END
        number_messages(datagram, starts, first)
        answers = self._exchange(datagram, first, len(starts))
        for answer in answers:
            code = answer.error
            if code:
                # An answer to BATCH_BEGIN concerns the whole transaction.
                position = answer.sequence - first
                what = requests[position - 1].what if 1 <= position <= len(requests) else f"{requests[0].what}, ..."
                raise NftError(explain(f"{what}: {_error_text(answer, code)}"), code)

    def dump(self, kind: int, body: bytes = b"", *, family: int = NFPROTO_INET) -> list[memoryview] | None:
        """Return the attributes of a dump's objects, all of one generation; None when the dumped object is absent.

        Raises:
            NftError: the kernel refuses, or the ruleset kept changing meanwhile.
        """
        for _ in range(_DUMP_TRIES):
            found: list[memoryview] = []
            interrupted = False
            sequence = self._sequences.next()
            for answer in self._stream(netfilter_message(kind, body, flags=_DUMP, family=family), sequence):
                interrupted = interrupted or bool(answer.flags & _DUMP_INTERRUPTED)
                if answer.kind in (_ERROR, _DONE):
                    code = answer.error
                    if code == errno.ENOENT:
                        return None
                    if code and code != errno.EINTR:
                        raise NftError(explain(f"reading the ruleset: {_error_text(answer, code)}"), code)
                    interrupted = interrupted or bool(code)
                else:
                    found.append(answer.data[_GENERIC.size :])
            if not interrupted:
                return found
        raise NftError(f"nftables: the ruleset changed during each of {_DUMP_TRIES} readings", errno.EINTR)

    def generation(self) -> int:
        """Return the kernel's ruleset generation (a 32-bit counter): every transaction in the namespace adds one.

        Raises:
            NftError: the kernel does not answer or refuses.
        """
        datagram = bytearray(netfilter_message(_GET_GENERATION, b"", family=0))
        sequence = self._sequences.next()
        number_messages(datagram, [0], sequence)
        for answer in self._exchange(datagram, sequence, 1):
            code = answer.error if answer.kind == _ERROR else 0
            if code:
                raise NftError(explain(_error_text(answer, code)), code)
            if answer.kind == _NEW_GENERATION:
                for kind, payload in attributes(answer.data[_GENERIC.size :]):
                    if kind == 1 and len(payload) == 4:  # NFTA_GEN_ID
                        return int.from_bytes(payload, "big")
        raise NftError("nftables: the kernel's answer holds no generation")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _exchange(self, datagram: bytes | bytearray, first: int, count: int) -> list[Message]:
        """Send, and return the answers to `count` sequence numbers from `first`, which exist when the send returns.

        Later messages stay unread: they have other sequence numbers, so they cannot be mistaken for answers.
        """
        self._send(datagram)
        answers: list[Message] = []
        while not answers:
            answers = [a for a in self._receive(wait=True) if first <= a.sequence < first + count]
        while more := self._receive(wait=False):
            answers += [a for a in more if first <= a.sequence < first + count]
        return answers

    def _stream(self, request: bytes, sequence: int) -> Iterator[Message]:
        """Send, and yield the answers up to the one that ends the dump."""
        datagram = bytearray(request)
        number_messages(datagram, [0], sequence)
        self._send(datagram)
        while True:
            for answer in self._receive(wait=True):
                if answer.sequence == sequence:
                    yield answer
                    if answer.kind in (_ERROR, _DONE):
                        return

    def _send(self, data: bytes | bytearray) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            what = f"a request of {len(data)} bytes cannot be sent: {error.strerror}"
            raise NftError(explain(what), error.errno or errno.EIO) from error

    def _receive(self, *, wait: bool) -> list[Message]:
        """Return the messages of the kernel's next datagram; none when there is none and `wait` is false.

        Datagrams of other processes are ignored.
        """
        while True:
            try:
                received = self._socket.receive(wait=wait)
            except OSError as error:
                what = f"the kernel's answer is lost: {error.strerror}"
                raise NftError(explain(what), error.errno or errno.EIO) from error
            if received is None:
                if not wait:
                    return []
                raise NftError(f"nftables: no answer in {_TIMEOUT_S} s", errno.ETIMEDOUT)
            data, port = received
            if port == KERNEL_PORT:
                return list(messages(memoryview(data)))


def _error_text(answer: Message, code: int) -> str:
    """Return the text of an error: that of the C library, and the kernel's own if there is one."""
    text = os.strerror(code)
    if answer.kind == _ERROR and answer.flags & _ACK_TLVS and answer.flags & _ACK_CAPPED:
        for kind, payload in attributes(answer.data[ERROR.size + HEADER.size :]):
            if kind == _ERROR_TEXT:
                text += f" ({bytes(payload).rstrip(bytes(1)).decode(errors='replace')})"
    return text
