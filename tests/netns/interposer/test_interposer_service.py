"""An unmodified load balancer beside the real service: nothing of it is patched, and it calls nfqlb by name."""

import time

import pytest

from lbguard.lab.network import PROTOCOL_BOOT
from tests.netns.interposer.balancer import LIMIT_S, METRICS, OURS, PATIENT, Balancer, wait_until

pytestmark = pytest.mark.netns

AFFINITY = {"LBGUARD_AFFINITY__MODE": "incident", "LBGUARD_AFFINITY__LEARN": "0s"}


def test_activated_targets_are_admitted_when_the_call_returns(balancer: Balancer) -> None:
    """A call whose outcome is `admitted` returned after its target was in the table, and in time every call is so."""
    calls, deadline = 0, time.monotonic() + LIMIT_S

    def start_with(*identifiers: int) -> bool:
        """Activate targets one by one; return whether each was admitted: on a very busy machine one is `accepted`."""
        nonlocal calls
        balancer.meridio.start()
        before = balancer.outcomes("activate", calls).get("admitted", 0)
        for number in range(len(identifiers)):
            balancer.give(*identifiers[: number + 1])
            at_return = balancer.active()
            calls += 1
            admitted = balancer.outcomes("activate", calls).get("admitted", 0) - before
            if admitted <= number:
                return False
            assert at_return == set(identifiers[: number + 1])
        return True

    # With flow affinity a target that is added after the first second is accepted at once.
    with balancer.service(LBGUARD_INTERPOSER__ANSWER_TIMEOUT="1s", LBGUARD_AFFINITY__MODE="off", **METRICS):
        while not start_with(1, 2, 5):
            assert time.monotonic() < deadline, balancer.outcomes("activate", calls)
            balancer.meridio.stop()
        assert balancer.states() == {1: "active", 2: "active", 5: "active"}
        assert balancer.registered() == {1: True, 2: True, 5: True}
        assert set(balancer.table()) == {1, 2, 5}
    assert balancer.meridio.refused == []


def test_a_link_that_comes_back_in_time_moves_nothing(balancer: Balancer) -> None:
    with balancer.service(**PATIENT):
        balancer.serve(1, 2, 5)
        table = balancer.table()
        balancer.cut(1)
        balancer.meridio.check()
        assert balancer.meridio.targets.keys() == {5}
        assert balancer.table() == table
        balancer.wait_for(t1="held", t2="held", t5="active")
        assert balancer.registered() == {1: False, 2: False, 5: True}
        # The load balancer has no rule and no route for it now; ours drop the packets, so that they do not loop.
        assert balancer.next_hop(1) == ""
        balancer.make_link(1)
        balancer.wait_for(t1="active", t2="active", t5="active")
        # Repaired before the load balancer has noticed.
        assert balancer.meridio.targets.keys() == {5}
        assert balancer.next_hop(1) == "172.16.1.11"
        balancer.meridio.check()
        assert balancer.meridio.targets.keys() == {1, 2, 5}
        assert balancer.registered() == {1: True, 2: True, 5: True}
        assert balancer.table() == table
        assert balancer.next_hop(2) == "172.16.1.12"
    assert balancer.meridio.refused == []


def test_a_link_that_stays_away_is_withdrawn_after_the_grace_window(balancer: Balancer) -> None:
    with balancer.service(LBGUARD_GRACE__WINDOW="300ms"):
        balancer.serve(1, 5)
        table = balancer.table()
        balancer.cut(1)
        balancer.meridio.check()
        wait_until(lambda: balancer.active() == {5}, "target 1 is withdrawn")
        balancer.make_link(1)
        balancer.meridio.check()
        wait_until(lambda: balancer.active() == {1, 5}, "target 1 is back")
        assert balancer.table() == table


def test_a_deliberate_removal_is_done_when_the_call_returns(balancer: Balancer) -> None:
    with balancer.service(**PATIENT):
        balancer.serve(1, 2, 5)
        balancer.give(1, 5)
        assert balancer.active() == {1, 5}
        assert balancer.registered() == {1: True, 5: True}
        assert balancer.states() == {1: "active", 5: "active"}


def test_new_connections_of_a_target_that_is_cut_off_go_elsewhere(balancer: Balancer) -> None:
    """The rules of flow affinity follow the marks that nfqlb sets; here a rule of the test sets them."""
    with balancer.service(**PATIENT, **AFFINITY):
        balancer.serve(1, 5)
        wait_until(lambda: balancer.active() == {1, 5}, "both are in the table")
        balancer.mark_everything(1)
        balancer.cut(1)
        balancer.wait_for(t1="held", t5="active")
        wait_until(lambda: balancer.avoided() == {1}, "target 1 is avoided")
        assert balancer.steered() == 0
        balancer.begin_connection()
        wait_until(lambda: balancer.steered() == 1, "the connection is given to target 5")


def test_a_removed_target_drains_and_the_call_returns_at_once(balancer: Balancer) -> None:
    """The load balancer deletes its rules and routes after the call, and the drain goes on."""
    drain = {"LBGUARD_DRAIN__WINDOW": "1h", "LBGUARD_DRAIN__IDLE": "1h"}
    with balancer.service(**PATIENT, **AFFINITY, **drain):
        balancer.serve(1, 2, 5)
        table = balancer.table()
        balancer.give(1, 5)
        assert balancer.registered() == {1: True, 5: True}
        balancer.wait_for(t1="active", t2="draining", t5="active")
        wait_until(lambda: balancer.avoided() == {2}, "target 2 gets no new connection")
        wait_until(lambda: balancer.rules(2) == ([3000], []), "the load balancer's rule is gone, and ours is there")
        wait_until(lambda: balancer.next_hop(2) == "172.16.1.12", "our route is there")
        assert balancer.table() == table
        assert balancer.states() == {1: "active", 2: "draining", 5: "active"}
        balancer.give(1, 2, 5)
        balancer.wait_for(t1="active", t2="active", t5="active")
        assert balancer.table() == table
    assert balancer.meridio.refused == []


def test_a_target_whose_removal_waits_for_flows_is_out_when_the_call_returns(balancer: Balancer) -> None:
    with balancer.service(**PATIENT, **AFFINITY | {"LBGUARD_AFFINITY__LEARN": "2s"}):
        balancer.serve(1, 2, 5)
        wait_until(lambda: balancer.active() == {1, 2, 5}, "all are in the table")
        time.sleep(1.0)  # a stream changes its list at once in its first second
        balancer.give(1, 5)
        assert balancer.active() == {1, 5}
        assert balancer.registered() == {1: True, 5: True}
        wait_until(lambda: balancer.rules(2) == ([], []), "its rules stay until the change is committed")
        assert balancer.active() == {1, 5}


def test_a_target_that_is_not_activated_again_is_removed(balancer: Balancer) -> None:
    """Meridio's says nothing of a target that is removed while it is pending."""
    with balancer.service(**PATIENT, LBGUARD_INTERPOSER__CONFIRM_TIMEOUT="1s"):
        balancer.serve(1, 5)
        balancer.cut(1)
        balancer.meridio.check()
        balancer.give(5)
        balancer.wait_for(t1="held", t5="active")
        balancer.make_link(1)
        wait_until(lambda: balancer.active() == {5}, "target 1 is out")
        assert balancer.registered() == {5: True}


def test_the_end_of_a_stream_and_its_beginning_anew(balancer: Balancer) -> None:
    with balancer.service():
        balancer.serve(1, 5)
        balancer.meridio.stop()
        assert balancer.registered() == {}
        balancer.serve(2)
        assert balancer.active() == {2}
        assert set(balancer.table()) == {2}
    assert balancer.meridio.refused == []


def test_what_is_registered_survives_a_restart(balancer: Balancer) -> None:
    with balancer.service(**PATIENT) as service:
        balancer.serve(1, 2, 5)
        table = balancer.table()
        balancer.cut(1)
        balancer.meridio.check()
        service.kill()
    with balancer.service(**PATIENT):
        balancer.wait_for(t1="held", t2="held", t5="active")
        assert balancer.table() == table
        balancer.make_link(1)
        balancer.wait_for(t1="active", t2="active", t5="active")
        assert balancer.table() == table


def test_without_the_service_the_load_balancer_works_as_ever(balancer: Balancer) -> None:
    with balancer.service(**PATIENT) as service:
        balancer.serve(1, 2, 5)
        service.kill()
        balancer.give(2, 5, 6)
        assert balancer.active() == {2, 5, 6}
        balancer.cut(1)
        balancer.meridio.check()
        assert balancer.active() == {5, 6}
        balancer.make_link(1)
        balancer.meridio.check()
        assert balancer.active() == {2, 5, 6}
    assert balancer.meridio.refused == []
    table = balancer.table()
    with balancer.service(**PATIENT):
        balancer.wait_for(t2="active", t5="active", t6="active")
        assert balancer.registered() == {2: True, 5: True, 6: True}
        assert balancer.table() == table


def test_a_service_that_comes_late_takes_over_what_is_there(balancer: Balancer) -> None:
    balancer.serve(1, 5)
    table = balancer.table()
    (balancer.nfqlb.shared / "registry.json").write_bytes(b"\0{")
    with balancer.service(**PATIENT):
        balancer.wait_for(t1="active", t5="active")
        assert balancer.table() == table
        balancer.cut(1)
        balancer.meridio.check()
        assert balancer.table() == table


def test_a_service_that_only_observes_touches_nothing(balancer: Balancer) -> None:
    with balancer.service(LBGUARD_MODE="observe"):
        balancer.serve(1, 5)
        assert balancer.active() == {1, 5}
        balancer.cut(1)
        balancer.meridio.check()
        assert balancer.active() == {5}


def test_rules_and_routes_of_both_stand_side_by_side(balancer: Balancer) -> None:
    """The load balancer deletes by table and gateway, whoever's it is; ours come back, and its own are left alone."""
    with balancer.service(**PATIENT):
        balancer.serve(1, 2, 5)

        def complete(identifier: int) -> bool:
            ours, theirs = balancer.rules(identifier)
            routes = balancer.routes(identifier)
            expected = [(PROTOCOL_BOOT, False), (OURS, False), (OURS, True)]
            return ours == [3000] and bool(theirs) and routes == expected

        def all_complete() -> bool:
            return all(complete(identifier) for identifier in (1, 2, 5))

        wait_until(all_complete, "both stand for every target")
        balancer.cut(1)
        balancer.meridio.check()
        wait_until(lambda: balancer.rules(2) == ([3000], []), "only our rule is left")
        assert balancer.routes(2) == [(OURS, True)]
        # Each try of a pending target deletes what stands there, and fails.
        for _ in range(3):
            balancer.meridio.check()
        wait_until(lambda: balancer.rules(2) == ([3000], []), "our rule is back")
        balancer.make_link(1)
        balancer.wait_for(t1="active", t2="active", t5="active")
        balancer.meridio.check()
        wait_until(all_complete, "both stand for every target again")
        balancer.give(5)
        wait_until(lambda: balancer.rules(2) == ([], []), "nothing is left of a removed target")
        wait_until(lambda: balancer.routes(2) == [], "nothing is left of a removed target")
        assert complete(5)
    assert balancer.meridio.refused == []


@pytest.mark.slow
def test_many_calls_at_once(balancer: Balancer) -> None:
    """Answered or left to the real program as each may be: in the end all agree."""
    if balancer.real:
        pytest.skip("two commands of the real nfqlb that write one table at once crash (Meridio makes one at a time)")
    balancer.meridio.start()
    count = 60
    marks = [20_001 + number for number in range(count)]
    shm = f"--shm={balancer.meridio.shm}"
    with balancer.service(**PATIENT, LBGUARD_KERNEL__RECONCILE_INTERVAL="1s"):
        assert balancer.nfqlb.run("init", "--ownfw=0", shm, "--M=997", f"--N={count}")[0] == 0
        for mark in marks:
            balancer.lb.add_route("default", "172.16.1.11", table=mark)
        callers = [
            balancer.nfqlb.start("activate", f"--index={number}", shm, str(mark)) for number, mark in enumerate(marks)
        ]
        assert [(caller.communicate()[0], caller.returncode) for caller in callers] == [("", 0)] * count
        everybody = set(range(1, count + 1))
        wait_until(lambda: balancer.registered().keys() == everybody, "everybody is registered")
        wait_until(lambda: balancer.active() == everybody, "everybody is active")
        odd = [number for number in range(count) if number % 2]
        callers = [balancer.nfqlb.start("deactivate", f"--index={number}", shm) for number in odd]
        assert [(caller.communicate()[0], caller.returncode) for caller in callers] == [("", 0)] * len(odd)
        rest = {number + 1 for number in range(count) if not number % 2}
        wait_until(lambda: balancer.registered().keys() == rest, "the others are registered")
        wait_until(lambda: balancer.active() == rest, "the others are active")
