"""Certificates from a SPIFFE Workload API (a SPIRE agent), with the package of the extra `spiffe`."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from lbguard.rpc.security import CredentialsError, Material

if TYPE_CHECKING:
    from spiffe import WorkloadApiClient
    from spiffe.workloadapi.workload_api_client import StreamCancelHandler
    from spiffe.workloadapi.x509_context import X509Context


class WorkloadApi:
    """The certificate and the authorities that the API issues to this process, followed by a thread of the package.

    Only the authorities of the service's own trust domain are taken: a federated domain cannot vouch for our peers.
    What came last is served for as long as nothing newer comes, even when the API is gone.

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
        self._tell: Callable[[], None] = lambda: None

    @property
    def ready(self) -> bool:
        """Return whether a certificate came."""
        return self._material is not None

    @property
    def following(self) -> bool:
        """Return whether the API is being followed; when it is not, `problem` says why."""
        return self._stream is not None and not self.problem

    def follow(self, on_change: Callable[[], None]) -> None:
        """Begin, or begin again, to follow the API.

        Args:
            on_change: called in another thread when a certificate came, or nothing will come any more.

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
        self.problem, self._tell = "", on_change
        try:
            self._client = WorkloadApiClient(self._address)
        except PySpiffeError as error:
            raise CredentialsError(f"verdicts.spiffe_socket = {self._address}: {error}") from None
        self._stream = self._client.stream_x509_contexts(self._take, self._end)

    def current(self) -> Material:
        """Return the newest certificate and authorities; any thread may call it.

        Raises:
            CredentialsError: none came yet.
        """
        with self._lock:
            if self._material is None:
                raise CredentialsError(f"verdicts.spiffe_socket: {self.problem or 'no certificate came yet'}")
            return self._material

    def close(self) -> None:
        """Stop following."""
        self._tell = lambda: None
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
        self._tell()

    def _end(self, error: Exception) -> None:
        self.problem = str(error) or type(error).__name__
        self._tell()
