"""The links, addresses and neighbours of this network namespace, kept up to date for the sources of connections."""

import asyncio
from collections.abc import Callable, Sequence

from lbguard.core.addr import Ip
from lbguard.core.events import (
    AddressGone,
    AddressSeen,
    Event,
    KernelOutOfSync,
    KernelSnapshot,
    LinkGone,
    LinkSeen,
    NeighborGone,
    NeighborSeen,
)
from lbguard.kernel.mirror import KernelMirror, MirrorSettings

SETTLE_S = 0.02
"""Changes within this time are reported as one."""

_LOOPBACK = "lo"
_REMEMBERED_MAX = 100_000


class KernelView:
    """View of the kernel that notifies, in the loop's thread, after changes other than of a neighbour's state.

    While the kernel's messages are lost, the last view stays in force. `start` opens the socket in the network
    namespace of the calling thread.
    """

    def __init__(self, settings: MirrorSettings | None = None) -> None:
        self.links: dict[int, LinkSeen] = {}
        self.neighbors: dict[tuple[int, Ip], NeighborSeen] = {}
        self.complete = False
        self._addresses: dict[tuple[int, Ip, int], AddressSeen] = {}
        self._by_ip: dict[Ip, dict[int, AddressSeen]] = {}
        self._last_links: dict[Ip, str] = {}
        self._last_macs: dict[str, bytes] = {}
        self._listeners: list[Callable[[], None]] = []
        self._notify_timer: asyncio.TimerHandle | None = None
        self._mirror = KernelMirror(self.observe, lambda _table: False, settings)

    def when_changed(self, listener: Callable[[], None]) -> None:
        """Call a function soon after each change."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Begin to follow.

        Raises:
            OSError: the socket cannot be opened.
        """
        await self._mirror.start()

    async def wait(self) -> None:
        """Wait until it ends.

        Raises:
            MirrorError: it failed.
        """
        await self._mirror.wait()

    async def stop(self) -> None:
        """End; harmless when it has ended already."""
        if self._notify_timer is not None:
            self._notify_timer.cancel()
        await self._mirror.stop()

    def link_of(self, ip: Ip, preferred: str = "") -> str:
        """Return the link that has an address: of several the preferred or the newest one; empty: never seen.

        A removed link stays the result until another one has the address: without it, pings would follow the routing
        table and leave through the default route, and replies to them would not concern the link.
        """
        names = [
            self.links[ifindex].name
            for ifindex in sorted(self._by_ip.get(ip, ()), reverse=True)
            if ifindex in self.links and self.links[ifindex].name != _LOOPBACK
        ]
        if not names:
            return self._last_links.get(ip, "")
        self._last_links[ip] = preferred if preferred in names else names[0]
        if len(self._last_links) > _REMEMBERED_MAX:
            del self._last_links[next(iter(self._last_links))]
        return self._last_links[ip]

    def has(self, ip: Ip) -> bool:
        """Return whether any link has an address."""
        return ip in self._by_ip

    def lengths_of(self, ip: Ip) -> list[int]:
        """Return the lengths of the prefixes with which links have an address."""
        return [address.prefix_length for address in self._by_ip.get(ip, {}).values()]

    def link_named(self, name: str) -> LinkSeen | None:
        """Return the link of a name."""
        return next((link for link in self.links.values() if link.name == name), None)

    def mac_of(self, name: str) -> bytes:
        """Return the link-layer address of a link, or the last one while the link is gone; empty: none ever."""
        link = self.link_named(name)
        if link is not None and link.mac:
            self._last_macs[name] = link.mac
            if len(self._last_macs) > _REMEMBERED_MAX:
                del self._last_macs[next(iter(self._last_macs))]
        return self._last_macs.get(name, b"")

    def addresses_of(self, ifindex: int) -> tuple[AddressSeen, ...]:
        """Return the usable addresses of a link."""
        return tuple(address for address in self._addresses.values() if address.ifindex == ifindex and address.usable)

    def observe(self, events: Sequence[Event], _received_at: float) -> None:
        """Apply an event of the mirror, in the thread of the loop."""
        changed = False
        for event in events:
            changed |= self._apply(event)
        if changed and self._notify_timer is None:
            self._notify_timer = asyncio.get_running_loop().call_later(SETTLE_S, self._notify)

    def _notify(self) -> None:
        self._notify_timer = None
        for listener in self._listeners:
            listener()

    def _apply(self, event: Event) -> bool:
        """Apply one event; return whether the sources should look again."""
        match event:
            case KernelSnapshot():
                return self._replace(event)
            case LinkSeen():
                known = self.links.get(event.ifindex)
                self.links[event.ifindex] = event
                return known != event
            case LinkGone(ifindex=ifindex):
                self.links.pop(ifindex, None)
            case AddressSeen():
                self._add_address(event)
            case AddressGone(ifindex=ifindex, ip=ip, prefix_length=length):
                self._drop_address(ifindex, ip, length)
            case NeighborSeen():
                known_neighbor = self.neighbors.get((event.ifindex, event.ip))
                self.neighbors[event.ifindex, event.ip] = event
                return known_neighbor is None or known_neighbor.mac != event.mac
            case NeighborGone(ifindex=ifindex, ip=ip):
                self.neighbors.pop((ifindex, ip), None)
            case KernelOutOfSync():
                return False
            case _:
                return False
        return True

    def _replace(self, snapshot: KernelSnapshot) -> bool:
        """Apply a full view; return whether it differs from the previous state, which is rare."""
        before = (self.complete, self.links, dict(self._addresses), _macs(self.neighbors))
        self.links = {link.ifindex: link for link in snapshot.links}
        self.neighbors = {(entry.ifindex, entry.ip): entry for entry in snapshot.neighbors}
        self._addresses.clear()
        self._by_ip.clear()
        for address in snapshot.addresses:
            self._add_address(address)
        self.complete = True
        return before != (True, self.links, self._addresses, _macs(self.neighbors))

    def _add_address(self, address: AddressSeen) -> None:
        self._addresses[address.ifindex, address.ip, address.prefix_length] = address
        self._by_ip.setdefault(address.ip, {})[address.ifindex] = address

    def _drop_address(self, ifindex: int, ip: Ip, length: int) -> None:
        self._addresses.pop((ifindex, ip, length), None)
        if any(key[:2] == (ifindex, ip) for key in self._addresses):
            return
        holders = self._by_ip.get(ip, {})
        holders.pop(ifindex, None)
        if not holders:
            self._by_ip.pop(ip, None)


def _macs(neighbors: dict[tuple[int, Ip], NeighborSeen]) -> dict[tuple[int, Ip], bytes]:
    return {key: entry.mac for key, entry in neighbors.items()}
