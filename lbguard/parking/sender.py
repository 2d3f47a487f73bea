"""Sender of parked packets: raw sockets with the mark of the target, so that the target's rule and route apply.

The packets are sent as they are, and do not pass the distributor again.
"""

import contextlib
import errno
import socket
from enum import Enum, auto
from typing import Final

from lbguard.kernel.sockets import set_buffers
from lbguard.parking.frames import ParkedPacket

_IPV6_HDRINCL: Final = 36  # include/uapi/linux/in6.h
_SEND_BUFFER_BYTES: Final = 4 << 20

_LATER: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})


class Outcome(Enum):
    """Outcome of giving a packet back."""

    SENT = auto()
    LATER = auto()
    TOO_BIG = auto()
    REFUSED = auto()


class ParkedPacketSender:
    """Sends parked packets.

    Raises:
        OSError: raw sockets are not permitted.
    """

    def __init__(self) -> None:
        self._sockets: dict[bool, socket.socket] = {}
        self._marks: dict[bool, int] = {}
        with contextlib.ExitStack() as stack:
            for ipv4 in (True, False):
                family = socket.AF_INET if ipv4 else socket.AF_INET6
                made = stack.enter_context(socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW))
                made.setblocking(False)
                if ipv4:
                    made.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
                else:
                    made.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
                set_buffers(made, send_bytes=_SEND_BUFFER_BYTES)
                self._sockets[ipv4] = made
            stack.pop_all()

    def send(self, parked: ParkedPacket) -> Outcome:
        """Send a packet to its target."""
        sender = self._sockets[parked.ipv4]
        try:
            if self._marks.get(parked.ipv4) != parked.mark:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, parked.mark)
                self._marks[parked.ipv4] = parked.mark
            if parked.ipv4:
                sender.sendto(parked.packet, (socket.inet_ntop(socket.AF_INET, parked.destination), 0))
            else:
                sender.sendto(parked.packet, (socket.inet_ntop(socket.AF_INET6, parked.destination), 0, 0, 0))
        except OSError as error:
            if error.errno in _LATER:
                return Outcome.LATER
            return Outcome.TOO_BIG if error.errno == errno.EMSGSIZE else Outcome.REFUSED
        return Outcome.SENT

    def close(self) -> None:
        """Close the sockets."""
        for each in self._sockets.values():
            each.close()
