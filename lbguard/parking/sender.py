"""Sender of parked packets: raw sockets with the mark of the target, so that the target's rule and route apply.

The packets are sent as they are, and do not pass the distributor again. ICMP errors to targets take the same way; their
source is the address of ours that the kernel chooses for the target's route.
"""

import contextlib
import errno
import socket
from enum import Enum, auto
from typing import Final

from lbguard.core.addr import Ip
from lbguard.kernel.sockets import RETURN, assemble, attach_filter, set_buffers
from lbguard.parking.backoff import Unreachable
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
    """Sends parked packets, and ICMP errors to their targets.

    Raises:
        OSError: raw sockets are not permitted.
    """

    def __init__(self) -> None:
        self._sockets: dict[tuple[bool, bool], socket.socket] = {}
        self._marks: dict[tuple[bool, bool], int] = {}
        with contextlib.ExitStack() as stack:
            for ipv4 in (True, False):
                packets = stack.enter_context(_raw(ipv4, socket.IPPROTO_RAW))
                if ipv4:
                    packets.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
                else:
                    packets.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
                set_buffers(packets, send_bytes=_SEND_BUFFER_BYTES)
                errors = stack.enter_context(_raw(ipv4, socket.IPPROTO_ICMP if ipv4 else socket.IPPROTO_ICMPV6))
                # It receives nothing: the kernel would give it a copy of each ICMP packet.
                attach_filter(errors, assemble((RETURN, 0, 0, 0)))
                self._sockets[ipv4, False], self._sockets[ipv4, True] = packets, errors
            stack.pop_all()

    def send(self, parked: ParkedPacket) -> Outcome:
        """Send a packet to its target."""
        return self._send((parked.ipv4, False), parked.mark, parked.packet, parked.destination)

    def send_error(self, error: Unreachable) -> Outcome:
        """Send an ICMP error to a target as often as it says; the outcome is that of the last one."""
        outcome = Outcome.SENT
        for _ in range(error.times):
            outcome = self._send((error.ipv4, True), error.mark, error.message, error.destination)
        return outcome

    def _send(self, which: tuple[bool, bool], mark: int, data: bytes, destination: Ip) -> Outcome:
        sender = self._sockets[which]
        try:
            if self._marks.get(which) != mark:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                self._marks[which] = mark
            if which[0]:
                sender.sendto(data, (socket.inet_ntop(socket.AF_INET, destination), 0))
            else:
                sender.sendto(data, (socket.inet_ntop(socket.AF_INET6, destination), 0, 0, 0))
        except OSError as error:
            if error.errno in _LATER:
                return Outcome.LATER
            return Outcome.TOO_BIG if error.errno == errno.EMSGSIZE else Outcome.REFUSED
        return Outcome.SENT

    def close(self) -> None:
        """Close the sockets."""
        for each in self._sockets.values():
            each.close()


def _raw(ipv4: bool, protocol: int) -> socket.socket:
    made = socket.socket(socket.AF_INET if ipv4 else socket.AF_INET6, socket.SOCK_RAW, protocol)
    made.setblocking(False)
    return made
