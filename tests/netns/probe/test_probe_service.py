"""The real command in a namespace of its own, pinging through a veth, with a verdict sink and a model of a manager."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.lab.netns import Namespace, connect
from tests.fakes.nsmgr import FakeNsmgr, connection
from tests.fakes.verdict_sink import VerdictSink
from tests.unit.kernel.fake_kernel import eventually

pytestmark = pytest.mark.netns

FAST = {
    "PROBE__ENABLED": "true",
    "PROBE__INTERVAL": "200ms",
    "PROBE__TIMEOUT": "200ms",
    "PROBE__LEASE": "2s",
    "METRICS__LISTEN": "127.0.0.1:9464",
    "LOG__FORMAT": "text",
}
CONNECTION = """
connections:
  - {id: lb-a, local: [10.1.0.2, "fd01::2"], remote: [10.1.0.1, "fd01::1"]}
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """A proxy and a load balancer, joined by a link with addresses of both families."""

    proxy: Namespace
    lb: Namespace

    def add(self, third: str) -> None:
        """Give both ends addresses of one more subnet."""
        for namespace, ifname, host in ((self.proxy, "nsm0", 2), (self.lb, "lb0", 1)):
            namespace.add_addresses(ifname, f"10.{third}.0.{host}/24", f"fd0{third}::{host}/64")

    def remove(self, third: str) -> None:
        """Take those addresses away."""
        for namespace, ifname, host in ((self.proxy, "nsm0", 2), (self.lb, "lb0", 1)):
            namespace.delete_addresses(ifname, f"10.{third}.0.{host}/24", f"fd0{third}::{host}/64")


@pytest.fixture
def pair(make_namespace: Callable[[str], Namespace]) -> Pair:
    made = Pair(make_namespace("proxy"), make_namespace("lb"))
    connect(made.proxy, "nsm0", made.lb, "lb0")
    made.add("1")
    return made


class Probe:
    """A running `lbguard probe`."""

    def __init__(self, namespace: Namespace, log: Path, variables: dict[str, str]) -> None:
        self._namespace = namespace
        self._log = log.open("w")
        environment = {name: text for name, text in os.environ.items() if not name.startswith("LBGUARD_")}
        environment |= {f"LBGUARD_{name}": text for name, text in (FAST | variables).items()}
        self.process = subprocess.Popen(
            namespace.command(sys.executable, "-m", "lbguard", "probe"),
            env=environment,
            stdout=self._log,
            stderr=self._log,
        )

    def get(self, page: str) -> str:
        """Return a page of its HTTP endpoint; empty while there is none."""
        with self._namespace.entered():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:9464/{page}", timeout=5) as answer:
                    return str(answer.read().decode())
            except urllib.error.HTTPError as error:
                return error.read().decode()
            except OSError:
                return ""

    def metric(self, name: str) -> float:
        """Return a sample by its name with labels; -1 when it is not there."""
        for line in self.get("metrics").splitlines():
            if line.startswith(f"lbguard_probe_{name} "):
                return float(line.rpartition(" ")[2])
        return -1.0

    def end(self) -> int:
        """Stop it and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._log.close()


Start = Callable[..., Probe]


@pytest.fixture
def start(pair: Pair, tmp_path: Path) -> Iterator[Start]:
    running: list[Probe] = []

    def start(**variables: str) -> Probe:
        probe = Probe(pair.proxy, tmp_path / f"probe-{len(running)}.log", variables)
        running.append(probe)
        return probe

    yield start
    for number, probe in enumerate(running):
        status = probe.end()
        text = (tmp_path / f"probe-{number}.log").read_text()
        print(text)
        assert status == 0, text
        assert "Traceback" not in text


@pytest.fixture
async def sink(tmp_path: Path) -> AsyncIterator[VerdictSink]:
    sink = VerdictSink()
    await sink.start(f"unix:{tmp_path}/lb.sock")
    yield sink
    await sink.stop()


@pytest.fixture
async def nsmgr(tmp_path: Path) -> AsyncIterator[FakeNsmgr]:
    fake = FakeNsmgr()
    await fake.start(tmp_path / "nsm.sock")
    yield fake
    await fake.stop()


@pytest.fixture
def from_file(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "connections.yaml").write_text(CONNECTION)
    return {
        "PROBE__CONNECTIONS_FILE": str(tmp_path / "connections.yaml"),
        "PROBE__REPORT_TO": f"unix:{tmp_path}/lb.sock",
    }


@pytest.fixture
def from_nsm(tmp_path: Path) -> dict[str, str]:
    return {
        "PROBE__CONNECTIONS": "nsm",
        "PROBE__NSM__ADDRESS": f"unix://{tmp_path}/nsm.sock",
        "PROBE__NSM__HEAL_TIME": "4s",
        "PROBE__REPORT_TO": f"unix:{tmp_path}/lb.sock",
    }


def told(id: str = "c1", third: str = "1", state: "pb.State.ValueType" = pb.UP) -> pb.Connection:
    return connection(
        id,
        src=[f"10.{third}.0.2/24", f"fd0{third}::2/64"],
        dst=[f"10.{third}.0.1/24", f"fd0{third}::1/64"],
        interface="nsm0",
        state=state,
    )


async def test_up_down_and_up_again(pair: Pair, start: Start, sink: VerdictSink, from_file: dict[str, str]) -> None:
    probe = start(**from_file)
    await eventually(lambda: sink.states("lb-a") == ["UP"])
    first = sink.arrived[0].verdict
    assert sorted(entry.family for entry in first.evidence) == [4, 6]
    assert all(0 < entry.rtt_min_s <= entry.rtt_max_s < 1 for entry in first.evidence)
    assert list(first.subject.connection.lb_ips) == ["10.1.0.1", "fd01::1"]
    pair.lb.set_link("lb0", up=False)
    await eventually(lambda: sink.states("lb-a")[-1] == "DOWN")
    pair.lb.set_link("lb0", up=True)
    pair.lb.add_addresses("lb0", "fd01::1/64")
    await eventually(lambda: sink.states("lb-a")[-1] == "UP")
    assert "DOWN" in sink.states("lb-a")
    assert json.loads(probe.get("readyz")) == {"ok": True}
    assert probe.metric('pings_total{family="ipv4"}') > 0
    assert probe.metric('replies_total{family="ipv6"}') > 0
    await eventually(lambda: probe.metric('verdicts{state="up"}') == 1)


async def test_a_deaf_family_degrades(pair: Pair, start: Start, sink: VerdictSink, from_file: dict[str, str]) -> None:
    start(**from_file)
    await eventually(lambda: sink.states("lb-a") == ["UP"])
    pair.lb.sysctl("net.ipv4.icmp_echo_ignore_all", "1")
    await eventually(lambda: sink.states("lb-a")[-1] == "DEGRADED")
    assert "DOWN" not in sink.states("lb-a")


async def test_a_link_made_anew_under_its_name_is_pinged_again(
    pair: Pair, start: Start, sink: VerdictSink, from_file: dict[str, str]
) -> None:
    start(**from_file)
    await eventually(lambda: sink.states("lb-a") == ["UP"])
    pair.proxy.delete_link("nsm0")
    await eventually(lambda: sink.states("lb-a")[-1] == "DOWN")
    connect(pair.proxy, "nsm0", pair.lb, "lb0")
    pair.add("1")
    await eventually(lambda: sink.states("lb-a")[-1] == "UP")
    assert "ENDED" not in sink.states("lb-a")
    # The load balancer's neighbour entry for our end is out of date, and it is told so.
    mac = pair.proxy.link("nsm0").mac
    await eventually(lambda: sink.arrived[-1].verdict.new_mac.hex(":") == mac)


async def test_replies_that_come_late_count_as_late_and_the_path_comes_back(
    pair: Pair, start: Start, sink: VerdictSink, from_file: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "connections.yaml").write_text("connections: [{id: lb-a, local: [10.1.0.2], remote: [10.1.0.1]}]")
    probe = start(**from_file)
    await eventually(lambda: sink.states("lb-a") == ["UP"])
    # While the address does not resolve, pings wait in the kernel; they leave, late, once it does.
    pair.lb.sysctl("net.ipv4.conf.lb0.arp_ignore", "8")
    pair.proxy.flush_neighbors("nsm0")
    await eventually(lambda: sink.states("lb-a")[-1] == "DOWN")
    pair.lb.sysctl("net.ipv4.conf.lb0.arp_ignore", "0")
    await eventually(lambda: sink.states("lb-a")[-1] == "UP")
    await eventually(
        lambda: probe.metric('late_replies_total{family="ipv4"}') + probe.metric("stray_replies_total") > 0
    )


async def test_verdicts_are_renewed_and_a_load_balancer_that_was_away_hears_the_latest(
    pair: Pair, start: Start, sink: VerdictSink, from_file: dict[str, str], tmp_path: Path
) -> None:
    start(**from_file)
    await eventually(lambda: len(sink.arrived) >= 4)
    assert sink.states("lb-a") == ["UP"]
    await sink.stop()
    pair.lb.set_link("lb0", up=False)
    before = len(sink.arrived)
    await asyncio.sleep(0)
    await sink.start(f"unix:{tmp_path}/lb.sock")
    await eventually(lambda: len(sink.arrived) > before and sink.arrived[-1].state == "DOWN")


async def test_a_file_that_changes_is_followed(
    start: Start, sink: VerdictSink, from_file: dict[str, str], tmp_path: Path
) -> None:
    probe = start(**from_file)
    await eventually(lambda: sink.states("lb-a") == ["UP"])
    (tmp_path / "connections.yaml").write_text("connections: [")
    await eventually(lambda: probe.metric("source_ok") == 0)
    assert sink.states("lb-a") == ["UP"]
    (tmp_path / "connections.yaml").write_text("connections: []")
    await eventually(lambda: sink.states("lb-a") == ["UP", "ENDED"])


async def test_the_far_end_of_a_link_is_reported_to(pair: Pair, start: Start, from_file: dict[str, str]) -> None:
    sink = VerdictSink()
    with pair.lb.entered():
        address = await sink.start("10.1.0.1:0")
    try:
        start(**from_file | {"PROBE__REPORT_TO": f"link:{address.rpartition(':')[2]}"})
        await eventually(lambda: sink.states("lb-a") == ["UP"])
    finally:
        await sink.stop()


async def test_the_mesh_repairs_a_connection_and_closes_it(
    pair: Pair, start: Start, sink: VerdictSink, nsmgr: FakeNsmgr, from_nsm: dict[str, str]
) -> None:
    nsmgr.update(told())
    probe = start(**from_nsm)
    await eventually(lambda: sink.states("c1") == ["UP"])
    pair.lb.set_link("lb0", up=False)
    nsmgr.update(told(state=pb.DOWN))
    await eventually(lambda: sink.states("c1")[-1] == "HEALING")
    healing = sink.last("c1")
    assert healing is not None
    assert 0 < healing.verdict.heal_s <= 4
    pair.lb.set_link("lb0", up=True)
    nsmgr.update(told())
    await eventually(lambda: sink.states("c1")[-1] == "UP")
    nsmgr.delete("c1")
    await eventually(lambda: sink.states("c1")[-1] == "ENDED")
    ended_at = len(sink.arrived)
    pings = probe.metric('pings_total{family="ipv4"}')
    nsmgr.update(told("c2"))
    await eventually(lambda: sink.states("c2") == ["UP"])
    assert all(item.verdict.subject.connection.id == "c2" for item in sink.arrived[ended_at:])
    assert probe.metric('pings_total{family="ipv4"}') > pings


async def test_new_addresses_of_a_connection_raise_no_alarm(
    pair: Pair, start: Start, sink: VerdictSink, nsmgr: FakeNsmgr, from_nsm: dict[str, str]
) -> None:
    nsmgr.update(told())
    start(**from_nsm)
    await eventually(lambda: sink.states("c1") == ["UP"])
    for third in ("2", "3", "4"):
        pair.add(third)
        nsmgr.update(told(third=third))
        pair.remove(str(int(third) - 1))
        await eventually(lambda third=third: _speaks_of(sink, f"10.{third}.0.1"))  # type: ignore[misc]
    assert sink.states("c1") == ["UP"]
    generations = [item.verdict.generation for item in sink.arrived]
    assert generations == sorted(generations)
    assert len(set(generations)) >= 4


def _speaks_of(sink: VerdictSink, lb_ip: str) -> bool:
    last = sink.last("c1")
    return last is not None and lb_ip in last.verdict.subject.connection.lb_ips


async def test_the_manager_restarts_and_what_was_closed_meanwhile_ends(
    start: Start, sink: VerdictSink, nsmgr: FakeNsmgr, from_nsm: dict[str, str], tmp_path: Path
) -> None:
    nsmgr.update(told("c1"), told("c2"))
    probe = start(**from_nsm)
    await eventually(lambda: sink.states("c1") == sink.states("c2") == ["UP"])
    await nsmgr.stop()
    await eventually(lambda: probe.metric("source_ok") == 0)
    await eventually(lambda: json.loads(probe.get("readyz")) == {"ok": True})
    nsmgr.connections.pop("c1")
    await nsmgr.start(tmp_path / "nsm.sock")
    await eventually(lambda: sink.states("c1") == ["UP", "ENDED"])
    assert sink.states("c2") == ["UP"]


async def test_until_it_is_enabled_it_does_nothing_and_is_well(
    start: Start, sink: VerdictSink, from_file: dict[str, str]
) -> None:
    probe = start(**from_file | {"PROBE__ENABLED": "false"})
    await eventually(lambda: probe.get("readyz") == '{"ok": true}\n')
    assert probe.metric('pings_total{family="ipv4"}') == 0
    assert probe.metric("source_ok") == 1, "an alert says that a source is lost"
    assert sink.arrived == []


def once(namespace: Namespace, *arguments: str) -> tuple[int, str]:
    command = namespace.command(sys.executable, "-m", "lbguard", "probe", "--once", *arguments)
    environment = {name: text for name, text in os.environ.items() if not name.startswith("LBGUARD_")}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_one_round_for_a_person(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "connections.yaml"
    path.write_text(CONNECTION)
    arguments = ("--connections-file", str(path), "--set", "probe.timeout=300ms")
    status, text = once(pair.proxy, *arguments, "--json")
    assert status == 0, text
    (result,) = json.loads(text)["connections"]
    assert (result["id"], result["state"], result["interface"]) == ("lb-a", "up", "nsm0")
    assert {family["family"] for family in result["families"]} == {"ipv4", "ipv6"}
    assert all(family["sent"] == family["received"] == 4 for family in result["families"])
    status, text = once(pair.proxy, *arguments)
    assert status == 0
    assert "lb-a" in text
    assert "10.1.0.1" in text
    pair.lb.set_link("lb0", up=False)
    status, text = once(pair.proxy, *arguments, "--json")
    assert status == 1, text
    assert json.loads(text)["connections"][0]["state"] == "down"
    path.write_text("connections: 3")
    status, text = once(pair.proxy, *arguments)
    assert status == 1
    assert "connections must be a list" in text
