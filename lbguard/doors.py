"""The doors of the service: the gRPC API on its unix socket, the HTTP endpoint, and what Meridio's frontend asks.

The daemon loads this module after the first decisions: gRPC and the HTTP server take long to import, and after a crash
in the middle of an outage the repair comes first.
"""

import asyncio
from typing import Protocol

from lbguard.api.availability_server import AvailabilityServer
from lbguard.api.availability_state import AvailabilityState
from lbguard.api.server import ApiServer, GuardView
from lbguard.decisions import DecisionLog
from lbguard.httpd import Health, HttpEndpoint
from lbguard.listen import parse_listen
from lbguard.metrics import Metrics
from lbguard.settings import Settings


class House(GuardView, Protocol):
    """What the doors lead to."""

    settings: Settings
    decision_log: DecisionLog
    metrics: Metrics
    availability: AvailabilityState


class Doors:
    """What is open to the outside."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._health = Health()
        self._api = ApiServer(house.settings.socket, house, house.decision_log)
        self._http: HttpEndpoint | None = None
        self._frontend: AvailabilityServer | None = None

    async def open(self) -> None:
        """Open the API and whatever else is asked for.

        Raises:
            StartError: an address is taken or cannot be had, or certificates cannot be read.
        """
        settings = self._house.settings
        await self._api.start()
        address = parse_listen(settings.metrics.listen)
        if address is not None:
            self._http = HttpEndpoint(address, self._house.metrics.registry, self._health)
        if settings.availability.socket is not None:
            from lbguard.build_nsp import make_availability_server, nsp_certificates

            self._frontend = await asyncio.to_thread(
                make_availability_server, settings, self._house.availability, nsp_certificates(settings.nsp)
            )
            if self._frontend is not None:
                await self._frontend.start()

    async def tell(self, unready: str) -> None:
        """Beat the heart and say why the service is not ready (empty: it is)."""
        self._health.beat(unready)
        await self._api.set_ready(not unready)

    async def close(self) -> None:
        """Close all."""
        if self._http is not None:
            self._http.close()
        if self._frontend is not None:
            await self._frontend.stop(unavailable=self._house.settings.withdraw_on_exit)
        await self._api.stop()


async def open_doors(house: House) -> Doors:
    """Open all doors; when one cannot be opened, none stays open.

    Raises:
        StartError: see `Doors.open`.
    """
    doors = Doors(house)
    try:
        await doors.open()
    except BaseException:
        await doors.close()
        raise
    return doors
