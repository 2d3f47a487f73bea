"""Batches of changes in the kernel: routes, rules and neighbour entries; each is idempotent.

Replacing is atomic, deleting what is absent succeeds, and only routes and rules with our protocol number are touched:
where none of ours stands a route is added, which the kernel refuses if somebody else's does.
"""

import asyncio
import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from lbguard.core.addr import Ip
from lbguard.core.effects import FlushNeighbors, ProbeNeighbors, ProgramRoutes, ProgramRules, ResolveNeighbors
from lbguard.core.events import RouteFailed, RoutesProgrammed, RuleFailed, RuleGone, RuleSeen
from lbguard.core.model import ROUTE_PROTOCOL
from lbguard.kernel.channel import NetlinkChannel
from lbguard.kernel.codec.encode import (
    add_route,
    add_rule,
    delete_neighbor,
    delete_route,
    delete_rule,
    probe_neighbor,
    replace_route,
    resolve_neighbor,
)

# ESRCH and ENOENT: no such route or rule. ENODEV: its device is gone, and the route went with it.
_ABSENT: Final = frozenset({0, errno.ESRCH, errno.ENOENT, errno.ENODEV})

# The kernel has no route that says that the gateway is on the link. We know of an address or a route that does: it was
# seen a moment ago, or it is an address without a prefix route.
_NOT_ON_LINK: Final = frozenset({errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH})

_TURN_S: Final = 0.03
"""Routes are what a broken connection waits for. Between two chunks of them the loop would digest what the kernel tells
of the last one, which takes longer than the chunk itself and can as well come after."""


class RouteTable:
    """Programs the default routes and the fwmark rules of targets."""

    def __init__(self, channel: NetlinkChannel) -> None:
        self._channel = channel
        # The channel may interleave batches; of two for the same route the later must win.
        self._in_order = asyncio.Lock()

    async def program(self, effect: ProgramRoutes) -> list[RoutesProgrammed | RouteFailed]:
        """Add, replace and delete routes, in this order.

        Returns:
            What the kernel did as one RoutesProgrammed (if anything), and a RouteFailed for each route it refused.
        """
        wanted = effect.put
        for route in wanted + effect.delete:
            assert route.protocol == ROUTE_PROTOCOL, f"not ours to change: {route}"
        put = [partial(add_route, route) for route in effect.add]
        put += [partial(replace_route, route) for route in effect.replace]
        messages = [encode() for encode in put] + [delete_route(route) for route in effect.delete]
        async with self._in_order:
            acks = await self._channel.submit(messages, turn_s=_TURN_S)
            off_link = [n for n in range(len(wanted)) if acks[n].error in _NOT_ON_LINK and wanted[n].oif]
            again = await self._channel.submit([put[n](on_link=True) for n in off_link], turn_s=_TURN_S)
        for n, ack in zip(off_link, again, strict=True):
            acks[n] = ack
        events: list[RoutesProgrammed | RouteFailed] = []
        added, deleted = [], []
        split = len(wanted)
        for route, ack in zip(wanted, acks[:split], strict=True):
            if ack.error:
                events.append(RouteFailed(route=route, reason=ack.reason))
            else:
                added.append(route)
        for route, ack in zip(effect.delete, acks[split:], strict=True):
            if ack.error in _ABSENT:
                deleted.append(route)
            else:
                events.append(RouteFailed(route=route, reason=ack.reason))
        if added or deleted:
            events.insert(0, RoutesProgrammed(added=tuple(added), deleted=tuple(deleted)))
        return events

    async def program_rules(self, effect: ProgramRules) -> list[RuleSeen | RuleGone | RuleFailed]:
        """Add and delete rules, in this order.

        Returns:
            One event for each rule: it exists, it is gone, or the kernel refused.
        """
        for rule in effect.add + effect.delete:
            assert rule.protocol == ROUTE_PROTOCOL, f"not ours to change: {rule}"
        messages = [add_rule(rule) for rule in effect.add] + [delete_rule(rule) for rule in effect.delete]
        async with self._in_order:
            acks = await self._channel.submit(messages)
        events: list[RuleSeen | RuleGone | RuleFailed] = []
        split = len(effect.add)
        for rule, ack in zip(effect.add, acks[:split], strict=True):
            if ack.error in (0, errno.EEXIST):
                events.append(RuleSeen(rule=rule))
            else:
                events.append(RuleFailed(rule=rule, reason=ack.reason))
        for rule, ack in zip(effect.delete, acks[split:], strict=True):
            if ack.error in _ABSENT:
                events.append(RuleGone(rule=rule))
            else:
                events.append(RuleFailed(rule=rule, reason=ack.reason))
        return events


_NEIGHBOR_ABSENT: Final = frozenset({errno.ENOENT, errno.ENODEV})
# There is no entry, or it has no link-layer address to verify.
_NOT_RESOLVED: Final = frozenset({errno.ENOENT, errno.EINVAL})

Entry = tuple[int, Ip]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborFailure:
    """The kernel refused an operation on a neighbour entry."""

    ifindex: int
    ip: Ip
    reason: str


class Neighbors:
    """Carries out neighbour effects. Results show as neighbour events of the kernel; refusals are returned."""

    def __init__(self, channel: NetlinkChannel) -> None:
        self._channel = channel

    async def flush(self, effect: FlushNeighbors) -> list[NeighborFailure]:
        """Delete exactly these entries; absent ones (or their links) are no failure."""
        return await self._each(effect.entries, delete_neighbor, _NEIGHBOR_ABSENT)

    async def resolve(self, effect: ResolveNeighbors) -> list[NeighborFailure]:
        """Start resolving these addresses; an entry that is valid stays as it is (a stale one is verified soon)."""
        return await self._each(effect.entries, resolve_neighbor, frozenset())

    async def probe(self, effect: ProbeNeighbors) -> list[NeighborFailure]:
        """Verify these entries now; where there is nothing to verify, resolve."""
        failures = []
        unresolved = []
        acks = await self._channel.submit([probe_neighbor(ifindex, ip) for ifindex, ip in effect.entries])
        for (ifindex, ip), ack in zip(effect.entries, acks, strict=True):
            if ack.error in _NOT_RESOLVED:
                unresolved.append((ifindex, ip))
            elif ack.error:
                failures.append(NeighborFailure(ifindex=ifindex, ip=ip, reason=ack.reason))
        return failures + await self._each(tuple(unresolved), resolve_neighbor, frozenset())

    async def _each(
        self, entries: tuple[Entry, ...], encode: Callable[[int, Ip], bytes], accepted: frozenset[int]
    ) -> list[NeighborFailure]:
        acks = await self._channel.submit([encode(ifindex, ip) for ifindex, ip in entries])
        return [
            NeighborFailure(ifindex=ifindex, ip=ip, reason=ack.reason)
            for (ifindex, ip), ack in zip(entries, acks, strict=True)
            if ack.error and ack.error not in accepted
        ]
