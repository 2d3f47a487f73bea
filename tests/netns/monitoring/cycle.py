"""The service, a probe and Prometheus in namespaces, through what the dashboards are there to show."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import grpc
import yaml

from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.lab.netns import connect
from tests.fakes.nsmgr import FakeNsmgr, connection
from tests.netns.monitoring.prometheus import Prometheus
from tests.netns.service.guarded import LIMIT_S, LINKS, TARGETS, Guarded, ips_of, wait_until

PROBED = (3, 4)
"""The targets that the probe runs beside, all behind one proxy. Each has two addresses, each with its own verdict."""

VERDICTS = 2 * len(PROBED)

PODS = {"lb-0": "127.0.0.1:9464", "px-0": "10.99.0.2:9464"}
"""Where the metrics of service and probe are, as seen from the load balancer."""

SETTINGS = {
    "LBGUARD_GRACE__WINDOW": "6s",
    "LBGUARD_GRACE__VERDICT_WINDOW": "2s",
    "LBGUARD_EVIDENCE__VETO_WINDOW": "0s",
    "LBGUARD_EVIDENCE__SOFT_BUDGET": "0.25",
    "LBGUARD_FREEZE__THRESHOLD": "0.6",
    "LBGUARD_DAMPING__MAX": "500ms",  # the losses of this cycle add up
    "LBGUARD_VERDICTS__POLICY": "unix=172.16.0.0/16 fd00::/8",
    "LBGUARD_LINKS__EXCLUDE": "lo,mon0",
    "LBGUARD_RECORDING__ENABLED": "true",
    "LBGUARD_NSM__ENABLED": "true",
}
_PROBE = {
    "LBGUARD_PROBE__ENABLED": "true",
    "LBGUARD_PROBE__NAME": "targets",
    "LBGUARD_PROBE__INTERVAL": "400ms",
    "LBGUARD_PROBE__TIMEOUT": "400ms",
    "LBGUARD_PROBE__CONNECTIONS": "file",
    "LBGUARD_METRICS__LISTEN": "10.99.0.2:9464",
}
_PACKETS_A_TURN = 50
_TURN_S = 0.1


class Cycle:
    """A load balancer whose service and probe run and are scraped; `play` lets everything happen once."""

    def __init__(self, guarded: Guarded, prometheus: Prometheus, mesh: "_Mesh") -> None:
        self._guarded = guarded
        self._mesh = mesh
        self.prometheus = prometheus

    @classmethod
    @contextlib.contextmanager
    def running(cls, guarded: Guarded) -> Iterator[Self]:
        """Start all of it; the probe is heard when the block begins."""
        lb, proxies = guarded.lb, guarded.proxies
        connect(lb, "mon0", proxies, "mon1")
        lb.add_addresses("mon0", "10.99.0.1/24")
        proxies.add_addresses("mon1", "10.99.0.2/24")
        lb.sysctl("net.ipv4.ip_forward", "1")
        proxies.add_route("20.0.0.1", "10.99.0.1")
        manager = guarded.directory / "manager.sock"
        places = {
            "LBGUARD_AFFINITY__MODE": "incident",
            "LBGUARD_PARKING__ENABLED": "true",
            "LBGUARD_RECORDING__DIRECTORY": str(guarded.directory / "recording"),
            "LBGUARD_NSM__ADDRESS": f"unix://{manager}",
        }
        with (
            Prometheus(lb, guarded.directory, PODS) as prometheus,
            _Mesh.running(manager) as mesh,
            guarded.service(SETTINGS | places),
            _probe(guarded),
            _traffic(guarded),
        ):
            cycle = cls(guarded, prometheus, mesh)
            cycle.wait("lbguard_probe_report_connected", 1)
            cycle.wait('lbguard_probe_verdicts{state="up"}', VERDICTS)
            yield cycle

    def wait(self, expr: str, value: float) -> None:
        """Wait until Prometheus has seen this value."""
        wait_until(lambda: self.prometheus.value(expr) == value, f"{expr} == {value}")

    def wait_above(self, expr: str, value: float) -> None:
        """Wait until Prometheus has seen a value above this."""
        wait_until(lambda: (self.prometheus.value(expr) or 0) > value, f"{expr} > {value}")

    def wait_for_targets(self, state: str, count: int) -> None:
        self.wait(f'lbguard_target_states{{state="{state}"}}', count)

    def play(self) -> None:
        """Let everything happen once."""
        self.wait_for_targets("active", 4)
        self._recover_from_a_hold()
        self._withdraw_and_readmit()
        self._move_a_target()
        self._hear_of_the_mesh()
        self._withdraw_by_verdict()
        self._misreport()
        self._lose_every_link()

    def _recover_from_a_hold(self) -> None:
        """Lose a link and get it back, again and again until it went while it was still announced."""
        guarded = self._guarded
        not_owned = 'lbguard_announcements_suppressed_total{reason="not_owned"}'

        def went_while_announced() -> bool:
            guarded.delete_link("nse-a")
            guarded.wait_for(t1="held", t2="held")
            guarded.make_link("nse-a")
            guarded.wait_for(t1="active", t2="active")
            return (self.prometheus.value(not_owned) or 0) > 0

        wait_until(went_while_announced, "an announcement that was not repeated")

    def _withdraw_and_readmit(self) -> None:
        self._guarded.delete_link("nse-a")
        self.wait_for_targets("held", 2)
        self.wait_for_targets("withdrawn", 2)
        self._guarded.make_link("nse-a")
        self.wait_for_targets("active", 4)

    def _move_a_target(self) -> None:
        """Give targets another MAC address, and report one that is not theirs: that flushes an entry."""
        self._guarded.proxies.set_link("lb-1", address="02:00:00:00:00:99")
        self.wait_above("lbguard_neighbor_mac_changes_total", 0)
        moved = _verdict(ips_of(1)[0])
        moved.new_mac = bytes.fromhex("0200000000aa")
        with grpc.insecure_channel(f"unix:{self._guarded.socket}") as channel:
            pb_grpc.VerdictServiceStub(channel).ReportOnce(pb.ReportOnceRequest(verdicts=[moved]))
        self.wait_above("lbguard_neighbor_flushes_total", 0)
        self.wait_for_targets("active", 4)

    def _withdraw_by_verdict(self) -> None:
        """One of two is withdrawn; for the other the soft budget is used up."""
        with _deaf_to(self._guarded, PROBED):
            self.wait('lbguard_probe_verdicts{state="down"}', VERDICTS)
            self.wait_for_targets("withdrawn", 1)
            self.wait_above('lbguard_decisions_total{action="pardon"}', 0)
        self.wait_for_targets("active", 4)

    def _misreport(self) -> None:
        """Report in each way that is refused or changes nothing, once: the first time of each shows already."""
        with grpc.insecure_channel(f"unix:{self._guarded.socket}") as channel:
            report = pb_grpc.VerdictServiceStub(channel).ReportOnce
            for _ in range(2):
                report(pb.ReportOnceRequest(verdicts=[_verdict("172.16.1.200")]))
            for refused in ([_verdict("10.0.0.1")], [_verdict("nowhere")], [_verdict("172.16.1.200")] * 300):
                with contextlib.suppress(grpc.RpcError):
                    report(pb.ReportOnceRequest(verdicts=refused))
            for name in ("verdicts_ignored", "verdict_requests_denied", "verdict_requests_limited"):
                self.wait(f"sum(lbguard_{name}_total)", 1)
            self.wait("lbguard_verdict_requests_invalid_total", 1)

    def _hear_of_the_mesh(self) -> None:
        """Let the manager tell twice of another MAC address of a target, for the first update begins a series."""
        for turn in (1, 2):
            self._mesh.update(1, bytes([2, 0, 0, 0, 0, turn]))
            self.wait('lbguard_mesh_events_total{kind="update"}', turn)
        self.wait_above("lbguard_mesh_neighbors_outdated_total", 0)
        self._mesh.stop()
        self.wait_above("lbguard_mesh_losses_total", 0)
        self.wait_for_targets("active", 4)

    def _lose_every_link(self) -> None:
        for link in LINKS:
            self._guarded.delete_link(link)
        self.wait("lbguard_stream_available", 0)
        self.wait_for_targets("frozen", 4)
        self.wait_above("sum(increase(lbguard_probe_send_errors_total[5s]))", 0)
        for link in LINKS:
            self._guarded.make_link(link)
        self.wait_for_targets("active", 4)
        self.wait('lbguard_probe_verdicts{state="up"}', VERDICTS)


class _Mesh:
    """A mesh manager that is served in a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, manager: FakeNsmgr) -> None:
        self._loop = loop
        self._manager = manager

    @classmethod
    @contextlib.contextmanager
    def running(cls, path: Path) -> Iterator[Self]:
        """Serve a unix socket."""
        loop, manager = asyncio.new_event_loop(), FakeNsmgr()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        mesh = cls(loop, manager)
        try:
            asyncio.run_coroutine_threadsafe(manager.start(path), loop).result(LIMIT_S)
            yield mesh
        finally:
            mesh.stop()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def update(self, identifier: int, mac: bytes) -> None:
        """Tell of a target's connection, and which MAC address the target has."""
        ipv4, ipv6 = ips_of(identifier)
        made = connection(f"target-{identifier}", src=(f"{ipv4}/32", f"{ipv6}/128"), service="proxy.a")
        made.context.ethernet_context.src_mac = mac.hex(":")
        self._loop.call_soon_threadsafe(self._manager.update, made)

    def stop(self) -> None:
        """End it; once is enough."""
        asyncio.run_coroutine_threadsafe(self._manager.stop(), self._loop).result(LIMIT_S)


def _verdict(ip: str) -> pb.Verdict:
    subject = pb.Subject(target_ip=ip)
    return pb.Verdict(subject=subject, state=pb.VERDICT_STATE_UP, generation=1, sequence=1, lease_s=60)


@contextlib.contextmanager
def _deaf_to(guarded: Guarded, identifiers: Iterable[int]) -> Iterator[None]:
    """Let the load balancer answer no pings of targets."""
    rules = ["table inet deaf {", "chain input { type filter hook input priority 0;"]
    for ipv4, ipv6 in map(ips_of, identifiers):
        rules += [f"ip saddr {ipv4} icmp type echo-request drop", f"ip6 saddr {ipv6} icmpv6 type echo-request drop"]
    file = guarded.directory / "deaf.nft"
    file.write_text("\n".join([*rules, "}", "}", ""]))
    guarded.lb.run("nft", "-f", str(file))
    yield
    guarded.lb.run("nft", "delete", "table", "inet", "deaf")


@contextlib.contextmanager
def _probe(guarded: Guarded) -> Iterator[None]:
    """Run a probe beside targets; it reports to the service's socket."""
    proxy = TARGETS[PROBED[0]]
    remote = [f"172.16.{proxy}.1", f"fd00:{proxy}::1"]
    entries = [
        {"id": f"target-{identifier}", "subject": "self", "local": ips_of(identifier), "remote": list(remote)}
        for identifier in PROBED
    ]
    connections = guarded.directory / "connections.yaml"
    connections.write_text(yaml.safe_dump({"connections": entries}))
    environment = {name: text for name, text in os.environ.items() if not name.startswith("LBGUARD_")} | _PROBE
    environment |= {
        "LBGUARD_PROBE__CONNECTIONS_FILE": str(connections),
        "LBGUARD_PROBE__REPORT_TO": f"unix:{guarded.socket}",
    }
    with (guarded.directory / "probe.log").open("wb") as log:
        process = subprocess.Popen(
            guarded.proxies.command(sys.executable, "-m", "lbguard", "probe"), env=environment, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _traffic(guarded: Guarded) -> Iterator[None]:
    """Send packets to the VIP from many ports, a few hundred a second."""
    with guarded.proxies.entered():
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(_PACKETS_A_TURN)]
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(_TURN_S):
            for sender in sockets:
                with contextlib.suppress(OSError):  # an ICMP error about an earlier packet
                    sender.sendto(b"x" * 100, ("20.0.0.1", 4000))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for sender in sockets:
            sender.close()
