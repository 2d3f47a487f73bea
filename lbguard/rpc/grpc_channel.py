"""The gRPC channel to a registry: plaintext, or mTLS through a tunnel (see `tls_tunnel`). One channel a session."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc

from lbguard.rpc.channels import channel_options, reason_of, target_of
from lbguard.rpc.tls_tunnel import TlsMaterialSource, TlsTunnel
from lbguard.settings.dial_address import Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpec:
    """Address and options of a registry. Times in seconds; `keepalive_s` 0: no pings.

    `material` None: plaintext. `server_name` is a pattern for the names in the server's certificate; empty: any
    certificate of the authorities counts, which is how Meridio's programs treat each other.
    """

    endpoint: Endpoint
    material: TlsMaterialSource | None = None
    server_name: str = ""
    keepalive_s: float = 30.0
    keepalive_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Session:
    """An open channel."""

    channel: grpc.aio.Channel
    tunnel: TlsTunnel | None

    def reason_of(self, error: BaseException) -> str:
        """Return in a few words why a call failed: what the tunnel knows comes before what gRPC makes of it."""
        return (self.tunnel.problem if self.tunnel is not None else "") or reason_of(error)


@contextlib.asynccontextmanager
async def open_channel(spec: ChannelSpec) -> AsyncIterator[Session]:
    """Make a channel that connects when it is first used, and close it in the end."""
    async with contextlib.AsyncExitStack() as stack:
        tunnel = None
        target, options = target_of(spec.endpoint), _options(spec)
        if spec.material is not None:
            endpoint = spec.endpoint
            tunnel = await stack.enter_async_context(
                TlsTunnel(endpoint.host, endpoint.port, spec.material, server_name=spec.server_name)
            )
            target = tunnel.target
            options.append(("grpc.default_authority", str(endpoint)))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=options))
        yield Session(channel, tunnel)


def _options(spec: ChannelSpec) -> list[tuple[str, str | int]]:
    options = channel_options()
    if spec.keepalive_s:
        options += [
            ("grpc.keepalive_time_ms", round(spec.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(spec.keepalive_timeout_s * 1000)),
            # A watch may be silent for hours: pings without data between them are the point.
            ("grpc.http2.max_pings_without_data", 0),
        ]
    return options
