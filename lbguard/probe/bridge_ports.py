"""Ports of a bridge by link-layer address: the kernel's forwarding database, read over netlink.

Entries are neighbour messages of family AF_BRIDGE (include/uapi/linux/neighbour.h): the ifindex is the port's,
NDA_LLADDR what was learned there, NDA_MASTER the bridge.
"""

import asyncio
import struct
from typing import Final

from lbguard.kernel.codec import constants as c
from lbguard.kernel.socket import KERNEL_PORT, KernelSocket, NetlinkSocket

_AF_BRIDGE: Final = 7
_NDA_MASTER: Final = 9
_HEADER: Final = struct.Struct("=IHHII")
_NDMSG: Final = struct.Struct("=BxxxiHBB")
_ATTRIBUTE: Final = struct.Struct("=HH")
_BUFFER_BYTES: Final = 64 * 1024
_ANSWER_TIMEOUT_S: Final = 2.0


class BridgePortsError(Exception):
    """The forwarding database cannot be read now."""


class BridgePorts:
    """Reads the forwarding database of the network namespace in which it is made."""

    def __init__(self, kernel: KernelSocket | None = None) -> None:
        self._kernel = kernel or NetlinkSocket(receive_buffer_bytes=1 << 20)
        self._buffer = bytearray(_BUFFER_BYTES)
        self._sequence = 0

    async def read(self, bridge: int) -> dict[bytes, int]:
        """Return the port (ifindex) of each link-layer address behind a bridge (ifindex).

        Raises:
            BridgePortsError: the kernel refuses or does not answer.
        """
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        body = _NDMSG.pack(_AF_BRIDGE, 0, 0, 0, 0)
        header = _HEADER.pack(
            _HEADER.size + len(body), c.RTM_GETNEIGH, c.NLM_F_REQUEST | c.NLM_F_DUMP, self._sequence, 0
        )
        found: dict[bytes, int] = {}
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                self._kernel.send(header + body)
                while not self._digest(await self._receive(), bridge, found):
                    pass
        except (OSError, TimeoutError, struct.error) as error:
            raise BridgePortsError(f"the forwarding database cannot be read: {error or 'no answer'}") from None
        return found

    def close(self) -> None:
        """Close the socket."""
        self._kernel.close()

    async def _receive(self) -> int:
        while True:
            try:
                length, port = self._kernel.receive_into(self._buffer)
            except BlockingIOError:
                await self._readable()
                continue
            if port == KERNEL_PORT:
                return min(length, _BUFFER_BYTES)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._kernel.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._kernel.fileno())

    def _digest(self, length: int, bridge: int, found: dict[bytes, int]) -> bool:
        """Apply one datagram; return whether it was the last."""
        offset = 0
        while offset + _HEADER.size <= length:
            size, kind, _flags, sequence, _port = _HEADER.unpack_from(self._buffer, offset)
            if size < _HEADER.size or offset + size > length:
                raise BridgePortsError("the kernel's answer is cut")
            if sequence == self._sequence:
                if kind == c.NLMSG_DONE:
                    return True
                if kind == c.NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", self._buffer, offset + _HEADER.size)
                    raise BridgePortsError(f"the kernel refuses to list the forwarding database (errno {-code})")
                if kind == c.RTM_NEWNEIGH:
                    self._entry(offset + _HEADER.size, offset + size, bridge, found)
            offset += (size + 3) & -4
        return False

    def _entry(self, offset: int, end: int, bridge: int, found: dict[bytes, int]) -> None:
        family, port, _state, _flags, _type = _NDMSG.unpack_from(self._buffer, offset)
        offset += _NDMSG.size
        mac, master = b"", 0
        while offset + _ATTRIBUTE.size <= end:
            length, kind = _ATTRIBUTE.unpack_from(self._buffer, offset)
            if length < _ATTRIBUTE.size or offset + length > end:
                return
            if kind == c.NDA_LLADDR:
                mac = bytes(self._buffer[offset + 4 : offset + length])
            elif kind == _NDA_MASTER and length == 8:
                (master,) = struct.unpack_from("=I", self._buffer, offset + 4)
            offset += (length + 3) & -4
        if family == _AF_BRIDGE and master == bridge and mac:
            found[mac] = port
