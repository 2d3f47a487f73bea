"""Operations on links. The kernel reuses ifindexes, so the name is compared right before each."""

from lbguard.core.events import LinkSeen, LinkSetDown
from lbguard.core.model import LinkKey
from lbguard.netlink.encode import NeighborTimers, get_link, set_link_down, tune_neighbors
from lbguard.netlink.socket import NetlinkChannel

__all__ = ["LinkOperations", "NeighborTimers"]


class LinkOperations:
    """Sets links down and tunes their neighbour timers."""

    def __init__(self, channel: NetlinkChannel) -> None:
        self._channel = channel

    async def set_down(self, link: LinkKey, ifname: str) -> LinkSetDown:
        """Set a link down, unless its ifindex belongs to a link of another name by now.

        Returns:
            The outcome; `reason` is empty when the link is down (also when it was already).
        """
        reason = await self._mismatch(link.ifindex, ifname)
        if not reason:
            [ack] = await self._channel.submit([set_link_down(link.ifindex)])
            reason = ack.reason
        return LinkSetDown(link=link, reason=reason)

    async def tune(self, ifindex: int, ifname: str, timers: NeighborTimers) -> str:
        """Set the neighbour timers of a link for both families. Returns why it failed; empty on success."""
        reason = await self._mismatch(ifindex, ifname)
        if reason:
            return reason
        acks = await self._channel.submit([tune_neighbors(ifindex, timers, ipv4=ipv4) for ipv4 in (True, False)])
        return next((ack.reason for ack in acks if ack.error), "")

    async def _mismatch(self, ifindex: int, ifname: str) -> str:
        """Tell why a link is not the one that is meant; empty when it is."""
        [ack] = await self._channel.submit([get_link(ifindex)])
        if ack.error:
            return ack.reason
        if not isinstance(ack.found, LinkSeen) or ack.found.name != ifname:
            return f"ifindex {ifindex} is no longer {ifname}"
        return ""
