"""An unmodified load balancer beside the real service: nothing of it is patched, and it calls nfqlb by name."""

import pytest

from tests.netns.interposer.balancer import PATIENT, Balancer, wait_until

pytestmark = pytest.mark.netns


def test_activated_targets_are_admitted_when_the_call_returns(balancer: Balancer) -> None:
    with balancer.service():
        balancer.serve(1, 2, 5)
        assert balancer.active() == {1, 2, 5}
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
        assert balancer.next_hop(1) == "RTNETLINK answers: Invalid argument"
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
