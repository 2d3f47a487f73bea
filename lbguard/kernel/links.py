"""Operations on links: down, up, neighbour timers. Each checks the name first, since the kernel reuses ifindexes."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from socket import AF_INET, AF_INET6

from lbguard.core.events import LinkSetDown
from lbguard.core.model import LinkKey
from lbguard.kernel.channel import describe_error
from lbguard.kernel.link_needs import LinkNeeds, LostAddress
from lbguard.kernel.requests import KernelRequests


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborTimers:
    """Neighbour timers of one link, for ARP and neighbour discovery alike (ip-sysctl: net.ipv4.neigh.*).

    A verify probe that gets no answer is repeated every `retrans_ms`: `ucast_probes` to the known link-layer address,
    then `mcast_reprobes` by multicast, and only then the entry fails. The defaults detect a changed link-layer address
    0.2 s after a probe begins, and give a busy neighbour 1 s before it counts as failed. An address that was never
    resolved is solicited `mcast_probes` times, for 3 s by default: on a fresh link IPv6 sends no solicitation at all
    until the link-local address has passed duplicate address detection (net/ipv6/ndisc.c, ndisc_send_ns). `locktime_ms`
    must be 0: otherwise ARP ignores a changed address for that long after the probe itself touched the entry
    (net/ipv4/arp.c).
    """

    retrans_ms: int = 200
    delay_probe_ms: int = 500
    base_reachable_ms: int = 10_000
    ucast_probes: int = 1
    mcast_probes: int = 15
    mcast_reprobes: int = 4
    locktime_ms: int = 0

    def attributes(self) -> dict[str, int]:
        """Return the parameters by the names of their attributes in an RTM_SETNEIGHTBL request."""
        return {
            "NDTPA_RETRANS_TIME": self.retrans_ms,
            "NDTPA_DELAY_PROBE_TIME": self.delay_probe_ms,
            "NDTPA_BASE_REACHABLE_TIME": self.base_reachable_ms,
            "NDTPA_UCAST_PROBES": self.ucast_probes,
            "NDTPA_MCAST_PROBES": self.mcast_probes,
            "NDTPA_MCAST_REPROBES": self.mcast_reprobes,
            "NDTPA_LOCKTIME": self.locktime_ms,
        }


class LinkOperations:
    """Sets superseded links down and up again, and tunes neighbour timers.

    The addresses that a link loses by being set down are remembered until it is set up again, or until the end of this
    process.
    """

    def __init__(self, requests: KernelRequests) -> None:
        self._requests = requests
        self._lost: dict[LinkKey, tuple[LostAddress, ...]] = {}

    async def set_down(self, link: LinkKey, ifname: str) -> LinkSetDown:
        """Set a link down, unless something needs it or its ifindex now belongs to a link of another name.

        Returns:
            The outcome; `reason` is empty when the link is down (also when it was already).
        """
        reason = await self._mismatch(link.ifindex, ifname)
        if not reason:
            reason = await asyncio.to_thread(self._ask, link)
        if not reason:
            reason = await _why_not(self._requests.set_link_down(link.ifindex))
        if reason:
            self._lost.pop(link, None)
        return LinkSetDown(link=link, reason=reason)

    async def set_up(self, link: LinkKey, ifname: str) -> str:
        """Set a link up after `set_down`, with the addresses it lost. Returns the error; empty on success."""
        lost = self._lost.pop(link, ())
        reason = await self._mismatch(link.ifindex, ifname)
        if reason:
            return reason
        return await asyncio.to_thread(lambda: LinkNeeds(link.ifindex).set_up(lost))

    async def tune(self, ifindex: int, ifname: str, timers: NeighborTimers) -> str:
        """Set the neighbour timers of a link for both families. Returns the error; empty on success."""
        reason = await self._mismatch(ifindex, ifname)
        if reason:
            return reason
        for family in (AF_INET, AF_INET6):
            reason = await _why_not(self._requests.set_neighbor_timers(ifindex, family, timers.attributes()))
            if reason:
                return reason
        return ""

    def _ask(self, link: LinkKey) -> str:
        """Return what needs a link (empty: nothing), and remember the addresses it loses when set down."""
        needs = LinkNeeds(link.ifindex)
        reason = needs.found()
        if not reason:
            self._lost[link] = needs.lost_when_down()
        return reason

    async def _mismatch(self, ifindex: int, ifname: str) -> str:
        """Return why an ifindex is not the meant link's; empty when it is."""
        try:
            found = await self._requests.link_name(ifindex)
        except OSError as error:
            return describe_error(error)
        return "" if found == ifname else f"ifindex {ifindex} is no longer {ifname}"


async def _why_not(request: Awaitable[None]) -> str:
    """Make a request; return its error, empty on success."""
    try:
        await request
    except OSError as error:
        return describe_error(error)
    return ""
