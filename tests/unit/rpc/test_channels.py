import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest

from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.rpc.channels import ChannelSpec
from lbguard.rpc.security import Material
from lbguard.settings.dial_address import parse_dial_address
from lbguard.sources.nsp.lists import Place
from lbguard.sources.nsp.source import NspConfig, NspSource
from tests.fakes.nsp import FakeNsp, stream, target
from tests.unit.api.certificates import Authority, Issued

NSP = "spiffe://example.org/ns/default/pod/nsp-0"
LB = "spiffe://example.org/ns/default/pod/lb-0"
BOUND_S = 20.0


class Hand:
    def __init__(self, issued: Issued, roots: bytes) -> None:
        self.material = Material(issued.key, issued.chain, roots)

    def current(self) -> Material:
        return self.material


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@contextlib.asynccontextmanager
async def registry(authority: Authority, *, port: int = 0) -> AsyncIterator[FakeNsp]:
    """Serve with mTLS and a certificate that has no host name, as Meridio's registry does."""
    issued = authority.issue(uris=(NSP,))
    credentials = grpc.ssl_server_credentials([(issued.key, issued.chain)], authority.root, True)
    fake = FakeNsp()
    fake.configure([stream("stream-a")])
    fake.put(target(1, "172.16.0.1/24"))
    await fake.start(f"127.0.0.1:{port}", credentials=credentials)
    try:
        yield fake
    finally:
        await fake.stop()


@contextlib.asynccontextmanager
async def told(address: str, hand: Hand, server_name: str) -> AsyncIterator[asyncio.Queue[SourceSnapshot | SourceLost]]:
    queue: asyncio.Queue[SourceSnapshot | SourceLost] = asyncio.Queue()
    channel = ChannelSpec(endpoint=parse_dial_address(address), material=hand, server_name=server_name)
    config = NspConfig(place=Place("trench-a", "load-balancer"), channel=channel, max_backoff_s=0.1)
    task = asyncio.create_task(NspSource(config, queue.put_nowait).run())
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_mtls_with_spiffe_certificates_and_their_renewal(authority: Authority) -> None:
    hand = Hand(authority.issue(uris=(LB,)), authority.root)
    async with registry(authority) as fake, told(fake.address, hand, "spiffe://example.org/*") as queue:
        async with asyncio.timeout(BOUND_S):
            first = await queue.get()
            assert isinstance(first, SourceSnapshot)
            assert [spec.name for spec in first.streams] == ["stream-a"]
            # Another authority takes over at both ends; the next session uses it.
            await fake.stop()
            assert isinstance(await queue.get(), SourceLost)
        port = int(fake.address.rpartition(":")[2])
        other = Authority("the next")
        renewed = other.issue(uris=(LB,))
        hand.material = Material(renewed.key, renewed.chain, other.root)
        async with registry(other, port=port), asyncio.timeout(BOUND_S):
            while not isinstance(event := await queue.get(), SourceSnapshot):
                pass
            assert event == first


@pytest.mark.parametrize(
    ("ours", "server_name", "reason"),
    [
        (lambda a: Hand(a.issue(uris=(LB,)), a.root), "nsp-service", f"it has {NSP}, not nsp-service"),
        (lambda a: Hand(a.issue(uris=(LB,)), Authority("another").root), "", "certificate of the server refused"),
    ],
)
async def test_the_loss_says_what_is_wrong_with_the_certificate(
    authority: Authority, ours: object, server_name: str, reason: str
) -> None:
    assert callable(ours)
    async with registry(authority) as fake, told(fake.address, ours(authority), server_name) as queue:
        async with asyncio.timeout(BOUND_S):
            event = await queue.get()
        assert isinstance(event, SourceLost)
        assert reason in event.reason


async def test_a_unix_socket(tmp_path: object) -> None:
    fake = FakeNsp()
    fake.configure([stream("stream-a")])
    address = await fake.start(f"unix:{tmp_path}/nsp.sock")
    queue: asyncio.Queue[SourceSnapshot | SourceLost] = asyncio.Queue()
    config = NspConfig(
        place=Place("trench-a", "load-balancer"), channel=ChannelSpec(endpoint=parse_dial_address(address))
    )
    task = asyncio.create_task(NspSource(config, queue.put_nowait).run())
    async with asyncio.timeout(BOUND_S):
        assert isinstance(await queue.get(), SourceSnapshot)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await fake.stop()
