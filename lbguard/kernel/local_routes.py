"""Prefixes in the kernel's table `local`: destinations whose packets this machine itself receives.

The rule of that table precedes every other rule, so no mark can forward a packet to such an address.
"""

import asyncio
from struct import Struct
from typing import Final

from pyroute2.netlink.rtnl import RTM_GETROUTE
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from lbguard.core.addr import IPV4_LEN, IPV6_LEN, Prefix
from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.framing import attributes
from lbguard.kernel.requests import KernelRequests

_RTMSG: Final = Struct("=BBBBBBBBI")
_RT_TABLE_LOCAL: Final = 255
_DELIVERED: Final = frozenset({2, 3, 4, 5})
"""RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST (include/uapi/linux/rtnetlink.h)."""


def local_prefixes() -> frozenset[Prefix]:
    """Return the locally delivered prefixes of this network namespace; for a thread without an event loop.

    Raises:
        OSError: the kernel does not answer.
    """
    return asyncio.run(_read())


async def _read() -> frozenset[Prefix]:
    requests = KernelRequests()
    try:
        found: set[Prefix] = set()
        for family in (c.AF_INET, c.AF_INET6):
            # With strict checking the kernel sends this table alone; an older kernel sends all of them.
            request = rtmsg()
            request["family"], request["table"] = family, _RT_TABLE_LOCAL
            found.update(await requests.dump(request, RTM_GETROUTE, _prefix))
    finally:
        requests.close()
    return frozenset(found)


def _prefix(message: memoryview) -> Prefix | None:
    _, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(message)
    if table != _RT_TABLE_LOCAL or kind not in _DELIVERED:
        return None
    for attribute, payload in attributes(message[_RTMSG.size :]):
        if attribute == c.RTA_DST and len(payload) in (IPV4_LEN, IPV6_LEN):
            return Prefix(bytes(payload), length)
    return None
