"""Certificates from a stand-in for a SPIRE agent: a Workload API on a unix socket, made of the package's classes."""

import asyncio
import contextlib
import queue
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

pytest.importorskip("spiffe")

from spiffe._proto import workload_pb2

from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.api.verdicts.listener import ListenerOptions, VerdictListener
from lbguard.api.verdicts.policy import Policy
from lbguard.api.verdicts.server import VerdictIntake
from lbguard.rpc.security import CredentialsError, WorkloadApi
from lbguard.settings.notation import ListenAddress
from lbguard.settings.peers import parse_rule
from lbguard.settings.verdicts import VerdictLimits
from tests.unit.api.certificates import Authority
from tests.unit.api.core_stand_in import Core, settled, verdict

LB = "spiffe://example.org/lb"
PROXY = "spiffe://example.org/ns/red/proxy"
LIMIT_S = 60.0


class Agent:
    """A working Workload API for one workload. `issue` gives it a new certificate; `end` refuses it for good."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._streams: list[queue.Queue[Any]] = []
        self._last: Any = None
        handlers = {
            "FetchX509SVID": grpc.unary_stream_rpc_method_handler(
                self._fetch,
                workload_pb2.X509SVIDRequest.FromString,
                workload_pb2.X509SVIDResponse.SerializeToString,
            )
        }
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", handlers),))
        self._server.add_insecure_port(f"unix:{path}")
        self._server.start()

    def issue(self, authority: Authority, federated: Authority | None = None) -> None:
        """Give the workload a certificate of an authority."""
        issued = authority.issue(dns=("lb.test",), uris=(LB,))
        self._last = workload_pb2.X509SVIDResponse(
            svids=[
                workload_pb2.X509SVID(
                    spiffe_id=LB,
                    x509_svid=issued.chain_der,
                    x509_svid_key=issued.key_der,
                    bundle=authority.root_der,
                )
            ],
            federated_bundles={"spiffe://elsewhere.net": federated.root_der} if federated else {},
        )
        for stream in self._streams:
            stream.put(self._last)

    def end(self, code: grpc.StatusCode) -> None:
        """End the streams that are open."""
        for stream in self._streams:
            stream.put(code)

    def stop(self) -> None:
        """Go away."""
        self.end(grpc.StatusCode.UNAVAILABLE)
        self._server.stop(0).wait()
        self._pool.shutdown()

    def _fetch(self, request: Any, context: Any) -> Iterator[Any]:
        stream: queue.Queue[Any] = queue.Queue()
        self._streams.append(stream)
        context.add_callback(lambda: stream.put(None))
        if self._last is not None:
            stream.put(self._last)
        while (item := stream.get()) is not None:
            if isinstance(item, grpc.StatusCode):
                context.abort(item, "ended by the test")
            yield item


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "agent.sock")
    yield agent
    agent.stop()


class Served:
    def __init__(self, path: Path) -> None:
        self.core = Core()
        rule = parse_rule("spiffe://**=172.16.0.0/16")
        self.api = WorkloadApi(f"unix://{path}")
        intake = VerdictIntake(self.core.submit, Policy([rule]), VerdictLimits())
        self.listener = VerdictListener(ListenAddress("127.0.0.1", 0), intake, self.api, ListenerOptions())

    async def report(self, client: Authority, trusted: Authority, spiffe_id: str = PROXY) -> grpc.StatusCode:
        """Report over a connection of its own, with a certificate of `client`."""
        issued = client.issue(uris=(spiffe_id,))
        credentials = grpc.ssl_channel_credentials(trusted.root, issued.key, issued.chain)
        options = [("grpc.ssl_target_name_override", "lb.test"), ("grpc.use_local_subchannel_pool", 1)]
        where = f"127.0.0.1:{self.listener.port}"
        async with grpc.aio.secure_channel(where, credentials, options=options) as channel:
            stub: pb_grpc.VerdictServiceAsyncStub = pb_grpc.VerdictServiceStub(channel)
            try:
                await stub.ReportOnce(pb.ReportOnceRequest(verdicts=[verdict()]), timeout=LIMIT_S)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[Served]:
    service = Served(path)
    await service.listener.start()
    running = asyncio.create_task(service.listener.run())
    try:
        async with asyncio.timeout(LIMIT_S):
            yield service
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await service.listener.stop(0)
        await settled()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_it_listens_once_a_certificate_came(agent: Agent) -> None:
    authority = Authority()
    async with served(agent.path) as service:
        await asyncio.sleep(0.1)
        assert service.listener.port == 0
        with pytest.raises(CredentialsError, match="no certificate came yet"):
            service.api.current()
        agent.issue(authority)
        await until(lambda: service.listener.port != 0)
        assert await service.report(authority, authority) is grpc.StatusCode.OK
        assert service.core.reporters == [f"{PROXY}@127.0.0.1"]


async def test_renewals_are_served_at_once(agent: Agent) -> None:
    old, new = Authority(), Authority()
    agent.issue(old)
    async with served(agent.path) as service:
        await until(lambda: service.listener.port != 0)
        before = service.api.current()
        agent.issue(new)
        await until(lambda: service.api.current() is not before)
        assert await service.report(new, new) is grpc.StatusCode.OK
        assert await service.report(old, new) is grpc.StatusCode.UNAVAILABLE


async def test_a_federated_domain_vouches_for_nobody(agent: Agent) -> None:
    own, foreign = Authority(), Authority()
    agent.issue(own, federated=foreign)
    async with served(agent.path) as service:
        await until(lambda: service.listener.port != 0)
        assert await service.report(foreign, own, "spiffe://elsewhere.net/proxy") is grpc.StatusCode.UNAVAILABLE
        assert await service.report(own, own) is grpc.StatusCode.OK


async def test_an_agent_that_comes_later_and_goes_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "agent.sock"
    authority = Authority()
    async with served(path) as service:
        await until(lambda: bool(caplog.records))
        assert "no certificates from the Workload API; trying again" in caplog.text
        agent = Agent(path)
        agent.issue(authority)
        await until(lambda: service.listener.port != 0)
        await asyncio.to_thread(agent.stop)
        assert await service.report(authority, authority) is grpc.StatusCode.OK


async def test_a_stream_that_ended_for_good_is_begun_again(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    old, new = Authority(), Authority()
    agent.issue(old)
    async with served(agent.path) as service:
        await until(lambda: service.listener.port != 0)
        agent.end(grpc.StatusCode.INVALID_ARGUMENT)
        await until(lambda: not service.api.following)
        await until(lambda: "trying again" in caplog.text)
        assert await service.report(old, old) is grpc.StatusCode.OK
        before = service.api.current()
        agent.issue(new)
        await until(lambda: service.api.current() is not before)
        assert await service.report(new, new) is grpc.StatusCode.OK


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spiffe", None)
    with pytest.raises(CredentialsError, match=r"needs the extra `spiffe`: pip install 'lbguard\[spiffe\]'"):
        WorkloadApi("unix:///run/agent.sock").follow(lambda: None)
