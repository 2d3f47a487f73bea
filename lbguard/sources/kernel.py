"""Source `kernel`: streams and targets from the fwmark rules and default routes of an unmodified load balancer.

A rule `fwmark F lookup F` and default routes through gateways in table F are a target: its addresses are the gateways.

Meridio removes both when a path is broken, and when a target is removed. In the first case lbguard keeps the target:
its neighbour entries matter when its link is back. So a target that disappeared while its path was broken, or had been
just before, stays listed for a time; any other target is removed. Meridio-2 removes them only with the target; the
kernel deletes the routes of a lost link, and the rule stays. So a target stays listed as long as it has a rule.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from lbguard.core.addr import Ip, format_ip, is_ipv4, why_not_unicast
from lbguard.core.events import Event, KernelSnapshot, RouteGone, RouteSeen, RuleGone, RuleSeen, SourceSnapshot
from lbguard.core.model import MAX_MARK, ROUTE_PROTOCOL, Rule, StreamSpec, TargetSpec
from lbguard.settings.surroundings import MarkRange
from lbguard.sources.flavour import Flavour
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.sources.kernel")

STREAM = "kernel"
"""The stream of targets whose mark is in no range."""

_GATHER_S = 0.05
_DECIDE_S = 1.0
"""Delay of a decision on a removed rule: a load balancer that adds a target again deletes its rules first."""


class Gateways(Protocol):
    """The load balancer's routes."""

    def gateways(self, table: int) -> tuple[Ip, ...]:
        """Return the gateways of the default routes in a table, at most one per family."""


class KernelSource:
    """Source of the targets that the kernel's rules and routes show.

    Args:
        ranges: marks of the streams.
        keep_s: how long a target is kept that disappeared with its path broken, seconds.
        emit: receives each new list, in the thread of the event loop.
        flavour: the load balancer.
        routes: the load balancer's routes; they receive each event first.
        path_lost: returns whether the path of a mark's target is broken, or was within a time in seconds.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        ranges: tuple[MarkRange, ...],
        keep_s: float,
        emit: Callable[[SourceSnapshot], None],
        *,
        flavour: Flavour = Flavour.MERIDIO,
        routes: Gateways,
        path_lost: Callable[[int, float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ranges = ranges
        self._flavour = flavour
        self._keep_s = keep_s
        self._emit = emit
        self._routes = routes
        self._path_lost = path_lost
        self._clock = clock
        self._known = False
        self._rules: dict[int, set[bool]] = {}
        self._targets: dict[int, tuple[Ip, ...]] = {}
        self._gone_since: dict[int, float] = {}
        self._broken: set[int] = set()
        self._refused: dict[tuple[int, int], Ip] = {}
        self._reported: SourceSnapshot | None = None
        self._news = asyncio.Event()

    def reload(self) -> None:
        """Report the list even if it is unchanged."""
        self._reported = None
        self._news.set()

    def observe_kernel(self, events: Iterable[Event]) -> None:
        """Record the rules and routes in some events."""
        marks: set[int] = set()
        for event in events:
            match event:
                case RuleSeen(rule=rule):
                    self._put(rule)
                    marks.add(rule.mark)
                case RuleGone(rule=rule):
                    self._drop(rule)
                    marks.add(rule.mark)
                case RouteSeen(route=route) | RouteGone(route=route):
                    marks.add(route.table)
                case KernelSnapshot(rules=rules):
                    self._rules.clear()
                    for rule in rules:
                        self._put(rule)
                    self._known = True
                    marks |= self._rules.keys() | self._targets.keys()
                    self._news.set()
        for mark in marks:
            self._look_at(mark)

    async def run(self) -> None:
        """Report changes until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), _DECIDE_S if self._gone_since else None)
            # The load balancer adds one target after the other; one list reports many.
            await asyncio.sleep(_GATHER_S)
            self._news.clear()
            self.settle()

    def settle(self) -> None:
        """Decide on disappeared targets, and report the list if it differs."""
        now = self._clock()
        for mark, since in list(self._gone_since.items()):
            gone_for_s = now - since
            if gone_for_s < _DECIDE_S:
                continue
            if mark not in self._broken and self._path_lost(mark, gone_for_s + _DECIDE_S):
                self._broken.add(mark)
            if mark not in self._broken or gone_for_s >= self._keep_s:
                self._forget(mark)
        if self._known:
            snapshot = SourceSnapshot(streams=self._streams())
            if snapshot != self._reported:
                self._reported = snapshot
                self._emit(snapshot)

    def _put(self, rule: Rule) -> None:
        if rule.protocol != ROUTE_PROTOCOL and rule.mark == rule.table:
            self._rules.setdefault(rule.mark, set()).add(rule.ipv4)

    def _drop(self, rule: Rule) -> None:
        if rule.protocol != ROUTE_PROTOCOL and rule.mark == rule.table:
            self._rules.get(rule.mark, set()).discard(rule.ipv4)
            if not self._rules.get(rule.mark):
                self._rules.pop(rule.mark, None)

    def _look_at(self, mark: int) -> None:
        gateways = self._usable(mark, self._routes.gateways(mark)) if mark in self._rules else ()
        known = self._targets.get(mark, ())
        if gateways:
            # The target keeps an address whose route is missing: routes disappear and return with their link.
            kept = tuple(ip for ip in known if all(is_ipv4(ip) != is_ipv4(gateway) for gateway in gateways))
            ips = tuple(sorted((*gateways, *kept), key=lambda ip: not is_ipv4(ip)))
            self._gone_since.pop(mark, None)
            self._broken.discard(mark)
            if ips != known:
                self._targets[mark] = ips
                self._news.set()
        elif known and mark not in self._rules and mark not in self._gone_since:
            self._gone_since[mark] = self._clock()
            self._news.set()

    def _usable(self, mark: int, gateways: tuple[Ip, ...]) -> tuple[Ip, ...]:
        """Return the gateways that can be the address of a target, and log the others, each once."""
        unusable = {ip: why for ip in gateways if (why := why_not_unicast(ip))}
        for ip, why in unusable.items():
            if self._refused.get((mark, len(ip))) != ip:
                self._refused[mark, len(ip)] = ip
                _log.warning("gateway is no target", extra=fields(mark=mark, ip=format_ip(ip), reason=f"it is {why}"))
        return tuple(ip for ip in gateways if ip not in unusable)

    def _forget(self, mark: int) -> None:
        del self._gone_since[mark]
        self._broken.discard(mark)
        del self._targets[mark]

    def _streams(self) -> tuple[StreamSpec, ...]:
        specs = [
            StreamSpec(
                name=each.name,
                max_targets=each.last - each.first + 1,
                identifier_offset=each.first - self._flavour.first_identifier,
                shm_name=self._flavour.memory(each.name),
                first_identifier=self._flavour.first_identifier,
                targets=self._members(each.first, each.last),
            )
            for each in self._ranges
        ]
        rest = tuple(
            TargetSpec(identifier=mark, ips=ips)
            for mark, ips in sorted(self._targets.items())
            if not any(each.first <= mark <= each.last for each in self._ranges)
        )
        if rest:
            specs.append(StreamSpec(name=STREAM, max_targets=MAX_MARK, identifier_offset=0, targets=rest))
        return tuple(specs)

    def _members(self, first: int, last: int) -> tuple[TargetSpec, ...]:
        return tuple(
            TargetSpec(identifier=mark - first + self._flavour.first_identifier, ips=ips)
            for mark, ips in sorted(self._targets.items())
            if first <= mark <= last
        )
