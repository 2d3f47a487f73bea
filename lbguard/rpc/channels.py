"""gRPC client channels: plaintext, or mutual TLS through a tunnel.

The certificates of a mesh (X.509-SVIDs) name their holder by a URI. gRPC for Python can only check host names and
refuses such certificates, so the standard library does TLS here: gRPC connects to a private socket of this process, and
the tunnel relays its data, encrypted, to a server with a certificate of the right authority and name.

Certificates are read again for each connection, so a renewed one is used from the next connection on.
"""

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import grpc

from lbguard.rpc.security import CredentialsError, Material, MaterialSource
from lbguard.settings.notation import Endpoint, unix_target
from lbguard.settings.peers import name_matches

CONNECT_TIMEOUT_S = 5.0
_CHUNK_BYTES = 64 * 1024
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid


class TunnelError(Exception):
    """No connection to the server; the text has the reason."""


def certificate_names(certificate: dict[str, object]) -> tuple[str, ...]:
    """Return the URIs, host names and addresses of a certificate as `SSLObject.getpeercert` gives it."""
    alternatives = certificate.get("subjectAltName", ())
    assert isinstance(alternatives, tuple)
    return tuple(name for kind, name in alternatives if kind in {"URI", "DNS", "IP Address"})


class TlsTunnel:
    """Private listening socket (a context manager) that relays each connection to the server.

    Args:
        host: name or address of the server.
        port: its port.
        material: our certificate and the authorities; read in a thread; an exception makes the connection fail.
        server_name: pattern that a name in its certificate must match; empty: any certificate of the authorities.
    """

    def __init__(self, host: str, port: int, material: MaterialSource, *, server_name: str = "") -> None:
        self._host = host
        self._port = port
        self._material = material
        self._server_name = server_name
        self._name = f"lbguard.tunnel.{secrets.token_hex(16)}"
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()
        self.problem = ""
        """Error of the last connection attempt; empty after a success."""

    @property
    def target(self) -> str:
        """Return the address to which gRPC connects, without TLS."""
        return f"unix-abstract:{self._name}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, f"\0{self._name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        try:
            # Closing the tunnel cancels its relays; asyncio would report a cancelled handler as an error.
            with contextlib.suppress(asyncio.CancelledError):
                if _peer_pid(writer) == os.getpid():
                    await self._relay(reader, writer)
        finally:
            self._relays.discard(task)
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                far_reader, far_writer = await self._connect()
        except TimeoutError:
            self.problem = f"no TLS connection within {CONNECT_TIMEOUT_S:g} s"
            return
        except TunnelError as error:
            self.problem = str(error)
            return
        self.problem = ""
        ways = [
            asyncio.create_task(_copy(reader, far_writer)),
            asyncio.create_task(self._copy_back(far_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            # The far end may never answer the TLS close alert.
            far_writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            context = await asyncio.to_thread(self._context)
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=context, server_hostname="")
        except ssl.SSLCertVerificationError as error:
            raise TunnelError(f"certificate of the server refused: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise TunnelError(f"TLS failed: {_words(error)}") from None
        except Exception as error:
            raise TunnelError(str(error) or type(error).__name__) from None
        names = certificate_names(writer.get_extra_info("peercert") or {})
        if not name_matches(names, self._server_name):
            writer.transport.abort()
            shown = ", ".join(name if name.isprintable() else repr(name) for name in names) or "no name"
            raise TunnelError(f"certificate of the server refused: it has {shown}, not {self._server_name}")
        return reader, writer

    def _context(self) -> ssl.SSLContext:
        material = self._material.current()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # names are checked in `_connect`
        # The authority of a mesh may be an intermediate certificate.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.set_alpn_protocols(["h2"])
        context.load_verify_locations(cadata=material.roots.decode("ascii", "replace"))
        if material.chain:
            with _in_memory(material.chain) as chain, _in_memory(material.key) as key:
                # Without a password here, an encrypted key would make OpenSSL prompt on a terminal.
                context.load_cert_chain(chain, key, password=lambda: b"")
        return context

    async def _copy_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay the server's data, and record an error when there is none.

        With TLS 1.3 a server refuses our certificate only after the handshake has ended on our side, and its alert may
        be lost when it closes the connection.
        """
        try:
            received = await reader.read(_CHUNK_BYTES)
            why = "it was closed"
        except OSError as error:
            received, why = b"", _words(error)
        if received:
            writer.write(received)
            await _copy(reader, writer)
        else:
            self.problem = f"the server ended the connection without a word ({why}): does it accept our certificate?"


def _peer_pid(writer: asyncio.StreamWriter) -> int:
    peer: socket.socket = writer.get_extra_info("socket")
    pid, _uid, _gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


def _words(error: OSError) -> str:
    """Return the text of an error: `SSLError` is an OSError too, with a reason in capitals."""
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return str(reason).lower().replace("_", " ")


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Yield the path of an in-memory file with this content, so that no key is on a disk."""
    descriptor = os.memfd_create("lbguard", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


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
