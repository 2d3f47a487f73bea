"""Builds and runs the connection to a network service manager: stream, watch, counters. Loads gRPC."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.core.addr import Ip
from lbguard.core.engine_state import EngineState
from lbguard.core.events import AddressSeen, Event, KernelSnapshot, NeighborsOutdated
from lbguard.nsm import ConnectionScope, ConnectionWatch, ManagerStream, WatchEvent
from lbguard.rpc.channels import Dialer, PlainDialer, TlsDialer
from lbguard.rpc.security import CertificateFiles
from lbguard.settings.notation import parse_dial_address
from lbguard.settings.surroundings import NsmEventSettings
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.nsm")

_OURS_MAX = 4096
_KINDS = {pb.INITIAL_STATE_TRANSFER: "list", pb.UPDATE: "update", pb.DELETE: "delete"}


class _Addresses:
    """Classifier of addresses. An address of ours stays ours when it is lost: a repair may be reported later."""

    def __init__(self, engine: EngineState) -> None:
        self._engine = engine
        self._ours: dict[Ip, None] = {}
        for link in engine.links():
            self._ours.update((address.ip, None) for address, _ in link.addresses)

    def observe_kernel(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, AddressSeen):
                self._remember(event.ip)
            elif isinstance(event, KernelSnapshot):
                for address in event.addresses:
                    self._remember(address.ip)

    def is_target(self, ip: Ip) -> bool:
        return self._engine.follows(ip)

    def is_ours(self, ip: Ip) -> bool:
        return ip in self._ours

    def _remember(self, ip: Ip) -> None:
        # The newest are at the end, so that the address seen longest ago is forgotten first.
        self._ours.pop(ip, None)
        self._ours[ip] = None
        if len(self._ours) > _OURS_MAX:
            del self._ours[next(iter(self._ours))]


class MeshEvents:
    """Follows one manager while `run` is running.

    `events` counts the events by kind, `outdated` the target addresses reported as outdated; both only grow, like
    `losses`.
    """

    def __init__(
        self, settings: NsmEventSettings, engine: EngineState, post: Callable[[Sequence[WatchEvent]], None]
    ) -> None:
        self.events: Counter[str] = Counter()
        self.outdated = 0
        self._post = post
        scope = ConnectionScope(network_services=settings.network_services, path_segments=settings.path_segments)
        self._addresses = _Addresses(engine)
        self._watch = ConnectionWatch(scope, self._addresses, heal_s=settings.heal_time)
        dialer: Dialer = PlainDialer()
        if settings.tls_cert is not None and settings.tls_key is not None and settings.tls_ca is not None:
            files = CertificateFiles(settings.tls_cert, settings.tls_key, settings.tls_ca)
            dialer = TlsDialer(files, settings.tls_server_name)
        self._stream = ManagerStream(
            parse_dial_address(settings.address),
            dialer,
            scope,
            on_event=self._on_event,
            lose=self._lose,
            backoff_max_s=settings.backoff_max,
        )

    @property
    def losses(self) -> int:
        """Return how often the connection to the manager was lost."""
        return self._stream.losses

    async def run(self) -> None:
        """Follow the manager until cancelled."""
        await self._stream.run()

    def observe_kernel(self, events: Iterable[Event]) -> None:
        """Record the addresses of our links in kernel events."""
        self._addresses.observe_kernel(events)

    def _on_event(self, event: pb.ConnectionEvent) -> None:
        self.events[_KINDS.get(event.type, "other")] += 1
        if event.type == pb.INITIAL_STATE_TRANSFER:
            _log.info("mesh manager answers", extra=fields(connections=len(event.connections)))
        events = self._watch.apply(event)
        self.outdated += sum(len(each.ips) for each in events if isinstance(each, NeighborsOutdated))
        if events:
            self._post(events)

    def _lose(self, reason: str) -> None:
        _log.warning("mesh manager lost: nothing changes", extra=fields(reason=reason))
