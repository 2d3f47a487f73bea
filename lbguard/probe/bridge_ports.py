"""Ports of a bridge by link-layer address: the kernel's forwarding database.

Entries are neighbour messages of family AF_BRIDGE (include/uapi/linux/neighbour.h): the ifindex is the port's,
NDA_LLADDR what was learned there, NDA_MASTER the bridge.
"""

import struct
from typing import Final

from pyroute2.netlink.rtnl import RTM_GETNEIGH
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.framing import attributes
from lbguard.kernel.requests import KernelRequests

_AF_BRIDGE: Final = 7
_NDA_MASTER: Final = 9
_NDMSG: Final = struct.Struct("=BxxxiHBB")
_U32: Final = struct.Struct("=I")


class BridgePortsError(Exception):
    """The forwarding database cannot be read now."""


class BridgePorts:
    """Reader of the forwarding database of a network namespace, without a name: that of the calling thread."""

    def __init__(self, netns: str | None = None) -> None:
        self._requests = KernelRequests(netns)

    async def read(self, bridge: int) -> dict[bytes, int]:
        """Return the port (ifindex) of each link-layer address behind a bridge (ifindex).

        Raises:
            BridgePortsError: the kernel refuses or does not answer.
        """
        request = ndmsg()
        request["family"] = _AF_BRIDGE
        try:
            entries = await self._requests.dump(request, RTM_GETNEIGH, _entry)
        except OSError as error:
            raise BridgePortsError(f"the forwarding database cannot be read: {error.strerror}") from None
        return {mac: port for mac, port, master in entries if master == bridge}

    def close(self) -> None:
        """Close the socket."""
        self._requests.close()


def _entry(message: memoryview) -> tuple[bytes, int, int] | None:
    """Return link-layer address, port and bridge of an entry."""
    family, port, _state, _flags, _type = _NDMSG.unpack_from(message)
    mac, master = b"", 0
    for kind, payload in attributes(message[_NDMSG.size :]):
        if kind == c.NDA_LLADDR:
            mac = bytes(payload)
        elif kind == _NDA_MASTER and len(payload) == _U32.size:
            (master,) = _U32.unpack(payload)
    return (mac, port, master) if family == _AF_BRIDGE and mac else None
