"""Single netlink requests and dumps outside of the mirror, by pyroute2; prefixes of the table `local`.

The rule of that table precedes every other rule, so no mark can forward a packet to such an address.
"""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from struct import Struct
from typing import Any, Final, TypeVar

from pyroute2.iproute.linux import AsyncIPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, nla, nlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nlsocket import NetlinkRequest
from pyroute2.netlink.rtnl import RTM_GETLINK, RTM_GETROUTE, RTM_SETLINK, RTM_SETNEIGHTBL
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndtmsg import ndtmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from lbguard.core.addr import IPV4_LEN, IPV6_LEN, Prefix
from lbguard.kernel.codec import constants as c
from lbguard.kernel.codec.framing import ERROR, FLAGS, FLAGS_AT, HEADER, attributes
from lbguard.kernel.sockets import KERNEL_PORT
from lbguard.telemetry.link_counters import decode_link_name

T = TypeVar("T")

Row = Callable[[memoryview], T | None]
"""Reader of one message of a dump, without its header; returns None for a message that is not used."""

_TIMEOUT_S: Final = 2.0
_DUMP_TRIES: Final = 5
_TYPE_AT: Final = 4


class _KernelOnly(AsyncIPRoute):  # type: ignore[misc]
    """Socket of pyroute2 that ignores messages of other processes."""

    def enqueue(self, data: bytes, addr: tuple[int, int] | None) -> Any:
        # Without an address, it is the library's own signal that the socket is closed.
        return super().enqueue(data, addr) if addr is None or addr[0] == KERNEL_PORT else None


class _NeighborTable(nlmsg):  # type: ignore[misc]
    """pyroute2's message with the parameters that it lacks (include/uapi/linux/neighbour.h).

    No class of it is derived from the library's: a class remembers that its attributes are compiled, and a derived one
    would use those of the library if that was used first.
    """

    __slots__ = ()
    fields = ndtmsg.fields
    nla_map = ndtmsg.nla_map
    config, stats = ndtmsg.config, ndtmsg.stats

    class parms(nla):  # type: ignore[misc]  # noqa: N801 (the library looks for this name)
        __slots__ = ()
        nla_map = (*ndtmsg.parms.nla_map, ("NDTPA_MCAST_REPROBES", "uint32"))


class _LinkIpv4Conf(nlmsg):  # type: ignore[misc]
    """IPv4 parameters of one link, which pyroute2 only reads (net/ipv4/devinet.c, inet_set_link_af)."""

    __slots__ = ()
    fields = ifinfmsg.fields
    nla_map = ((c.IFLA_AF_SPEC, "IFLA_AF_SPEC", "families"),)

    class families(nla):  # type: ignore[misc]  # noqa: N801 (the library looks for this name)
        __slots__ = ()
        nla_map = ((c.AF_INET, "AF_INET", "ipv4"),)

        class ipv4(nla):  # type: ignore[misc]  # noqa: N801
            __slots__ = ()
            nla_map = ((c.IFLA_INET_CONF, "IFLA_INET_CONF", "conf"),)

            class conf(nla):  # type: ignore[misc]  # noqa: N801
                __slots__ = ()
                nla_map = ((c.IPV4_DEVCONF_ARP_NOTIFY, "IPV4_DEVCONF_ARP_NOTIFY", "uint32"),)


class KernelRequests:
    """Requests from one event loop, in a network namespace by name or, without one, in that of the calling thread.

    Every method raises OSError with the kernel's text when the kernel refuses, or does not answer within 2 s.
    """

    def __init__(self, netns: str | None = None) -> None:
        self._netns = netns
        self._library: AsyncIPRoute | None = None

    def close(self) -> None:
        """Close the socket; later requests open another one."""
        if self._library is not None:
            self._library.close()
            self._library = None

    async def link_name(self, ifindex: int) -> str:
        """Return the name of a link, as the mirror writes it: the library shows a name that is not UTF-8 otherwise."""
        request = ifinfmsg()
        request["index"] = ifindex
        request["attrs"] = [("IFLA_EXT_MASK", c.RTEXT_FILTER_SKIP_STATS)]
        # Without an acknowledgement, which would come after the answer and stay in the library's queue.
        rows: list[str] = await self._rows(request, RTM_GETLINK, NLM_F_REQUEST, _AnswerReader(_link_name))
        if not rows:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return rows[0]

    async def arp_notify(self, ifindex: int) -> bool:
        """Return whether the kernel announces a link's IPv4 addresses when the link comes up (net.ipv4.conf.*)."""
        request = ifinfmsg()
        request["index"] = ifindex
        request["attrs"] = [("IFLA_EXT_MASK", c.RTEXT_FILTER_SKIP_STATS)]
        rows: list[int] = await self._rows(request, RTM_GETLINK, NLM_F_REQUEST, _AnswerReader(_arp_notify))
        return bool(rows and rows[0])

    async def set_arp_notify(self, ifindex: int, *, on: bool) -> None:
        """Set whether the kernel announces a link's IPv4 addresses when the link comes up."""
        conf = {"attrs": [("IPV4_DEVCONF_ARP_NOTIFY", int(on))]}
        request = _LinkIpv4Conf()
        request["index"] = ifindex
        request["attrs"] = [("IFLA_AF_SPEC", {"attrs": [("AF_INET", {"attrs": [("IFLA_INET_CONF", conf)]})]})]
        await self._carry_out(request, RTM_SETLINK)

    async def set_link_down(self, ifindex: int) -> None:
        """Clear IFF_UP of a link and leave its other flags."""
        async with self._asking() as library:
            await library.link("set", index=ifindex, state="down")

    async def set_up_without_addresses(self, ifindex: int, *, mtu: int, queue_frames: int) -> None:
        """Set a link up, with this MTU and length of its queue, to which the kernel adds no link-local address."""
        mode = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", c.IN6_ADDR_GEN_MODE_NONE)]})]}
        async with self._asking() as library:
            await library.link("set", index=ifindex, mtu=mtu, txqlen=queue_frames, IFLA_AF_SPEC=mode)
            await library.link("set", index=ifindex, state="up")

    async def set_neighbor_timers(self, ifindex: int, family: int, parameters: dict[str, int]) -> None:
        """Set neighbour timers of a link for one family (net/core/neighbour.c, neightbl_set).

        Args:
            ifindex: the link.
            family: AF_INET or AF_INET6.
            parameters: values by name of the attribute (NDTPA_...); times are in milliseconds.
        """
        request = _NeighborTable()
        request["family"] = family
        request["attrs"] = [
            ("NDTA_NAME", "arp_cache" if family == c.AF_INET else "ndisc_cache"),
            ("NDTA_PARMS", {"attrs": [("NDTPA_IFINDEX", ifindex), *parameters.items()]}),
        ]
        await self._carry_out(request, RTM_SETNEIGHTBL)

    async def dump(self, request: nlmsg, kind: int, row: Row[T]) -> list[T]:
        """Return the values that `row` reads of a dump's messages; a dump flagged as interrupted is repeated.

        Args:
            request: the message, such as rtmsg(), with the fields that the kernel filters by.
            kind: its type, such as RTM_GETROUTE.
            row: the reader, in place of the library's own, which takes ten times as long.
        """
        for _ in range(_DUMP_TRIES):
            reader = _AnswerReader(row)
            rows: list[T] = await self._rows(request, kind, NLM_F_REQUEST | NLM_F_DUMP, reader)
            if not reader.interrupted:
                return rows
        raise OSError(errno.EINTR, f"the kernel's state changed during each of {_DUMP_TRIES} dumps")

    async def _carry_out(self, request: nlmsg, kind: int) -> None:
        async with self._asking() as library:
            sent = NetlinkRequest(library, request, msg_type=kind, msg_flags=NLM_F_REQUEST | NLM_F_ACK)
            await sent.send()
            async for _ in sent.response():
                pass

    async def _rows(self, request: nlmsg, kind: int, flags: int, reader: "_AnswerReader") -> list[Any]:
        async with self._asking() as library:
            sent = NetlinkRequest(library, request, msg_type=kind, msg_flags=flags, parser=reader.parse)
            await sent.send()
            return [found["row"] async for found in sent.response() if found["row"] is not None]

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[AsyncIPRoute]:
        """Open the socket when there is none, and turn the library's errors into OSError."""
        if self._library is None:
            self._library = _KernelOnly(netns=self._netns, ext_ack=True, strict_check=True)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                yield self._library
        except NetlinkError as error:
            raise OSError(error.code, error.args[1] or os.strerror(error.code)) from None
        except TimeoutError:
            # A late answer must not count as the answer to another request.
            self.close()
            raise TimeoutError(errno.ETIMEDOUT, "the kernel did not answer") from None


class _AnswerReader:
    """Parser of one answer in the form that pyroute2 requires: a mapping with a header for each message."""

    def __init__(self, row: Row[Any]) -> None:
        self._row = row
        self.interrupted = False

    def parse(self, data: bytes, offset: int, length: int) -> dict[str, Any]:
        (kind,) = FLAGS.unpack_from(data, offset + _TYPE_AT)
        (flags,) = FLAGS.unpack_from(data, offset + FLAGS_AT)
        self.interrupted |= bool(flags & NLM_F_DUMP_INTR)
        body = memoryview(data)[offset + HEADER.size : offset + length]
        header: dict[str, Any] = {"type": kind, "flags": flags, "error": None}
        if kind in (NLMSG_DONE, NLMSG_ERROR):
            code = -ERROR.unpack_from(body)[0] if len(body) >= ERROR.size else 0
            if code:
                header["error"] = OSError(code, os.strerror(code))
            return {"header": header, "row": None}
        return {"header": header, "row": self._row(body)}


_IFINFO_BYTES: Final = 16


def _link_name(message: memoryview) -> str | None:
    for attribute, payload in attributes(message[_IFINFO_BYTES:]):
        if attribute == c.IFLA_IFNAME:
            return decode_link_name(bytes(payload).rstrip(b"\0"))
    return None


_VALUE: Final = Struct("=I")


def _arp_notify(message: memoryview) -> int | None:
    """Return arp_notify of a link; None when the link has no IPv4."""
    payload = message[_IFINFO_BYTES:]
    for wanted in (c.IFLA_AF_SPEC, c.AF_INET, c.IFLA_INET_CONF):
        found = [value for attribute, value in attributes(payload) if attribute == wanted]
        if not found:
            return None
        payload = found[0]
    at = (c.IPV4_DEVCONF_ARP_NOTIFY - 1) * _VALUE.size
    value: int = _VALUE.unpack_from(payload, at)[0] if len(payload) >= at + _VALUE.size else 0
    return value


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
