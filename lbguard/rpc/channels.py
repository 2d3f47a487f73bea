"""gRPC channels for the probe: plaintext, or TLS with certificates that rotate. A rotation means a new channel."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

import grpc

from lbguard.rpc.security import CredentialsError, Material, MaterialSource
from lbguard.rpc.tls_tunnel import TlsTunnel
from lbguard.rpc.unix_target import unix_target
from lbguard.settings.dial_address import Endpoint

CONNECT_TIMEOUT_MS = 1000
"""Time limit of one attempt to connect; gRPC's own default of 20 s would outlast every grace window."""

RECEIVE_BYTES_MAX = 64 * 2**20

REPORTER_KEY = "lbguard-reporter"
"""Metadata in which a reporter may give its name, to be told from others with the same identity."""


class ChannelError(Exception):
    """A channel cannot be made; the text says why."""


@dataclass(frozen=True, slots=True)
class Session:
    """An open channel, which connects when it is first used."""

    channel: grpc.aio.Channel
    tunnel: TlsTunnel | None = None

    @property
    def problem(self) -> str:
        """Return the TLS error that gRPC does not report; empty: none."""
        return self.tunnel.problem if self.tunnel is not None else ""


class Dialer(Protocol):
    """Makes channels."""

    def dial(self, endpoint: Endpoint) -> contextlib.AbstractAsyncContextManager[Session]:
        """Make a new channel and close it in the end.

        Raises:
            ChannelError: it cannot be made.
        """

    def stamp(self) -> object:
        """Return what changes when a new channel would have other credentials."""


class PlainDialer:
    """Channels without TLS."""

    @contextlib.asynccontextmanager
    async def dial(self, endpoint: Endpoint) -> AsyncIterator[Session]:
        """See Dialer."""
        async with grpc.aio.insecure_channel(target_of(endpoint), options=channel_options()) as channel:
            yield Session(channel)

    def stamp(self) -> object:
        """See Dialer."""
        return None


class TlsDialer:
    """Channels with TLS of both sides; unix sockets stay without, since their file's mode says who may connect.

    While the source has nothing usable (a file is being replaced) the last good certificates stay in use.

    Args:
        source: where our certificate and the server's authorities come from.
        server_name: pattern that a name (URI, host or address) in the server's certificate must fit; empty: the host.
    """

    def __init__(self, source: MaterialSource, server_name: str = "") -> None:
        self._source = source
        self._server_name = server_name
        self._good: Material | None = None

    @contextlib.asynccontextmanager
    async def dial(self, endpoint: Endpoint) -> AsyncIterator[Session]:
        """See Dialer."""
        if endpoint.is_unix:
            async with PlainDialer().dial(endpoint) as session:
                yield session
            return
        tunnel = TlsTunnel(
            endpoint.host, endpoint.port, _Fixed(self._material()), server_name=self._server_name or endpoint.host
        )
        options = [*channel_options(), ("grpc.default_authority", str(endpoint))]
        async with tunnel, grpc.aio.insecure_channel(tunnel.target, options=options) as channel:
            yield Session(channel, tunnel)

    def stamp(self) -> object:
        """See Dialer."""
        try:
            return self._material()
        except ChannelError:
            return None

    def _material(self) -> Material:
        try:
            self._good = self._source.current()
        except CredentialsError as error:
            if self._good is None:
                raise ChannelError(str(error)) from None
        return self._good


@dataclass(frozen=True, slots=True)
class _Fixed:
    """Certificates that do not change while a channel lasts: with new ones a new channel is made."""

    material: Material

    def current(self) -> Material:
        return self.material


def target_of(endpoint: Endpoint) -> str:
    """Return an endpoint in gRPC's notation."""
    return unix_target(endpoint.path) if endpoint.is_unix else f"dns:///{endpoint}"


def reason_of(error: BaseException) -> str:
    """Return an error of a call in a few words."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or error.__class__.__name__


def channel_options() -> list[tuple[str, str | int]]:
    """Return what every channel of ours asks of gRPC."""
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
