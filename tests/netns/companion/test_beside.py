"""lbguard beside a load balancer that knows nothing of it: nothing is fought over, and neighbours are repaired."""

import functools
import urllib.request
from collections.abc import Callable

import pytest

from tests.netns.companion.beside import FROM_KERNEL, Beside, answers, wait_until

pytestmark = pytest.mark.netns

ALL = (1, 2, 3, 4)
SOURCES: dict[str, dict[str, str]] = {"file": {}, "kernel": FROM_KERNEL}
OURS = ("172.16.1.2", "fd00:0:0:1::2")
CHANGES_MAX = (4 + 3 * 2) * 2 * 4
"""What today's process may do by itself in three rounds: 4 targets are added, then 3 times 2 withdrawn and added again.
An addition is a rule and a route in each family; a withdrawal takes them away, if they did not go with the link."""


def replace_target_link(beside: Beside, identifier: int) -> None:
    """Make a target's link anew: the same addresses, another link-layer address; wait until it answers its proxy."""
    beside.chain.delete_target_link(identifier)
    beside.chain.create_target_link(identifier)
    place = beside.chain.place(identifier)
    proxy = beside.chain.proxy(place.proxy)
    for ip in (place.ipv4, place.ipv6):
        proxy.flush_neighbors(ip=ip)
        wait_until(functools.partial(answers, proxy, ip), f"{ip} answers its proxy")


def meet_proxy(beside: Beside) -> None:
    """Make the first proxy know the addresses of the load balancer."""
    for ip in OURS:
        wait_until(functools.partial(answers, beside.chain.proxy(1), ip), f"{ip} answers")


def wait_for_new_address(beside: Beside, identifier: int) -> None:
    """Wait until the load balancer knows a target by its link-layer address of now."""
    place, new = beside.chain.place(identifier), beside.mac_of_target(identifier)
    for ip in (place.ipv4, place.ipv6):
        wait_until(functools.partial(_knows, beside.mac_in_lb, ip, new), f"{ip} is known under its new address")


def wait_until_announced(beside: Beside) -> None:
    """Wait until the first proxy knows the load balancer by its link-layer address of now."""
    look, new = functools.partial(beside.mac_in_proxy, 1), beside.mac_of_lb(1)
    for ip in OURS:
        wait_until(functools.partial(_knows, look, ip, new), f"the proxy knows {ip} under its new address")


def _knows(look: Callable[[str], str], ip: str, mac: str) -> bool:
    return look(ip) == mac


def replace_lb_link(beside: Beside, proxy: int, *, times: int) -> None:
    """Take the link to a proxy away until today's process has withdrawn who is behind it, and bring a new one."""
    behind = sorted(beside.chain.behind([proxy]))
    beside.chain.delete_lb_link(proxy)
    beside.wait_for("withdraw", *behind, times=times)
    beside.chain.create_lb_link(proxy)
    beside.wait_for("readmit", *behind, times=1 + times)


def test_without_it_an_outdated_entry_stays_until_somebody_sends(beside: Beside) -> None:
    """The control of the next test: nobody but lbguard would have mended it."""
    beside.meet(1)
    place = beside.chain.place(1)
    old = beside.mac_in_lb(place.ipv4)
    replace_target_link(beside, 1)
    assert beside.mac_of_target(1) != old
    assert beside.mac_in_lb(place.ipv4) == old
    assert not answers(beside.lb, place.ipv4)


@pytest.mark.parametrize("source", SOURCES)
def test_a_replaced_link_of_a_target_is_found_without_a_packet(beside: Beside, source: str) -> None:
    with beside.guard(SOURCES[source]):
        beside.meet(1)
        replace_target_link(beside, 1)
        wait_for_new_address(beside, 1)
        assert answers(beside.lb, beside.chain.place(1).ipv4)
        assert beside.decisions() == [("readmit", identifier) for identifier in ALL]


def test_without_it_the_proxy_keeps_the_old_address_of_the_load_balancer(beside: Beside) -> None:
    """The control of the next test."""
    meet_proxy(beside)
    old = [beside.mac_in_proxy(1, ip) for ip in OURS]
    replace_lb_link(beside, 1, times=1)
    assert [beside.mac_in_proxy(1, ip) for ip in OURS] == old
    assert beside.mac_of_lb(1) not in old


@pytest.mark.parametrize("source", SOURCES)
def test_a_replaced_link_of_the_load_balancer_is_announced_and_resolved_and_nothing_is_fought_over(
    beside: Beside, source: str
) -> None:
    before = beside.paths()
    with beside.guard(SOURCES[source]) as guard:
        meet_proxy(beside)
        for round_ in (1, 2, 3):
            replace_lb_link(beside, 1, times=round_)
            wait_until_announced(beside)
            wait_for_new_address(beside, 1)
        changes = beside.path_changes()
        assert changes["ours"] == 0
        assert changes["others"] <= CHANGES_MAX
        assert beside.decisions()[:4] == [("readmit", identifier) for identifier in ALL]
        assert sorted(beside.decisions()[4:]) == sorted(3 * [(a, i) for a in ("withdraw", "readmit") for i in (1, 2)])
        actions = [(line["action"], line["identifier"]) for line in guard.log("decision")]
        assert ("hold", 1) in actions, "what would have been decided is told"
    assert beside.paths() == before


def test_two_links_of_one_subnet_are_left_to_the_load_balancer(beside: Beside) -> None:
    with beside.guard(FROM_KERNEL) as guard:
        beside.chain.create_lb_link(1)
        old = beside.chain.superseded_links[1]
        wait_until(lambda: not beside.lb.link(old).up, "the older link is set down")
        beside.wait_for("readmit", *ALL)
        assert not guard.log("superseded link set down")
        beside.chain.delete_superseded_link(1)
        wait_for_new_address(beside, 1)
        assert beside.path_changes()["ours"] == 0


def test_it_comes_and_goes_without_a_trace(beside: Beside) -> None:
    before = beside.paths()
    with beside.guard(FROM_KERNEL):
        assert beside.paths() == before
    assert beside.paths() == before
    assert beside.path_changes()["ours"] == 0


def test_nothing_has_to_be_shared(beside: Beside) -> None:
    """No memory of nfqlb, no list, no names of streams: mode and source are all."""
    bare = {"LBGUARD_SOURCE": "kernel", "LBGUARD_TARGETS_FILE": "", "LBGUARD_DISTRIBUTOR__KIND": "auto"}
    with beside.guard(bare) as guard:
        marks = {(line["stream"], line["identifier"]) for line in guard.log("decision")}
        assert marks == {("kernel", 5000 + identifier) for identifier in ALL}
        beside.meet(1)
        replace_target_link(beside, 1)
        wait_for_new_address(beside, 1)


def test_a_target_that_is_added_is_learnt_and_one_that_is_removed_is_forgotten(beside: Beside) -> None:
    with beside.guard(FROM_KERNEL) as guard:

        def told(action: str) -> bool:
            return any((line["identifier"], line["action"]) == (9, action) for line in guard.log("decision"))

        for ip in ("172.16.2.99", "fd00:0:0:2::99"):
            beside.lb.add_rule(5009, 5009, ipv4="." in ip)
            beside.lb.add_route("default", ip, table=5009)
        wait_until(lambda: told("admit"), "target 9 is learnt")
        for ipv4 in (True, False):
            beside.lb.delete_rule(5009, 5009, ipv4=ipv4)
            beside.lb.flush_routes(5009, ipv4=ipv4)
        wait_until(lambda: told("remove"), "target 9 is forgotten")


def test_its_metrics_have_the_labels_of_meridios_dashboards(beside: Beside) -> None:
    def received() -> list[str]:
        with beside.lb.entered(), urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return [line for line in lines if line.startswith("lbguard_interface_rx_packets_total{")]

    with beside.guard(FROM_KERNEL | {"LBGUARD_NSP__TRENCH": "trench-a", "LBGUARD_NSP__CONDUIT": "conduit-a"}):
        wait_until(received, "links that face targets have counters")
        for line in received():
            assert 'conduit="conduit-a"' in line
            assert 'trench="trench-a"' in line
