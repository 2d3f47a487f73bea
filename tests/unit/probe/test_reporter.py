import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from lbguard.api.verdicts.policy import Policy
from lbguard.api.verdicts.server import VerdictIntake, unix_names
from lbguard.core.config import EvidenceConfig
from lbguard.core.effects import VerdictAnswered
from lbguard.core.events import VerdictReported
from lbguard.core.model import ConnectionSubject, Subject, TargetSubject, Verdict, VerdictState
from lbguard.core.opinions import Opinions
from lbguard.probe.connections import Connection, pairs_of
from lbguard.probe.datapath import ProbeCounters
from lbguard.probe.metrics import ProbeMetrics
from lbguard.probe.report_stream import GENERATION_MAX, ReporterSettings
from lbguard.probe.reporter import Reporter
from lbguard.rpc.channels import Dialer, PlainDialer, TlsDialer
from lbguard.rpc.security import CertificateFiles
from lbguard.settings.notation import Endpoint, parse_report_address
from lbguard.settings.verdicts import VerdictLimits
from tests.fakes.verdict_sink import VerdictSink
from tests.unit.kernel.fake_kernel import eventually
from tests.unit.probe.verdicts import connection_subject, ip, target_subject, verdict

FAST = ReporterSettings(name="proxy-a", backoff_max_s=0.05, renew_s=60.0)


@pytest.fixture
async def sink() -> AsyncIterator[VerdictSink]:
    sink = VerdictSink()
    yield sink
    await sink.stop()


@pytest.fixture
def metrics() -> ProbeMetrics:
    return ProbeMetrics(CollectorRegistry(), ProbeCounters())


Begin = Callable[..., Reporter]


@pytest.fixture
async def begin(metrics: ProbeMetrics) -> AsyncIterator[Begin]:
    tasks: list[asyncio.Task[None]] = []

    def begin(addresses: Sequence[str], settings: ReporterSettings = FAST, dialer: Dialer | None = None) -> Reporter:
        endpoints = [parse_report_address(address) for address in addresses]
        reporter = Reporter(endpoints, dialer or PlainDialer(), settings, metrics)
        tasks.append(asyncio.create_task(reporter.run()))
        return reporter

    yield begin
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def value(metrics: ProbeMetrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(f"lbguard_probe_{name}", labels)
    return 0.0 if found is None else found


async def test_a_verdict_arrives_with_all_that_it_says(sink: VerdictSink, begin: Begin) -> None:
    reporter = begin([await sink.start()])
    reporter.submit(verdict(state=VerdictState.HEALING, generation=7, heal_s=15.0, new_mac=b"\x02\0\0\0\0\1"))
    await eventually(lambda: len(sink.arrived) == 1)
    told = sink.arrived[0].verdict
    assert sink.arrived[0].state == "HEALING"
    assert (told.generation, told.lease_s, told.heal_s, told.new_mac) == (7, 10.0, 15.0, b"\x02\0\0\0\0\1")
    assert list(told.subject.connection.lb_ips) == ["172.16.0.1"]
    assert list(told.subject.connection.peer_ips) == ["172.16.0.2"]
    assert [(entry.family, entry.sent, entry.received) for entry in told.evidence] == [(4, 4, 4)]
    assert not told.evidence[0].HasField("since_reply_s")


async def test_each_change_of_state_is_told_at_once_and_sequences_grow(sink: VerdictSink, begin: Begin) -> None:
    reporter = begin([await sink.start()])
    for n, state in enumerate((VerdictState.UP, VerdictState.DOWN, VerdictState.UP), start=1):
        reporter.submit(verdict(state=state))
        await eventually(lambda n=n: len(sink.arrived) == n)  # type: ignore[misc]
    assert sink.states("a") == ["UP", "DOWN", "UP"]
    sequences = [item.verdict.sequence for item in sink.arrived]
    assert sequences == sorted(set(sequences))


async def test_newer_evidence_alone_waits_for_the_renewal(sink: VerdictSink, begin: Begin) -> None:
    reporter = begin([await sink.start()])
    reporter.submit(verdict())
    await eventually(lambda: len(sink.arrived) == 1)
    reporter.submit(verdict(received=3, sequence=2))
    reporter.submit(verdict(target_subject()))
    await eventually(lambda: len(sink.arrived) == 2)
    assert sink.last("a") is sink.arrived[0]


async def test_a_standing_verdict_is_renewed_with_the_newest_evidence(sink: VerdictSink, begin: Begin) -> None:
    reporter = begin([await sink.start()], ReporterSettings(renew_s=0.05))
    reporter.submit(verdict())
    reporter.submit(verdict(received=3))
    await eventually(lambda: len(sink.arrived) >= 4)
    assert {item.state for item in sink.arrived} == {"UP"}
    assert sink.arrived[-1].verdict.evidence[0].received == 3
    sequences = [item.verdict.sequence for item in sink.arrived]
    assert sequences == sorted(set(sequences))


async def test_what_the_monitor_no_longer_confirms_is_not_renewed(sink: VerdictSink, begin: Begin) -> None:
    reporter = begin([await sink.start()], ReporterSettings(renew_s=0.02))
    reporter.submit(verdict(lease_s=0.1))
    reporter.submit(verdict(target_subject(), lease_s=300.0))

    def since_the_last_of(subject: str) -> int:
        places = [n for n, item in enumerate(sink.arrived) if item.verdict.subject.connection.id == subject]
        return len(sink.arrived) - places[-1] if places else 0

    await eventually(lambda: since_the_last_of("a") > 10)
    reporter.submit(verdict(lease_s=0.1))
    reporter.submit(verdict(target_subject("172.16.0.11")))
    await eventually(lambda: sink.last("172.16.0.11") is not None)


async def test_an_ended_subject_is_told_once_and_never_renewed(sink: VerdictSink, begin: Begin) -> None:
    reporter = begin([await sink.start()], ReporterSettings(renew_s=0.05))
    reporter.submit(verdict())
    await eventually(lambda: len(sink.arrived) >= 1)
    reporter.submit(verdict(state=VerdictState.ENDED))
    reporter.submit(verdict(target_subject()))
    await eventually(lambda: sum(item.verdict.subject.target_ip != "" for item in sink.arrived) >= 5)
    assert sum(item.state == "ENDED" for item in sink.arrived) == 1
    assert sink.states("a") == ["UP", "ENDED"]


async def test_after_a_reconnect_the_latest_state_is_told_and_nothing_older(sink: VerdictSink, begin: Begin) -> None:
    address = await sink.start()
    reporter = begin([address])
    reporter.submit(verdict())
    reporter.submit(verdict(target_subject()))
    await eventually(lambda: len(sink.arrived) == 2)
    await sink.stop()
    for state in (VerdictState.DOWN, VerdictState.HEALING, VerdictState.DEGRADED):
        reporter.submit(verdict(state=state))
    before = len(sink.arrived)
    await sink.start(address)
    await eventually(lambda: len(sink.arrived) >= before + 2)
    after = sink.arrived[before:]
    assert sorted((item.verdict.subject.WhichOneof("kind"), item.state) for item in after) == [
        ("connection", "DEGRADED"),
        ("target_ip", "UP"),
    ]


async def test_what_was_under_way_when_a_stream_broke_is_told_again(sink: VerdictSink, begin: Begin) -> None:
    reporter = begin([await sink.start()])
    await eventually(lambda: sink.streams == 1)
    reporter.submit(verdict())
    await eventually(lambda: len(sink.arrived) == 1)
    sink.fail_once("end_stream")
    reporter.submit(verdict(state=VerdictState.DOWN))
    await eventually(lambda: sink.states("a") == ["UP", "DOWN"])
    assert sink.streams == 2


async def test_the_load_balancer_may_come_later(
    sink: VerdictSink, begin: Begin, metrics: ProbeMetrics, tmp_path: Path
) -> None:
    address = f"unix:{tmp_path}/lb.sock"
    reporter = begin([address])
    reporter.submit(verdict())
    await eventually(lambda: value(metrics, "report_failures_total", to=address) >= 2)
    assert value(metrics, "report_connected", to=address) == 0
    await sink.start(address)
    await eventually(lambda: sink.states("a") == ["UP"])
    await eventually(lambda: value(metrics, "report_connected", to=address) == 1)


async def test_an_absent_load_balancer_delays_no_other(sink: VerdictSink, begin: Begin, tmp_path: Path) -> None:
    reporter = begin([f"unix:{tmp_path}/absent.sock", await sink.start()])
    reporter.submit(verdict())
    await eventually(lambda: sink.states("a") == ["UP"])


async def test_one_that_never_answers_is_dialled_anew(sink: VerdictSink, begin: Begin, metrics: ProbeMetrics) -> None:
    address = await sink.start()
    reporter = begin([address])
    await eventually(lambda: value(metrics, "report_connected", to=address) == 1)
    sink.fail_once("never_answer")
    reporter.submit(verdict())
    await eventually(lambda: sink.streams == 2 and len(sink.arrived) == 2)


async def test_a_refused_stream_is_tried_again(sink: VerdictSink, begin: Begin) -> None:
    sink.fail_once("refuse")
    reporter = begin([await sink.start()])
    reporter.submit(verdict())
    await eventually(lambda: sink.states("a") == ["UP"])


async def test_ignored_verdicts_are_counted_by_reason(sink: VerdictSink, begin: Begin, metrics: ProbeMetrics) -> None:
    address = await sink.start()
    reporter = begin([address])
    await eventually(lambda: value(metrics, "report_connected", to=address) == 1)
    sink.fail_once("ignore")
    reporter.submit(verdict())
    await eventually(lambda: value(metrics, "reports_ignored_total", reason="late") == 1)


async def test_memory_is_bounded_while_nobody_listens(begin: Begin, metrics: ProbeMetrics, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/absent.sock"
    reporter = begin([address], ReporterSettings(subjects_max=10))
    for round_number in range(5):
        for n in range(15):
            state = VerdictState.UP if round_number % 2 else VerdictState.DOWN
            reporter.submit(verdict(connection_subject(f"c{n}"), state))
    assert value(metrics, "reports_dropped_total", to=address) == 5 * 5


async def test_what_ended_gives_way_when_there_is_no_room(sink: VerdictSink, begin: Begin, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/lb.sock"
    reporter = begin([address], ReporterSettings(subjects_max=3, backoff_max_s=0.05))
    for n in range(10):
        reporter.submit(verdict(connection_subject(f"c{n}")))
        if n < 8:
            reporter.submit(verdict(connection_subject(f"c{n}"), VerdictState.ENDED))
    await sink.start(address)
    await eventually(lambda: sink.states("c8") == sink.states("c9") == ["UP"])


async def test_a_re_created_link_is_not_forgotten_under_a_later_verdict(
    sink: VerdictSink, begin: Begin, tmp_path: Path
) -> None:
    address = f"unix:{tmp_path}/lb.sock"
    reporter = begin([address])
    reporter.submit(verdict(generation=2, new_mac=b"\x02\0\0\0\0\1"))
    reporter.submit(verdict(generation=2, state=VerdictState.DOWN))
    await sink.start(address)
    await eventually(lambda: len(sink.arrived) >= 1)
    assert sink.arrived[0].state == "DOWN"
    assert sink.arrived[0].verdict.new_mac == b"\x02\0\0\0\0\1"


# What the far ends of links hear


def link_connection(id: str, lb: str) -> Connection:
    subject = ConnectionSubject(id=id, lb_ips=(ip(lb),), peer_ips=(ip("127.0.0.1"),))
    return Connection(id=id, subject=subject, pairs=pairs_of([ip("127.0.0.1")], [ip(lb)]))


async def test_each_far_end_hears_of_its_own_link_and_of_all_targets(begin: Begin) -> None:
    sinks = [VerdictSink(), VerdictSink()]
    try:
        port = (await sinks[0].start("127.0.0.2:0")).rpartition(":")[2]
        await sinks[1].start(f"127.0.0.3:{port}")
        reporter = begin([f"link:{port}"])
        first, second = link_connection("one", "127.0.0.2"), link_connection("two", "127.0.0.3")
        reporter.submit(verdict(first.subject))
        reporter.follow([first])
        await eventually(lambda: sinks[0].states("one") == ["UP"])
        reporter.follow([first, second])
        reporter.submit(verdict(second.subject, VerdictState.DOWN))
        reporter.submit(verdict(target_subject(), VerdictState.DOWN))
        await eventually(lambda: all(sink.states("172.16.0.10") == ["DOWN"] for sink in sinks))
        assert (sinks[0].states("two"), sinks[1].states("one")) == ([], [])
        assert sinks[1].states("two") == ["DOWN"]
        # A link that is closed: its far end still hears that, and then nothing any more.
        reporter.submit(verdict(second.subject, VerdictState.ENDED))
        reporter.follow([first])
        await eventually(lambda: sinks[1].states("two") == ["DOWN", "ENDED"])
        await eventually(lambda: len(reporter.streams) == 1)
    finally:
        for sink in sinks:
            await sink.stop()


async def test_a_far_end_is_tried_at_its_other_address(begin: Begin) -> None:
    sink = VerdictSink()
    port = (await sink.start("[::1]:0")).rpartition(":")[2]
    try:
        reporter = begin([f"link:{port}"])
        subject = ConnectionSubject(id="one", lb_ips=(ip("127.0.0.9"), ip("::1")), peer_ips=(ip("::2"),))
        reporter.follow([Connection(id="one", subject=subject, pairs=pairs_of([ip("::2")], [ip("::1")]))])
        reporter.submit(verdict(subject))
        await eventually(lambda: sink.states("one") == ["UP"])
    finally:
        await sink.stop()


# The real verdict service


class Guard:
    """The verdict service as it is, in front of what the core holds of verdicts."""

    def __init__(self, limits: VerdictLimits) -> None:
        self.taken: list[Verdict] = []
        self.reporters: set[str] = set()
        self.opinions = Opinions(EvidenceConfig())
        self.intake = VerdictIntake(self._submit, Policy(()), limits)

    async def _submit(self, reporter: str, taken: Verdict) -> VerdictAnswered:
        self.reporters.add(reporter)
        became = self.opinions.apply(VerdictReported(reporter=reporter, verdict=taken), time.monotonic())
        if not became.reason:
            self.taken.append(taken)
        return VerdictAnswered(ticket=0, reason=became.reason, generation=became.generation)

    def state_of(self, subject: Subject) -> VerdictState | None:
        return next((taken.state for taken in reversed(self.taken) if taken.subject == subject), None)

    async def start(self, address: str) -> grpc.aio.Server:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((self.intake.handlers(unix_names),))
        server.add_insecure_port(address)
        await server.start()
        return server


async def test_the_verdict_service_takes_thousands_at_its_default_limits(begin: Begin, tmp_path: Path) -> None:
    guard = Guard(VerdictLimits())
    server = await guard.start(f"unix:{tmp_path}/lb.sock")
    try:
        reporter = begin([f"unix:{tmp_path}/lb.sock"])
        subjects = [TargetSubject(ip=ip(f"10.1.{n >> 8}.{n & 255}")) for n in range(1, 3001)]
        for subject in subjects:
            reporter.submit(verdict(subject))
        await eventually(lambda: {item.subject for item in guard.taken} >= set(subjects))
        assert guard.reporters == {"unix#proxy-a"}
        assert not guard.intake.counters.limited
        assert guard.intake.counters.invalid == 0
    finally:
        await server.stop(None)


async def test_thousands_that_are_told_again_and_again_stay_within_the_limits(begin: Begin, tmp_path: Path) -> None:
    guard = Guard(VerdictLimits())
    server = await guard.start(f"unix:{tmp_path}/lb.sock")
    try:
        reporter = begin([f"unix:{tmp_path}/lb.sock"], ReporterSettings(renew_s=0.05))
        subjects = [TargetSubject(ip=ip(f"10.1.{n >> 8}.{n & 255}")) for n in range(1, 2001)]
        for subject in subjects:
            reporter.submit(verdict(subject, lease_s=1.0))
        await eventually(lambda: len(guard.taken) >= 2000)
        # To renew 2000 takes 2 s at a pace of 1000 a second: with a lease of 1 s they would run out in between.
        assert guard.taken[-1].lease_s == 6.0
        # News pass at once, and do not take everything that is merely due for renewal along.
        taken = len(guard.taken)
        began = asyncio.get_running_loop().time()
        for n in range(20):
            reporter.submit(verdict(subjects[n], VerdictState.DOWN, lease_s=1.0))
            await eventually(lambda n=n: guard.state_of(subjects[n]) is VerdictState.DOWN)  # type: ignore[misc]
        spent_s = asyncio.get_running_loop().time() - began
        assert len(guard.taken) - taken <= 20 + 200 + 1000 * spent_s + 200
        assert not guard.intake.counters.limited
    finally:
        await server.stop(None)


async def test_one_verdict_that_is_refused_silences_no_other(
    begin: Begin, metrics: ProbeMetrics, tmp_path: Path
) -> None:
    guard = Guard(VerdictLimits())
    address = f"unix:{tmp_path}/lb.sock"
    server = await guard.start(address)
    try:
        reporter = begin([address], ReporterSettings(backoff_max_s=0.05))
        good = [TargetSubject(ip=ip(f"10.1.0.{n}")) for n in range(1, 20)]
        for subject in (*good[:9], TargetSubject(ip=ip("127.0.0.1")), *good[9:]):
            reporter.submit(verdict(subject))
        await eventually(lambda: {item.subject for item in guard.taken} == set(good))
        await eventually(lambda: value(metrics, "reports_refused_total", to=address) == 1)
        reporter.submit(verdict(good[0], VerdictState.DOWN))
        await eventually(lambda: any(item.state is VerdictState.DOWN for item in guard.taken))
        assert value(metrics, "reports_refused_total", to=address) == 1
    finally:
        await server.stop(None)


# Certificates


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


def make_authority(directory: Path) -> None:
    directory.mkdir()
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"),
        cwd=directory,
    )


def issue(directory: Path, name: str, alternative: str = "") -> None:
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}"),
        *("-addext", f"subjectAltName={alternative or f'DNS:{name}'}", "-keyout", f"{name}.key", "-out", f"{name}.csr"),
        cwd=directory,
    )
    openssl(
        *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2"),
        *("-copy_extensions", "copy", "-out", f"{name}.pem"),
        cwd=directory,
    )


def server_credentials(directory: Path, name: str) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [((directory / f"{name}.key").read_bytes(), (directory / f"{name}.pem").read_bytes())],
        root_certificates=(directory / "ca.pem").read_bytes(),
        require_client_auth=True,
    )


async def test_certificates_are_shown_and_a_rotation_makes_a_new_stream(
    sink: VerdictSink, begin: Begin, tmp_path: Path
) -> None:
    pki = tmp_path / "pki"
    make_authority(pki)
    issue(pki, "lb")
    issue(pki, "proxy")
    address = await sink.start(credentials=server_credentials(pki, "lb"))
    files = CertificateFiles(pki / "proxy.pem", pki / "proxy.key", pki / "ca.pem")
    reporter = begin([address], dialer=TlsDialer(files, server_name="lb"))
    reporter.submit(verdict())
    await eventually(lambda: sink.states("a") == ["UP"])
    assert sink.streams == 1
    issue(pki, "proxy")
    await eventually(lambda: sink.streams == 2 and len(sink.arrived) == 2)


@pytest.mark.parametrize(
    ("pattern", "heard"), [("spiffe://example.org/ns/*/lb", True), ("spiffe://example.org/ns/*/proxy", False)]
)
async def test_a_certificate_may_name_its_holder_by_a_uri(
    sink: VerdictSink, begin: Begin, metrics: ProbeMetrics, tmp_path: Path, pattern: str, heard: bool
) -> None:
    pki = tmp_path / "pki"
    make_authority(pki)
    issue(pki, "lb", "URI:spiffe://example.org/ns/red/lb")
    issue(pki, "proxy", "URI:spiffe://example.org/ns/red/proxy")
    address = await sink.start(credentials=server_credentials(pki, "lb"))
    files = CertificateFiles(pki / "proxy.pem", pki / "proxy.key", pki / "ca.pem")
    reporter = begin([address], dialer=TlsDialer(files, server_name=pattern))
    reporter.submit(verdict())
    if heard:
        await eventually(lambda: sink.states("a") == ["UP"])
    else:
        await eventually(lambda: value(metrics, "report_failures_total", to=address) >= 2)
        assert sink.arrived == []


async def test_without_certificates_the_lane_waits_for_them(sink: VerdictSink, begin: Begin, tmp_path: Path) -> None:
    pki = tmp_path / "pki"
    make_authority(pki)
    issue(pki, "lb")
    address = await sink.start(credentials=server_credentials(pki, "lb"))
    files = CertificateFiles(pki / "proxy.pem", pki / "proxy.key", pki / "ca.pem")
    reporter = begin([address], dialer=TlsDialer(files, server_name="lb"))
    reporter.submit(verdict())
    await asyncio.sleep(0.1)
    issue(pki, "proxy")
    await eventually(lambda: sink.states("a") == ["UP"])


async def test_a_server_with_another_name_is_not_told_anything(
    sink: VerdictSink, begin: Begin, metrics: ProbeMetrics, tmp_path: Path
) -> None:
    pki = tmp_path / "pki"
    make_authority(pki)
    issue(pki, "stranger")
    issue(pki, "proxy")
    address = await sink.start(credentials=server_credentials(pki, "stranger"))
    files = CertificateFiles(pki / "proxy.pem", pki / "proxy.key", pki / "ca.pem")
    reporter = begin([address], dialer=TlsDialer(files, server_name="lb"))
    reporter.submit(verdict())
    await eventually(lambda: value(metrics, "report_failures_total", to=address) >= 2)
    assert sink.arrived == []


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("unix:/run/lb.sock", Endpoint(path="/run/lb.sock")),
        ("unix:///run/lb.sock", Endpoint(path="/run/lb.sock")),
        ("lb-a:7443", Endpoint(host="lb-a", port=7443)),
        ("[fd00::1]:7443", Endpoint(host="fd00::1", port=7443)),
        ("link:7443", Endpoint(port=7443)),
    ],
)
def test_addresses_that_can_be_reported_to(text: str, endpoint: Endpoint) -> None:
    assert parse_report_address(text) == endpoint
    assert endpoint.of_links == text.startswith("link:")


@pytest.mark.parametrize(
    "text", ["", "lb-a", "lb-a:", "lb-a:0", "lb-a:70000", "fd00::1:7443", "unix:run", ":7443", "http://a:1"]
)
def test_addresses_that_cannot(text: str) -> None:
    with pytest.raises(ValueError):
        parse_report_address(text)


@contextlib.asynccontextmanager
async def stopped_after(address: str, metrics: ProbeMetrics) -> AsyncIterator[Reporter]:
    """Run the reporter of a monitor that ends."""
    reporter = Reporter([parse_report_address(address)], PlainDialer(), FAST, metrics)
    task = asyncio.create_task(reporter.run())
    try:
        yield reporter
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


AHEAD = 10**15  # a generation of a clock that is thirty thousand years ahead


async def test_a_monitor_whose_clock_was_set_back_is_heard_at_once(
    begin: Begin, tmp_path: Path, metrics: ProbeMetrics
) -> None:
    guard = Guard(VerdictLimits())
    server = await guard.start(f"unix:{tmp_path}/lb.sock")
    try:
        address, known, ended = f"unix:{tmp_path}/lb.sock", connection_subject("a"), connection_subject("b")
        async with stopped_after(address, metrics) as before:
            before.submit(verdict(known, generation=AHEAD))
            before.submit(verdict(ended, generation=AHEAD + 7, lease_s=300.0))
            await eventually(lambda: len(guard.taken) == 2)
            before.submit(verdict(ended, VerdictState.ENDED, generation=AHEAD + 7))
            await eventually(lambda: guard.state_of(ended) is VerdictState.ENDED)
        after = begin([address])
        after.submit(verdict(known, VerdictState.DOWN, generation=5))
        after.submit(verdict(ended, VerdictState.DOWN, generation=6))
        await eventually(lambda: guard.state_of(known) is guard.state_of(ended) is VerdictState.DOWN)
        # What comes next keeps its order: generations stay raised.
        after.submit(verdict(known, VerdictState.ENDED, generation=5))
        await eventually(lambda: guard.state_of(known) is VerdictState.ENDED)
        after.submit(verdict(known, VerdictState.UP, generation=7))
        await eventually(lambda: guard.state_of(known) is VerdictState.UP)
        assert guard.intake.counters.invalid == 0
    finally:
        await server.stop(None)


async def test_generations_that_cannot_be_exceeded_are_waited_for(
    begin: Begin, tmp_path: Path, metrics: ProbeMetrics
) -> None:
    guard = Guard(VerdictLimits())
    server = await guard.start(f"unix:{tmp_path}/lb.sock")
    try:
        address, subject = f"unix:{tmp_path}/lb.sock", connection_subject("a")
        async with stopped_after(address, metrics) as before:
            before.submit(verdict(subject, generation=GENERATION_MAX))
            await eventually(lambda: len(guard.taken) == 1)
        after = begin([address])
        after.submit(verdict(subject, VerdictState.DOWN, generation=5))
        after.submit(verdict(connection_subject("b"), VerdictState.DOWN, generation=5))
        await eventually(lambda: guard.state_of(connection_subject("b")) is VerdictState.DOWN)
        assert guard.state_of(subject) is VerdictState.UP
        await eventually(lambda: guard.intake.counters.ignored["late"] == 1)
    finally:
        await server.stop(None)


async def test_a_load_balancer_that_does_not_say_what_it_heard_gets_the_same_generation(
    sink: VerdictSink, begin: Begin, metrics: ProbeMetrics
) -> None:
    address = await sink.start()
    reporter = begin([address], ReporterSettings(renew_s=0.05))
    await eventually(lambda: value(metrics, "report_connected", to=address) == 1)
    sink.fail_once("ignore")
    reporter.submit(verdict(generation=5))
    await eventually(lambda: len(sink.arrived) > 2)
    assert {item.verdict.generation for item in sink.arrived} == {5}
