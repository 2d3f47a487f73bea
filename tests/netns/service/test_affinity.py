"""Flow affinity in the real service: in force, kept over restarts, corrected, and removed when it is off."""

import pytest

from tests.netns.service.guarded import PATIENT, Guarded, wait_until

pytestmark = pytest.mark.netns

ON = {"LBGUARD_AFFINITY__MODE": "incident"}


def marks(guarded: Guarded, name: str) -> set[int]:
    """Return the elements of a set of the affinity table."""
    found = [thing["set"] for thing in guarded.nft("set", "inet", "lbguard-affinity", name) if "set" in thing]
    return set(found[0].get("elem", ())) if found else set()


def there(guarded: Guarded) -> bool:
    return bool(guarded.nft("table", "inet", "lbguard-affinity"))


def test_an_incident_is_followed_and_a_restart_keeps_the_table(guarded: Guarded) -> None:
    with guarded.service(ON | PATIENT):
        wait_until(lambda: marks(guarded, "served") == {5001, 5002, 5003, 5004})
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
        wait_until(lambda: marks(guarded, "served") == {5001, 5002, 5003, 5004})
        wait_until(lambda: guarded.metric("lbguard_affinity_mended_total") == 1)


def test_a_start_without_affinity_removes_the_table_of_an_earlier_run(guarded: Guarded) -> None:
    with guarded.service(ON) as service:
        wait_until(lambda: there(guarded))
    with guarded.service() as service:
        service.wait_for_log("flow affinity is off: the table of an earlier run is removed")
        assert not there(guarded)


def test_a_withdrawing_stop_removes_the_table(guarded: Guarded) -> None:
    with guarded.service(ON | {"LBGUARD_WITHDRAW_ON_EXIT": "true"}) as service:
        wait_until(lambda: there(guarded))
        assert service.terminate() == 0
    assert not there(guarded)
