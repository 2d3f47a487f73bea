"""HTTP endpoint: /metrics for Prometheus, /healthz and /readyz for supervisors and routers, / for people.

It runs on threads of its own, so that a slow scrape never delays a decision, and a hung event loop is detected. Another
thread makes the metrics, so that health requests are always answered.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, make_wsgi_app

from lbguard.errors import StartError
from lbguard.settings.notation import ListenAddress
from lbguard.telemetry.http_server import HttpServer, Request, Response
from lbguard.telemetry.landing_page import PAGES, landing_page

HEARTBEAT_LIMIT_S = 5.0
"""The loop counts as hung when its last heartbeat is older than this."""

_BACKLOG = 1024


class ListenError(StartError):
    """The endpoint cannot listen; the text names the setting and what to do."""


class Health:
    """Latest health report of the loop. Written by the loop's thread, read by the endpoint's threads."""

    def __init__(
        self, *, heartbeat_limit_s: float = HEARTBEAT_LIMIT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit_s = heartbeat_limit_s
        self._clock = clock
        self._beat_at = clock()
        self._unready = "starting: no state yet"

    def beat(self, unready: str) -> None:
        """Update the heartbeat and the reason why it is not ready (empty: it is); call it at least once a second."""
        self._beat_at = self._clock()
        self._unready = unready

    def not_alive(self) -> tuple[str, ...]:
        """Return why the loop counts as hung; empty when it is alive."""
        age_s = self._clock() - self._beat_at
        return (f"loop_hung: no heartbeat for {age_s:.1f} s",) if age_s > self._limit_s else ()

    def not_ready(self) -> tuple[str, ...]:
        """Return why the service is not ready; empty when it is."""
        return self.not_alive() + ((self._unready,) if self._unready else ())


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
        listener = _open(address)
        self.port: int = listener.getsockname()[1]
        self._server = HttpServer(listener, self._answer, self._show_metrics)

    def close(self) -> None:
        """Stop listening; requests being served are abandoned."""
        self._server.close()

    def _answer(self, request: Request) -> Response | None:
        """Return a page; None for the metrics, which take longer."""
        if request.method not in {"GET", "HEAD"}:
            return _json("405 Method Not Allowed", {"error": "GET only"})
        match request.path:
            case "/metrics":
                return None
            case "/healthz":
                return _verdict(self._health.not_alive())
            case "/readyz":
                return _verdict(self._health.not_ready())
            case "/":
                return _html(landing_page(self._health.not_alive(), self._health.not_ready()))
            case _:
                return _json("404 Not Found", {"error": "no such page", "pages": list(PAGES)})

    def _show_metrics(self, request: Request) -> Response:
        status = ""
        headers: tuple[tuple[str, str], ...] = ()

        def start_response(said: str, named: list[tuple[str, str]]) -> None:
            nonlocal status, headers
            status, headers = said, tuple(named)

        environment = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query,
            "HTTP_ACCEPT": request.accept,
            "HTTP_ACCEPT_ENCODING": request.accept_encoding,
        }
        body = b"".join(self._metrics(environment, start_response))
        return Response(status, headers, body)


def _verdict(reasons: tuple[str, ...]) -> Response:
    if reasons:
        return _json("503 Service Unavailable", {"ok": False, "reasons": list(reasons)})
    return _json("200 OK", {"ok": True})


def _json(status: str, body: dict[str, object]) -> Response:
    return Response(status, (("Content-Type", "application/json"),), json.dumps(body).encode() + b"\n")


def _html(page: bytes) -> Response:
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    }
    return Response("200 OK", tuple(headers.items()), page)


def _open(address: ListenAddress) -> socket.socket:
    families = [socket.AF_INET6 if ":" in address.host else socket.AF_INET]
    if not address.host:
        # A kernel without IPv6 has no [::]; then IPv4 alone has to do.
        families = [socket.AF_INET6, socket.AF_INET]
    for family in families:
        try:
            return _listen(address, family)
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


def _listen(address: ListenAddress, family: socket.AddressFamily) -> socket.socket:
    """Return a listening socket, of both families where the address allows."""
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.host != ""))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address.host, address.port))
        made.listen(_BACKLOG)
    except OSError:
        made.close()
        raise
    return made
