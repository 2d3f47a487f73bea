"""Find next-hop objects that lead through a link: such objects end with the link, and their routes with them.

The messages are packed here (linux/nexthop.h), for pyroute2 0.9 has none for next-hop objects.
"""

import errno
import os
import socket
from struct import Struct
from typing import Final

from lbguard.kernel.codec import constants as c

_REQUEST: Final = Struct("=IHHIIBBBBIHHI")
_HEADER: Final = Struct("=IHHII")
_ERROR: Final = Struct("=i")

_RTM_NEWNEXTHOP: Final = 104
_RTM_GETNEXTHOP: Final = 106
_NHA_OIF: Final = 5
_TIMEOUT_S: Final = 2.0
_BUFFER_BYTES: Final = 64 * 1024
_UNKNOWN_TO_THE_KERNEL: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL})


def has_nexthop_object(ifindex: int) -> bool:
    """Return whether any next-hop object of this network namespace leads through a link. It takes 2 s at most.

    Raises:
        OSError: the kernel gives no answer.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as asked:
        asked.settimeout(_TIMEOUT_S)
        asked.bind((0, 0))
        flags = c.NLM_F_REQUEST | c.NLM_F_DUMP
        request = _REQUEST.pack(
            _REQUEST.size, _RTM_GETNEXTHOP, flags, 1, 0, c.AF_UNSPEC, 0, 0, 0, 0, 8, _NHA_OIF, ifindex
        )
        asked.sendto(request, (0, 0))
        while True:
            data, (port, _) = asked.recvfrom(_BUFFER_BYTES)
            if port != 0:
                continue
            _, kind, _, _, _ = _HEADER.unpack_from(data)
            if kind == c.NLMSG_ERROR:
                code = -_ERROR.unpack_from(data, _HEADER.size)[0]
                if code in _UNKNOWN_TO_THE_KERNEL:
                    return False
                raise OSError(code, os.strerror(code))
            return bool(kind == _RTM_NEWNEXTHOP)
