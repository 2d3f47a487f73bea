"""A sink that keeps the kernel's state as the mirror tells it, for tests that compare it with the kernel's own."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

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
    RouteGone,
    RouteSeen,
    RuleGone,
    RuleSeen,
)
from lbguard.core.model import Route, Rule
from lbguard.kernel.mirror import KernelMirror, MirrorSettings
from lbguard.lab.netns import Namespace


class Recorder:
    """Follows the events the way the engine would."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.in_sync = False
        self.links: dict[int, LinkSeen] = {}
        self.addresses: dict[tuple[int, Ip], AddressSeen] = {}
        self.neighbors: dict[tuple[int, Ip], NeighborSeen] = {}
        self.routes: set[Route] = set()
        self.rules: set[Rule] = set()
        self._more = asyncio.Event()

    def __call__(self, batch: list[Event], received_at: float) -> None:
        assert received_at <= time.monotonic()
        for event in batch:
            self.events.append(event)
            self._apply(event)
        self._more.set()

    def _apply(self, event: Event) -> None:
        match event:
            case KernelSnapshot():
                self.in_sync = True
                self.links = {link.ifindex: link for link in event.links}
                self.addresses = {(entry.ifindex, entry.ip): entry for entry in event.addresses}
                self.neighbors = {(entry.ifindex, entry.ip): entry for entry in event.neighbors}
                self.routes, self.rules = set(event.routes), set(event.rules)
            case KernelOutOfSync():
                self.in_sync = False
            case LinkSeen():
                self.links[event.ifindex] = event
            case LinkGone():
                self.links.pop(event.ifindex, None)
            case AddressSeen():
                self.addresses[event.ifindex, event.ip] = event
            case AddressGone():
                self.addresses.pop((event.ifindex, event.ip), None)
            case NeighborSeen():
                self.neighbors[event.ifindex, event.ip] = event
            case NeighborGone():
                self.neighbors.pop((event.ifindex, event.ip), None)
            case RouteSeen():
                self.routes.add(event.route)
            case RouteGone():
                self.routes.discard(event.route)
            case RuleSeen():
                self.rules.add(event.rule)
            case RuleGone():
                self.rules.discard(event.rule)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, looking at it after every batch."""
        async with asyncio.timeout(30):
            while not condition():
                self._more.clear()
                await self._more.wait()

    def link(self, name: str) -> LinkSeen | None:
        return next((link for link in self.links.values() if link.name == name), None)

    def ifindex(self, name: str) -> int:
        link = self.link(name)
        assert link is not None, name
        return link.ifindex

    def losses(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, KernelOutOfSync)]


def of_targets(table: int) -> bool:
    return 5000 < table <= 9000


@asynccontextmanager
async def mirrored(
    namespace: Namespace, recorder: Recorder, settings: MirrorSettings | None = None
) -> AsyncIterator[KernelMirror]:
    """Run a mirror of a namespace, in sync when the block begins."""
    mirror = KernelMirror(recorder, of_targets, settings or MirrorSettings(reconcile_interval_s=0))
    with namespace.entered():
        await mirror.start()
    try:
        await recorder.until(lambda: recorder.in_sync)
        yield mirror
    finally:
        await mirror.stop()
    await mirror.wait()
