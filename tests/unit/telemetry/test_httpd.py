import contextlib
import gzip
import http.client
import json
import re
import socket
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from lbguard import __version__
from lbguard.settings.notation import ListenAddress
from lbguard.telemetry.httpd import Health, HttpEndpoint, ListenError


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(heartbeat_limit_s=5.0, clock=clock)


@pytest.fixture
def endpoint(health: Health) -> Iterator[HttpEndpoint]:
    registry = CollectorRegistry()
    Counter("apples", "Apples.", registry=registry).inc(3)
    served = HttpEndpoint(ListenAddress("", 0), registry, health)
    yield served
    served.close()


def get(endpoint: HttpEndpoint, path: str, host: str = "127.0.0.1", method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, endpoint.port, timeout=30)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_metrics_are_served_to_both_families(endpoint: HttpEndpoint, host: str) -> None:
    status, text = get(endpoint, "/metrics", host)
    assert status == 200
    assert "apples_total 3.0" in text


def test_the_loop_is_alive_while_it_beats(endpoint: HttpEndpoint, health: Health, clock: Clock) -> None:
    assert get(endpoint, "/healthz")[0] == 200
    clock.now += 5.5
    status, text = get(endpoint, "/healthz")
    assert status == 503
    assert json.loads(text)["reasons"] == ["loop_hung: no heartbeat for 5.5 s"]
    assert get(endpoint, "/readyz")[0] == 503
    health.beat("")
    assert get(endpoint, "/healthz") == (200, '{"ok": true}\n')


def test_readiness_names_what_is_missing(endpoint: HttpEndpoint, health: Health) -> None:
    status, text = get(endpoint, "/readyz")
    assert (status, json.loads(text)["reasons"]) == (503, ["starting: no state yet"])
    health.beat("kernel: out of sync")
    status, text = get(endpoint, "/readyz")
    assert (status, json.loads(text)["reasons"]) == (503, ["kernel: out of sync"])
    assert get(endpoint, "/healthz")[0] == 200
    health.beat("")
    assert get(endpoint, "/readyz")[0] == 200


def test_other_pages_and_methods_are_refused(endpoint: HttpEndpoint) -> None:
    assert get(endpoint, "/nonsense")[0] == 404
    assert get(endpoint, "/metrics/../etc")[0] == 404
    assert get(endpoint, "/metrics", method="POST")[0] == 405


def test_the_first_page_leads_to_the_others_and_tells_the_state(endpoint: HttpEndpoint, health: Health) -> None:
    health.beat("source_not_read: <script>alert(1)</script>")
    status, text = get(endpoint, "/")
    assert status == 200
    assert __version__ in text
    links = re.findall(r'href="(/[^"]*)"', text)
    assert links == ["/metrics", "/healthz", "/readyz"]
    assert json.loads(get(endpoint, "/nonsense")[1])["pages"] == links
    for link in links:
        assert get(endpoint, link)[0] in {200, 503}
    assert "source_not_read: &lt;script&gt;" in text, "a reason is text, whatever it holds"
    assert "<script" not in text
    health.beat("")
    assert text.count('<span class="bad">no</span>') == 1
    assert '<span class="bad">' not in get(endpoint, "/")[1]


def test_the_first_page_loads_nothing_from_elsewhere(endpoint: HttpEndpoint) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=30)
    connection.request("GET", "/")
    response = connection.getresponse()
    page = response.read().decode()
    connection.close()
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert not re.search(r"src=|url\(|@import|<script", page)


def test_metrics_are_compressed_and_selected_where_that_is_asked_for(endpoint: HttpEndpoint) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=30)
    connection.request("GET", "/metrics?name[]=apples_total", headers={"Accept-Encoding": "gzip"})
    response = connection.getresponse()
    text = gzip.decompress(response.read()).decode()
    connection.close()
    assert response.headers["Content-Type"].startswith("text/plain")
    assert [line for line in text.splitlines() if line[:1] != "#"] == ["apples_total 3.0"]


def test_a_hundred_clients_that_say_nothing_hold_nobody_up(endpoint: HttpEndpoint) -> None:
    with contextlib.ExitStack() as silent:
        for host in ("127.0.0.1", "::1") * 50:
            silent.enter_context(socket.create_connection((host, endpoint.port)))
        assert get(endpoint, "/healthz")[0] == 200
        assert get(endpoint, "/metrics")[0] == 200


def test_a_taken_port_is_refused_by_the_name_of_the_setting(endpoint: HttpEndpoint, health: Health) -> None:
    with pytest.raises(ListenError, match=r"metrics\.listen = :\d+: .*another process listens there"):
        HttpEndpoint(ListenAddress("", endpoint.port), CollectorRegistry(), health)


def test_an_address_of_another_machine_is_refused(health: Health) -> None:
    with pytest.raises(ListenError, match="no interface has that address"):
        HttpEndpoint(ListenAddress("192.0.2.1", 0), CollectorRegistry(), health)


def test_one_family_alone_can_be_asked_for(health: Health) -> None:
    served = HttpEndpoint(ListenAddress("::1", 0), CollectorRegistry(), health)
    try:
        assert get(served, "/healthz", "::1")[0] == 200
        with pytest.raises(OSError, match="refused"):
            get(served, "/healthz", "127.0.0.1")
    finally:
        served.close()
