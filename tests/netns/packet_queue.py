"""A packet queue that holds its packets until they are released, as nfqlb holds those that it works on."""

import socket
import struct
from pathlib import Path

from lbguard.kernel.codec.framing import attribute, attributes, message
from lbguard.kernel.sockets import open_netlink
from lbguard.lab.netns import Namespace
from lbguard.lab.queueing import send_to_queues

_NETFILTER = 12
# include/uapi/linux/netfilter/nfnetlink_queue.h
_PACKET, _VERDICT, _CONFIG = 3 << 8, 3 << 8 | 1, 3 << 8 | 2
_COMMAND, _PARAMETERS = 1, 2
_BIND, _COPY_PACKET = 1, 2
_ACCEPT = 1
_BODY_AT = 20


class PacketQueue:
    """Queue 0 of a namespace. Packets to the VIPs (by family, `ip` or `ip6`) come into it at a priority."""

    def __init__(self, namespace: Namespace, vips: dict[str, str], *, priority: int) -> None:
        self._namespace = namespace
        with namespace.entered():
            self._socket = open_netlink(_NETFILTER)
        self._configure(attribute(_COMMAND, struct.pack("!BxH", _BIND, 0)))
        self._configure(attribute(_PARAMETERS, struct.pack("!IB", 128, _COPY_PACKET)))
        send_to_queues(namespace, vips, 0, 0, priority=priority, table="test-queue")

    def waiting(self) -> int:
        """Return the number of packets that wait for a verdict."""
        with self._namespace.entered():
            shown = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text()
        return int(shown.split()[2])

    def release(self, mark: int) -> int:
        """Accept every packet that waits, with a mark, and return their number."""
        accepted = 0
        while True:
            try:
                data = self._socket.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return accepted
            if struct.unpack_from("=H", data, 4)[0] != _PACKET:
                continue
            header = dict(attributes(memoryview(data)[_BODY_AT:]))[1]
            body = attribute(2, struct.pack("!I", _ACCEPT) + bytes(header[:4])) + attribute(3, struct.pack("!I", mark))
            self._send(_VERDICT, body)
            accepted += 1

    def close(self) -> None:
        self._socket.close()

    def _configure(self, body: bytes) -> None:
        self._send(_CONFIG, body)

    def _send(self, kind: int, body: bytes) -> None:
        self._socket.sendto(message(kind, 0, struct.pack("!BBH", 0, 0, 0) + body), (0, 0))
