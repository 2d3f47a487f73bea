import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.core.model import ConnectionSubject, TargetSubject
from lbguard.probe.connections import Connection, ConnectionList, ConnectionsLost, Pair
from lbguard.probe.nsm import NsmScope, NsmSource, NsmView
from lbguard.rpc.channels import PlainDialer
from lbguard.settings.notation import Endpoint, parse_dial_address
from lbguard.settings.probe import SubjectKind
from tests.fakes.nsmgr import GARBAGE, HUGE_CONNECTIONS, FakeNsmgr, connection
from tests.unit.kernel.fake_kernel import eventually
from tests.unit.probe.verdicts import ip

SRC, DST = ("172.16.0.2/24", "fd00:0::2/64"), ("172.16.0.1/24", "fd00:0::1/64")
BOTH = (Pair(ip("172.16.0.2"), ip("172.16.0.1")), Pair(ip("fd00::2"), ip("fd00::1")))


def view_of(
    scope: NsmScope | None = None,
    *,
    is_local: Callable[[bytes], bool] = lambda _: True,
    link_of: Callable[[bytes, str], str] = lambda _, name: name,
    lengths_of: Callable[[bytes], Sequence[int]] = lambda _: (),
) -> NsmView:
    return NsmView(scope or NsmScope(), is_local=is_local, link_of=link_of, lengths_of=lengths_of)


def event(kind: "pb.ConnectionEventType.ValueType", *connections: pb.Connection) -> pb.ConnectionEvent:
    return pb.ConnectionEvent(type=kind, connections={item.id: item for item in connections})


def ids(view: NsmView) -> list[str]:
    return [item.id for item in view.connections().connections]


# What one connection becomes


def test_a_client_pings_from_the_source_addresses_through_the_named_link() -> None:
    view = view_of()
    view.apply(event(pb.UPDATE, connection("c1", src=SRC, dst=DST, interface="nsm-0")))
    (made,) = view.connections().connections
    assert made == Connection(id="c1", subject=ConnectionSubject(id="c1"), pairs=BOTH, ifname="nsm-0")
    assert isinstance(made.subject, ConnectionSubject)
    assert made.subject.lb_ips == (ip("172.16.0.1"), ip("fd00::1"))
    assert made.subject.peer_ips == (ip("172.16.0.2"), ip("fd00::2"))


# A target's connection as Meridio's TAPA has it: its VIPs are among the source addresses.
VIPS = ("20.0.0.1/32", "2000::1/128", "40.0.0.0/24")
WITH_VIPS = (VIPS[0], *SRC, *VIPS[1:])


@pytest.mark.parametrize("role", ["client", "endpoint"])
@pytest.mark.parametrize("kind", ["connection", "link", "target", "self"])
def test_no_ping_goes_from_or_to_a_vip(role: Literal["client", "endpoint"], kind: SubjectKind) -> None:
    view = view_of(NsmScope(role=role, subject=kind))
    view.apply(event(pb.UPDATE, connection("c1", src=WITH_VIPS, dst=DST)))
    pairs = [pair for made in view.connections().connections for pair in made.pairs]
    assert sorted(pairs) == sorted(BOTH if role == "client" else [Pair(pair[1], pair[0]) for pair in BOTH])
    view.apply(event(pb.UPDATE, connection("c1", src=[*VIPS, SRC[0]], dst=DST)))
    pairs = [pair for made in view.connections().connections for pair in made.pairs]
    assert {frozenset(pair) for pair in pairs} == {frozenset(BOTH[0])}


def test_a_vip_that_others_have_too_makes_no_connection_ours() -> None:
    ours = {ip("20.0.0.1"), ip("172.16.0.3")}
    view = view_of(is_local=ours.__contains__)
    other = connection("other", src=WITH_VIPS, dst=DST)
    view.apply(event(pb.UPDATE, other, connection("mine", src=["172.16.0.3/24", *VIPS], dst=DST)))
    assert ids(view) == ["mine"]


def test_each_subnet_is_tested_by_itself() -> None:
    view = view_of()
    src, dst = ["172.16.0.2/24", "172.17.0.2/24"], ["172.17.0.1/24", "172.16.0.1/24"]
    view.apply(event(pb.UPDATE, connection("c1", src=src, dst=dst)))
    (made,) = view.connections().connections
    assert set(made.pairs) == {
        Pair(ip("172.16.0.2"), ip("172.16.0.1")),
        Pair(ip("172.17.0.2"), ip("172.17.0.1")),
    }


def test_the_kernel_knows_the_subnet_where_the_connection_does_not() -> None:
    src, dst = ["20.0.0.1/32", "172.16.0.9/32"], ["172.16.0.1/32"]
    view = view_of(lengths_of=lambda address: [24] if address == ip("172.16.0.9") else [32])
    view.apply(event(pb.UPDATE, connection("c1", src=src, dst=dst)))
    assert view.connections().connections[0].pairs == (Pair(ip("172.16.0.9"), ip("172.16.0.1")),)


def test_from_point_to_point_the_nearest_address_of_ours_counts() -> None:
    view = view_of()
    src, dst = ["20.0.0.1/32", "10.244.7.3/32", "2000::1/128", "fd00::3/128"], ["10.244.7.2/32", "fd00::2/128"]
    view.apply(event(pb.UPDATE, connection("c1", src=src, dst=dst)))
    assert set(view.connections().connections[0].pairs) == {
        Pair(ip("10.244.7.3"), ip("10.244.7.2")),
        Pair(ip("fd00::3"), ip("fd00::2")),
    }


def test_a_connection_whose_far_end_is_in_no_subnet_is_left_out_and_named() -> None:
    view = view_of()
    view.apply(event(pb.UPDATE, connection("c1", src=["20.0.0.1/32"], dst=["172.16.0.1/24"])))
    told = view.connections()
    assert told.connections == ()
    assert told.left_out == ("c1: no address of ours has one of the other end in its subnet",)


# What Meridio's proxies say in the extra context

BRIDGE = ("172.16.0.254/24", "fd00::fe/64")
TOLD = {"DATAPATH_SOURCE_IPS": " ".join(SRC), "DATAPATH_DESTINATION_IPS": " ".join(BRIDGE)}
TOLD_PAIRS = (Pair(ip("172.16.0.2"), ip("172.16.0.254")), Pair(ip("fd00::2"), ip("fd00::fe")))


def test_what_the_extra_context_says_comes_first() -> None:
    view = view_of(is_local=lambda address: address in {ip("172.16.0.2"), ip("fd00::2")})
    view.apply(event(pb.UPDATE, connection("c1", src=WITH_VIPS, dst=DST, extra=TOLD)))
    (made,) = view.connections().connections
    assert made.pairs == TOLD_PAIRS
    view.apply(event(pb.UPDATE, connection("c1", state=pb.DOWN)))
    assert view.connections().connections[0].pairs == TOLD_PAIRS
    endpoint = view_of(NsmScope(role="endpoint"))
    endpoint.apply(event(pb.UPDATE, connection("c1", src=WITH_VIPS, dst=DST, extra=TOLD)))
    (made,) = endpoint.connections().connections
    assert made.pairs == tuple(Pair(pair.destination, pair.source) for pair in TOLD_PAIRS)


def test_a_proxy_pings_from_its_bridge_which_the_connection_does_not_list() -> None:
    extra = {"DATAPATH_SOURCE_IPS": " ".join(BRIDGE), "DATAPATH_DESTINATION_IPS": " ".join(DST)}
    view = view_of(is_local=lambda address: address in {ip("172.16.0.254"), ip("fd00::fe")})
    view.apply(event(pb.UPDATE, connection("c1", src=SRC, dst=DST, extra=extra)))
    (made,) = view.connections().connections
    assert made.pairs == (Pair(ip("172.16.0.254"), ip("172.16.0.1")), Pair(ip("fd00::fe"), ip("fd00::1")))


def test_what_the_extra_context_says_of_addresses_that_are_gone_is_out_of_date() -> None:
    view = view_of(is_local=lambda address: address == ip("172.16.9.2"))
    now = connection("c1", src=["172.16.9.2/24", *VIPS], dst=["172.16.9.1/24"], extra=TOLD)
    view.apply(event(pb.UPDATE, now))
    assert view.connections().connections[0].pairs == (Pair(ip("172.16.9.2"), ip("172.16.9.1")),)


@pytest.mark.parametrize("text", [*GARBAGE, " , ;", "172.16.0.2", "fd00::2/64"])
def test_what_the_extra_context_leaves_open_is_read_from_the_addresses(text: str) -> None:
    view = view_of()
    extra = {"DATAPATH_SOURCE_IPS": text, "DATAPATH_DESTINATION_IPS": DST[0]}
    view.apply(event(pb.UPDATE, connection("c1", src=WITH_VIPS, dst=DST, extra=extra)))
    assert set(view.connections().connections[0].pairs) == set(BOTH)


def test_no_more_passages_are_remembered_than_there_is_room_for() -> None:
    view = view_of(NsmScope(max_connections=3))
    for number in range(100):
        view.apply(event(pb.UPDATE, connection(f"c{number:03}", src=SRC, dst=DST)))
    assert len(view._passages) == 12
    assert "88 passages more than can be remembered" in view.connections().left_out
    view.apply(event(pb.UPDATE, connection("c001", src=["172.16.0.7/24"], dst=DST)))
    assert view.connections().connections[1].pairs == (Pair(ip("172.16.0.7"), ip("172.16.0.1")),)
    view.apply(event(pb.INITIAL_STATE_TRANSFER, connection("new", src=SRC, dst=DST)))
    assert ids(view) == ["new"]
    assert view.connections().left_out == ()


def test_an_endpoint_pings_from_the_destination_addresses() -> None:
    view = view_of(NsmScope(role="endpoint"))
    view.apply(event(pb.UPDATE, connection("c1", src=SRC, dst=DST)))
    (made,) = view.connections().connections
    assert made.pairs == tuple(Pair(pair.destination, pair.source) for pair in BOTH)


def test_targets_at_the_far_end_are_judged_one_by_one() -> None:
    view = view_of(NsmScope(role="endpoint", subject="target"))
    view.apply(event(pb.UPDATE, connection("c1", src=SRC, dst=DST)))
    subjects = [made.subject for made in view.connections().connections]
    assert subjects == [TargetSubject(ip=ip("172.16.0.2")), TargetSubject(ip=ip("fd00::2"))]


def test_the_link_that_has_the_address_counts_where_the_manager_names_none() -> None:
    view = view_of(link_of=lambda address, name: name or ("net-4" if len(address) == 4 else ""))
    view.apply(event(pb.UPDATE, connection("c1", src=SRC, dst=DST)))
    assert view.connections().connections[0].ifname == "net-4"


@pytest.mark.parametrize("state", [pb.DOWN, pb.RESELECT_REQUESTED])
def test_a_connection_that_the_mesh_repairs_is_healing(state: "pb.State.ValueType") -> None:
    view = view_of(NsmScope(heal_s=7.0))
    view.apply(event(pb.UPDATE, connection("c1", src=SRC, dst=DST, state=state)))
    assert view.connections().connections[0].healing_s == 7.0
    view.apply(event(pb.UPDATE, connection("c1", src=SRC, dst=DST)))
    assert view.connections().connections[0].healing_s == 0.0


def test_a_refresh_is_no_repair() -> None:
    view = view_of()
    view.apply(event(pb.UPDATE, connection("c1", src=SRC, dst=DST, state=pb.REFRESH_REQUESTED)))
    assert view.connections().connections[0].healing_s == 0.0


def test_new_addresses_replace_the_old_ones_at_once() -> None:
    view = view_of()
    view.apply(event(pb.UPDATE, connection("c1", src=SRC, dst=DST)))
    view.apply(event(pb.UPDATE, connection("c1", src=["172.16.9.2/24"], dst=["172.16.9.1/24"])))
    (made,) = view.connections().connections
    assert made.pairs == (Pair(ip("172.16.9.2"), ip("172.16.9.1")),)


def test_while_the_mesh_repairs_a_connection_it_may_have_no_addresses() -> None:
    view = view_of()
    view.apply(event(pb.UPDATE, connection("c1", src=SRC, dst=DST)))
    view.apply(event(pb.UPDATE, connection("c1", state=pb.DOWN)))
    (made,) = view.connections().connections
    assert made.pairs == BOTH
    assert made.healing_s > 0
    view.apply(event(pb.UPDATE, connection("c1")))
    assert ids(view) == []


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_beside_good_addresses_is_passed_over(garbage: str) -> None:
    view = view_of()
    view.apply(event(pb.UPDATE, connection("c1", src=[garbage, *SRC], dst=[*DST, garbage])))
    assert view.connections().connections[0].pairs == BOTH


def test_a_connection_without_usable_addresses_is_left_out_and_named() -> None:
    view = view_of()
    view.apply(event(pb.UPDATE, connection("c1", src=GARBAGE, dst=DST), connection("c2", src=SRC, dst=DST)))
    told = view.connections()
    assert [item.id for item in told.connections] == ["c2"]
    assert [words.partition(":")[0] for words in told.left_out] == ["c1"]


# Which connections count


def test_a_deleted_connection_is_gone_and_deleting_again_changes_nothing() -> None:
    view = view_of()
    first = connection("c1", src=SRC, dst=DST)
    view.apply(event(pb.UPDATE, first, connection("c2", src=SRC, dst=DST)))
    view.apply(event(pb.DELETE, first))
    view.apply(event(pb.DELETE, first))
    assert ids(view) == ["c2"]


def test_a_full_list_replaces_everything() -> None:
    view = view_of()
    view.apply(event(pb.UPDATE, connection("c1", src=SRC, dst=DST), connection("c2", src=SRC, dst=DST)))
    view.apply(event(pb.INITIAL_STATE_TRANSFER, connection("c2", src=SRC, dst=DST), connection("c3", src=SRC, dst=DST)))
    assert ids(view) == ["c2", "c3"]


def test_a_full_list_tells_of_a_repair_without_addresses_too() -> None:
    view = view_of()
    view.apply(event(pb.UPDATE, connection("c1", src=SRC, dst=DST)))
    view.apply(event(pb.INITIAL_STATE_TRANSFER, connection("c1", state=pb.DOWN)))
    assert view.connections().connections[0].pairs == BOTH


def test_passages_of_one_connection_count_once_and_the_nearest_decides() -> None:
    path = [("proxy-a", "client-id"), ("nsmgr", "n1"), ("forwarder", "f"), ("nsmgr", "n2"), ("lb", "e")]
    near = connection("n1", src=SRC, dst=DST, path=path, index=1)
    far = connection("n2", src=["172.16.7.2"], dst=["172.16.7.1"], path=path, index=3)
    for scope, expected in (
        (NsmScope(), BOTH),
        (NsmScope(role="endpoint"), (Pair(ip("172.16.7.1"), ip("172.16.7.2")),)),
    ):
        view = view_of(scope)
        view.apply(event(pb.UPDATE, far, near))
        (made,) = view.connections().connections
        assert (made.id, made.pairs) == ("client-id", expected)
    view = view_of()
    view.apply(event(pb.UPDATE, far, near))
    view.apply(event(pb.DELETE, far))
    assert ids(view) == ["client-id"]
    view.apply(event(pb.UPDATE, far))
    view.apply(event(pb.DELETE, near))
    assert ids(view) == []


def test_only_the_chosen_services_and_paths_count() -> None:
    scope = NsmScope(network_services=("lb-fe",), path_segments=("proxy-a", "nsmgr"))
    view = view_of(scope)
    fits = [("x", "1"), ("proxy-a", "2"), ("nsmgr", "3")]
    view.apply(
        event(
            pb.UPDATE,
            connection("c1", src=SRC, dst=DST, path=fits),
            connection("c2", src=SRC, dst=DST, path=fits, service="other"),
            connection("c3", src=SRC, dst=DST, path=[("proxy-a", "2"), ("x", "9"), ("nsmgr", "3")]),
        )
    )
    assert len(ids(view)) == 1
    assert scope.selector() == pb.MonitorScopeSelector(
        network_services=["lb-fe"], path_segments=[pb.PathSegment(name="proxy-a"), pb.PathSegment(name="nsmgr")]
    )


def test_connections_of_other_pods_are_not_ours_and_a_lost_link_stays_ours() -> None:
    here = {ip("172.16.0.2")}
    view = view_of(is_local=here.__contains__)
    view.apply(
        event(pb.UPDATE, connection("c1", src=SRC, dst=DST), connection("c2", src=["10.9.9.9/32"], dst=["10.9.9.8/32"]))
    )
    assert ids(view) == ["c1"]
    here.clear()
    assert ids(view) == ["c1"]
    view.apply(event(pb.DELETE, connection("c1")))
    view.apply(event(pb.UPDATE, connection("c1", src=SRC, dst=DST)))
    assert ids(view) == []


def test_more_than_the_limit_is_left_out() -> None:
    view = view_of(NsmScope(max_connections=2))
    view.apply(event(pb.UPDATE, *(connection(f"c{n}", src=SRC, dst=DST) for n in range(4))))
    told = view.connections()
    assert len(told.connections) == 2
    assert told.left_out == ("more than 2 connections",)


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_no_message_breaks_the_view(messages: list[bytes]) -> None:
    view = view_of()
    for data in messages:
        with contextlib.suppress(Exception):
            parsed = pb.ConnectionEvent.FromString(data)
            view.apply(parsed)
    view.connections()


_texts = st.one_of(st.sampled_from([*SRC, *DST, *GARBAGE]), st.text(max_size=20))
_connections = st.builds(
    connection,
    id=st.sampled_from(["a", "b", "c", ""]),
    src=st.lists(_texts, max_size=3),
    dst=st.lists(_texts, max_size=3),
    path=st.lists(st.tuples(st.sampled_from(["p", "q"]), st.sampled_from(["a", "b", ""])), max_size=3),
    index=st.integers(0, 4),
    state=st.sampled_from([pb.UP, pb.DOWN, pb.REFRESH_REQUESTED, pb.RESELECT_REQUESTED]),
)
_events = st.builds(
    lambda kind, items: event(kind, *items),
    st.sampled_from([pb.INITIAL_STATE_TRANSFER, pb.UPDATE, pb.DELETE]),
    st.lists(_connections, max_size=4),
)


@given(st.lists(_events, max_size=10))
def test_whatever_is_told_the_list_has_unique_ids_and_valid_pairs(events: list[pb.ConnectionEvent]) -> None:
    view = view_of()
    for item in events:
        view.apply(item)
        told = view.connections().connections
        assert len({made.id for made in told}) == len(told)
    view.apply(event(pb.INITIAL_STATE_TRANSFER))
    assert view.connections().connections == ()


# The stream


class Heard:
    """What the source told."""

    def __init__(self) -> None:
        self.told: list[ConnectionList | ConnectionsLost] = []

    @property
    def last_ids(self) -> list[str] | None:
        """The ids of the last list; None before the first."""
        lists = [item for item in self.told if isinstance(item, ConnectionList)]
        return [made.id for made in lists[-1].connections] if lists else None

    @property
    def lost(self) -> int:
        """How often a loss was told."""
        return sum(isinstance(item, ConnectionsLost) for item in self.told)


Follow = Callable[[str], Heard]


@pytest.fixture
async def follow() -> AsyncIterator[Follow]:
    tasks: list[asyncio.Task[None]] = []

    def follow(address: str) -> Heard:
        heard = Heard()
        scope = NsmScope()
        source = NsmSource(
            parse_dial_address(address), PlainDialer(), scope, view_of(scope), heard.told.append, backoff_max_s=0.05
        )
        tasks.append(asyncio.create_task(source.run()))
        return heard

    yield follow
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def nsmgr() -> AsyncIterator[FakeNsmgr]:
    fake = FakeNsmgr()
    yield fake
    await fake.stop()


async def test_connections_are_followed_over_a_unix_socket(nsmgr: FakeNsmgr, follow: Follow, tmp_path: Path) -> None:
    nsmgr.update(connection("c1", src=SRC, dst=DST))
    heard = follow(await nsmgr.start(tmp_path / "nsm.sock"))
    await eventually(lambda: heard.last_ids == ["c1"])
    nsmgr.update(connection("c2", src=SRC, dst=DST))
    await eventually(lambda: heard.last_ids == ["c1", "c2"])
    nsmgr.delete("c1")
    await eventually(lambda: heard.last_ids == ["c2"])


async def test_each_update_is_told_even_when_two_come_together(nsmgr: FakeNsmgr, follow: Follow) -> None:
    nsmgr.update(connection("c1", src=SRC, dst=DST))
    heard = follow(await nsmgr.start())
    await eventually(lambda: heard.last_ids == ["c1"])
    nsmgr.delete("c1")
    nsmgr.update(connection("c1", src=SRC, dst=DST))
    await eventually(lambda: len(heard.told) >= 3)
    # A connection that was closed and made anew is two connections: the list without it must be told between.
    assert [len(item.connections) for item in heard.told if isinstance(item, ConnectionList)] == [1, 0, 1]


async def test_losing_the_manager_changes_nothing_and_its_return_brings_the_truth(
    nsmgr: FakeNsmgr, follow: Follow
) -> None:
    nsmgr.update(connection("c1", src=SRC, dst=DST), connection("c2", src=SRC, dst=DST))
    await nsmgr.start()
    port = nsmgr.port
    heard = follow(f"tcp://127.0.0.1:{port}")
    await eventually(lambda: heard.last_ids == ["c1", "c2"])
    await nsmgr.stop()
    await eventually(lambda: heard.lost >= 1)
    assert heard.last_ids == ["c1", "c2"]
    nsmgr.connections.pop("c1")
    await nsmgr.start(port=port)
    await eventually(lambda: heard.last_ids == ["c2"])
    assert nsmgr.watchers == 1


async def test_a_manager_that_comes_late_is_found(nsmgr: FakeNsmgr, follow: Follow, tmp_path: Path) -> None:
    socket = tmp_path / "nsm.sock"
    heard = follow(f"unix://{socket}")
    await eventually(lambda: heard.lost == 1)
    nsmgr.update(connection("c1", src=SRC, dst=DST))
    await nsmgr.start(socket)
    await eventually(lambda: heard.last_ids == ["c1"])
    assert heard.lost == 1


@pytest.mark.parametrize("fault", ["abrupt_end", "repeated_initial", "reordered", "duplicate_ids", "garbage_addresses"])
async def test_after_a_fault_the_next_events_lead_to_the_truth(nsmgr: FakeNsmgr, follow: Follow, fault: str) -> None:
    nsmgr.update(connection("c1", src=SRC, dst=DST))
    heard = follow(await nsmgr.start())
    await eventually(lambda: heard.last_ids == ["c1"])
    nsmgr.fail_once(fault)
    nsmgr.update(connection("c2", src=SRC, dst=DST))
    nsmgr.update(connection("c2", src=SRC, dst=DST), connection("c3", src=SRC, dst=DST))
    await eventually(lambda: sorted(heard.last_ids or []) == ["c1", "c2", "c3"])


async def test_a_stream_that_begins_without_the_list_is_followed(nsmgr: FakeNsmgr, follow: Follow) -> None:
    nsmgr.fail_once("no_initial")
    heard = follow(await nsmgr.start())
    await eventually(lambda: nsmgr.watchers == 1)
    nsmgr.update(connection("c1", src=SRC, dst=DST))
    await eventually(lambda: heard.last_ids == ["c1"])


async def test_a_huge_event_is_bounded(nsmgr: FakeNsmgr, follow: Follow) -> None:
    heard = follow(await nsmgr.start())
    await eventually(lambda: heard.last_ids == [])
    nsmgr.fail_once("huge")
    nsmgr.update(connection("c1", src=SRC, dst=DST))
    await eventually(lambda: heard.last_ids == ["c1"])
    last = heard.told[-1]
    assert isinstance(last, ConnectionList)
    assert len(last.left_out) == HUGE_CONNECTIONS


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("unix:///var/lib/nsm.sock", Endpoint(path="/var/lib/nsm.sock")),
        ("tcp://nsmgr:5001", Endpoint(host="nsmgr", port=5001)),
        ("127.0.0.1:5001", Endpoint(host="127.0.0.1", port=5001)),
    ],
)
def test_addresses_of_managers(text: str, endpoint: Endpoint) -> None:
    assert parse_dial_address(text) == endpoint
