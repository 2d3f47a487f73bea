from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.api.gen.nsm.connection import connection_pb2 as pb
from lbguard.core.addr import Ip
from lbguard.core.events import NeighborsOutdated, VerdictReported
from lbguard.core.model import ConnectionSubject, VerdictState
from lbguard.nsm import REPORTER, ConnectionScope, ConnectionWatch, WatchEvent
from tests.fakes.nsmgr import GARBAGE
from tests.fakes.nsmgr import connection as plain
from tests.unit.core.harness import ip

TARGET, TARGET6, OTHER, NEW = ip("172.16.0.11"), ip("fd00::11"), ip("172.16.0.12"), ip("172.16.0.13")
OURS = ip("172.16.0.2")
SRC, DST = ("172.16.0.11/32", "fd00::11/128"), ("172.16.0.1/32", "fd00::1/128")
MAC_A, MAC_B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
A, B = bytes.fromhex("02000000000a"), bytes.fromhex("02000000000b")


class Known:
    def is_target(self, ip: Ip) -> bool:
        return ip in (TARGET, TARGET6, OTHER, NEW)

    def is_ours(self, ip: Ip) -> bool:
        return ip == OURS


def watch_of(scope: ConnectionScope | None = None, **options: int) -> ConnectionWatch:
    return ConnectionWatch(scope or ConnectionScope(), Known(), heal_s=15.0, **options)


def connection(
    id: str = "c1",
    mac: str = MAC_A,
    src: tuple[str, ...] = SRC,
    dst: tuple[str, ...] = DST,
    state: "pb.State.ValueType" = pb.UP,
    passage: str = "",
) -> pb.Connection:
    made = plain(id, src=src, dst=dst, state=state, path=[("target", id), ("nsmgr", passage or id)])
    made.id = passage or id
    made.context.ethernet_context.src_mac = mac
    return made


def update(*connections: pb.Connection) -> pb.ConnectionEvent:
    return pb.ConnectionEvent(type=pb.UPDATE, connections={item.id: item for item in connections})


def full_list(*connections: pb.Connection) -> pb.ConnectionEvent:
    return pb.ConnectionEvent(type=pb.INITIAL_STATE_TRANSFER, connections={item.id: item for item in connections})


def delete(*connections: pb.Connection) -> pb.ConnectionEvent:
    return pb.ConnectionEvent(type=pb.DELETE, connections={item.id: item for item in connections})


def outdated(*ips: Ip, mac: bytes = b"") -> NeighborsOutdated:
    return NeighborsOutdated(ips=ips, new_mac=mac)


# Neighbours


def test_a_closed_connection_outdates_the_entries_of_its_client_and_of_nobody_else() -> None:
    watch = watch_of()
    watch.apply(full_list(connection(), connection("c2", src=("172.16.0.12/32",))))
    assert watch.apply(delete(connection())) == [outdated(TARGET, TARGET6)]


def test_a_delete_without_addresses_is_of_those_that_were_told_before() -> None:
    watch = watch_of(ConnectionScope(network_services=("lb-fe",)))
    watch.apply(full_list(connection()))
    bare = pb.Connection(id="c1")
    assert watch.apply(delete(bare)) == [outdated(TARGET, TARGET6)]


def test_a_delete_of_a_connection_that_was_never_told_counts_by_its_own_addresses() -> None:
    assert watch_of().apply(delete(connection())) == [outdated(TARGET, TARGET6)]


def test_a_changed_interface_outdates_what_does_not_have_its_address_yet() -> None:
    watch = watch_of()
    watch.apply(full_list(connection()))
    assert watch.apply(update(connection(mac=MAC_B))) == [outdated(TARGET, TARGET6, mac=B)]


def test_a_refresh_changes_nothing() -> None:
    watch = watch_of()
    watch.apply(full_list(connection()))
    assert watch.apply(update(connection())) == []
    assert watch.apply(update(connection(mac=""))) == []
    assert watch.apply(update(connection(state=pb.REFRESH_REQUESTED))) == []


def test_changed_addresses_outdate_those_that_are_gone_and_those_that_are_new() -> None:
    watch = watch_of()
    watch.apply(full_list(connection()))
    told = watch.apply(update(connection(src=("172.16.0.13/32", "fd00::11/128"))))
    assert told == [outdated(TARGET), outdated(NEW, mac=A)]


def test_a_new_connection_has_a_new_interface() -> None:
    assert watch_of().apply(update(connection(mac=""))) == [outdated(TARGET, TARGET6)]
    assert watch_of().apply(update(connection())) == [outdated(TARGET, TARGET6, mac=A)]


def test_the_first_list_outdates_only_what_has_another_address() -> None:
    told = watch_of().apply(full_list(connection(), connection("c2", mac="", src=("172.16.0.12/32",))))
    assert told == [outdated(TARGET, TARGET6, mac=A)]


def test_a_manager_that_is_back_with_the_same_connections_changes_nothing() -> None:
    watch = watch_of()
    watch.apply(full_list(connection()))
    assert watch.apply(full_list(connection())) == []


def test_a_manager_that_started_anew_and_knows_nothing_yet_changes_nothing() -> None:
    watch = watch_of()
    watch.apply(full_list(connection(mac="")))
    assert watch.apply(full_list()) == []
    assert watch.apply(update(connection(mac=""))) == []


def test_an_interface_that_changed_while_the_manager_was_away_is_seen_in_its_list() -> None:
    watch = watch_of()
    watch.apply(full_list(connection()))
    assert watch.apply(full_list(connection(mac=MAC_B))) == [outdated(TARGET, TARGET6, mac=B)]


def test_a_repair_without_a_told_address_outdates_too() -> None:
    watch = watch_of()
    watch.apply(full_list(connection(mac="")))
    watch.apply(update(connection(mac="", state=pb.DOWN)))
    assert outdated(TARGET, TARGET6) in watch.apply(update(connection(mac="")))


@pytest.mark.parametrize(
    "mac", ["", "no address", "00:00:00:00:00:00", "01:00:5e:00:00:01", "02:00:00:00:00", "ff" * 9]
)
def test_what_is_no_address_of_an_interface_is_none(mac: str) -> None:
    assert watch_of().apply(update(connection(mac=mac))) == [outdated(TARGET, TARGET6)]


def test_connections_of_nobody_we_know_are_of_no_interest() -> None:
    watch = watch_of()
    stranger = connection("c9", src=("10.0.0.1/32", *GARBAGE))
    assert watch.apply(update(stranger)) == watch.apply(delete(stranger)) == []


def test_connections_out_of_scope_are_of_no_interest() -> None:
    watch = watch_of(ConnectionScope(network_services=("proxy.a",)))
    assert watch.apply(update(connection())) == watch.apply(delete(connection())) == []
    assert len(watch) == 0


def test_memory_is_bounded() -> None:
    watch = watch_of(passages_max=3)
    for number in range(10):
        watch.apply(update(connection(f"c{number}", state=pb.DOWN)))
    assert len(watch) == 3


# Repairs


def verdicts(told: list[WatchEvent]) -> Iterator[tuple[VerdictState, ConnectionSubject, float]]:
    for event in told:
        if isinstance(event, VerdictReported):
            assert event.reporter == REPORTER
            assert isinstance(event.verdict.subject, ConnectionSubject)
            yield event.verdict.state, event.verdict.subject, event.verdict.heal_s


@pytest.mark.parametrize("state", [pb.DOWN, pb.RESELECT_REQUESTED])
def test_what_is_down_is_healing_once_until_it_is_up(state: "pb.State.ValueType") -> None:
    watch = watch_of()
    watch.apply(full_list(connection()))
    ((healing, subject, heal_s),) = verdicts(watch.apply(update(connection(state=state))))
    assert (healing, heal_s) == (VerdictState.HEALING, 15.0)
    assert (subject.peer_ips, subject.lb_ips) == ((TARGET, TARGET6), ())
    assert watch.apply(update(connection(state=state))) == []
    ((ended, again, _),) = verdicts(watch.apply(update(connection())))
    assert (ended, again) == (VerdictState.ENDED, subject)


def test_a_later_repair_is_of_a_later_generation() -> None:
    watch = watch_of()
    told = [
        event
        for state in (pb.DOWN, pb.UP, pb.DOWN)
        for event in watch.apply(update(connection(state=state)))
        if isinstance(event, VerdictReported)
    ]
    generations = [event.verdict.generation for event in told]
    assert generations == sorted(set(generations))
    assert len(generations) == 3


def test_while_it_is_repaired_a_connection_may_have_no_addresses() -> None:
    watch = watch_of()
    watch.apply(full_list(connection()))
    ((_, subject, _),) = verdicts(watch.apply(update(connection(src=(), dst=(), mac="", state=pb.DOWN))))
    assert subject.peer_ips == (TARGET, TARGET6)


def test_a_close_in_the_middle_of_a_repair_takes_the_evidence_not_back() -> None:
    watch = watch_of()
    watch.apply(full_list(connection()))
    watch.apply(update(connection(state=pb.DOWN)))
    assert list(verdicts(watch.apply(delete(connection(state=pb.DOWN))))) == []


def test_several_passages_are_one_connection() -> None:
    watch = watch_of()
    watch.apply(full_list(connection(passage="p1"), connection(passage="p2")))
    down = watch.apply(update(connection(state=pb.DOWN, passage="p1"), connection(state=pb.DOWN, passage="p2")))
    assert len(list(verdicts(down))) == 1
    assert list(verdicts(watch.apply(update(connection(passage="p1"))))) == []
    assert [state for state, _, _ in verdicts(watch.apply(update(connection(passage="p2"))))] == [VerdictState.ENDED]


def test_a_link_whose_far_end_we_are_is_healing() -> None:
    watch = watch_of()
    down = connection(src=("172.16.0.1/32",), dst=("172.16.0.2/32",), state=pb.DOWN)
    ((_, subject, _),) = verdicts(watch.apply(update(down)))
    assert (subject.lb_ips, subject.peer_ips) == ((OURS,), ())


def test_a_repair_of_nobody_we_know_is_no_evidence() -> None:
    watch = watch_of()
    stranger = ("10.0.0.1/32",)
    assert watch.apply(update(connection(src=stranger, state=pb.DOWN))) == []
    assert watch.apply(update(connection(src=stranger))) == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from([pb.UPDATE, pb.DELETE, pb.INITIAL_STATE_TRANSFER]),
            st.sampled_from(["c1", "c2"]),
            st.sampled_from(["p1", "p2", "p3"]),
            st.sampled_from(["", MAC_A, MAC_B, "junk"]),
            st.sampled_from([SRC, ("172.16.0.12/32",), (), ("junk",)]),
            st.sampled_from([pb.UP, pb.DOWN, pb.RESELECT_REQUESTED, pb.REFRESH_REQUESTED]),
        ),
        max_size=30,
    )
)
def test_whatever_comes_each_repair_is_told_begun_before_it_is_told_ended(
    steps: list[tuple["pb.ConnectionEventType.ValueType", str, str, str, tuple[str, ...], "pb.State.ValueType"]],
) -> None:
    watch = watch_of(passages_max=2)
    open_repairs: set[str] = set()
    for kind, id, passage, mac, src, state in steps:
        item = connection(id, mac=mac, src=src, state=state, passage=passage)
        for event in watch.apply(pb.ConnectionEvent(type=kind, connections={item.id: item})):
            if isinstance(event, NeighborsOutdated):
                assert event.ips
                continue
            assert isinstance(event.verdict.subject, ConnectionSubject)
            if event.verdict.state is VerdictState.HEALING:
                open_repairs.add(event.verdict.subject.id)
            else:
                assert event.verdict.subject.id in open_repairs
                open_repairs.discard(event.verdict.subject.id)
    assert len(watch) <= 2
