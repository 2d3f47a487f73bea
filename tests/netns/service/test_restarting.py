"""kill -9 at any moment, stop, and start again: the data path stays as it is."""

import time

import pytest

from tests.netns.service.guarded import PATIENT, Guarded, stream, targets_yaml, wait_until

pytestmark = pytest.mark.netns

BOTH = targets_yaml(
    stream("stream-a", 1, 2, 3, 4), stream("stream-b", 1, 3, identifier_offset=6000, vips=["20.0.0.2/32"])
)


def test_killed_while_all_is_well(guarded: Guarded) -> None:
    with guarded.service() as service:
        before = guarded.data_path()
        service.kill()
        assert guarded.data_path() == before
    with guarded.service():
        assert guarded.data_path() == before
        assert [decision.action.value for decision in guarded.decisions()] == ["adopt"] * 4
    assert guarded.data_path() == before


def test_killed_while_targets_are_held(guarded: Guarded) -> None:
    with guarded.service(PATIENT) as service:
        slots, routes = guarded.slots(), guarded.routes()
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held", t2="held")
        held = guarded.data_path()
        service.kill()
    with guarded.service(PATIENT):
        assert guarded.states() == {1: "held", 2: "held", 3: "active", 4: "active"}
        assert guarded.data_path() == held
        guarded.make_link("nse-a")
        guarded.wait_for(t1="active", t2="active")
        assert guarded.slots() == slots
        assert guarded.routes() == routes


def test_a_hold_goes_on_where_it_was_killed(guarded: Guarded) -> None:
    """A process that crashes sooner than a window ends must not begin each anew."""
    window = {"LBGUARD_GRACE__WINDOW": "20s"}
    holds = guarded.socket.with_name(f"{guarded.socket.name}.holds")
    with guarded.service(window) as service:
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held", t2="held")
        wait_until(holds.exists, "the file of open holds")
        # What was observed later than the last writing is lost.
        time.sleep(1.0)
        service.kill()
    with guarded.service(window):
        assert guarded.states() == {1: "held", 2: "held", 3: "active", 4: "active"}
        for hold in guarded.decisions()[4:]:
            assert hold.deadline is not None
            assert 0 < hold.deadline - hold.at < 19.5
        guarded.make_link("nse-a")
        guarded.wait_for(t1="active", t2="active")
        wait_until(lambda: not holds.exists(), "the file of open holds goes with the last")


def test_the_link_comes_back_while_the_service_is_away(guarded: Guarded) -> None:
    with guarded.service(PATIENT) as service:
        before = guarded.data_path()
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held", t2="held")
        service.kill()
    guarded.make_link("nse-a")
    with guarded.service(PATIENT):
        guarded.wait_for(t1="active", t2="active", t3="active", t4="active")
        assert guarded.data_path() == before


def test_the_link_goes_while_the_service_is_away(guarded: Guarded) -> None:
    with guarded.service() as service:
        slots = guarded.slots()
        service.kill()
    guarded.delete_link("nse-a")
    with guarded.process() as service:
        service.wait_until_ready()
        guarded.wait_for(t1="withdrawn", t2="withdrawn", t3="active", t4="active")
        # It was held first, for the whole window.
        actions = [line["action"] for line in service.log("decision") if line["identifier"] == 1]
        assert actions == ["adopt", "hold", "withdraw"]
        [withdrawal] = [line for line in service.log("withdraw") if line["identifier"] == 1]
        assert withdrawal["duration_s"] >= 0.3
        others = {slot: mark for slot, mark in slots.items() if mark in (5003, 5004)}
        wait_until(lambda: set(guarded.active()) == {3, 4}, "targets 1 and 2 out of the table")
        assert others.items() <= guarded.slots().items()


def test_killed_after_a_withdrawal(guarded: Guarded) -> None:
    with guarded.service() as service:
        slots = guarded.slots()
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="withdrawn", t2="withdrawn")
        wait_until(lambda: set(guarded.active()) == {3, 4}, "targets 1 and 2 out of the table")
        before = guarded.data_path()
        service.kill()
    with guarded.service(admitted=2):
        assert guarded.data_path() == before
        guarded.make_link("nse-a")
        guarded.wait_for(t1="active", t2="active", t3="active", t4="active")
        wait_until(lambda: guarded.slots() == slots, "the slots as they were")


def test_a_stream_that_left_while_the_service_was_away(guarded: Guarded) -> None:
    with guarded.service(targets=BOTH) as service:
        service.wait_until_admitted(6)
        wait_until(lambda: "20.0.0.2" in str(guarded.nft("table", "inet", "lbguard")), "the rules of stream-b")
        wait_until(lambda: len(guarded.rules()) == 12, "all rules")
        service.kill()
    guarded.write_targets(targets_yaml())
    with guarded.service() as service:
        service.wait_for_log("stream of an earlier run removed", stream="stream-b")
        assert "20.0.0.2" not in str(guarded.nft("table", "inet", "lbguard"))
        wait_until(lambda: len(guarded.rules()) == 8, "the rules of stream-a alone")
        wait_until(lambda: {route.table for route in guarded.routes()} == {5001, 5002, 5003, 5004}, "and its routes")


def test_a_target_that_left_while_the_service_was_away(guarded: Guarded) -> None:
    with guarded.service() as service:
        slots = guarded.slots()
        service.kill()
    guarded.write_targets(targets_yaml(stream("stream-a", 1, 2, 3)))
    with guarded.service(admitted=3):
        wait_until(lambda: set(guarded.active()) == {1, 2, 3}, "target 4 out of the table")
        wait_until(lambda: "5004" not in str(guarded.rules()), "its rules gone")
        wait_until(lambda: "5004" not in str(guarded.routes()), "its routes gone")
        # It is registered no more, so the table is that of three; but nobody else lost anything it had in vain.
        assert set(guarded.slots().values()) == {5001, 5002, 5003}
        assert len(guarded.slots()) == len(slots)


def test_stopped_in_order(guarded: Guarded) -> None:
    with guarded.service() as service:
        before = guarded.everything()
        assert service.terminate() == 0
        assert guarded.everything() == before
        assert not guarded.socket.exists()
        assert service.log("stopped")


def test_stopped_while_held(guarded: Guarded) -> None:
    with guarded.service(PATIENT) as service:
        guarded.delete_link("nse-a")
        guarded.wait_for(t1="held", t2="held")
        before = guarded.data_path()
        assert service.terminate() == 0
        assert guarded.data_path() == before


@pytest.mark.parametrize("phase", ["active", "held", "withdrawn"])
def test_withdraw_on_exit(guarded: Guarded, phase: str) -> None:
    before = guarded.everything()
    settings = {"LBGUARD_WITHDRAW_ON_EXIT": "true", "LBGUARD_NEIGHBORS__TUNE": "false"}
    with guarded.service(settings | (PATIENT if phase == "held" else {}), targets=BOTH) as service:
        service.wait_until_admitted(6)
        if phase != "active":
            guarded.delete_link("nse-a")
            guarded.wait_for(t1=phase, t2=phase)
        assert service.terminate() == 0
    after = guarded.everything()
    changed = {name for name, shown in after.items() if shown != before[name]}
    assert after["ruleset"] == []
    assert (guarded.rules(), guarded.routes()) == ([], [])
    if phase == "active":
        assert changed == set(), {name: after[name] for name in changed}


def test_the_kernel_announces_links_to_targets_until_everything_is_withdrawn(guarded: Guarded) -> None:
    def notifies(link: str) -> str:
        return guarded.lb.run("cat", f"/proc/sys/net/ipv4/conf/{link}/arp_notify").strip()

    for withdraw, left in (("false", "1"), ("true", "0")):
        guarded.delete_link("nse-a")
        guarded.make_link("nse-a")
        with guarded.service({"LBGUARD_WITHDRAW_ON_EXIT": withdraw}) as service:
            wait_until(lambda: notifies("nse-a") == "1", "the kernel announces the link")
            assert notifies("lo") == "0"
            service.terminate()
        assert notifies("nse-a") == left


def test_a_fault_withdraws_nothing(guarded: Guarded) -> None:
    """withdraw_on_exit is for those who stop the service; one that cannot go on leaves the data path alone."""
    with guarded.service() as service:
        before = guarded.data_path()
        service.terminate()
    process = guarded.process({"LBGUARD_WITHDRAW_ON_EXIT": "true", "LBGUARD_METRICS__LISTEN": "192.0.2.1:9464"})
    process.start()
    assert process.wait_for_end() == 1
    assert guarded.data_path() == before
