"""What reporters say against what the kernel shows: which path is down, what vetoes it, which entries are outdated."""

from collections.abc import Callable

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.addr import Ip
from lbguard.core.config import EngineConfig, EvidenceConfig
from lbguard.core.model import (
    Condition,
    ConnectionSubject,
    LinkSubject,
    NeighborState,
    Subject,
    TargetSubject,
    VerdictState,
)
from tests.unit.core.harness import Guard, ip, ipv4_of, ipv6_of, mac
from tests.unit.core.verdicts import Reporter, links_of, of_target

UP, DEGRADED, DOWN, HEALING, ENDED = VerdictState
OUR_IPV4, OUR_IPV6 = ip("172.16.0.1"), ip("fd00:0::1")
PROXY_IPV4, PROXY_IPV6 = ip("172.16.0.250"), ip("fd00:0::fa")
VETO_S = 2.5
OLD, NEW, OTHER = 99, 100, 101


def dual(**evidence: float) -> Guard:
    """One link, dual stack, and the targets 1 and 2 behind it."""
    config = EngineConfig(
        evidence=EvidenceConfig(veto_window_s=VETO_S, **evidence),  # type: ignore[arg-type]
        neighbor_probe_interval_s=0.0,
        solicit_neighbors=False,
    )
    guard = Guard(config, targets=0)
    guard.link(1, ipv6=True)
    guard.register(1, 2, ipv6=True)
    assert set(guard.states().values()) == {"active"}
    guard.wait(60.0)
    return guard


def conditions(guard: Guard, target: int = 1) -> list[str]:
    return [path.condition.value for path in guard.target(target).paths.values()]


def said(guard: Guard, target: int = 1) -> list[str]:
    return [path.verdict for path in guard.target(target).paths.values()]


# What a verdict concerns


def test_a_target_is_spoken_of_alone() -> None:
    guard = dual()
    Reporter(guard).say(DOWN, of_target(1))
    assert conditions(guard) == ["verdict_down", "ok"]
    assert conditions(guard, 2) == ["ok", "ok"]


def test_a_link_is_spoken_of_for_all_behind_it_in_one_family() -> None:
    guard = dual()
    guard.link(2, proxy=1, ipv6=True)
    Reporter(guard).say(DOWN, LinkSubject(lb_ip=OUR_IPV6, proxy_ip=PROXY_IPV6))
    assert conditions(guard, 1) == conditions(guard, 2) == ["ok", "verdict_down"]


@pytest.mark.parametrize(
    "subject",
    [
        ConnectionSubject(id="c", lb_ips=(OUR_IPV4, OUR_IPV6)),
        ConnectionSubject(id="c", peer_ips=(ipv4_of(1), ipv6_of(1))),
    ],
)
def test_a_connection_is_spoken_of_by_all_its_addresses(subject: Subject) -> None:
    guard = dual()
    Reporter(guard).say(DOWN, subject)
    assert conditions(guard) == ["verdict_down", "verdict_down"]


def test_addresses_that_are_not_ours_concern_nobody() -> None:
    guard = dual()
    Reporter(guard).say(DOWN, LinkSubject(lb_ip=ip("172.16.0.77"), proxy_ip=PROXY_IPV4))
    assert conditions(guard) == conditions(guard, 2) == ["ok", "ok"]


def test_a_connection_whose_addresses_change_lets_go_of_the_old_ones() -> None:
    guard = dual()
    reporter = Reporter(guard)
    reporter.say(DOWN, ConnectionSubject(id="c", peer_ips=(ipv4_of(1), ipv6_of(1))))
    reporter.say(DOWN, ConnectionSubject(id="c", peer_ips=(ipv4_of(2), ipv6_of(2))))
    assert conditions(guard, 1) == ["ok", "ok"]
    assert conditions(guard, 2) == ["verdict_down", "verdict_down"]


def test_a_link_that_gets_another_address_leaves_what_was_said_of_the_old_one_behind() -> None:
    guard = dual()
    Reporter(guard).say(DOWN, *links_of(1))
    assert conditions(guard) == ["verdict_down", "verdict_down"]
    guard.tell(
        guard.address(1, "172.16.0.2/24"),
        guard.address(1, "fd00:0::2/64"),
        guard.address_gone(1, "172.16.0.1/24"),
        guard.address_gone(1, "fd00:0::1/64"),
    )
    assert conditions(guard) == ["ok", "ok"]


def test_the_worse_of_what_is_said_of_link_and_target_counts() -> None:
    guard = dual()
    reporter = Reporter(guard)
    reporter.say(UP, *links_of(1))
    assert said(guard) == ["up", "up"]
    reporter.say(DEGRADED, of_target(1))
    assert said(guard) == ["degraded", "up"]
    reporter.say(DOWN, of_target(1))
    assert said(guard) == ["down", "up"]
    assert conditions(guard) == ["verdict_down", "ok"]


def test_without_a_link_no_word_changes_what_the_kernel_says() -> None:
    guard = dual()
    guard.unlink(1)
    for state in (UP, DEGRADED, DOWN, HEALING, ENDED):
        Reporter(guard, state.value).say(state, of_target(1), *links_of(1))
        assert conditions(guard) == ["no_link", "no_link"]
    assert guard.states()[1] == "held"


# Vetoes

Proof = Callable[[Guard], object]


def neighbor_answers(guard: Guard) -> None:
    for address in (ipv4_of(1), ipv6_of(1)):
        guard.neighbor(address, NeighborState.REACHABLE)


def packets_arrive(guard: Guard) -> None:
    link = guard.engine.view.links[1]
    guard.tell(ev.TrafficSeen(ifindex=1, rx_packets=max(link.rx_packets, 0)))
    guard.tell(ev.TrafficSeen(ifindex=1, rx_packets=link.rx_packets + 1))


@pytest.mark.parametrize("proof", [neighbor_answers, packets_arrive])
def test_proof_of_life_vetoes_a_down_until_it_is_old(proof: Proof) -> None:
    guard = dual()
    proof(guard)
    Reporter(guard).say(DOWN, *links_of(1))
    assert conditions(guard) == ["ok", "ok"]
    assert said(guard) == ["down_vetoed", "down_vetoed"]
    guard.wait(VETO_S - 0.01)
    assert guard.states()[1] == "active"
    guard.wait(0.02)
    assert conditions(guard) == ["verdict_down", "verdict_down"]
    assert guard.states()[1] == "held"
    [hold] = [d for d in guard.decisions() if d.target.identifier == 1]
    assert hold.cause == "verdict_down"


def test_each_path_is_looked_at_again_when_its_own_veto_ends() -> None:
    guard = dual()
    for address, pause in ((ipv4_of(1), 0.5), (ipv6_of(1), 0.0)):
        guard.neighbor(address, NeighborState.REACHABLE)
        guard.fail_neighbor(address)
        guard.wait(pause)
    Reporter(guard).say(DOWN, *links_of(1))
    assert conditions(guard) == ["neighbor_failed", "neighbor_failed"]
    guard.wait(VETO_S - 0.49)
    assert conditions(guard) == ["verdict_down", "neighbor_failed"]
    guard.wait(0.5)
    assert conditions(guard) == ["verdict_down", "verdict_down"]


@pytest.mark.parametrize("proof", [neighbor_answers, packets_arrive])
def test_proof_of_life_that_comes_later_lifts_a_down(proof: Proof) -> None:
    guard = dual()
    Reporter(guard).say(DOWN, *links_of(1))
    guard.wait(2.9)
    assert guard.states()[1] == "held"
    proof(guard)
    assert conditions(guard) == ["ok", "ok"]
    assert guard.states()[1] == "active"
    guard.wait(VETO_S + 0.01)
    assert guard.states()[1] == "held"


def test_proof_of_life_that_only_a_full_view_tells_of_counts_too() -> None:
    guard = dual()
    guard.neighbor(ipv4_of(1), NeighborState.STALE)
    Reporter(guard).say(DOWN, *links_of(1))
    view = guard.engine.view.links[1]
    snapshot = ev.KernelSnapshot(
        links=(guard.link_seen(1),),
        addresses=tuple(
            ev.AddressSeen(ifindex=1, ip=address, prefix_length=subnet.length) for address, subnet in view.addresses
        ),
        neighbors=(ev.NeighborSeen(ifindex=1, ip=ipv4_of(1), state=NeighborState.REACHABLE, mac=mac(OLD)),),
        routes=tuple(guard.routes),
        rules=tuple(guard.rules),
    )
    guard.tell(snapshot)
    assert conditions(guard) == ["ok", "verdict_down"]


def test_the_first_reading_of_a_counter_and_one_that_stands_still_prove_nothing() -> None:
    guard = dual()
    Reporter(guard).say(DOWN, *links_of(1))
    for count in (500, 500, 400):
        guard.tell(ev.TrafficSeen(ifindex=1, rx_packets=count))
        assert conditions(guard) == ["verdict_down", "verdict_down"]
    guard.tell(ev.TrafficSeen(ifindex=1, rx_packets=401))
    assert conditions(guard) == ["ok", "ok"]
    guard.tell(ev.TrafficSeen(ifindex=77, rx_packets=1))


def test_packets_of_others_prove_nothing_of_one_target() -> None:
    guard = dual()
    packets_arrive(guard)
    Reporter(guard).say(DOWN, TargetSubject(ip=ipv4_of(1)), TargetSubject(ip=ipv6_of(1)))
    assert conditions(guard) == ["verdict_down", "verdict_down"]


def test_packets_prove_nothing_once_the_neighbor_has_failed() -> None:
    guard = dual()
    guard.fail_neighbor(ipv4_of(1), times=1)
    packets_arrive(guard)
    Reporter(guard).say(DOWN, *links_of(1))
    assert conditions(guard, 1) == ["verdict_down", "ok"]
    assert conditions(guard, 2) == ["ok", "ok"]


def test_only_a_confirmed_entry_is_proof() -> None:
    guard = dual()
    Reporter(guard).say(DOWN, *links_of(1))
    for state in (NeighborState.STALE, NeighborState.DELAY, NeighborState.PROBE):
        guard.neighbor(ipv4_of(1), state)
        assert conditions(guard)[0] == "verdict_down"
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE)
    assert conditions(guard)[0] == "ok"


def test_a_failed_neighbor_is_the_milder_word() -> None:
    guard = dual()
    guard.fail_neighbor(ipv4_of(1))
    assert conditions(guard) == ["neighbor_failed", "ok"]
    Reporter(guard).say(DOWN, of_target(1))
    assert conditions(guard) == ["verdict_down", "ok"]


def test_an_up_does_not_excuse_a_failed_neighbor() -> None:
    guard = dual()
    Reporter(guard).say(UP, *links_of(1))
    guard.fail_neighbor(ipv4_of(1))
    guard.fail_neighbor(ipv6_of(1))
    assert guard.target(1).cause is Condition.NEIGHBOR_FAILED
    assert guard.states()[1] == "held"


# A link that was made anew


def flushed(guard: Guard) -> list[tuple[int, Ip]]:
    entries = [entry for effect in guard.of(fx.FlushNeighbors) for entry in effect.entries]
    resolved = [entry for effect in guard.of(fx.ResolveNeighbors) for entry in effect.entries]
    assert set(entries) <= set(resolved)
    return entries


def known(guard: Guard) -> None:
    """All entries are in the cache, with an old address each."""
    for target in (1, 2):
        for address in (ipv4_of(target), ipv6_of(target)):
            guard.neighbor(address, NeighborState.STALE, number=OLD)


@pytest.mark.parametrize(
    ("subject", "entries"),
    [
        (TargetSubject(ip=ipv4_of(1)), [(1, ipv4_of(1))]),
        (
            ConnectionSubject(id="c", peer_ips=(ipv4_of(1), ipv6_of(1))),
            [(1, ipv4_of(1)), (1, ipv6_of(1))],
        ),
        (LinkSubject(lb_ip=OUR_IPV4, proxy_ip=PROXY_IPV4), [(1, PROXY_IPV4)]),
        (
            ConnectionSubject(id="c", lb_ips=(OUR_IPV4, OUR_IPV6), peer_ips=(PROXY_IPV4, PROXY_IPV6)),
            [(1, PROXY_IPV4), (1, PROXY_IPV6)],
        ),
    ],
)
def test_a_new_mac_flushes_exactly_the_entries_of_its_subject(subject: Subject, entries: list[tuple[int, Ip]]) -> None:
    guard = dual()
    known(guard)
    guard.link(2, proxy=1, ipv6=True)
    reporter = Reporter(guard)
    reporter.say(UP, subject)
    assert flushed(guard) == []
    reporter.say(UP, subject, new_mac=mac(NEW))
    assert flushed(guard) == entries
    reporter.say(UP, subject, new_mac=mac(NEW))
    assert flushed(guard) == []
    reporter.say(UP, subject, new_mac=mac(OTHER))
    assert flushed(guard) == entries


def test_an_entry_that_has_the_new_mac_already_is_left_alone() -> None:
    guard = dual()
    known(guard)
    guard.neighbor(ipv4_of(1), NeighborState.REACHABLE, number=NEW)
    Reporter(guard).say(UP, TargetSubject(ip=ipv4_of(1)), new_mac=mac(NEW))
    assert flushed(guard) == []


def test_a_verdict_that_is_dropped_flushes_nothing() -> None:
    guard = dual()
    known(guard)
    reporter = Reporter(guard)
    reporter.say(ENDED, TargetSubject(ip=ipv4_of(1)))
    reporter.say(UP, TargetSubject(ip=ipv4_of(1)), new_mac=mac(NEW))
    assert reporter.reasons() == ["ended"]
    assert flushed(guard) == []


def test_an_end_flushes_nothing() -> None:
    guard = dual()
    known(guard)
    Reporter(guard).say(ENDED, TargetSubject(ip=ipv4_of(1)), new_mac=mac(NEW))
    assert flushed(guard) == []


def test_nothing_is_flushed_while_observing() -> None:
    guard = Guard(EngineConfig(observe=True))
    guard.neighbor(ipv4_of(1), NeighborState.STALE, number=OLD)
    Reporter(guard).say(UP, TargetSubject(ip=ipv4_of(1)), new_mac=mac(NEW))
    assert flushed(guard) == []


def test_nothing_is_kept_of_targets_that_are_gone() -> None:
    guard = dual()
    Reporter(guard).say(DOWN, *links_of(1))
    guard.register()
    guard.wait(0.1)
    assert guard.engine.paths.verdict_fusion.down == {}
    guard.tell(ev.TrafficSeen(ifindex=1, rx_packets=1), ev.TrafficSeen(ifindex=1, rx_packets=2))
