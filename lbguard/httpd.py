"""The HTTP endpoint: /metrics for Prometheus, /healthz and /readyz for whoever restarts or routes.

It runs on threads of its own, so that a slow scrape never delays a decision, and so that a loop that hangs can be seen.
"""

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from lbguard.settings.listen import ListenAddress
from lbguard.start_error import StartError

HEARTBEAT_LIMIT_S = 5.0
"""The loop counts as hung when its last heartbeat is older than this."""

REQUEST_TIMEOUT_S = 10.0
REQUESTS_AT_ONCE = 16


class ListenError(StartError):
    """The endpoint cannot listen; the text names the setting and what to do."""


class Health:
    """What the loop last said of itself. Written by the loop's thread, read by the endpoint's threads."""

    def __init__(
        self, *, heartbeat_limit_s: float = HEARTBEAT_LIMIT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit_s = heartbeat_limit_s
        self._clock = clock
        self._beat_at = clock()
        self._unready = "starting: no state yet"

    def beat(self, unready: str) -> None:
        """Say that the loop is alive and why it is not ready (empty: it is); call it at least once a second."""
        self._beat_at = self._clock()
        self._unready = unready

    def not_alive(self) -> tuple[str, ...]:
        """Return why the loop counts as hung; empty when it is alive."""
        age_s = self._clock() - self._beat_at
        return (f"loop_hung: no heartbeat for {age_s:.1f} s",) if age_s > self._limit_s else ()

    def not_ready(self) -> tuple[str, ...]:
        """Return why the service is not ready; empty when it is."""
        return self.not_alive() + ((self._unready,) if self._unready else ())


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: ListenAddress, family: socket.AddressFamily) -> None:
        self.address_family = family
        self._free = threading.BoundedSemaphore(REQUESTS_AT_ONCE)
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        """Bind both families where the address allows, without the reverse look-up of the base class."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(self.server_address[0] != ""))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "lbguard", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a request on a thread, or close it when enough are being served."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one request and make room for the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away or speak no HTTP."""


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""


class HttpEndpoint:
    """Serves metrics and health until `close`. Sockets are opened in the constructor, in the caller's namespace.

    Args:
        address: where to listen; an empty host means every address of both families.
        registry: what /metrics shows.
        health: what /healthz and /readyz show.

    Raises:
        ListenError: the address is in use or not of this machine.
    """

    def __init__(self, address: ListenAddress, registry: CollectorRegistry, health: Health) -> None:
        self._health = health
        self._metrics = make_wsgi_app(registry)
        self._server = _open(address)
        self._server.set_app(self._serve)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="lbguard-http", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening; requests being served are abandoned."""
        self._server.shutdown()
        self._thread.join()
        self._server.socket.close()

    def _serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return _reply(start_response, "405 Method Not Allowed", {"error": "GET only"})
        match environ.get("PATH_INFO", "/"):
            case "/metrics":
                page: Iterable[bytes] = self._metrics(environ, start_response)
                return page
            case "/healthz":
                return _verdict(start_response, self._health.not_alive())
            case "/readyz":
                return _verdict(start_response, self._health.not_ready())
            case _:
                paths = ["/metrics", "/healthz", "/readyz"]
                return _reply(start_response, "404 Not Found", {"error": "no such page", "pages": paths})


def _verdict(start_response: StartResponse, reasons: tuple[str, ...]) -> list[bytes]:
    if reasons:
        return _reply(start_response, "503 Service Unavailable", {"ok": False, "reasons": list(reasons)})
    return _reply(start_response, "200 OK", {"ok": True})


def _reply(start_response: StartResponse, status: str, body: dict[str, object]) -> list[bytes]:
    content = json.dumps(body).encode() + b"\n"
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
    return [content]


def _open(address: ListenAddress) -> _Server:
    families = [socket.AF_INET6 if ":" in address.host else socket.AF_INET]
    if not address.host:
        # A kernel without IPv6 has no [::]; then IPv4 alone has to do.
        families = [socket.AF_INET6, socket.AF_INET]
    for family in families:
        try:
            return _Server(address, family)
        except OSError as error:
            if error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL} and family != families[-1]:
                continue
            remedy = {
                errno.EADDRINUSE: "another process listens there; choose a free port, or set it empty to turn it off",
                errno.EADDRNOTAVAIL: "no interface has that address; use one that exists, or :PORT for all",
                errno.EACCES: "the port needs privileges; choose one above 1023",
            }.get(error.errno or 0, "choose another address, or set it empty to turn it off")
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ListenError(f"metrics.listen = {address}: {reason}: {remedy}") from None
    raise AssertionError("there is at least one family")
