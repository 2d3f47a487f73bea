"""TLS certificates: their sources, their use by a listener, and the names in a peer's certificate.

gRPC requests the certificates at each handshake, from its own thread. It gets the current ones, or the last good ones
while the current ones are not usable (a half-written file, a key of another certificate). Open connections keep their
certificates until their maximum age.

The package of the extra `spiffe` follows a SPIFFE Workload API (a SPIRE agent).
"""

import logging
import ssl
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import grpc

from lbguard.errors import StartError
from lbguard.settings.bounded_file import FileError, read_regular_file
from lbguard.settings.peers import names_in_certificate
from lbguard.telemetry.log import fields

if TYPE_CHECKING:
    from spiffe import WorkloadApiClient
    from spiffe.workloadapi.workload_api_client import StreamCancelHandler
    from spiffe.workloadapi.x509_context import X509Context

_log = logging.getLogger("lbguard.verdicts")

_READ_ATTEMPTS = 3
MAX_BYTES = 2**20
"""A larger file is refused."""


class CredentialsError(StartError):
    """There are no usable certificates; the text names the settings and the remedy."""


@dataclass(frozen=True, slots=True)
class Material:
    """A private key, its certificate chain, and the authorities of the peers' certificates; PEM."""

    key: bytes
    chain: bytes
    roots: bytes


class MaterialSource(Protocol):
    """Source of certificates."""

    def current(self) -> Material:
        """Return the current certificates; the same object while nothing has changed. Any thread may call it.

        Raises:
            CredentialsError: there is nothing usable.
        """


class CertificateFiles:
    """PEM files, watched by their inode, size and time of change.

    Kubernetes swaps a symbolic link to a whole directory when it renews a secret; cert-manager and others replace files
    one by one. So a set of files counts only when key and certificate match.
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
            CredentialsError: a file cannot be read, or key and certificate do not match.
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
            # Opening a FIFO would block, and reading a device might never end.
            if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
                raise CredentialsError(f"{path}: not a regular file of at most {MAX_BYTES // 2**20} MiB")
        return tuple((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) for found in stats)

    def _read(self) -> Material:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        place = f"verdicts.tls_cert = {self._chain}, verdicts.tls_key = {self._key}"
        try:
            # Without a password here, an encrypted key would make OpenSSL prompt on a terminal.
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
    """Return credentials for a listener that requires client certificates and follows the source.

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
    """Return the names in a verified client certificate: its SPIFFE ID first, then `dns:NAME`.

    They are read from the certificate itself: gRPC's list of them (`peer_dns`, `peer_spiffe_id`) ends each name at its
    first zero byte, so that `proxy.example.org<NUL>.evil.net` would count as `proxy.example.org`.
    """
    for pem in auth_context.get("x509_pem_cert", ()):
        spiffe_ids, hosts = names_in_certificate(pem)
        return (*spiffe_ids, *(f"dns:{host}" for host in hosts))
    return ()


class WorkloadApi:
    """The certificate and the authorities that a SPIFFE Workload API issues to this process, followed by a thread.

    Only the authorities of the service's own trust domain are used: a federated domain cannot issue our peers'
    certificates. The last certificate is used until a newer one arrives, even when the API is gone.

    Args:
        address: such as `unix:///run/spire/agent.sock`.
    """

    def __init__(self, address: str) -> None:
        self.problem = ""
        self._address = address
        self._lock = threading.Lock()
        self._material: Material | None = None
        self._client: WorkloadApiClient | None = None
        self._stream: StreamCancelHandler | None = None
        self._notify: Callable[[], None] = lambda: None

    @property
    def ready(self) -> bool:
        """Return whether a certificate was received."""
        return self._material is not None

    @property
    def following(self) -> bool:
        """Return whether the API is being followed; when it is not, `problem` says why."""
        return self._stream is not None and not self.problem

    def follow(self, on_change: Callable[[], None]) -> None:
        """Start, or start again, to follow the API.

        Args:
            on_change: called in another thread when a certificate arrived, or when following ended.

        Raises:
            CredentialsError: the package is missing, or there is no such socket.
        """
        try:
            from spiffe import WorkloadApiClient
            from spiffe.errors import PySpiffeError
        except ImportError:
            raise CredentialsError(
                "verdicts.spiffe_socket needs the extra `spiffe`: pip install 'lbguard[spiffe]'"
            ) from None
        self.close()
        self.problem, self._notify = "", on_change
        try:
            self._client = WorkloadApiClient(self._address)
        except PySpiffeError as error:
            raise CredentialsError(f"verdicts.spiffe_socket = {self._address}: {error}") from None
        self._stream = self._client.stream_x509_contexts(self._take, self._end)

    def current(self) -> Material:
        """Return the newest certificate and authorities; any thread may call it.

        Raises:
            CredentialsError: none was received yet.
        """
        with self._lock:
            if self._material is None:
                raise CredentialsError(f"verdicts.spiffe_socket: {self.problem or 'no certificate came yet'}")
            return self._material

    def close(self) -> None:
        """Stop following."""
        self._notify = lambda: None
        if self._stream is not None:
            self._stream.cancel()
        if self._client is not None:
            self._client.close()
        self._stream = self._client = None

    def _take(self, context: "X509Context") -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        svid = context.default_svid
        bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        if bundle is None:
            # Raised to the thread that reads the stream: it ends the stream and calls `_end`.
            raise CredentialsError(f"no authorities of {svid.spiffe_id.trust_domain}")
        material = Material(
            svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            b"".join(certificate.public_bytes(Encoding.PEM) for certificate in svid.cert_chain),
            b"".join(sorted(certificate.public_bytes(Encoding.PEM) for certificate in bundle.x509_authorities)),
        )
        with self._lock:
            if material != self._material:
                self._material = material
        self._notify()

    def _end(self, error: Exception) -> None:
        self.problem = str(error) or type(error).__name__
        self._notify()
