"""ICMP echo sockets, which send and receive many messages with one system call.

One socket serves all pairs of a family: each message names its own source address and link in its control data (ip(7)
IP_PKTINFO, RFC 3542 IPV6_PKTINFO). The structures of a pair for sendmmsg(2) are built once, when the pair is added;
sending copies them into one array and writes one shared header. Replies carry the kernel's time stamp, so the time of
reading does not matter. They also carry their incoming link: for IPv6 the requested link is only a preference, and the
kernel may use another one when that link has no route (net/ipv6/route.c, ip6_route_output_flags).
"""

import ctypes
import errno
import fcntl
import secrets
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from lbguard.core.addr import is_link_local
from lbguard.kernel.sockets import attach_filter, set_buffers
from lbguard.probe import packet
from lbguard.probe.connections import Pair
from lbguard.telemetry.link_counters import encode_link_name

_SO_TIMESTAMPNS: Final = 35  # include/uapi/asm-generic/socket.h
_SO_MEMINFO: Final = 55
_IP_PKTINFO: Final = 8  # include/uapi/linux/in.h
_MEMINFO_DROPS: Final = 8  # SK_MEMINFO_DROPS, include/uapi/linux/sock_diag.h

_SEND_BUFFER_BYTES: Final = 64 * 2**20
"""A limit, not an allocation. Echoes to an unresolved peer wait in the kernel's neighbour queue and count against it,
and thousands of such peers must not block the others."""

_RECEIVE_BUFFER_BYTES: Final = 16 * 2**20
_RECEIVE_BATCH: Final = 128
_RECEIVE_BATCHES_MAX: Final = 64
SEND_BATCH: Final = 64
"""Maximum of messages in one `send`. They share one send time, so this bounds the error of their round-trip times."""

# struct msghdr (name, its length, iovec, their number, control data, its length, flags) and struct mmsghdr, which adds
# the length of the sent or received data; both in the layout of the C library of a 64-bit Linux.
_MESSAGE = struct.Struct("@PI4xPNPNi4xI4x")
_RECEIVED_LENGTH = struct.Struct(f"@{_MESSAGE.size - 8}xI4x")
_IOVEC = struct.Struct("@PN")
_CMSG = struct.Struct("@Nii")
_IN_PKTINFO = struct.Struct("@i4s4s4x")  # ifindex, source, (received: destination), padding to CMSG_SPACE
_IN6_PKTINFO = struct.Struct("@16sI4x")
_SOCKADDR_IN = struct.Struct("=HH4s8x")
_SOCKADDR_IN6 = struct.Struct("=HHI16sI")
_LINK_NAME_BYTES_MAX = 15
_IFREQ = struct.Struct("@16si20x")  # struct ifreq: name, then a union of 24 bytes
_SIOCGIFINDEX: Final = 0x8933  # include/uapi/linux/sockios.h
_TIMESPEC_SPACE: Final = _CMSG.size + 16

_libc = ctypes.CDLL(None, use_errno=True)
for _function in (_libc.sendmmsg, _libc.recvmmsg):
    _function.restype = ctypes.c_int
_libc.sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
_libc.recvmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]


class Reply(NamedTuple):
    """An echo reply: its pair, its batch of requests, its waiting time until it was read, and its incoming link.

    `age_s` is in seconds; `ifindex` is 0 when unknown.
    """

    token: int
    sequence: int
    age_s: float
    ifindex: int


class Slot(Protocol):
    """A pair prepared for sending."""

    message: bytes
    """Reference to the pair for `EchoSocket.send`."""

    def set_ifindex(self, ifindex: int) -> None:
        """Send through another link from now on; 0 leaves the choice to the routing table."""


class EchoSocket(Protocol):
    """Interface of the monitor's socket; tests implement it with a working model of a network."""

    def slot(self, pair: Pair, token: int, ifindex: int) -> Slot:
        """Prepare a pair. The sender of its message must keep the slot alive."""

    def send(self, messages: Sequence[bytes], sequence: int) -> list[tuple[int, int]]:
        """Send one echo request of this sequence number for each message, at most SEND_BATCH; never block.

        Returns those that did not leave: place in `messages` and errno.
        """

    def receive(self) -> list[Reply]:
        """Return the replies that wait, up to a budget."""

    def drops(self) -> int:
        """Return how many packets the kernel dropped because this socket was not read in time, modulo 2**32."""

    def ifindex(self, ifname: str) -> int:
        """Return the index of a link in the socket's network namespace; 0 when there is none of that name."""

    def fileno(self) -> int:
        """Return the descriptor that polls readable when a reply waits; -1 if there is none."""

    def close(self) -> None:
        """Release the socket."""


class IcmpSlot:
    """A pair's parts of struct msghdr, in memory with a fixed address."""

    __slots__ = ("_control", "_memory", "message")

    def __init__(self, pair: Pair, token: int, ifindex: int, head_address: int) -> None:
        if len(pair.source) == 4:
            name = _SOCKADDR_IN.pack(socket.AF_INET, 0, pair.destination)
            level, kind, info_len = socket.IPPROTO_IP, _IP_PKTINFO, 12
            info = _IN_PKTINFO.pack(ifindex, pair.source, bytes(4))
        else:
            scope = ifindex if is_link_local(pair.destination) else 0
            name = _SOCKADDR_IN6.pack(socket.AF_INET6, 0, 0, pair.destination, scope)
            level, kind, info_len = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, 20
            info = _IN6_PKTINFO.pack(pair.source, ifindex)
        control = _CMSG.pack(_CMSG.size + info_len, level, kind) + info
        tail = packet.encode_tail(token)
        # Control data and vector come first: their sizes are multiples of 8, so everything is aligned.
        vector_len = 2 * _IOVEC.size
        self._memory = ctypes.create_string_buffer(len(control) + vector_len + len(tail) + len(name))
        self._control = control[: _CMSG.size]
        base = ctypes.addressof(self._memory)
        vector_at, tail_at = base + len(control), base + len(control) + vector_len
        vector = _IOVEC.pack(head_address, packet.HEAD_LEN) + _IOVEC.pack(tail_at, packet.TAIL_LEN)
        self._memory.raw = control + vector + tail + name
        self.message = _MESSAGE.pack(tail_at + len(tail), len(name), vector_at, 2, base, len(control), 0, 0)

    def set_ifindex(self, ifindex: int) -> None:
        """Send through another link from now on; 0 leaves the choice to the routing table."""
        ipv4 = self._control[8:12] == struct.pack("@i", socket.IPPROTO_IP)
        struct.pack_into("@i", self._memory, _CMSG.size + (0 if ipv4 else 16), ifindex)


class IcmpSocket:
    """The echo socket of one family, in the network namespace of the thread that makes it.

    For IPv4 a ping socket (icmp(7)) where `net.ipv4.ping_group_range` allows it, else a raw socket with a filter. For
    IPv6 a raw socket is preferred: with a ping socket the kernel chooses the source among the addresses of the link and
    ignores the message's (net/ipv6/ping.c), which is correct only where the link has one address of a scope.

    Args:
        ipv4: the family.
        raw: the kind of socket; None: the preferred one that is allowed.

    Raises:
        OSError: the kernel allows neither (a raw socket needs CAP_NET_RAW), or does not support the family.
    """

    def __init__(self, *, ipv4: bool, raw: bool | None = None) -> None:
        self.ipv4 = ipv4
        self._socket, self.raw = _open(ipv4, (not ipv4, ipv4) if raw is None else (raw,))
        try:
            identifier = self._prepare()
        except OSError:
            self._socket.close()
            raise
        self._nonce = secrets.token_bytes(packet.NONCE_LEN)
        self._identifier = identifier
        self._template = packet.HeadTemplate(ipv4=ipv4, identifier=identifier, nonce=self._nonce)
        self._head = ctypes.create_string_buffer(packet.HEAD_LEN)
        self._outgoing = ctypes.create_string_buffer(SEND_BATCH * _MESSAGE.size)
        self._make_receive_buffers(packet.IPV4_HEADER_LEN if ipv4 and self.raw else 0)

    def _prepare(self) -> int:
        sock = self._socket
        sock.setblocking(False)
        # Set first, so that every reply has a time stamp.
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        if self.ipv4:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        set_buffers(sock, receive_bytes=_RECEIVE_BUFFER_BYTES, send_bytes=_SEND_BUFFER_BYTES)
        if not self.raw:
            sock.bind(("" if self.ipv4 else "::", 0))
            port: int = sock.getsockname()[1]
            return port
        identifier = 1 + secrets.randbelow(0xFFFF)
        attach_filter(sock, packet.reply_filter(ipv4=self.ipv4, identifier=identifier))
        return identifier

    def _make_receive_buffers(self, skip: int) -> None:
        # A record is the data of one message and then its control data: the time stamp and the incoming link. Two
        # formats read it, because the data are in network order and the control data are not.
        data_len = 64  # more than expected, so that a longer message is detected
        control_len = _TIMESPEC_SPACE + _CMSG.size + (_IN_PKTINFO if self.ipv4 else _IN6_PKTINFO).size
        stride = data_len + control_len
        self._expected_len = skip + packet.ECHO_LEN
        self._data = struct.Struct(f"!{skip}xBBHHH{packet.NONCE_LEN}sII{stride - self._expected_len}x")
        self._control = struct.Struct(f"={data_len}xQiiqqQii" + ("i12x" if self.ipv4 else "16xi4x"))
        self._incoming = ctypes.create_string_buffer(_RECEIVE_BATCH * stride)
        self._vectors = ctypes.create_string_buffer(_RECEIVE_BATCH * _IOVEC.size)
        base, vectors = ctypes.addressof(self._incoming), ctypes.addressof(self._vectors)
        ctypes.memmove(
            vectors,
            b"".join(_IOVEC.pack(base + i * stride, data_len) for i in range(_RECEIVE_BATCH)),
            _RECEIVE_BATCH * _IOVEC.size,
        )
        self._message_template = b"".join(
            _MESSAGE.pack(0, 0, vectors + i * _IOVEC.size, 1, base + i * stride + data_len, control_len, 0, 0)
            for i in range(_RECEIVE_BATCH)
        )
        self._messages = ctypes.create_string_buffer(len(self._message_template))

    def slot(self, pair: Pair, token: int, ifindex: int) -> IcmpSlot:
        """Prepare a pair. The sender of its message must keep the slot alive."""
        return IcmpSlot(pair, token, ifindex, ctypes.addressof(self._head))

    def send(self, messages: Sequence[bytes], sequence: int) -> list[tuple[int, int]]:
        """Send one echo request of this sequence number for each message, at most SEND_BATCH; never block.

        Returns those that did not leave: place in `messages` and errno.
        """
        count = len(messages)
        assert count <= SEND_BATCH
        joined = b"".join(messages)
        start = ctypes.addressof(self._outgoing)
        ctypes.memmove(start, joined, len(joined))
        ctypes.memmove(self._head, self._template.head(sequence), packet.HEAD_LEN)
        failed = []
        done = 0
        while done < count:
            sent = _libc.sendmmsg(
                self._socket.fileno(), start + done * _MESSAGE.size, count - done, socket.MSG_DONTWAIT
            )
            if sent > 0:
                done += sent
                continue
            failed.append((done, ctypes.get_errno()))
            done += 1
        return failed

    def receive(self) -> list[Reply]:
        """Return the waiting replies, up to a budget; echoes of other programs and duplicated errors are left out."""
        replies: list[Reply] = []
        for _ in range(_RECEIVE_BATCHES_MAX):
            ctypes.memmove(self._messages, self._message_template, len(self._message_template))
            count = _libc.recvmmsg(
                self._socket.fileno(), ctypes.addressof(self._messages), _RECEIVE_BATCH, socket.MSG_DONTWAIT, None
            )
            if count < 0:
                # The error of an earlier echo (link down) is reported once here; the next call continues.
                if ctypes.get_errno() in (errno.EAGAIN, errno.EBADF):
                    break
                continue
            self._decode(count, replies)
            if count < _RECEIVE_BATCH:
                break
        return replies

    def _decode(self, count: int, replies: list[Reply]) -> None:
        now_s, now_ns = divmod(time.time_ns(), 1_000_000_000)
        kind_expected = packet.ICMP_ECHO_REPLY if self.ipv4 else packet.ICMP6_ECHO_REPLY
        nonce_expected, len_expected = self._nonce, self._expected_len
        lengths = _RECEIVED_LENGTH.iter_unpack(memoryview(self._messages)[: count * _MESSAGE.size])
        datas = self._data.iter_unpack(memoryview(self._incoming)[: count * self._data.size])
        controls = self._control.iter_unpack(memoryview(self._incoming)[: count * self._control.size])
        info_expected = _IP_PKTINFO if self.ipv4 else socket.IPV6_PKTINFO
        for (length,), data, control in zip(lengths, datas, controls, strict=True):
            kind, _, _, _, sequence, nonce, token, complement = data
            _, _, stamp_kind, seconds, nanoseconds, _, _, info_kind, ifindex = control
            if (
                length != len_expected
                or nonce != nonce_expected
                or kind != kind_expected
                or token ^ complement != packet.TOKEN_MAX
            ):
                continue
            age_s = 0.0
            if stamp_kind == _SO_TIMESTAMPNS:
                # A step of the wall clock between arrival and reading must not move a reply into the future.
                age_s = max(0.0, now_s - seconds + (now_ns - nanoseconds) * 1e-9)
            replies.append(Reply(token, sequence, age_s, ifindex if info_kind == info_expected else 0))

    def drops(self) -> int:
        """Return how many packets the kernel dropped because this socket was not read in time, modulo 2**32."""
        info = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_MEMINFO_DROPS + 1))
        return int.from_bytes(info[4 * _MEMINFO_DROPS :], sys.byteorder)

    def ifindex(self, ifname: str) -> int:
        """Return the index of a link in the socket's network namespace; 0 when there is none of that name."""
        name = encode_link_name(ifname)
        if len(name) > _LINK_NAME_BYTES_MAX:
            return 0  # Truncated, it could be the name of another link.
        try:
            answer: bytes = fcntl.ioctl(self._socket, _SIOCGIFINDEX, _IFREQ.pack(name, 0))
        except OSError:
            return 0
        index: int = _IFREQ.unpack(answer)[1]
        return index

    def fileno(self) -> int:
        """Return the descriptor that polls readable when a reply waits; -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; slots made by it must not be sent any more."""
        self._socket.close()


def _open(ipv4: bool, kinds: Sequence[bool]) -> tuple[socket.socket, bool]:
    """Return a socket of the first kind (raw or not) that is allowed, and whether it is raw."""
    family = socket.AF_INET if ipv4 else socket.AF_INET6
    protocol = socket.IPPROTO_ICMP if ipv4 else socket.IPPROTO_ICMPV6
    for raw in kinds:
        try:
            kind = socket.SOCK_RAW if raw else socket.SOCK_DGRAM
            return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol), raw
        except PermissionError as error:
            refused = error
    raise refused
