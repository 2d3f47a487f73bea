import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest

from lbguard.core.events import SourceLost, SourceSnapshot
from lbguard.rpc.channels import ChannelSpec, TlsTunnel, certificate_names
from lbguard.rpc.security import CredentialsError, Material
from lbguard.settings.notation import parse_dial_address
from lbguard.sources.nsp.lists import Place
from lbguard.sources.nsp.source import NspConfig, NspSource
from tests.fakes.nsp import FakeNsp, stream, target
from tests.unit.api.certificates import Authority, Issued

NSP = "spiffe://example.org/ns/default/pod/nsp-0"
LB = "spiffe://example.org/ns/default/pod/lb-0"
BOUND_S = 90.0


class Hand:
    """Certificates that the test hands out, and can replace or take away."""

    def __init__(self, issued: Issued, roots: bytes) -> None:
        self.material: Material | None = Material(issued.key, issued.chain, roots)

    def current(self) -> Material:
        if self.material is None:
            raise CredentialsError("no certificate came yet")
        return self.material


def server_context(tmp_path: Path, issued: Issued, roots: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*issued.write(tmp_path))
    context.load_verify_locations(cadata=roots.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    return context


@contextlib.asynccontextmanager
async def echo(context: ssl.SSLContext | None, seen: list[object]) -> AsyncIterator[int]:
    """Serve what comes in back to whom it comes from, and note whose certificate was shown."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = writer.get_extra_info("ssl_object")
        if tls is not None:
            seen.append((certificate_names(writer.get_extra_info("peercert")), tls.selected_alpn_protocol()))
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def say(tunnel: TlsTunnel, data: bytes) -> bytes:
    """Send through a tunnel and return what comes back before the end."""
    reader, writer = await asyncio.open_unix_connection("\0" + tunnel.target.removeprefix("unix-abstract:"))
    try:
        writer.write(data)
        async with asyncio.timeout(BOUND_S):
            return await reader.readexactly(len(data))
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""
    finally:
        writer.close()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def hand(authority: Authority) -> Hand:
    return Hand(authority.issue(uris=(LB,)), authority.root)


async def test_data_goes_both_ways_and_the_server_sees_our_certificate(
    authority: Authority, hand: Hand, tmp_path: Path
) -> None:
    seen: list[object] = []
    context = server_context(tmp_path, authority.issue(uris=(NSP,)), authority.root)
    async with echo(context, seen) as port, TlsTunnel("127.0.0.1", port, hand) as tunnel:
        assert await say(tunnel, b"x" * 300_000) == b"x" * 300_000
        assert tunnel.problem == ""
    assert seen == [((LB,), "h2")]


async def test_a_renewed_certificate_is_shown_at_the_next_connection(
    authority: Authority, hand: Hand, tmp_path: Path
) -> None:
    seen: list[object] = []
    context = server_context(tmp_path, authority.issue(uris=(NSP,)), authority.root)
    async with echo(context, seen) as port, TlsTunnel("127.0.0.1", port, hand) as tunnel:
        await say(tunnel, b"a")
        renewed = authority.issue(uris=(f"{LB}-renewed",))
        hand.material = Material(renewed.key, renewed.chain, authority.root)
        await say(tunnel, b"b")
    assert seen == [((LB,), "h2"), ((f"{LB}-renewed",), "h2")]


async def test_a_tunnel_that_is_closed_in_use_is_no_fault(authority: Authority, hand: Hand, tmp_path: Path) -> None:
    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    context = server_context(tmp_path, authority.issue(uris=(NSP,)), authority.root)
    async with echo(context, []) as port:
        async with TlsTunnel("127.0.0.1", port, hand) as tunnel:
            reader, writer = await asyncio.open_unix_connection("\0" + tunnel.target.removeprefix("unix-abstract:"))
            writer.write(b"x")
            async with asyncio.timeout(BOUND_S):
                assert await reader.readexactly(1) == b"x"
        async with asyncio.timeout(BOUND_S):
            assert await reader.read() == b""
        writer.close()
        await asyncio.sleep(0)
    assert faults == []


Served = Callable[[Authority], tuple[Issued, bytes]]


@pytest.mark.parametrize(
    ("served", "server_name", "problem"),
    [
        (lambda a: (Authority("another").issue(uris=(NSP,)), a.root), "", "refused: "),
        (lambda a: (a.issue(uris=(NSP,), days=-1), a.root), "", "refused: certificate has expired"),
        (lambda a: (a.issue(uris=(NSP,)), a.root), "spiffe://example.org/*/lb-*", f"it has {NSP}, not spiffe://"),
        (lambda a: (a.issue(), a.root), "nsp-service", "it has no name, not nsp-service"),
        (lambda a: (a.issue(uris=(NSP,)), Authority("another").root), "", "does it accept our certificate?"),
    ],
)
async def test_nothing_is_said_to_the_wrong_server(
    authority: Authority, hand: Hand, tmp_path: Path, served: Served, server_name: str, problem: str
) -> None:
    issued, client_roots = served(authority)
    context = server_context(tmp_path, issued, client_roots)
    async with (
        echo(context, []) as port,
        TlsTunnel("127.0.0.1", port, hand, server_name=server_name) as tunnel,
    ):
        assert await say(tunnel, b"secret") == b""
        assert problem in tunnel.problem


async def test_a_server_without_tls_is_none(hand: Hand) -> None:
    async with echo(None, []) as port, TlsTunnel("127.0.0.1", port, hand) as tunnel:
        assert await say(tunnel, b"secret") == b""
        assert tunnel.problem.startswith("TLS failed: ")


async def test_without_a_certificate_or_a_server_there_is_a_reason(hand: Hand) -> None:
    async with echo(None, []) as port:
        pass
    async with TlsTunnel("127.0.0.1", port, hand) as tunnel:
        assert await say(tunnel, b"x") == b""
        assert "Connect call failed" in tunnel.problem
        hand.material = None
        assert await say(tunnel, b"x") == b""
        assert tunnel.problem == "no certificate came yet"


async def test_another_process_gets_nothing(authority: Authority, hand: Hand, tmp_path: Path) -> None:
    context = server_context(tmp_path, authority.issue(uris=(NSP,)), authority.root)
    seen: list[object] = []
    async with echo(context, seen) as port, TlsTunnel("127.0.0.1", port, hand) as tunnel:
        name = tunnel.target.removeprefix("unix-abstract:")
        script = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('\\0' + sys.argv[1]);"
            "s.settimeout(20); s.sendall(b'secret'); print(len(s.recv(99)))"
        )
        process = await asyncio.create_subprocess_exec(
            "python3", "-c", script, name, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, error = await process.communicate()
        assert out.strip() == b"0" or b"ConnectionResetError" in error or b"BrokenPipeError" in error
    assert seen == []


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
    try:
        async with asyncio.timeout(BOUND_S):
            assert isinstance(await queue.get(), SourceSnapshot)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await fake.stop()
