"""Flow affinity in the real service: in force, kept over restarts, corrected, and removed when it is off."""

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from lbguard.core.model import Action
from lbguard.distributor.nftables.queueing import MANGLE
from tests.netns.affinity import segments
from tests.netns.distributor.packets import TCP, Flow
from tests.netns.packet_queue import PacketQueue
from tests.netns.service.guarded import LINKS, PATIENT, Guarded, stream, targets_yaml, wait_until

pytestmark = pytest.mark.netns

LINKS_FAR_END = f"lb-{LINKS['nse-b']}"
ON = {"LBGUARD_AFFINITY__MODE": "incident"}
OFF = {"LBGUARD_AFFINITY__MODE": "off"}


def marks(guarded: Guarded, name: str) -> set[int]:
    """Return the elements of a set of the affinity table."""
    found = [thing["set"] for thing in guarded.nft("set", "inet", "lbguard-affinity", name) if "set" in thing]
    return set(found[0].get("elem", ())) if found else set()


def there(guarded: Guarded) -> bool:
    # As text: libnftables 1.0.6 writes invalid JSON for a table with an owner.
    return "table inet lbguard-affinity\n" in guarded.lb.run("nft", "list", "tables")


def test_an_incident_is_followed_and_a_restart_keeps_the_table(guarded: Guarded) -> None:
    with guarded.service(ON | PATIENT):
        wait_until(lambda: marks(guarded, "served_4") == marks(guarded, "served_6") == {5001, 5002, 5003, 5004})
        wait_until(lambda: not marks(guarded, "learn"))
        wait_until(lambda: guarded.metric("lbguard_affinity_in_force") == 1)
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held", t2="held")
        wait_until(lambda: marks(guarded, "avoid_4") == marks(guarded, "avoid_6") == {5001, 5002})
        assert marks(guarded, "learn") == {5001, 5002, 5003, 5004}
        guarded.lb.run(
            "nft", "add element inet lbguard-affinity flows_tcp_4 { 10.0.0.2 . 20.0.0.1 . 40000 . 443 : 5003 }"
        )
    assert there(guarded)
    with guarded.service(ON | PATIENT, admitted=2):
        wait_until(lambda: guarded.metric('lbguard_affinity_flows{family="ipv4",protocol="tcp"}') == 1)
        guarded.make_link("nse-a")
        wait_until(lambda: not marks(guarded, "avoid_4") and not marks(guarded, "learn"))
        guarded.lb.run("nft", "delete table inet lbguard-affinity")
        wait_until(lambda: marks(guarded, "served_4") == {5001, 5002, 5003, 5004})
        wait_until(lambda: guarded.metric("lbguard_affinity_mended_total") == 1)


def test_a_start_without_affinity_removes_the_table_of_an_earlier_run(guarded: Guarded) -> None:
    with guarded.service(ON) as service:
        wait_until(lambda: there(guarded))
    with guarded.service(OFF) as service:
        service.wait_for_log("flow affinity is off: the table of an earlier run is removed")
        assert not there(guarded)


def test_a_withdrawing_stop_removes_the_table(guarded: Guarded) -> None:
    with guarded.service(ON | {"LBGUARD_WITHDRAW_ON_EXIT": "true"}) as service:
        wait_until(lambda: there(guarded))
        assert service.terminate() == 0
    assert not there(guarded)


def vip_packets(guarded: Guarded, stop: threading.Event) -> None:
    """Send packets in the middle of TCP flows to the VIPs, through the link of the second proxy, until told to stop."""
    destination = bytes.fromhex(guarded.lb.link("nse-b").mac.replace(":", ""))
    some = [Flow("172.16.2.9", "20.0.0.1", TCP, 20000 + n, 443) for n in range(60)]
    with guarded.proxies.entered():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    with sender:
        while not stop.wait(0.05):
            for flow in some:
                sender.sendto(segments.go_on(flow), (LINKS_FAR_END, 0x0800, 0, 0, destination))


@pytest.mark.parametrize("end", ["withdraw_on_exit", "start without affinity"])
def test_the_end_of_affinity_loses_no_packet_of_anothers_queue(guarded: Guarded, end: str) -> None:
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        with guarded.service(ON | {"LBGUARD_WITHDRAW_ON_EXIT": str(end == "withdraw_on_exit").lower()}) as service:
            wait_until(lambda: there(guarded))
            queue = PacketQueue(guarded.lb, {"ip": "20.0.0.1"}, priority=MANGLE)
            stack.callback(queue.close)
            sender = threading.Thread(target=vip_packets, args=(guarded, stop))
            sender.start()
            try:
                wait_until(lambda: queue.waiting() >= 60, "packets that wait")
            finally:
                stop.set()
                sender.join()
            waiting = queue.waiting()
            assert service.terminate() == 0
        if end != "withdraw_on_exit":
            with guarded.service(OFF) as service:
                service.wait_for_log("nftables table without effect stays")
        assert queue.waiting() >= waiting
        assert there(guarded)
        assert "served_4" not in guarded.lb.run("nft", "list", "table", "inet", "lbguard-affinity")


def removed(guarded: Guarded) -> dict[int, str]:
    return {d.target.identifier: d.cause for d in guarded.decisions() if d.action is Action.REMOVE}


def test_a_drained_target_stays_while_it_gets_packets_and_goes_when_it_gets_none(guarded: Guarded) -> None:
    drain = ON | {"LBGUARD_DRAIN__WINDOW": "1h", "LBGUARD_DRAIN__IDLE": "2s", "LBGUARD_AFFINITY__LEARN": "1s"}
    stop = threading.Event()
    with guarded.service(drain):
        sender = threading.Thread(target=vip_packets, args=(guarded, stop))
        sender.start()
        try:
            guarded.write_targets(targets_yaml(stream("stream-a", 2, 3, 4)))
            guarded.wait_for(t1="draining")
            wait_until(lambda: marks(guarded, "avoid_4") == {5001})
            # The sixty flows of all targets are seen while the target drains; those of target 1 keep it there.
            time.sleep(5)
            assert guarded.states()[1] == "draining"
            assert removed(guarded) == {}
        finally:
            stop.set()
            sender.join()
        wait_until(lambda: removed(guarded) == {1: "drain_idle"})
        wait_until(lambda: marks(guarded, "marks") == {5002, 5003, 5004})
        assert sorted(guarded.states()) == [2, 3, 4]


@contextlib.contextmanager
def table_of_another(guarded: Guarded) -> Iterator[None]:
    """Let another program own a table of our name: the kernel refuses every change of it by others."""
    command = guarded.lb.command("nft", "--interactive")
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as owner:
        assert owner.stdin is not None
        owner.stdin.write("add table inet lbguard-affinity { flags owner; }\n")
        owner.stdin.flush()
        wait_until(lambda: there(guarded))
        yield


def test_where_nftables_refuses_no_change_of_the_list_waits(guarded: Guarded) -> None:
    long = {"LBGUARD_AFFINITY__LEARN": "5m"}
    with (
        table_of_another(guarded),
        guarded.service(long, targets=targets_yaml(stream("stream-a", 2, 3, 4)), admitted=3) as service,
    ):
        assert "not permitted" in service.wait_for_log("flow affinity is not in force")["reason"]
        time.sleep(1.0)  # a stream changes its list at once in its first second
        guarded.write_targets(targets_yaml())
        guarded.wait_for_table(4)
        assert guarded.metric("lbguard_affinity_in_force") == 0
    assert not there(guarded), "the table ended with its owner"


def test_a_change_that_waits_is_shown_and_committed_when_the_rules_are_gone(guarded: Guarded) -> None:
    long = {"LBGUARD_AFFINITY__LEARN": "5m"}
    with guarded.service(long, targets=targets_yaml(stream("stream-a", 2, 3, 4)), admitted=3) as service:
        wait_until(lambda: guarded.metric("lbguard_affinity_in_force") == 1)
        time.sleep(1.0)  # a stream changes its list at once in its first second
        guarded.write_targets(targets_yaml())
        guarded.wait_for(t1="active")
        with guarded.client() as client:
            status = client.status()
        waits = {target.identifier: target.commit_at is not None for target in status.targets}
        assert waits == {1: True, 2: False, 3: False, 4: False}
        assert status.streams[0].commit_at is not None
        assert 1 not in guarded.active()
        guarded.lb.run("nft", "delete table inet lbguard-affinity")
        with table_of_another(guarded):
            service.wait_for_log("flow affinity is not in force")
            guarded.wait_for_table(4)
        service.wait_for_log("flow affinity is in force again")


def test_flows_are_observed_before_a_change_of_the_list_is_committed(guarded: Guarded) -> None:
    stop = threading.Event()
    settings = ON | {"LBGUARD_AFFINITY__LEARN": "3s"}
    with guarded.service(settings, targets=targets_yaml(stream("stream-a", 2, 3, 4)), admitted=3):
        time.sleep(1.0)  # a stream changes its list at once in its first second
        sender = threading.Thread(target=vip_packets, args=(guarded, stop))
        sender.start()
        try:
            guarded.write_targets(targets_yaml())
            wait_until(lambda: marks(guarded, "observe") >= {5002, 5003, 5004})
            wait_until(lambda: guarded.metric('lbguard_affinity_remembered_total{reason="observed"}') == 60)
            guarded.wait_for_table(4)
            wait_until(lambda: not marks(guarded, "observe") and not marks(guarded, "learn"))
        finally:
            stop.set()
            sender.join()
        entries = json.dumps(guarded.nft("map", "inet", "lbguard-affinity", "flows_tcp_4"))
        assert "5001" not in entries, "a flow that began before was given to the target that was added"


def test_a_family_that_is_withdrawn_alone_is_served_no_more(guarded: Guarded) -> None:
    with guarded.service(ON):
        wait_until(lambda: marks(guarded, "served_4") == marks(guarded, "served_6") == {5001, 5002, 5003, 5004})
        guarded.lb.delete_addresses("nse-a", "fd00:1::1/64")
        wait_until(lambda: marks(guarded, "served_6") == {5003, 5004})
        assert marks(guarded, "fallen_6") == {5001, 5002}
        assert marks(guarded, "served_4") == {5001, 5002, 5003, 5004}
        assert guarded.states()[1] == "held"
        assert guarded.active().keys() == {1, 2, 3, 4}
        guarded.lb.add_addresses("nse-a", "fd00:1::1/64")
        wait_until(lambda: marks(guarded, "served_6") == {5001, 5002, 5003, 5004})
        assert not marks(guarded, "fallen_6")
