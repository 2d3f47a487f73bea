"""How the parts are put together; the running service is tested in namespaces."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.core.events import AddressGone, AddressSeen, KernelSnapshot, LinkGone, LinkSeen
from lbguard.core.model import ConnectionSubject, LinkSubject, TargetSubject, Verdict, VerdictState
from lbguard.probe.build import ProbeError, judge_settings, make_reporting, make_source, reporter_name
from lbguard.probe.connections import Connection, connections_of, far_ends, pairs_of
from lbguard.probe.datapath import ProbeCounters
from lbguard.probe.failure_detector import Detector, DetectorSettings
from lbguard.probe.kernel_view import KernelView
from lbguard.probe.metrics import ProbeMetrics
from lbguard.probe.monitor import Monitor
from lbguard.probe.nsm import NsmScope, NsmView
from lbguard.probe.service import resolve_links
from lbguard.settings.probe import ProbeSettings, SubjectKind
from tests.effort import examples
from tests.fakes.echo import EchoNetwork, Time, drive
from tests.fakes.nsmgr import connection
from tests.unit.probe.verdicts import ip

# From the mesh's events to verdicts

_ID = st.sampled_from(["a", "b", "c"])
_CHANGE = st.one_of(
    st.tuples(st.just("update"), _ID, st.integers(1, 3), st.sampled_from([pb.UP, pb.DOWN, pb.RESELECT_REQUESTED])),
    st.tuples(st.just("delete"), _ID, st.just(0), st.just(pb.UP)),
    st.tuples(st.just("restart"), _ID, st.integers(1, 3), st.just(pb.UP)),
    st.tuples(st.just("cut"), _ID, st.integers(1, 3), st.just(pb.UP)),
)
_STEPS = st.lists(st.tuples(_CHANGE, st.floats(0.0, 3.0)), min_size=1, max_size=25)


class Chain:
    """A manager's events, the view of them, and the monitor on a model of the network."""

    def __init__(self) -> None:
        self.time = Time()
        self.network = EchoNetwork(self.time, seed=1, loss=0.0)
        self.view = NsmView(NsmScope(), is_local=lambda _: True, link_of=lambda _ip, _name: "")
        self.said: list[Verdict] = []
        self.listed: dict[str, tuple[bytes, ...]] = {}
        self.monitor = Monitor(
            DetectorSettings(), self._take, self.time, open_socket=self.network.open_socket, first_generation=0, seed=1
        )

    def _take(self, verdict: Verdict) -> None:
        subject = verdict.subject
        assert isinstance(subject, ConnectionSubject)
        if verdict.state is VerdictState.ENDED:
            assert subject.id not in self.listed
        else:
            # A verdict on a closed connection, or on addresses that a connection had before, is impossible.
            assert subject.lb_ips == self.listed[subject.id]
        self.said.append(verdict)

    def tell(self, kind: "pb.ConnectionEventType.ValueType", *messages: pb.Connection) -> None:
        self.view.apply(pb.ConnectionEvent(type=kind, connections={item.id: item for item in messages}))
        told = self.view.connections().connections
        self.listed = {made.id: far_ends(made) for made in told}
        self.monitor.set_connections(told)

    def run(self, seconds: float) -> None:
        drive(self.monitor, self.network, self.time.now + seconds)


def message(id: str, address: int, state: "pb.State.ValueType" = pb.UP) -> pb.Connection:
    return connection(id, src=["10.0.0.2/16"], dst=[f"10.0.{address}.1/16"], state=state)


@examples(60)
@given(_STEPS)
def test_nothing_is_ever_said_of_a_closed_connection_or_of_addresses_it_had(
    steps: list[tuple[tuple[str, str, int, "pb.State.ValueType"], float]],
) -> None:
    chain = Chain()
    for (what, id, address, state), seconds in steps:
        if what == "update":
            chain.tell(pb.UPDATE, message(id, address, state))
        elif what == "delete":
            chain.tell(pb.DELETE, message(id, 1))
        elif what == "restart":
            chain.tell(pb.INITIAL_STATE_TRANSFER, message(id, address))
        else:
            chain.network.cut ^= {ip(f"10.0.{address}.1")}
        chain.run(seconds)
    chain.tell(pb.INITIAL_STATE_TRANSFER)
    ended = len(chain.said)
    chain.run(30.0)
    assert len(chain.said) == ended
    alive: set[str] = set()
    generations: dict[str, int] = {}
    for verdict in chain.said:
        assert isinstance(verdict.subject, ConnectionSubject)
        id = verdict.subject.id
        assert verdict.generation >= generations.get(id, 0)
        generations[id] = verdict.generation
        if verdict.state is VerdictState.ENDED:
            alive.discard(id)
        else:
            alive.add(id)
    assert not alive


def test_new_addresses_raise_no_alarm_and_the_old_ones_are_not_pinged_any_more() -> None:
    chain = Chain()
    chain.tell(pb.UPDATE, message("a", 1))
    chain.run(10)
    chain.network.cut = {ip("10.0.1.1")}
    chain.tell(pb.UPDATE, message("a", 2))
    chain.run(60)
    assert {verdict.state for verdict in chain.said} == {VerdictState.UP}


# Wiring


def test_each_setting_reaches_the_judge() -> None:
    probe = ProbeSettings(
        interval=1.0,
        timeout=0.5,
        count=5,
        bad_rounds=3,
        of_rounds=4,
        good_rounds=2,
        detector="phi",
        phi_threshold=6.5,
        lease=20.0,
    )
    assert judge_settings(probe) == DetectorSettings(
        interval_s=1.0,
        timeout_s=0.5,
        pings=5,
        down_rounds=3,
        window_rounds=4,
        up_rounds=2,
        detector=Detector.PHI,
        phi_threshold=6.5,
        lease_s=20.0,
    )
    assert judge_settings(ProbeSettings()) == DetectorSettings()


OUR_MAC, NEW_MAC = b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x99"


async def view_with_a_link(mac: bytes = OUR_MAC) -> KernelView:
    view = KernelView()
    link = LinkSeen(ifindex=4, name="nsm-0", up=True, mac=mac)
    address = AddressSeen(ifindex=4, ip=ip("10.0.0.2"), prefix_length=24)
    view.observe([KernelSnapshot(links=(link,), addresses=(address,))], 0.0)
    return view


def made(kind: SubjectKind, ifname: str = "", mac: bytes = b"") -> Connection:
    (one,) = connections_of(id="a", kind=kind, local=[ip("10.0.0.2")], remote=[ip("10.0.0.1")], ifname=ifname, mac=mac)
    return one


async def test_connections_leave_through_the_link_that_has_their_address() -> None:
    view = await view_with_a_link()
    named, unnamed = resolve_links((made("connection", "eth9"), made("connection")), view)
    assert (named.ifname, unnamed.ifname) == ("eth9", "nsm-0")


async def test_the_mac_that_is_told_is_that_of_what_is_judged() -> None:
    view = await view_with_a_link()
    kinds: tuple[SubjectKind, ...] = ("connection", "link", "self", "target")
    resolved = resolve_links((*(made(kind) for kind in kinds), made("target", mac=NEW_MAC)), view)
    assert [connection.mac for connection in resolved] == [OUR_MAC, OUR_MAC, OUR_MAC, b"", NEW_MAC]


async def test_while_a_link_is_gone_its_mac_is_remembered_and_a_new_one_replaces_it() -> None:
    view = await view_with_a_link()
    connections = (made("connection"),)
    assert resolve_links(connections, view)[0].mac == OUR_MAC
    view.observe([AddressGone(ifindex=4, ip=ip("10.0.0.2"), prefix_length=24), LinkGone(ifindex=4)], 0.0)
    assert resolve_links(connections, view)[0].mac == OUR_MAC
    view.observe([LinkSeen(ifindex=5, name="nsm-0", up=True, mac=NEW_MAC)], 0.0)
    assert resolve_links(connections, view)[0].mac == NEW_MAC


def test_the_far_end_is_a_load_balancer_or_it_is_none() -> None:
    local, remote = [ip("10.0.0.2"), ip("fd00::2")], [ip("fd00::1"), ip("10.0.0.1")]
    (whole,) = connections_of(id="a", kind="connection", local=local, remote=remote)
    assert far_ends(whole) == (ip("10.0.0.1"), ip("fd00::1"))
    links = connections_of(id="a", kind="link", local=local, remote=remote)
    assert [far_ends(made) for made in links] == [(ip("10.0.0.1"),), (ip("fd00::1"),)]
    assert {type(made.subject) for made in links} == {LinkSubject}
    targets = connections_of(id="a", kind="target", local=local, remote=remote)
    assert [far_ends(made) for made in targets] == [(), ()]
    assert {type(made.subject) for made in targets} == {TargetSubject}
    assert connections_of(id="a", kind="link", local=local[:1], remote=remote[:1]) == ()
    assert whole.pairs == pairs_of(local, remote)


def test_a_source_that_lacks_a_setting_says_which() -> None:
    with pytest.raises(ProbeError, match="LBGUARD_PROBE__CONNECTIONS_FILE"):
        make_source(ProbeSettings(), KernelView(), lambda _: None)


def test_a_workload_api_that_cannot_be_used_is_named_by_its_setting() -> None:
    metrics = ProbeMetrics(CollectorRegistry(), ProbeCounters())
    with pytest.raises(ProbeError, match=r"probe\.spiffe_socket"):
        make_reporting(ProbeSettings.model_construct(spiffe_socket="nonsense"), "proxy-a", metrics)


@pytest.mark.parametrize(
    ("host", "name"),
    [("proxy-a-7f9c", "proxy-a-7f9c"), ("-odd host/name_", "oddhostname_"), ("x" * 80, "x" * 63), ("ü", "")],
)
def test_a_host_name_becomes_a_name_that_the_verdict_service_takes(host: str, name: str) -> None:
    assert reporter_name(host) == name


def test_the_example_of_the_help_is_a_connections_file(tmp_path: Path) -> None:
    from lbguard.probe.connections import ConnectionsFile

    path = tmp_path / "connections.yaml"
    path.write_text("connections:\n  - {id: lb-a, local: [172.16.0.2], remote: [172.16.0.1]}\n")
    (made,) = ConnectionsFile(path).read()
    assert made.id == "lb-a"
