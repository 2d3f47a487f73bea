"""Flow affinity in the service: applies the engine's steering, restores its table, reads the counters."""

import asyncio
import logging
from collections.abc import Sequence

from lbguard.affinity.ruleset import AffinityOptions
from lbguard.affinity.table import AffinityTable
from lbguard.core.effects import SteerFlows
from lbguard.core.events import Event
from lbguard.core.model import StreamSteering
from lbguard.distributor.base import DistributorError
from lbguard.settings.model import Settings
from lbguard.telemetry.log import fields
from lbguard.telemetry.metrics.guard import Metrics

_log = logging.getLogger("lbguard.service.affinity")

_LOOK_S = 1.0
_COUNT_EVERY = 5


class FlowAffinity:
    """Keeper of the affinity of all streams. When nftables refuses, the service works without affinity."""

    def __init__(self, table: AffinityTable, metrics: Metrics) -> None:
        self._table = table
        self._metrics = metrics
        self._desired: dict[str, StreamSteering] = {}
        self._applied = False
        self._problem = ""

    async def perform(self, effect: SteerFlows) -> Sequence[Event]:
        """Carry out one effect; a failure is retried each second."""
        for name in effect.gone:
            self._desired.pop(name, None)
        self._desired.update((steering.stream, steering) for steering in effect.streams)
        await self._apply()
        return ()

    async def run(self) -> None:
        """Keep the table and read its counts until cancelled."""
        rounds = 0
        while True:
            await asyncio.sleep(_LOOK_S)
            rounds += 1
            if not self._applied:
                if self._desired:
                    await self._apply()
                continue
            try:
                if not await self._table.look():
                    _log.warning("affinity table was changed by others, and is written again")
                    self._metrics.affinity.mended.inc()
                if rounds % _COUNT_EVERY == 0:
                    counts = await self._table.read()
                    self._metrics.affinity.record(
                        counts.flows, counts.steered, counts.orphaned, self._table.options.max_flows
                    )
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
        try:
            await self._table.apply(self._desired.values())
        except (DistributorError, OSError) as error:
            self._failed(str(error))
            return
        if self._problem:
            _log.info("flow affinity is in force again")
        self._applied, self._problem = True, ""
        self._metrics.affinity.in_force.set(1)

    def _failed(self, reason: str) -> None:
        self._applied = False
        self._metrics.affinity.in_force.set(0)
        if reason != self._problem:
            self._problem = reason
            _log.warning("flow affinity is not in force", extra=fields(reason=reason))


def make_affinity(settings: Settings, metrics: Metrics) -> FlowAffinity | None:
    """Build the keeper; None when affinity is off, and in observe mode."""
    group = settings.affinity
    if settings.mode != "enforce" or group.mode == "off":
        return None
    options = AffinityOptions(
        every_flow=group.mode == "all", max_flows=group.max_flows, idle_s=round(group.idle), udp=group.udp
    )
    return FlowAffinity(AffinityTable(options), metrics)
