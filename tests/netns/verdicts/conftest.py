"""The real service and the real monitor, joined by mTLS over a link of its own, with a model of a mesh's manager."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import grpc
import pytest

from lbguard.api.gen.nsm.connection import connection_pb2 as nsm_pb
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.core.model import Decision
from lbguard.core.status import TargetStatus, VerdictStatus
from lbguard.lab.netns import Namespace, connect
from lbguard.rpc.channels import REPORTER_KEY
from tests.fakes.nsmgr import FakeNsmgr, connection
from tests.netns.service.guarded import LINKS, Guarded
from tests.unit.api.certificates import Authority

LB_NAME = "lb.test"
PROXY = "spiffe://example.org/ns/red/proxy"
STRANGER = "spiffe://example.org/ns/blue/proxy"
PORT = 7443
MANAGEMENT = "10.9.0.1"
LIMIT_S = 90.0
CONNECTION_OF = {"nse-a": "conn-a", "nse-b": "conn-b"}

SERVICE = {
    "LBGUARD_VERDICTS__LISTEN": f":{PORT}",
    "LBGUARD_VERDICTS__POLICY": f"{PROXY}=172.16.0.0/16 fd00::/16, {STRANGER}=192.168.0.0/16",
    # Failed neighbours alone hold nothing here, so what holds is the reporters' word.
    "LBGUARD_EVIDENCE__NEIGHBOR_FAILURES": "100",
    "LBGUARD_EVIDENCE__VETO_WINDOW": "500ms",
    "LBGUARD_GRACE__WINDOW": "400ms",
    "LBGUARD_GRACE__VERDICT_WINDOW": "700ms",
}
MONITOR = {
    "PROBE__ENABLED": "true",
    "PROBE__CONNECTIONS": "nsm",
    "PROBE__INTERVAL": "200ms",
    "PROBE__TIMEOUT": "200ms",
    "PROBE__LEASE": "3s",
    "PROBE__NAME": "proxy-1",
    "PROBE__NSM__HEAL_TIME": "15s",
    "PROBE__REPORT_TO": f"{MANAGEMENT}:{PORT}",
    "PROBE__TLS_SERVER_NAME": LB_NAME,
    "METRICS__LISTEN": "",
    "LOG__FORMAT": "text",
}


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for a condition, with a generous bound; the manager's model has the loop in between."""
    try:
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # noqa: ASYNC110 (what is waited for happens in other processes)
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise TimeoutError(f"this did not come true in {LIMIT_S} s: {what or condition}") from None


class Mesh:
    """A guarded load balancer, its proxies with a monitor, and the manager that tells of their connections."""

    def __init__(self, guarded: Guarded, directory: Path, nsmgr: FakeNsmgr) -> None:
        self.guarded = guarded
        self.nsmgr = nsmgr
        self.directory = directory
        self._monitor: subprocess.Popen[bytes] | None = None
        authority = Authority()
        (directory / "ca.crt").write_bytes(authority.root)
        for name, issued in {
            "lb": authority.issue(dns=(LB_NAME,)),
            "proxy": authority.issue(uris=(PROXY,)),
            "stranger": authority.issue(uris=(STRANGER,)),
        }.items():
            (directory / name).mkdir()
            issued.write(directory / name)
        connect(guarded.lb, "eth0", guarded.proxies, "eth0")
        guarded.lb.add_addresses("eth0", f"{MANAGEMENT}/24")
        guarded.proxies.add_addresses("eth0", "10.9.0.2/24")
        for link in LINKS:
            self.address_proxy(link)

    def address_proxy(self, link: str) -> None:
        """Give a proxy's end of a link the proxy's own addresses."""
        number = LINKS[link]
        self.guarded.proxies.add_addresses(f"lb-{number}", f"172.16.{number}.250/24", f"fd00:{number}::fa/64")

    def settings(self, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the service's settings."""
        ca, lb = self.directory / "ca.crt", self.directory / "lb"
        tls = {"CERT": lb / "tls.crt", "KEY": lb / "tls.key", "CLIENT_CA": ca}
        return {
            **SERVICE,
            **{f"LBGUARD_VERDICTS__TLS_{name}": str(path) for name, path in tls.items()},
            **(changes or {}),
        }

    # The mesh

    def told(self, link: str = "nse-a", state: "nsm_pb.State.ValueType" = nsm_pb.UP) -> nsm_pb.Connection:
        """Return the connection over a link, as its client's manager tells of it."""
        number = LINKS[link]
        return connection(
            CONNECTION_OF[link],
            src=[f"172.16.{number}.250/24", f"fd00:{number}::fa/64"],
            dst=[f"172.16.{number}.1/24", f"fd00:{number}::1/64"],
            state=state,
        )

    def start_monitor(self) -> None:
        proxy = self.directory / "proxy"
        settings = MONITOR | {
            "PROBE__NSM__ADDRESS": f"unix://{self.directory}/nsm.sock",
            "PROBE__TLS_CERT": str(proxy / "tls.crt"),
            "PROBE__TLS_KEY": str(proxy / "tls.key"),
            "PROBE__TLS_CA": str(self.directory / "ca.crt"),
        }
        environment = {name: text for name, text in os.environ.items() if not name.startswith("LBGUARD_")}
        with self.monitor_log.open("ab") as log:
            self._monitor = subprocess.Popen(
                self.guarded.proxies.command(sys.executable, "-m", "lbguard", "probe"),
                env=environment | {f"LBGUARD_{name}": text for name, text in settings.items()},
                stdout=log,
                stderr=log,
            )

    @property
    def monitor_log(self) -> Path:
        return self.directory / "monitor.log"

    def stop_monitor(self, how: signal.Signals = signal.SIGTERM) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.send_signal(how)
            monitor.wait(20)

    # The datapath

    def cut(self, link: str = "nse-a", what: str = "") -> None:
        """Have the proxies' end of a link drop what arrives (nftables matches in `what`; empty: everything)."""
        number = LINKS[link]
        self.guarded.proxies.run(
            "nft",
            f"add table netdev cut{number}; add chain netdev cut{number} in"
            f" {{ type filter hook ingress device lb-{number} priority 0; }};"
            f" add rule netdev cut{number} in {what} drop",
        )

    def mend(self, link: str = "nse-a") -> None:
        self.guarded.proxies.run("nft", f"delete table netdev cut{LINKS[link]}")

    def mac_of(self, link: str) -> str:
        """Return the link-layer address of a link at the proxies' end."""
        return self.guarded.proxies.link(link).mac

    # What the service says

    def target(self, identifier: int) -> TargetStatus:
        with self.guarded.client() as client:
            return next(target for target in client.status().targets if target.identifier == identifier)

    def verdicts(self, identifier: int) -> list[VerdictStatus]:
        """Return the opinions that concern the IPv4 path of a target."""
        return list(self.target(identifier).paths[0].verdicts)

    def said(self, identifier: int) -> list[str]:
        return [verdict.state.value for verdict in self.verdicts(identifier)]

    def decisions_of(self, identifier: int) -> list[Decision]:
        return [decision for decision in self.guarded.decisions() if decision.target.identifier == identifier]

    def actions_of(self, identifier: int) -> list[str]:
        return [decision.action.value for decision in self.decisions_of(identifier)]

    # Reports of our own

    def channel(self, holder: str) -> grpc.aio.Channel:
        """Connect from the proxies' namespace; gRPC's threads are not there, so this thread carries the bytes."""
        holder_files = self.directory / holder
        credentials = grpc.ssl_channel_credentials(
            (self.directory / "ca.crt").read_bytes(),
            (holder_files / "tls.key").read_bytes(),
            (holder_files / "tls.crt").read_bytes(),
        )
        options = [("grpc.ssl_target_name_override", LB_NAME), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(f"unix:{self.directory}/relay.sock", credentials, options=options)

    async def report(self, holder: str, *verdicts: pb.Verdict, name: str = "proxy-1") -> pb.ReportOnceResponse:
        """Report a batch with somebody's certificate."""
        async with self.channel(holder) as channel:
            stub: pb_grpc.VerdictServiceAsyncStub = pb_grpc.VerdictServiceStub(channel)
            return await stub.ReportOnce(
                pb.ReportOnceRequest(verdicts=verdicts), timeout=LIMIT_S, metadata=((REPORTER_KEY, name),)
            )


@pytest.fixture
def guarded(make_namespace: Callable[[str], Namespace], tmp_path: Path) -> Iterator[Guarded]:
    """A load balancer with links to two proxies; no service runs yet."""
    made = Guarded(make_namespace("lb"), make_namespace("px"), tmp_path)
    yield made
    made.close()


@pytest.fixture
async def mesh(guarded: Guarded, tmp_path: Path) -> AsyncIterator[Mesh]:
    """The mesh with both connections up; service and monitor are started by the test."""
    nsmgr = FakeNsmgr()
    made = Mesh(guarded, tmp_path, nsmgr)
    await nsmgr.start(tmp_path / "nsm.sock")
    nsmgr.update(made.told("nse-a"), made.told("nse-b"))
    relay = await asyncio.start_unix_server(
        lambda reader, writer: _relay(guarded.proxies, reader, writer), tmp_path / "relay.sock"
    )
    yield made
    made.stop_monitor()
    relay.close()
    await nsmgr.stop()
    text = made.monitor_log.read_text() if made.monitor_log.exists() else ""
    print(text)
    assert "Traceback" not in text


async def _relay(namespace: Namespace, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry the bytes of a connection to the service, over a socket that was opened in the proxies' namespace."""
    with namespace.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (MANAGEMENT, PORT))
    far_reader, far_writer = await asyncio.open_connection(sock=sock)
    await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
