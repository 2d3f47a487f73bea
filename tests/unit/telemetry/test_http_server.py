"""The server with clients that are slow, silent, greedy or many, on real sockets."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lbguard.telemetry.http_server import HttpServer, Limits, MalformedError, Request, Response, parse_request

LIMIT_S = 60.0
QUICK = Response("200 OK", (("Content-Type", "text/plain"),), b"well\n")
GET = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n"


class Pages:
    """The pages of a test: `/slow` is made when it is let go, all others at once."""

    def __init__(self) -> None:
        self.made = 0
        self.go_on = threading.Event()
        self.body = b"slow\n"

    def answer(self, request: Request) -> Response | None:
        if request.path == "/broken":
            raise RuntimeError("a fault of the page")
        return None if request.path == "/slow" else QUICK

    def render(self, request: Request) -> Response:
        self.made += 1
        assert self.go_on.wait(LIMIT_S)
        return Response("200 OK", (), self.body)


class Served:
    """A server, and clients of it."""

    def __init__(self, pages: Pages, limits: Limits) -> None:
        self.pages = pages
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = listener.getsockname()
        self.server = HttpServer(listener, pages.answer, pages.render, limits)
        self._clients = contextlib.ExitStack()

    def client(self, first: bytes = b"") -> socket.socket:
        made = self._clients.enter_context(socket.create_connection(self.address, LIMIT_S))
        made.sendall(first)
        return made

    def get(self, page: bytes = b"/quick") -> bytes:
        with socket.create_connection(self.address, LIMIT_S) as client:
            client.sendall(GET % page)
            return rest_of(client)

    def close(self) -> None:
        self._clients.close()
        self.pages.go_on.set()
        self.server.close()


def rest_of(client: socket.socket) -> bytes:
    """Read until the server closes, or resets."""
    data = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while piece := client.recv(1 << 20):
            data += piece
    return data


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    made: list[Served] = []

    def start(limits: Limits = Limits(request_s=LIMIT_S, response_s=LIMIT_S)) -> Served:  # noqa: B008
        made.append(Served(Pages(), limits))
        return made[-1]

    yield start
    for each in made:
        each.close()


def is_well(response: bytes) -> bool:
    return response.startswith(b"HTTP/1.0 200 OK\r\n") and response.endswith(b"\r\n\r\nwell\n")


@pytest.mark.parametrize("first", [b"", b"GET /qui", GET[:-2] % b"/quick"])
def test_any_number_of_clients_that_do_not_finish_their_request_silences_nobody(serve: Serve, first: bytes) -> None:
    served = serve()
    for _ in range(7):
        for _ in range(100):
            served.client(first)
        assert is_well(served.get())


def test_a_flood_of_connections_silences_nobody(serve: Serve) -> None:
    served = serve()
    over = threading.Event()

    def flood() -> None:
        while not over.is_set():
            for _ in range(50):
                with socket.create_connection(served.address, LIMIT_S) as client:
                    client.send(b"GET /qui")

    flooding = [threading.Thread(target=flood) for _ in range(2)]
    for thread in flooding:
        thread.start()
    try:
        assert [is_well(served.get()) for _ in range(50)] == [True] * 50
    finally:
        over.set()
        for thread in flooding:
            thread.join()


def test_clients_that_do_not_read_give_way_to_new_ones(serve: Serve) -> None:
    served = serve()
    served.pages.body = bytes(20 << 20)
    served.pages.go_on.set()
    first = served.client(GET % b"/slow")
    for _ in range(300):
        served.client(GET % b"/slow")
    assert is_well(served.get())
    assert len(rest_of(first)) < len(served.pages.body)


def test_a_whole_request_has_its_time_however_it_trickles(serve: Serve) -> None:
    served = serve(Limits(request_s=0.3))
    client = served.client(b"GET /quick HTTP/1.1\r\n")
    began = time.monotonic()
    with pytest.raises(OSError):  # noqa: PT012 (which write meets the reset is the kernel's choice)
        while time.monotonic() - began < LIMIT_S:
            client.sendall(b"x")
            time.sleep(0.02)
    assert is_well(served.get())


def test_a_whole_response_has_its_time_however_slowly_it_is_read(serve: Serve) -> None:
    served = serve(Limits(response_s=0.3))
    served.pages.body = bytes(20 << 20)
    served.pages.go_on.set()
    client = served.client(GET % b"/slow")
    read = 0
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            read += len(piece)
            time.sleep(0.02)
    assert read < len(served.pages.body)


def test_a_page_that_is_never_made_keeps_no_connection_and_delays_no_other_page(serve: Serve) -> None:
    served = serve(Limits(response_s=0.3))
    client = served.client(GET % b"/slow")
    assert is_well(served.get())
    assert rest_of(client) == b""


def test_requests_for_the_same_page_share_it(serve: Serve) -> None:
    served = serve()
    first = served.client(GET % b"/slow")
    deadline = time.monotonic() + LIMIT_S
    while not served.pages.made and time.monotonic() < deadline:
        time.sleep(0.005)
    others = [served.client(GET % b"/slow") for _ in range(20)]
    assert is_well(served.get()), "the server has seen the others"
    served.pages.go_on.set()
    assert all(rest_of(client).endswith(b"\r\n\r\nslow\n") for client in (first, *others))
    assert served.pages.made == 2


def test_no_page_is_made_for_clients_that_have_gone(serve: Serve) -> None:
    served = serve(Limits(connections=4))
    first = served.client(GET % b"/slow")
    deadline = time.monotonic() + LIMIT_S
    while not served.pages.made and time.monotonic() < deadline:
        time.sleep(0.005)
    others = [served.client(GET % b"/slow?%d" % number) for number in range(20)]
    assert all(rest_of(client) == b"" for client in (first, *others[:16])), "each new one takes the oldest's place"
    served.pages.go_on.set()
    assert all(rest_of(client).endswith(b"slow\n") for client in others[16:])
    assert served.pages.made == 5


def test_headers_without_end_are_refused(serve: Serve) -> None:
    served = serve()
    client = served.client()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        client.sendall(b"GET /quick HTTP/1.1\r\n" + b"X: " + b"x" * (1 << 20))
    assert rest_of(client).startswith(b"HTTP/1.0 431 ")
    assert is_well(served.get())


def test_a_client_that_sends_no_more_is_answered(serve: Serve) -> None:
    served = serve()
    served.pages.go_on.set()
    for page, body in ((b"/quick", b"well\n"), (b"/slow", b"slow\n")):
        client = served.client(GET % page)
        client.shutdown(socket.SHUT_WR)
        assert rest_of(client).endswith(b"\r\n\r\n" + body)


def test_head_gets_no_body(serve: Serve) -> None:
    response = rest_of(serve().client(b"HEAD /quick HTTP/1.0\n\n"))
    assert b"Content-Length: 5\r\n" in response
    assert response.endswith(b"\r\n\r\n")


def test_a_page_with_a_fault_is_an_error_and_no_end(serve: Serve) -> None:
    served = serve()
    assert served.get(b"/broken").startswith(b"HTTP/1.0 500 ")
    assert is_well(served.get())


@pytest.mark.parametrize(
    "text", [b"", b"GET", b"GET /", b"\xff\xfe\x00", b"\x16\x03\x01 a b", b"GET http://[ HTTP/1.1", b"a b c d"]
)
def test_what_is_no_request_is_refused(serve: Serve, text: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_request(text)
    assert rest_of(serve().client(text + b"\r\n\r\n")).startswith(b"HTTP/1.0 400 ")


def test_a_request_is_what_the_page_depends_on() -> None:
    head = (
        b"GET http://a/m%65trics?name[]=x HTTP/1.1\nhost: a\naccept-ENCODING: gzip \nAccept: text/plain\nuser-agent: x"
    )
    assert parse_request(head) == Request("GET", "/metrics", "name[]=x", "text/plain", "gzip")
