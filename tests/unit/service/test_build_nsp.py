import asyncio
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

import pytest

from lbguard.api.feeds import AvailabilityState
from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.core.model import BLACKHOLE_METRIC, Route, RouteKind
from lbguard.rpc.security import CertificateFiles, CredentialsError
from lbguard.service.build_nsp import (
    OffsetsInForce,
    WorkloadCertificates,
    make_availability_server,
    make_nsp_source,
    nsp_certificates,
)
from lbguard.settings.model import Settings, SettingsError, load
from tests.fakes.nfqlb import Memory, make_memory
from tests.fakes.nsp import FakeNsp, stream, target
from tests.unit.api.certificates import Authority

BOUND_S = 90.0


def ip(text: str) -> bytes:
    return ip_address(text).packed


def settings(**flags: object) -> Settings:
    names = {name.replace("__", "."): value for name, value in flags.items()}
    return load(flags={"source": "nsp", "nsp.trench": "trench-a", "nsp.conduit": "load-balancer", **names}).settings


def memory(shm_dir: Path, name: str, marks: dict[int, int], targets: int = 4) -> None:
    """Make a memory as nfqlb does, with these marks by index."""
    path = shm_dir / f"tshm-{name}"
    make_memory(path, 97, targets)
    made = Memory(path)
    made.active = [marks.get(index, -1) for index in range(targets)]
    made.store()


def route(table: int, gateway: str, kind: RouteKind = RouteKind.UNICAST) -> Route:
    metric = BLACKHOLE_METRIC if kind is RouteKind.BLACKHOLE else 0
    return Route(table, "." in gateway, kind, metric, ip(gateway) if gateway else b"", 3)


def test_the_memory_is_better_evidence_than_routes_and_routes_than_nothing(tmp_path: Path) -> None:
    memory(tmp_path, "a", {1: 6002})
    memory(tmp_path, "idle", {})
    (tmp_path / "tshm-broken").write_bytes(b"no memory")
    routes = [
        route(6001, "10.0.0.1"),
        route(7001, "10.0.0.1"),
        route(7002, "10.0.0.2"),
        route(9, "", RouteKind.BLACKHOLE),
    ]
    read = OffsetsInForce(tmp_path, lambda: routes)
    targets = {"a": {1: (ip("10.0.0.1"),)}, "b": {1: (ip("10.0.0.1"),), 2: (ip("10.0.0.2"),)}}
    assert read({"a": 4, "b": 4, "idle": 4, "broken": 4, "../a": 4}, targets, {}) == {"a": 6000, "b": 7000}


def test_marks_cannot_be_told_before_the_kernel_is_read_unless_the_memory_tells_all(tmp_path: Path) -> None:
    kernel: list[Route] | None = None

    def routes() -> Iterable[Route] | None:
        return kernel

    memory(tmp_path, "a", {0: 6001})
    read = OffsetsInForce(tmp_path, routes)
    assert read({"a": 4, "b": 4}, {}, {}) is None
    assert read({"a": 4}, {}, {}) == {"a": 6000}
    kernel = []
    assert read({"a": 4, "b": 4}, {}, {}) == {"a": 6000}


def test_of_a_stream_that_was_told_before_only_the_memory_is_believed(tmp_path: Path) -> None:
    # Target 1 is in both streams, and of its routes only that of stream a is left.
    read = OffsetsInForce(tmp_path, lambda: [route(5001, "10.0.0.1")])
    both = {name: {1: (ip("10.0.0.1"),)} for name in ("a", "b")}
    assert read({"a": 4, "b": 4}, both, {"a": 5000, "b": 5100}) == {}
    assert read({"a": 4, "b": 4}, both, {"a": 5000}) == {}
    memory(tmp_path, "b", {0: 9001})
    assert read({"a": 4, "b": 4}, both, {"a": 5000, "b": 5100}) == {"b": 9000}


async def test_the_source_waits_for_the_kernel_and_takes_the_marks_in_force(tmp_path: Path) -> None:
    nsp = FakeNsp()
    nsp.configure([stream("stream-a")])
    nsp.put(target(3, "172.16.0.3/24"))
    told: asyncio.Queue[SourceSnapshot | SourceLost] = asyncio.Queue()
    kernel: list[Route] | None = None
    wanted = settings(nsp__address=await nsp.start(), distributor__shm_dir=str(tmp_path))
    task = asyncio.create_task(make_nsp_source(wanted, told.put_nowait, None, lambda: kernel).run())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(told.get(), 0.5)
    kernel = [route(8003, "172.16.0.3")]
    async with asyncio.timeout(BOUND_S):
        event = await told.get()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await nsp.stop()
    assert isinstance(event, SourceSnapshot)
    assert [spec.identifier_offset for spec in event.streams] == [8000]


def test_where_certificates_come_from(tmp_path: Path) -> None:
    assert nsp_certificates(settings().nsp) is None
    chain, key = Authority().issue(dns=("lb",)).write(tmp_path)
    files = settings(nsp__tls_cert=str(chain), nsp__tls_key=str(key), nsp__tls_ca=str(chain))
    assert isinstance(nsp_certificates(files.nsp), CertificateFiles)
    api = nsp_certificates(settings(nsp__spiffe_socket=f"unix://{tmp_path}/agent.sock").nsp)
    assert isinstance(api, WorkloadCertificates)


def test_a_workload_api_that_is_not_there_is_named_by_the_setting(tmp_path: Path) -> None:
    api = WorkloadCertificates(f"unix://{tmp_path}/agent.sock")
    with pytest.raises(CredentialsError, match=r"nsp\.spiffe_socket"):
        api.current()
    api.close()


async def test_the_frontend_is_told_only_where_that_is_asked_for(tmp_path: Path) -> None:
    assert make_availability_server(settings(), AvailabilityState(), None) is None
    server = make_availability_server(
        settings(availability__socket=str(tmp_path / "lb.sock")), AvailabilityState(), None
    )
    assert server is not None
    await server.start()
    await server.stop()


@pytest.mark.parametrize(
    ("flags", "setting", "words"),
    [
        ({"nsp.trench": ""}, "nsp.trench", "needed with source nsp"),
        ({"nsp.conduit": ""}, "nsp.conduit", "needed with source nsp"),
        ({"nsp.address": "http://nsp"}, "nsp.address", "not an address to dial"),
        ({"nsp.tls_cert": "/x"}, "nsp.tls_key", "go together"),
        ({"nsp.tls_ca": "/x", "nsp.spiffe_socket": "unix:///x"}, "nsp.spiffe_socket", "not together with nsp.tls_ca"),
        ({"nsp.identifier_offset_start": "200"}, "nsp.identifier_offset_start", "out of bounds"),
    ],
)
def test_settings_that_do_not_fit(flags: dict[str, str], setting: str, words: str) -> None:
    whole = {"source": "nsp", "nsp.trench": "t", "nsp.conduit": "c", **flags}
    with pytest.raises(SettingsError) as caught:
        load(flags=whole)
    (problem,) = caught.value.problems
    assert problem.setting == setting
    assert words in str(problem)


def test_without_the_source_its_names_are_not_needed() -> None:
    assert load().settings.source == "file"
