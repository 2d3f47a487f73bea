"""gRPC channels for the probe: plaintext, or TLS with certificates that rotate. A rotation means a new channel."""

from collections.abc import Callable
from typing import Protocol

import grpc

from lbguard.api.security import CredentialsError, Material, MaterialSource
from lbguard.probe.addresses import Endpoint

CONNECT_TIMEOUT_MS = 1000
"""How long one attempt to connect may take; gRPC's own default of 20 s would outlast every grace window."""

RECEIVE_BYTES_MAX = 64 * 2**20


class ChannelError(Exception):
    """A channel cannot be made; the text says why."""


class Dialer(Protocol):
    """Makes channels."""

    def dial(self, endpoint: Endpoint) -> grpc.aio.Channel:
        """Return a new channel that connects when it is first used.

        Raises:
            ChannelError: the credentials cannot be had.
        """

    def stamp(self) -> object:
        """Return what changes when a new channel would have other credentials."""


class PlainDialer:
    """Channels without TLS."""

    def dial(self, endpoint: Endpoint) -> grpc.aio.Channel:
        """See Dialer."""
        return grpc.aio.insecure_channel(target_of(endpoint), options=_options())

    def stamp(self) -> object:
        """See Dialer."""
        return None


class TlsDialer:
    """Channels with TLS of both sides; unix sockets stay without, since their file's mode says who may connect.

    While the source has nothing usable (a file is being replaced) the last good certificates stay in use.

    Args:
        source: where our certificate and the server's authorities come from.
        server_name: name to look for in the server's certificate; empty: the host.
    """

    def __init__(self, source: MaterialSource, server_name: str = "") -> None:
        self._source = source
        self._server_name = server_name
        self._material: Material | None = None

    def dial(self, endpoint: Endpoint) -> grpc.aio.Channel:
        """See Dialer."""
        if endpoint.is_unix:
            return PlainDialer().dial(endpoint)
        try:
            self._material = self._source.current()
        except CredentialsError as error:
            if self._material is None:
                raise ChannelError(str(error)) from None
        material = self._material
        credentials = grpc.ssl_channel_credentials(
            root_certificates=material.roots, private_key=material.key, certificate_chain=material.chain
        )
        options = _options()
        if self._server_name:
            options.append(("grpc.ssl_target_name_override", self._server_name))
        return grpc.aio.secure_channel(target_of(endpoint), credentials, options=options)

    def stamp(self) -> object:
        """See Dialer."""
        try:
            return self._source.current()
        except CredentialsError:
            return self._material


def target_of(endpoint: Endpoint) -> str:
    """Return an endpoint in gRPC's notation."""
    return str(endpoint) if endpoint.is_unix else f"dns:///{endpoint}"


def reason_of(error: BaseException) -> str:
    """Return an error of a call in a few words."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or error.__class__.__name__


def _options() -> list[tuple[str, str | int]]:
    return [
        # Each attempt of ours is one attempt to connect, so gRPC must not share what earlier channels learned.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
        ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
        # A proxy of the environment is not meant for addresses inside the pod's own networks.
        ("grpc.enable_http_proxy", 0),
    ]


class Backoff:
    """Waits that double from one failure to the next, up to a limit."""

    def __init__(self, max_s: float, *, first_s: float = 0.05, jitter: Callable[[], float] = lambda: 1.0) -> None:
        self._first_s = min(first_s, max_s)
        self._max_s = max_s
        self._jitter = jitter
        self._next_s = self._first_s

    def next_s(self) -> float:
        """Return how long to wait now, never more than the limit."""
        wait_s, self._next_s = self._next_s, min(self._next_s * 2, self._max_s)
        return wait_s * self._jitter()

    def reset(self) -> None:
        """Begin anew after a success."""
        self._next_s = self._first_s
