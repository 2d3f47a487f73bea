"""Find next-hop objects that lead through a link: such objects end with the link, and their routes with them."""

import asyncio
import errno
from typing import Final

from pyroute2.netlink import nlmsg

from lbguard.kernel.requests import KernelRequests

_RTM_GETNEXTHOP: Final = 106
_UNKNOWN_TO_THE_KERNEL: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL})


class _NextHop(nlmsg):  # type: ignore[misc]
    """The message that pyroute2 0.9 lacks (struct nhmsg, linux/nexthop.h)."""

    __slots__ = ()
    fields = (("family", "B"), ("scope", "B"), ("protocol", "B"), ("resvd", "B"), ("flags", "I"))
    nla_map = (
        ("NHA_UNSPEC", "none"),
        ("NHA_ID", "uint32"),
        ("NHA_GROUP", "hex"),
        ("NHA_GROUP_TYPE", "uint16"),
        ("NHA_BLACKHOLE", "flag"),
        ("NHA_OIF", "uint32"),
    )


def has_nexthop_object(ifindex: int) -> bool:
    """Return whether any next-hop object of this network namespace leads through a link, in a thread without a loop.

    Raises:
        OSError: the kernel gives no answer.
    """
    try:
        return asyncio.run(_any(ifindex))
    except OSError as error:
        if error.errno in _UNKNOWN_TO_THE_KERNEL:
            return False
        raise


async def _any(ifindex: int) -> bool:
    requests = KernelRequests()
    request = _NextHop()
    request["attrs"] = [("NHA_OIF", ifindex)]
    try:
        return bool(await requests.dump(request, _RTM_GETNEXTHOP, lambda _message: True))
    finally:
        requests.close()
