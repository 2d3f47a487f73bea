"""Small HTTP/1.0 server that no client can block: one thread for all connections, another one for slow pages.

The number of connections is bounded. At the bound, a new connection replaces the oldest one that has not sent its
request yet, else one that does not read its response. So a client that sends its request at once always gets a
connection. The time for a whole request and the time for a whole response are bounded too, even if bytes arrive slowly.
"""

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.http")

REQUEST_BYTES_MAX = 16 * 1024

_LINGER_S = 1.0
_ACCEPTS_A_TURN = 16
_SEND_BUFFER_BYTES = 256 * 1024
_READ_BYTES = 16 * 1024
_WRITE_BYTES = 256 * 1024
_NO_DESCRIPTORS_PAUSE_S = 0.05


class Limits(NamedTuple):
    """Bounds on the number of connections, and on the duration of a whole request and a whole response (seconds)."""

    connections: int = 256
    request_s: float = 5.0
    response_s: float = 15.0


class Request(NamedTuple):
    """Input of a page. Requests that are equal are answered by one response."""

    method: str
    path: str
    query: str = ""
    accept: str = ""
    accept_encoding: str = ""


class Response(NamedTuple):
    """A status such as `200 OK`, the headers besides the length, and the body."""

    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def encode(self, *, with_body: bool) -> bytes:
        """Return the bytes to send."""
        headers = (*self.headers, ("Content-Length", str(len(self.body))), ("Connection", "close"))
        lines = [f"HTTP/1.0 {self.status}", *(f"{name}: {value}" for name, value in headers), "", ""]
        return "\r\n".join(lines).encode("latin-1") + (self.body if with_body else b"")


class MalformedError(Exception):
    """A request is none of HTTP."""


def parse_request(data: bytes) -> Request:
    """Read a request line and the headers below it.

    Raises:
        MalformedError: the line is none.
    """
    first, *lines = data.decode("latin-1").splitlines() or [""]
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/"):
        raise MalformedError(first)
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    try:
        target = urlsplit(words[1])
    except ValueError:
        raise MalformedError(first) from None
    accept, encoding = headers.get("accept", ""), headers.get("accept-encoding", "")
    return Request(words[0], unquote(target.path), target.query, accept, encoding)


class _Step(IntEnum):
    """State of a connection; one in an earlier state is closed first."""

    CLOSE = 0
    REQUEST = 1
    RESPONSE_READ = 2
    PAGE = 3


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    deadline: float
    step: _Step = _Step.REQUEST
    asked: Request | None = None
    received: bytearray = field(default_factory=bytearray)
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))


class HttpServer:
    """Server of pages on a listening socket, until `close`.

    Args:
        listener: the socket; the server owns it from here on.
        answer: returns the page of a request, quickly; None for one that takes longer. Called in the server's thread.
        render: returns a page that takes longer, in a thread of its own. Requests that are equal and came before it
            began share what it returns.
        limits: what a client may take.
    """

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[Request], Response | None],
        render: Callable[[Request], Response],
        limits: Limits = Limits(),  # noqa: B008 (it cannot change)
    ) -> None:
        self._limits = limits
        self._listener = listener
        self._answer = answer
        self._render = render
        self._connections: dict[socket.socket, _Connection] = {}
        self._asked: dict[Request, list[_Connection]] = {}
        self._asked_changed = threading.Condition()
        self._rendered: deque[tuple[bytes, list[_Connection]]] = deque()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        for each in (listener, self._waker, self._woken):
            each.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._serving = threading.Thread(target=self._serve, name="lbguard-http", daemon=True)
        self._rendering = threading.Thread(target=self._render_asked, name="lbguard-pages", daemon=True)
        self._serving.start()
        self._rendering.start()

    def close(self) -> None:
        """Stop listening; requests being served are abandoned, a page being made is not waited for."""
        with self._asked_changed:
            self._closing = True
            self._asked_changed.notify()
        self._wake()
        self._serving.join()
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._selector.close()
        for each in (self._listener, self._waker, self._woken):
            each.close()

    # In the server's thread

    def _serve(self) -> None:
        while not self._closing:
            now = time.monotonic()
            soonest = min((connection.deadline for connection in self._connections.values()), default=now + 1.0)
            events = self._selector.select(max(0.0, soonest - now))
            # New ones come last, and a few at a time: in a flood of them, who has sent a request is answered first.
            for key, _ in sorted(events, key=lambda event: event[0].fileobj is self._listener):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._woken:
                    self._take_rendered()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._go_on(self._connections.get(key.fileobj))
            now = time.monotonic()
            for connection in [each for each in self._connections.values() if each.deadline <= now]:
                self._drop(connection)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # No descriptor is left, or the client has closed. The next turn tries again.
                _log.debug("connection not accepted", extra=fields(reason=str(error)))
                time.sleep(_NO_DESCRIPTORS_PAUSE_S)
                return
            if len(self._connections) >= self._limits.connections:
                # The first of several is the oldest: connections are kept in the order in which they came.
                self._drop(min(self._connections.values(), key=lambda connection: connection.step))
            accepted.setblocking(False)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            connection = _Connection(accepted, time.monotonic() + self._limits.request_s)
            self._connections[accepted] = connection
            self._selector.register(accepted, selectors.EVENT_READ)
            self._go_on(connection)

    def _go_on(self, connection: _Connection | None) -> None:
        if connection is None:
            return
        try:
            if connection.step is _Step.REQUEST:
                self._read(connection)
            elif connection.step is _Step.RESPONSE_READ:
                self._write(connection)
            elif not connection.socket.recv(_READ_BYTES):
                self._drop(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)

    def _read(self, connection: _Connection) -> None:
        data = connection.socket.recv(_READ_BYTES)
        if not data:
            self._drop(connection)
            return
        connection.received += data
        head, end, _ = connection.received.replace(b"\r\n", b"\n").partition(b"\n\n")
        if end:
            self._answer_request(connection, bytes(head))
        elif len(connection.received) >= REQUEST_BYTES_MAX:
            self._send(connection, Response("431 Request Header Fields Too Large", (), b"").encode(with_body=True))

    def _answer_request(self, connection: _Connection, head: bytes) -> None:
        try:
            request = parse_request(head)
        except MalformedError:
            self._send(connection, Response("400 Bad Request", (), b"").encode(with_body=True))
            return
        response = self._attempt(self._answer, request)
        if response is not None:
            self._send(connection, response.encode(with_body=request.method != "HEAD"))
            return
        connection.step = _Step.PAGE
        connection.asked = request
        connection.deadline = time.monotonic() + self._limits.response_s
        connection.received.clear()
        # A client that shut its sending side down still reads: nothing is read from it until the page is made.
        self._selector.unregister(connection.socket)
        with self._asked_changed:
            self._asked.setdefault(request, []).append(connection)
            self._asked_changed.notify()

    def _send(self, connection: _Connection, data: bytes) -> None:
        if connection.step is _Step.PAGE:
            self._selector.register(connection.socket, selectors.EVENT_WRITE)
        else:
            self._selector.modify(connection.socket, selectors.EVENT_WRITE)
            connection.deadline = time.monotonic() + self._limits.response_s
        connection.step = _Step.RESPONSE_READ
        connection.received.clear()
        connection.unsent = memoryview(data)
        self._write(connection)

    def _write(self, connection: _Connection) -> None:
        sent = connection.socket.send(connection.unsent[:_WRITE_BYTES])
        connection.unsent = connection.unsent[sent:]
        if connection.unsent:
            return
        # What the client still sends is read for a moment: closed before, the kernel would send a reset, which may
        # overtake the response.
        connection.step = _Step.CLOSE
        connection.deadline = time.monotonic() + _LINGER_S
        self._selector.modify(connection.socket, selectors.EVENT_READ)
        connection.socket.shutdown(socket.SHUT_WR)

    def _drop(self, connection: _Connection) -> None:
        if self._connections.pop(connection.socket, None) is not None:
            if connection.step is _Step.PAGE:
                self._take_back(connection)
            else:
                self._selector.unregister(connection.socket)
            connection.socket.close()
            connection.unsent = memoryview(b"")

    def _take_back(self, connection: _Connection) -> None:
        """Discard the request of a closed connection.

        Otherwise different pages could be requested without end.
        """
        assert connection.asked is not None
        with self._asked_changed:
            waiting = self._asked.get(connection.asked, [])
            if connection in waiting:
                waiting.remove(connection)
                if not waiting:
                    del self._asked[connection.asked]

    def _take_rendered(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(_READ_BYTES)
        while self._rendered:
            data, connections = self._rendered.popleft()
            for connection in connections:
                if connection.socket in self._connections:
                    try:
                        self._send(connection, data)
                    except BlockingIOError:
                        pass
                    except OSError:
                        self._drop(connection)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def _attempt(self, work: Callable[[Request], Response | None], request: Request) -> Response | None:
        try:
            return work(request)
        except Exception:
            _log.exception("a page could not be made", extra=fields(page=request.path))
            return Response("500 Internal Server Error", (), b"")

    # In the thread of slow pages

    def _render_asked(self) -> None:
        while True:
            with self._asked_changed:
                self._asked_changed.wait_for(lambda: self._asked or self._closing)
                if self._closing:
                    return
                request = next(iter(self._asked))
                connections = self._asked.pop(request)
            response = self._attempt(self._render, request)
            assert response is not None
            self._rendered.append((response.encode(with_body=request.method != "HEAD"), connections))
            self._wake()
