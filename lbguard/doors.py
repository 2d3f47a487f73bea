"""The doors of the service: the gRPC API on its unix socket, and the HTTP endpoint for metrics and health.

The daemon loads this module after the first decisions: gRPC and the HTTP server take long to import, and after a crash
in the middle of an outage the repair comes first.
"""

from prometheus_client import CollectorRegistry

from lbguard.api.server import ApiServer, GuardView
from lbguard.decisions import DecisionLog
from lbguard.httpd import Health, HttpEndpoint
from lbguard.listen import parse_listen
from lbguard.settings import Settings


class Doors:
    """What is open to the outside."""

    def __init__(self, api: ApiServer, http: HttpEndpoint | None, health: Health) -> None:
        self._api = api
        self._http = http
        self._health = health

    async def tell(self, unready: str) -> None:
        """Beat the heart and say why the service is not ready (empty: it is)."""
        self._health.beat(unready)
        await self._api.set_ready(not unready)

    async def close(self) -> None:
        """Close all."""
        if self._http is not None:
            self._http.close()
        await self._api.stop()


async def open_doors(settings: Settings, view: GuardView, log: DecisionLog, registry: CollectorRegistry) -> Doors:
    """Open the API and, where it is asked for, the HTTP endpoint.

    Raises:
        StartError: an address is taken or cannot be had.
    """
    health = Health()
    api = ApiServer(settings.socket, view, log)
    await api.start()
    address = parse_listen(settings.metrics.listen)
    http = HttpEndpoint(address, registry, health) if address is not None else None
    return Doors(api, http, health)
