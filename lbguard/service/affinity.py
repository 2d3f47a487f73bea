"""Flow affinity in the service: applies the engine's steering, restores its table, reads the counters.

It reports to the engine whether the rules are in force and, while targets drain, which of them get no packets any more.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from lbguard.affinity.names import AffinityOptions
from lbguard.affinity.table import AffinityCounts, AffinityTable, remove_left_over
from lbguard.affinity.trial import refusal
from lbguard.core.effects import SteerFlows
from lbguard.core.events import AffinityReported, Event, TargetsIdle
from lbguard.core.model import StreamSteering
from lbguard.core.status import AffinityStatus, FlowMap
from lbguard.distributor.base import DistributorError
from lbguard.distributor.nftables.removal import Removal
from lbguard.service.build import assumed_queue
from lbguard.service.drains import DrainWatch
from lbguard.settings.model import Settings
from lbguard.telemetry.log import fields
from lbguard.telemetry.metrics.guard import Metrics

_log = logging.getLogger("lbguard.service.affinity")

_LOOK_S = 1.0
_COUNT_EVERY = 5
_ROOM_AGAIN = 0.9
"""A full map is reported again only after it was below this share of its room."""

Packets = Callable[[], Awaitable[Mapping[int, int]]]
"""Reads how many packets each mark got; a mark that is not counted is absent."""
Post = Callable[[Sequence[Event]], None]


class SteeringTable(Protocol):
    """Interface of the table to its keeper; every method raises DistributorError or OSError when it fails."""

    options: AffinityOptions

    async def apply(self, streams: Iterable[StreamSteering]) -> None:
        """Make exactly these streams' affinity effective."""

    async def look(self) -> bool:
        """Check whether another program changed the table, and restore it then. Returns whether it was unchanged."""

    async def read(self) -> AffinityCounts:
        """Read the counts."""

    async def remove(self) -> None:
        """Remove the table."""

    async def close(self) -> None:
        """Release what is held."""


class FlowAffinity:
    """Keeper of the affinity of all streams. When nftables refuses, the service works without affinity.

    Changes that arrive during an update are applied together after it.
    """

    def __init__(
        self,
        table: SteeringTable,
        metrics: Metrics,
        *,
        packets: Packets,
        post: Post,
        drain_idle_s: float,
        look_s: float = _LOOK_S,
    ) -> None:
        """Set the table, the reader of packet counts, and the receiver of events."""
        self._table = table
        self._metrics = metrics
        self._packets = packets
        self._post = post
        self._drains = DrainWatch(drain_idle_s)
        self._look_s = look_s
        self._full: frozenset[tuple[str, int]] = frozenset()
        self._desired: dict[str, StreamSteering] = {}
        self._changed = asyncio.Event()
        self._applied = False
        self._reported = True
        self._problem = ""
        self._flows: Mapping[tuple[str, int], int] = {}
        metrics.affinity.flows_max.set(table.options.max_flows)

    def status(self) -> AffinityStatus:
        """Return what is in force, and the flows as last counted."""
        options = self._table.options
        return AffinityStatus(
            mode="all" if options.every_flow else "incident",
            in_force=self._applied,
            problem=self._problem,
            flows_max=options.max_flows,
            maps=tuple(
                FlowMap(protocol=protocol, ipv4=family == 4, flows=count)
                for (protocol, family), count in sorted(self._flows.items())
            ),
        )

    def configure(self, *, drain_idle_s: float) -> None:
        """Use another time without a packet that ends a drain, from now on."""
        self._drains.configure(drain_idle_s)

    async def perform(self, effect: SteerFlows) -> Sequence[Event]:
        """Accept one effect; `run` applies it, and retries a failure each second."""
        for name in effect.gone:
            self._desired.pop(name, None)
        self._desired.update((steering.stream, steering) for steering in effect.streams)
        self._changed.set()
        return ()

    async def run(self) -> None:
        """Keep the table and read its counts until cancelled."""
        loop = asyncio.get_running_loop()
        rounds, look_at = 0, loop.time() + self._look_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    await self._changed.wait()
            if self._changed.is_set():
                await self._apply()
            if loop.time() < look_at:
                continue
            if self._applied:
                await self._look(count=rounds % _COUNT_EVERY == 0)
                rounds += 1
            elif self._desired:
                await self._apply()
            await self._watch_drains(loop.time())
            look_at = loop.time() + self._look_s

    async def _watch_drains(self, now: float) -> None:
        marks = [mark for steering in self._desired.values() for mark in steering.draining]
        packets = await self._packets() if marks else {}
        idle = self._drains.observe(marks, packets, now)
        if idle:
            self._post([TargetsIdle(marks=idle)])

    async def _look(self, *, count: bool) -> None:
        try:
            if not await self._table.look():
                _log.warning("affinity table was changed by others, and is written again")
                self._metrics.affinity.mended.inc()
            if count:
                counts = await self._table.read()
                self._flows = counts.flows
                self._metrics.affinity.record(
                    counts.flows,
                    steered=counts.steered,
                    learned=counts.learned,
                    observed=counts.observed,
                    orphaned=counts.orphaned,
                    refused=counts.refused,
                )
                self._report_full(counts.flows)
        except (DistributorError, OSError) as error:
            self._failed(str(error))

    async def close(self, *, remove: bool) -> None:
        """Release the handle. With `remove` the kernel forgets every flow; otherwise it continues to steer."""
        if remove:
            try:
                await self._table.remove()
            except (DistributorError, OSError) as error:
                self._failed(str(error))
        await self._table.close()

    async def _apply(self) -> None:
        self._changed.clear()
        try:
            await self._table.apply(list(self._desired.values()))
        except (DistributorError, OSError) as error:
            self._failed(str(error))
            return
        if self._problem:
            _log.info("flow affinity is in force again")
        self._applied, self._problem = True, ""
        self._metrics.affinity.in_force.set(1)
        self._report()

    def _report(self) -> None:
        """Report a change to the engine, which takes the rules for in force at first."""
        if self._reported is not self._applied:
            self._reported = self._applied
            self._post([AffinityReported(in_force=self._applied)])

    def _report_full(self, flows: Mapping[tuple[str, int], int]) -> None:
        room = self._table.options.max_flows
        still = {of for of in self._full if flows.get(of, 0) > _ROOM_AGAIN * room}
        full = {of for of, count in flows.items() if count >= room}
        for protocol, family in sorted(full - still):
            _log.warning(
                "affinity map is full: new flows are not remembered",
                extra=fields(protocol=protocol, family=f"ipv{family}", max_flows=room),
            )
        self._full = frozenset(still | full)

    def _failed(self, reason: str) -> None:
        self._applied = False
        self._metrics.affinity.errors.inc()
        self._metrics.affinity.in_force.set(0)
        self._report()
        if reason != self._problem:
            self._problem = reason
            _log.warning("flow affinity is not in force", extra=fields(reason=reason))


def make_affinity(settings: Settings, metrics: Metrics, packets: Packets, post: Post) -> FlowAffinity:
    """Build the keeper, with the reader of packet counts and the receiver of its events."""
    table = AffinityTable(_options(settings), queue_at_least=assumed_queue(settings))
    return FlowAffinity(table, metrics, packets=packets, post=post, drain_idle_s=settings.drain.idle)


def affinity_refusal(settings: Settings) -> str:
    """Return why the kernel refuses the rules of flow affinity; empty: it takes them. Nothing is changed."""
    return refusal(_options(settings))


def _options(settings: Settings) -> AffinityOptions:
    group = settings.affinity
    return AffinityOptions(
        every_flow=group.mode == "all", max_flows=group.max_flows, idle_s=round(group.idle), udp=group.udp
    )


async def end_earlier_affinity(settings: Settings) -> None:
    """Remove the table of an earlier run where the settings turn affinity off and allow changes."""
    if settings.mode != "enforce" or settings.steers_flows:
        return
    try:
        if await asyncio.to_thread(remove_left_over) is Removal.REMOVED:
            _log.info("flow affinity is off: the table of an earlier run is removed")
    except (DistributorError, OSError) as error:
        _log.debug("no table of flow affinity can be removed: %s", error)
