"""Others lay hands on the tables while the service runs; and nfqlb comes, goes and comes again."""

import json
from pathlib import Path

import pytest

from tests.fakes.nfqlb import Memory, make_memory
from tests.netns.service.guarded import PATIENT, Guarded, stream, targets_yaml, wait_until

pytestmark = pytest.mark.netns

SLOTS = 997


def test_a_flushed_ruleset_comes_back_with_the_same_slots(guarded: Guarded) -> None:
    with guarded.service() as service:
        before = guarded.data_path()
        guarded.lb.run("nft", "flush", "ruleset")
        service.wait_for_log("distributor table lost", stream="stream-a")
        wait_until(lambda: guarded.data_path() == before, "the data path as it was")
        wait_until(lambda: guarded.nft("table", "inet", "lbguard-counters"), "the counters again")
        assert guarded.states() == dict.fromkeys((1, 2, 3, 4), "active")


def test_a_flush_while_targets_are_held_and_withdrawn(guarded: Guarded) -> None:
    with guarded.service(PATIENT) as service:
        slots = guarded.slots()
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held", t2="held")
        guarded.lb.run("nft", "flush", "ruleset")
        service.wait_for_log("distributor table lost", stream="stream-a")
        wait_until(lambda: guarded.slots() == slots, "the held targets in the table")
        assert guarded.states() == {1: "held", 2: "held", 3: "active", 4: "active"}


def test_our_rules_and_routes_that_others_delete_come_back(guarded: Guarded) -> None:
    with guarded.service():
        before = guarded.data_path()
        guarded.lb.delete_rule(5001, 5001)
        guarded.lb.flush_routes(5002)
        guarded.lb.flush_routes(5003, ipv4=False)
        wait_until(lambda: guarded.data_path() == before, "the data path as it was")


def nfqlb(guarded: Guarded, kind: str) -> dict[str, str]:
    shm = guarded.directory / "shm"
    shm.mkdir(exist_ok=True)
    return {"LBGUARD_DISTRIBUTOR__KIND": kind, "LBGUARD_DISTRIBUTOR__SHM_DIR": str(shm)}


def memory_path(guarded: Guarded) -> Path:
    return guarded.directory / "shm" / "tshm-stream-a"


def held_by(path: Path) -> tuple[list[int], list[int]]:
    """Return the slots and the marks of a memory."""
    memory = Memory(path)
    return memory.lookup, memory.active


def filled(path: Path, *identifiers: int) -> bool:
    """Tell whether exactly these targets have slots and marks, and no slot is empty."""
    if not path.exists():
        return False
    slots, marks = held_by(path)
    wanted = {identifier - 1 for identifier in identifiers}
    return set(slots) == wanted and {index for index, mark in enumerate(marks) if mark >= 0} == wanted


def test_a_memory_that_is_removed_and_made_again(guarded: Guarded) -> None:
    settings = nfqlb(guarded, "nfqlb-shm")
    path = memory_path(guarded)
    make_memory(path, SLOTS, 10)
    with guarded.process(settings | PATIENT) as service:
        service.wait_until_ready()
        wait_until(lambda: filled(path, 1, 2, 3, 4), "all targets in the memory")
        before = held_by(path)
        routes = guarded.routes()
        path.unlink()
        service.wait_for_log("distributor table lost", stream="stream-a")
        make_memory(path, SLOTS, 10)
        wait_until(lambda: filled(path, 1, 2, 3, 4), "all targets in the new memory")
        assert held_by(path) == before
        assert guarded.routes() == routes
        assert guarded.nft("table", "inet", "lbguard") == []
        service.kill()
    with guarded.process(settings | PATIENT) as service:
        service.wait_until_ready()
        service.wait_for_log("adopt", count=4)
        assert held_by(path) == before


def test_a_memory_that_comes_late_takes_the_stream_over(guarded: Guarded) -> None:
    path = memory_path(guarded)
    with guarded.service(nfqlb(guarded, "auto")) as service:
        guarded.delete_link("nse-b")
        guarded.wait_for(t3="withdrawn", t4="withdrawn")
        make_memory(path, SLOTS, 10)
        service.wait_for_log("distributor table lost", reason="nfqlb memory appeared")
        wait_until(lambda: filled(path, 1, 2), "the admitted targets in the memory")
        wait_until(lambda: guarded.nft("table", "inet", "lbguard") == [], "nftables without the stream")
        assert guarded.states() == {1: "active", 2: "active", 3: "withdrawn", 4: "withdrawn"}
        actions = [line["action"] for line in service.log("decision")]
        assert actions.count("admit") == 4
        assert actions.count("withdraw") == 2


def test_a_memory_that_is_no_memory_leaves_the_stream_where_it_is(guarded: Guarded) -> None:
    path = memory_path(guarded)
    with guarded.service(nfqlb(guarded, "auto")) as service:
        before = guarded.data_path()
        path.write_bytes(b"\x00\x00\x00\x00half a header")
        failed = service.wait_for_log("nfqlb memory cannot be used, nftables goes on", stream="stream-a")
        assert str(path) in failed["reason"]
        assert guarded.data_path() == before
        path.unlink()
        make_memory(path, SLOTS, 10)
        wait_until(lambda: filled(path, 1, 2, 3, 4), "all targets in the memory")
        wait_until(lambda: guarded.nft("table", "inet", "lbguard") == [], "nftables without the stream")


def test_what_nftables_held_in_an_earlier_run_goes_beside_nfqlb(guarded: Guarded) -> None:
    settings = nfqlb(guarded, "auto")
    with guarded.service(settings) as service:
        service.kill()
    path = memory_path(guarded)
    make_memory(path, SLOTS, 10)
    with guarded.process(settings) as service:
        service.wait_until_ready()
        wait_until(lambda: filled(path, 1, 2, 3, 4), "all targets in the memory")
        wait_until(lambda: guarded.nft("table", "inet", "lbguard") == [], "nftables without the stream")


def test_one_stream_without_a_table_leaves_the_others_looked_after(guarded: Guarded) -> None:
    settings = nfqlb(guarded, "nfqlb-shm")
    path = memory_path(guarded)
    make_memory(path, SLOTS, 10)
    other = stream("stream-b", 1, 3, identifier_offset=6000, vips=["20.0.0.2/32"])
    with guarded.process(settings, targets=targets_yaml(stream("stream-a", 1, 2, 3, 4), other)) as service:
        service.wait_for_log("distributor failed", stream="stream-b")
        wait_until(lambda: filled(path, 1, 2, 3, 4), "stream-a in its memory")
        # The page says what the last look found: stream-a is among the unread until the next one.
        wait_until(lambda: "tables_not_read: stream-b" in guarded.http("/readyz")[1], "readiness names stream-b alone")
        active = 'lbguard_target_states{state="active",stream="stream-a"}'
        wait_until(lambda: guarded.metric(active) == 4, "the gauge of stream-a")
        path.unlink()
        service.wait_for_log("distributor table lost", stream="stream-a")
        make_memory(path, SLOTS, 10)
        wait_until(lambda: filled(path, 1, 2, 3, 4), "stream-a in its new memory")


def test_packets_are_counted_beside_nfqlb(guarded: Guarded) -> None:
    make_memory(guarded.directory / "tshm-stream-a", SLOTS, 10)
    settings = {"LBGUARD_DISTRIBUTOR__KIND": "nfqlb-shm", "LBGUARD_DISTRIBUTOR__SHM_DIR": str(guarded.directory)}
    with guarded.process(settings) as service:
        service.wait_until_ready()
        wait_until(lambda: guarded.nft("table", "inet", "lbguard-counters"), "the counters")
        marks = [5001, 5002, 5003, 5004]
        wait_until(
            lambda: all(str(mark) in json.dumps(guarded.nft("table", "inet", "lbguard-counters")) for mark in marks)
        )
