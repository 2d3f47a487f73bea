"""Certificates of the TCP listener, and what a peer's certificate says of it.

gRPC asks for the certificates at each handshake, from a thread of its own; what is there then is served, and what is
not usable (a half-written file, a key of another certificate) is passed over in favour of the last good one.
Connections that are already open stay as they are until their age ends them.
"""

import logging
import ssl
import stat
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from lbguard.errors import StartError
from lbguard.settings.bounded_file import FileError, read_regular_file
from lbguard.settings.peer_names import names_in_certificate
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.verdicts")

_READ_ATTEMPTS = 3
MAX_BYTES = 2**20
"""A larger file is no certificate."""


class CredentialsError(StartError):
    """There are no usable certificates; the text names the settings and what to do."""


@dataclass(frozen=True, slots=True)
class Material:
    """A private key, its certificate chain, and the authorities that clients' certificates must come from; PEM."""

    key: bytes
    chain: bytes
    roots: bytes


class MaterialSource(Protocol):
    """Source of certificates."""

    def current(self) -> Material:
        """Return what to serve now; the same object while nothing has changed. Any thread may call it.

        Raises:
            CredentialsError: there is nothing usable.
        """


class CertificateFiles:
    """PEM files, watched by their inode, size and time of change.

    Kubernetes swaps a link to a whole directory when it renews a secret, cert-manager and others replace files one by
    one: so a set of files counts only once key and certificate belong together.
    """

    def __init__(self, chain: Path, key: Path, client_roots: Path) -> None:
        self._chain = chain
        self._key = key
        self._roots = client_roots
        self._lock = threading.Lock()
        self._read_as: tuple[tuple[int, ...], ...] = ()
        self._material: Material | None = None

    def current(self) -> Material:
        """Return the content of the files, read again when they have changed.

        Raises:
            CredentialsError: a file cannot be read, or they do not belong together.
        """
        with self._lock:
            for _ in range(_READ_ATTEMPTS):
                before = self._signature()
                if self._material is not None and before == self._read_as:
                    return self._material
                material = self._read()
                if self._signature() == before:
                    self._material, self._read_as = material, before
                    return material
            raise CredentialsError(f"{self._chain}, {self._key}, {self._roots}: they change while they are read")

    def _signature(self) -> tuple[tuple[int, ...], ...]:
        try:
            stats = [path.stat() for path in (self._chain, self._key, self._roots)]
        except OSError as error:
            raise CredentialsError(f"{error.filename}: {error.strerror}") from None
        for path, found in zip((self._chain, self._key, self._roots), stats, strict=True):
            # A FIFO in its place would be waited for, and a device read without end.
            if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
                raise CredentialsError(f"{path}: not a regular file of at most {MAX_BYTES // 2**20} MiB")
        return tuple((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) for found in stats)

    def _read(self) -> Material:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        place = f"verdicts.tls_cert = {self._chain}, verdicts.tls_key = {self._key}"
        try:
            # An encrypted key must not make a service without a terminal ask for its password.
            context.load_cert_chain(self._chain, self._key, password=lambda: b"")
            place = f"verdicts.tls_client_ca = {self._roots}"
            context.load_verify_locations(self._roots)
            return Material(*(read_regular_file(path, MAX_BYTES) for path in (self._key, self._chain, self._roots)))
        except FileError as error:
            raise CredentialsError(f"{place}: {error}") from None
        except ssl.SSLError as error:
            reason = error.reason or "no PEM"
            raise CredentialsError(f"{place}: not usable ({reason.lower().replace('_', ' ')})") from None
        except OSError as error:
            raise CredentialsError(f"{place}: {error.strerror}") from None


def server_credentials(source: MaterialSource) -> grpc.ServerCredentials:
    """Return credentials for a listener that demands a client certificate and follows the source.

    Raises:
        CredentialsError: there is nothing usable yet.
    """
    served = source.current()
    troubled = ""

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served, troubled
        try:
            material = source.current()
        except CredentialsError as error:
            if str(error) != troubled:
                troubled = str(error)
                _log.warning("certificates not renewed; the last good ones stay", extra=fields(reason=troubled))
            return None
        troubled = ""
        if material is served:
            return None
        served = material
        _log.info("certificates renewed")
        return _configuration(material)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(served),
        fetch,  # type: ignore[arg-type]  # the stubs know nothing of None, which gRPC documents
        require_client_authentication=True,
    )


def _configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key, material.chain)], root_certificates=material.roots)


def names_of(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Return the names that a verified client certificate carries: its SPIFFE ID first, then `dns:NAME`.

    They are read from the certificate itself: gRPC's own list of them (`peer_dns`, `peer_spiffe_id`) ends each name at
    its first zero byte, so that `proxy.example.org<NUL>.evil.net` would pass for a proxy.
    """
    for pem in auth_context.get("x509_pem_cert", ()):
        spiffe_ids, hosts = names_in_certificate(pem)
        return (*spiffe_ids, *(f"dns:{host}" for host in hosts))
    return ()
