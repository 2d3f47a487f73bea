"""Operations on links. The kernel reuses ifindexes, so the name is compared right before each."""

import asyncio
from typing import TYPE_CHECKING

from lbguard.core.events import LinkSeen, LinkSetDown
from lbguard.core.model import LinkKey
from lbguard.kernel.codec.encode import NeighborTimers, get_link, set_link_down, tune_neighbors
from lbguard.kernel.socket import NetlinkChannel

if TYPE_CHECKING:
    from lbguard.kernel.link_needs import LinkNeeds, LostAddress

__all__ = ["LinkOperations", "NeighborTimers"]


class LinkOperations:
    """Sets superseded links down and up again, and tunes neighbour timers.

    The addresses that a link loses by being set down are remembered until it is set up again, or until the end of this
    process.
    """

    def __init__(self, channel: NetlinkChannel) -> None:
        self._channel = channel
        self._lost: dict[LinkKey, tuple[LostAddress, ...]] = {}

    async def set_down(self, link: LinkKey, ifname: str) -> LinkSetDown:
        """Set a link down, unless something needs it or its ifindex belongs to a link of another name by now.

        Returns:
            The outcome; `reason` is empty when the link is down (also when it was already).
        """
        reason = await self._mismatch(link.ifindex, ifname)
        if not reason:
            reason = await asyncio.to_thread(self._ask, link)
        if not reason:
            [ack] = await self._channel.submit([set_link_down(link.ifindex)])
            reason = ack.reason
        if reason:
            self._lost.pop(link, None)
        return LinkSetDown(link=link, reason=reason)

    async def set_up(self, link: LinkKey, ifname: str) -> str:
        """Set a link up that `set_down` set down, with what it lost. Returns why it failed; empty on success."""
        lost = self._lost.pop(link, ())
        reason = await self._mismatch(link.ifindex, ifname)
        if reason:
            return reason
        return await asyncio.to_thread(lambda: _needs(link).set_up(lost))

    async def tune(self, ifindex: int, ifname: str, timers: NeighborTimers) -> str:
        """Set the neighbour timers of a link for both families. Returns why it failed; empty on success."""
        reason = await self._mismatch(ifindex, ifname)
        if reason:
            return reason
        acks = await self._channel.submit([tune_neighbors(ifindex, timers, ipv4=ipv4) for ipv4 in (True, False)])
        return next((ack.reason for ack in acks if ack.error), "")

    def _ask(self, link: LinkKey) -> str:
        """Return what needs a link, empty for nothing, and remember what it loses by being set down."""
        needs = _needs(link)
        reason = needs.found()
        if not reason:
            self._lost[link] = needs.lost_when_down()
        return reason

    async def _mismatch(self, ifindex: int, ifname: str) -> str:
        """Return why a link is not the one that is meant; empty when it is."""
        [ack] = await self._channel.submit([get_link(ifindex)])
        if ack.error:
            return ack.reason
        if not isinstance(ack.found, LinkSeen) or ack.found.name != ifname:
            return f"ifindex {ifindex} is no longer {ifname}"
        return ""


def _needs(link: LinkKey) -> "LinkNeeds":
    # The library behind it takes a tenth of a second to load, which no repair should wait for.
    from lbguard.kernel.link_needs import LinkNeeds

    return LinkNeeds(link.ifindex)
