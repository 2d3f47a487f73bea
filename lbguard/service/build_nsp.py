"""Builds the source `nsp`, its certificates and its availability server from the settings."""

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lbguard.api.availability_server import AvailabilityServer
from lbguard.api.feeds import AvailabilityState
from lbguard.core.addr import Ip
from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.core.model import Route, RouteKind, StreamSpec
from lbguard.distributor.base import DistributorError
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.memory import StreamMemory, memory_path
from lbguard.rpc.channels import ChannelSpec
from lbguard.rpc.security import (
    CertificateFiles,
    CredentialsError,
    Material,
    MaterialSource,
    WorkloadApi,
    server_credentials,
)
from lbguard.settings.model import Settings
from lbguard.settings.notation import parse_dial_address
from lbguard.settings.surroundings import NspSettings
from lbguard.sources.nsp.lists import Place
from lbguard.sources.nsp.offsets import offset_of_routes, offset_of_table
from lbguard.sources.nsp.source import NspConfig, NspSource

_FIRST_CERTIFICATE_S = 3.0


class WorkloadCertificates:
    """Certificates of a SPIFFE Workload API, followed from the first use; following starts again when it ended."""

    def __init__(self, address: str) -> None:
        self._api = WorkloadApi(address)
        self._came = threading.Event()
        self._lock = threading.Lock()

    def current(self) -> Material:
        """Return the newest certificate; wait some seconds for the first one.

        Raises:
            CredentialsError: none was received yet.
        """
        with self._lock:
            try:
                if not self._api.following:
                    self._came.clear()
                    self._api.follow(self._came.set)
                    if not self._api.ready:
                        self._came.wait(_FIRST_CERTIFICATE_S)
                return self._api.current()
            except CredentialsError as error:
                if self._api.ready:
                    return self._api.current()
                raise CredentialsError(str(error).replace("verdicts.", "nsp.")) from None

    def close(self) -> None:
        """Stop following."""
        self._api.close()


def nsp_certificates(settings: NspSettings) -> CertificateFiles | WorkloadCertificates | None:
    """Return the source of certificates for connections to Meridio's programs; None: plaintext."""
    if settings.spiffe_socket:
        return WorkloadCertificates(settings.spiffe_socket)
    if settings.tls_cert is not None and settings.tls_key is not None and settings.tls_ca is not None:
        return CertificateFiles(settings.tls_cert, settings.tls_key, settings.tls_ca)
    return None


class OffsetsInForce:
    """Reads back the identifier offsets in force: from nfqlb's memory, else from the routes to the targets.

    Args:
        shm_dir: the directory of the memory files.
        routes: returns the default routes of every table but the kernel's own; None: the kernel is not read yet.
    """

    def __init__(self, shm_dir: Path, routes: Callable[[], Iterable[Route] | None]) -> None:
        self._shm_dir = shm_dir
        self._routes = routes

    def __call__(
        self, streams: Mapping[str, int], targets: Mapping[str, Mapping[int, tuple[Ip, ...]]], known: Mapping[str, int]
    ) -> Mapping[str, int] | None:
        """Return the offsets found, by stream; None: they are not known yet. See `SeenOffsets`.

        A memory is certain evidence. Routes are not: a target in two streams whose path is broken may have routes of
        one only. So routes count for new streams only.
        """
        found = {name: offset for name, room in streams.items() if (offset := self._of_memory(name, room)) is not None}
        rest = [name for name in streams if name not in found and name not in known]
        if not rest:
            return found
        routes = self._routes()
        if routes is None:
            return None
        tables: dict[Ip, set[int]] = {}
        for route in routes:
            if route.kind is RouteKind.UNICAST:
                tables.setdefault(route.gateway, set()).add(route.table)
        for name in rest:
            taken = {**known, **found}
            offset = offset_of_routes(targets.get(name, {}), tables, frozenset(taken.values()))
            if offset is not None:
                found[name] = offset
        return found

    def _of_memory(self, name: str, room: int) -> int | None:
        spec = StreamSpec(name=name, max_targets=room)
        try:
            memory = StreamMemory(memory_path(self._shm_dir, spec), spec, TableKind.MAGLEV, read_only=True)
        except DistributorError:
            return None
        try:
            return offset_of_table(memory.active())
        except DistributorError:
            return None
        finally:
            memory.close()


def make_nsp_source(
    settings: Settings,
    emit: Callable[[SourceSnapshot | SourceLost], None],
    certificates: MaterialSource | None,
    routes: Callable[[], Iterable[Route] | None],
) -> NspSource:
    """Build the source. It follows foreign marks where another program owns the distributor."""
    nsp = settings.nsp
    endpoint = parse_dial_address(nsp.address)
    server_name = nsp.tls_server_name or ("" if nsp.spiffe_socket else endpoint.host)
    return NspSource(
        NspConfig(
            place=Place(nsp.trench, nsp.conduit),
            channel=ChannelSpec(
                endpoint=endpoint,
                material=certificates,
                server_name=server_name,
                keepalive_s=nsp.keepalive_time,
                keepalive_timeout_s=nsp.keepalive_timeout,
            ),
            max_backoff_s=nsp.max_backoff,
            settle_s=nsp.settle_time,
            settle_share=nsp.settle_share,
            offset_start=nsp.identifier_offset_start,
        ),
        emit,
        seen_offsets=OffsetsInForce(settings.distributor.shm_dir, routes),
        follow_offsets=settings.mode != "enforce" or settings.distributor.kind == "observe",
    )


def make_availability_server(
    settings: Settings, state: AvailabilityState, certificates: MaterialSource | None
) -> AvailabilityServer | None:
    """Build the server for Meridio's frontend; None: not configured. It may wait for the first certificate.

    Raises:
        CredentialsError: there is no usable certificate.
    """
    path = settings.availability.socket
    if path is None:
        return None
    credentials = server_credentials(certificates) if certificates is not None else None
    return AvailabilityServer(path, socket.gethostname(), state, credentials=credentials)
