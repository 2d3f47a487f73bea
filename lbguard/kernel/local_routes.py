"""The kernel's table `local`: the destinations that this machine itself receives, read in one dump.

The rule for it comes before every other one, so no mark leads a packet to such an address anywhere else.
"""

import contextlib
import errno
import os
import select
import socket
import time
from struct import Struct
from typing import Final

from lbguard.core.addr import Prefix
from lbguard.kernel.codec import constants as c

_HEADER: Final = Struct("=IHHII")
_RTMSG: Final = Struct("=BBBBBBBBI")
_ATTRIBUTE: Final = Struct("=HH")
_ERROR: Final = Struct("=i")

_RT_TABLE_LOCAL: Final = 255
_RTA_DST: Final = 1
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_DELIVERED: Final = frozenset({2, 3, 4, 5})
"""RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST (include/uapi/linux/rtnetlink.h)."""

_TIMEOUT_S: Final = 2.0
_BUFFER_BYTES: Final = 128 * 1024


def local_prefixes() -> frozenset[Prefix]:
    """Return the prefixes whose packets this network namespace keeps for itself. It takes 2 s at most.

    Raises:
        OSError: the kernel does not answer.
    """
    found: set[Prefix] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as asked:
        # With it the kernel sends this table alone; an older kernel sends all of them.
        with contextlib.suppress(OSError):
            asked.setsockopt(c.SOL_NETLINK, c.NETLINK_GET_STRICT_CHK, 1)
        asked.bind((0, 0))
        for family, length in ((c.AF_INET, 4), (c.AF_INET6, 16)):
            body = _RTMSG.pack(family, 0, 0, 0, _RT_TABLE_LOCAL, 0, 0, 0, 0)
            flags = c.NLM_F_REQUEST | c.NLM_F_DUMP
            asked.sendto(_HEADER.pack(16 + len(body), c.RTM_GETROUTE, flags, family, 0) + body, (0, 0))
            _collect(asked, length, family, found)
    return frozenset(found)


def _collect(asked: socket.socket, length: int, sequence: int, found: set[Prefix]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        if not select.select([asked], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        data, (port, _) = asked.recvfrom(_BUFFER_BYTES)
        at = 0
        while port == 0 and at + _HEADER.size <= len(data):
            size, kind, _, answered, _ = _HEADER.unpack_from(data, at)
            if answered == sequence:
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    code = -_ERROR.unpack_from(data, at + _HEADER.size)[0]
                    raise OSError(code, os.strerror(code))
                _add(memoryview(data)[at + _HEADER.size : at + size], length, found)
            at += max(_HEADER.size, size + 3 & ~3)


def _add(message: memoryview, length: int, found: set[Prefix]) -> None:
    _, bits, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(message)
    if table != _RT_TABLE_LOCAL or kind not in _DELIVERED:
        return
    at = _RTMSG.size
    while at + _ATTRIBUTE.size <= len(message):
        size, attribute = _ATTRIBUTE.unpack_from(message, at)
        if attribute == _RTA_DST and size == 4 + length:
            found.add(Prefix(bytes(message[at + 4 : at + size]), bits))
        at += max(_ATTRIBUTE.size, size + 3 & ~3)
