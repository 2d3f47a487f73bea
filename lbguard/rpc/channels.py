"""gRPC client channels: plaintext, or mutual TLS through a tunnel (`tls_tunnel.py`); backoff between attempts."""

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
"""Time limit of one attempt to connect; gRPC's default of 20 s is longer than any grace window."""

RECEIVE_BYTES_MAX = 64 * 2**20

REPORTER_KEY = "lbguard-reporter"
"""Metadata key by which a reporter may give its name, to distinguish reporters of one identity."""


class ChannelError(Exception):
    """A channel cannot be made; the text has the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpec:
    """Address and options of a channel. Times in seconds; `keepalive_s` 0: no pings.

    `material` None: plaintext; unix sockets are always without TLS, since their file mode controls access.
    `server_name` is a pattern that a name (URI, host or address) in the server's certificate must match; empty: any
    certificate of the authorities counts, as between Meridio's programs.
    """

    endpoint: Endpoint
    material: MaterialSource | None = None
    server_name: str = ""
    keepalive_s: float = 0.0
    keepalive_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Session:
    """An open channel, which connects at its first use."""

    channel: grpc.aio.Channel
    tunnel: TlsTunnel | None = None

    @property
    def problem(self) -> str:
        """Return the TLS error that gRPC does not report; empty: none."""
        return self.tunnel.problem if self.tunnel is not None else ""

    def reason_of(self, error: BaseException) -> str:
        """Return why a call failed: the tunnel's error if there is one, else gRPC's."""
        return self.problem or reason_of(error)


@contextlib.asynccontextmanager
async def open_channel(spec: ChannelSpec) -> AsyncIterator[Session]:
    """Make a channel that connects at its first use, and close it at the end."""
    endpoint, options = spec.endpoint, _options(spec)
    async with contextlib.AsyncExitStack() as stack:
        tunnel, target = None, target_of(endpoint)
        if spec.material is not None and not endpoint.is_unix:
            tunnel = await stack.enter_async_context(
                TlsTunnel(endpoint.host, endpoint.port, spec.material, server_name=spec.server_name)
            )
            target = tunnel.target
            options.append(("grpc.default_authority", str(endpoint)))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=options))
        yield Session(channel, tunnel)


class Dialer(Protocol):
    """Factory of channels to an address."""

    def dial(self, endpoint: Endpoint) -> contextlib.AbstractAsyncContextManager[Session]:
        """Make a new channel and close it at the end.

        Raises:
            ChannelError: it cannot be made.
        """

    def stamp(self) -> object:
        """Return a value that changes when a new channel would have other credentials."""


class PlainDialer:
    """Channels without TLS."""

    def dial(self, endpoint: Endpoint) -> contextlib.AbstractAsyncContextManager[Session]:
        """See Dialer."""
        return open_channel(ChannelSpec(endpoint=endpoint))

    def stamp(self) -> object:
        """See Dialer."""
        return None


class TlsDialer:
    """Channels with mutual TLS; a channel keeps the certificates that it began with.

    While the source has no usable certificates (a file is being replaced), the last good ones stay in use.

    Args:
        source: the source of our certificate and of the server's authorities.
        server_name: see ChannelSpec; empty: the host.
    """

    def __init__(self, source: MaterialSource, server_name: str = "") -> None:
        self._source = source
        self._server_name = server_name
        self._good: Material | None = None

    @contextlib.asynccontextmanager
    async def dial(self, endpoint: Endpoint) -> AsyncIterator[Session]:
        """See Dialer."""
        material = None if endpoint.is_unix else _Fixed(self._material())
        name = self._server_name or endpoint.host
        async with open_channel(ChannelSpec(endpoint=endpoint, material=material, server_name=name)) as session:
            yield session

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
    """Constant certificates of one channel: new certificates need a new channel."""

    material: Material

    def current(self) -> Material:
        return self.material


def target_of(endpoint: Endpoint) -> str:
    """Return an endpoint in gRPC's notation."""
    return unix_target(endpoint.path) if endpoint.is_unix else f"dns:///{endpoint}"


def reason_of(error: BaseException) -> str:
    """Return the short text of a call's error."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or error.__class__.__name__


def _options(spec: ChannelSpec) -> list[tuple[str, str | int]]:
    options: list[tuple[str, str | int]] = [
        # Each channel is one attempt to connect, so gRPC must not share the state of earlier channels.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
        ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
        # A proxy from the environment does not apply to addresses inside the pod's networks.
        ("grpc.enable_http_proxy", 0),
    ]
    if spec.keepalive_s:
        options += [
            ("grpc.keepalive_time_ms", round(spec.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(spec.keepalive_timeout_s * 1000)),
            # A watch may be silent for hours, so pings are needed without data.
            ("grpc.http2.max_pings_without_data", 0),
        ]
    return options


class Backoff:
    """Exponential backoff: waits double from one failure to the next, up to a limit."""

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
        """Start again from the first wait, after a success."""
        self._next_s = self._first_s
