"""Takes everything of ours away at the end, for those who want that (`withdraw_on_exit`)."""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from lbguard.core.effects import ProgramRoutes, ProgramRules
from lbguard.core.events import Event, KernelSnapshot, RouteFailed, RuleFailed
from lbguard.core.model import ROUTE_PROTOCOL, StreamSpec
from lbguard.distributor.base import Distributor, DistributorError
from lbguard.service.actuators import KernelActuator
from lbguard.service.build import make_mirror
from lbguard.settings.model import Settings
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.service.withdrawal")


async def withdraw_everything(
    settings: Settings, distributor: Distributor, streams: Iterable[StreamSpec], kernel: KernelActuator
) -> None:
    """Take every target out, then remove our rules and routes: first no packet is marked, then no route is needed.

    What is removed is what the kernel holds at this moment, and not what was heard of it: a change may be under way.

    Raises:
        OSError: the kernel cannot be read.
    """
    for stream in streams:
        try:
            await distributor.detach(stream, withdraw=True)
        except (DistributorError, OSError) as error:
            _log.error("stream not withdrawn", extra=fields(stream=stream.name, reason=str(error)))
    try:
        await distributor.prune(())
    except (DistributorError, OSError) as error:
        _log.error("leftovers not removed", extra=fields(reason=str(error)))
    held = await _read_kernel(settings)
    rules = tuple(rule for rule in held.rules if rule.protocol == ROUTE_PROTOCOL)
    routes = tuple(route for route in held.routes if route.protocol == ROUTE_PROTOCOL)
    outcome = [*await kernel.perform(ProgramRules(delete=rules)), *await kernel.perform(ProgramRoutes(delete=routes))]
    refused = [event.reason for event in outcome if isinstance(event, RuleFailed | RouteFailed)]
    if refused:
        _log.error("rules or routes not removed", extra=fields(count=len(refused), first=refused[0]))
    _log.info("withdrawn", extra=fields(rules=len(rules), routes=len(routes)))


async def _read_kernel(settings: Settings) -> KernelSnapshot:
    found: asyncio.Future[KernelSnapshot] = asyncio.get_running_loop().create_future()

    def take(events: Sequence[Event], _: float) -> None:
        for event in events:
            if isinstance(event, KernelSnapshot) and not found.done():
                found.set_result(event)

    mirror = make_mirror(settings, take)
    await mirror.start()
    try:
        return await found
    finally:
        await mirror.stop()
