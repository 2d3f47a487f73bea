"""Programming of the targets' routes and rules, in batches.

Replacing is atomic, deleting what is absent succeeds, and only routes and rules with our protocol number are changed:
where we have no route, one is added, which the kernel refuses if another program has one.
"""

import asyncio
import errno
from functools import partial
from typing import Final

from lbguard.core.effects import ProgramRoutes, ProgramRules
from lbguard.core.events import RouteFailed, RoutesProgrammed, RuleFailed, RuleGone, RuleSeen
from lbguard.core.model import ROUTE_PROTOCOL
from lbguard.kernel.channel import NetlinkChannel
from lbguard.kernel.codec.encode import add_route, add_rule, delete_route, delete_rule, replace_route

# ESRCH and ENOENT: no such route or rule. ENODEV: its device is gone, and the route went with it.
_ABSENT: Final = frozenset({0, errno.ESRCH, errno.ENOENT, errno.ENODEV})

# The kernel has no route by which the gateway is on the link. The core knows an address or a route for it: one that was
# seen just now, or an address without a prefix route.
_NOT_ON_LINK: Final = frozenset({errno.EINVAL, errno.ENETUNREACH, errno.EHOSTUNREACH})

_TURN_S: Final = 0.03
"""Routes end an outage, so they come first. Between two chunks the loop would process the kernel's notifications of the
last one, which takes longer than the chunk itself and can wait."""


class RouteTable:
    """Programs the default routes and the fwmark rules of targets."""

    def __init__(self, channel: NetlinkChannel) -> None:
        self._channel = channel
        # The channel may interleave batches; of two changes of a route the later one must apply last.
        self._in_order = asyncio.Lock()

    async def program(self, effect: ProgramRoutes) -> list[RoutesProgrammed | RouteFailed]:
        """Add, replace and delete routes, in this order.

        Returns:
            One RoutesProgrammed with all that the kernel did (if anything), and a RouteFailed for each refused route.
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
