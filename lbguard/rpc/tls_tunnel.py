"""Tunnel of a gRPC client's TLS connection to a server whose certificate has no host name.

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
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from lbguard.rpc.security import MaterialSource
from lbguard.settings.peer_names import name_matches

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
