"""Address of the Kubernetes API, what is asked of it, and its errors; no client library is loaded for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Directory of a pod with the token of its service account."""

GONE, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = "410", "401", "403", "404"
UNREACHABLE, TIMEOUT, CUT, UNUSABLE, MISCONFIGURED = "UNREACHABLE", "TIMEOUT", "CUT", "UNUSABLE", "MISCONFIGURED"


class ApiError(Exception):
    """The API server cannot be used. `kind`: one of a bounded set, or the HTTP status as text."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiAddress:
    """Address of the API server, and the identity that lbguard has there.

    `kubeconfig`: a file whose current context says all; None: `url`, with the token and the authorities (`ca.crt`) in
    the directory `account`, as far as they exist.
    """

    url: str = ""
    account: Path = ACCOUNT
    kubeconfig: Path | None = None

    def __str__(self) -> str:
        return self.url if self.kubeconfig is None else str(self.kubeconfig)

    @property
    def account_name(self) -> str:
        """The file or directory with the token and the authorities."""
        return str(self.account if self.kubeconfig is None else self.kubeconfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A kind of objects in one namespace. `labels`: a selector; empty: all."""

    group: str
    version: str
    plural: str
    namespace: str
    labels: str = ""

    @property
    def path(self) -> str:
        """The path of its lists."""
        return f"apis/{self.group}/{self.version}/namespaces/{self.namespace}/{self.plural}"

    @property
    def full_name(self) -> str:
        """Its name in messages of the API."""
        return f"{self.plural}.{self.group}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Bounds of requests, seconds.

    `page_s`: for a page of a list. `watch_s`: after this time the server ends a watch, and lbguard `late_s` later.
    """

    page_s: float = 15.0
    watch_s: float = 120.0
    late_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """One event of a watch."""

    kind: str
    object: Mapping[str, Any]
