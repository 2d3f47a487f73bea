"""Time in which nobody could look counts against no target."""

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig, FreezeConfig, GraceConfig
from lbguard.core.model import Action, LinkSubject, StreamSpec, TargetSpec, TargetSubject, Verdict, VerdictState
from lbguard.core.observation import LOOK_S
from tests.unit.core.harness import STREAM, Guard, ipv4_of

CONFIG = EngineConfig(
    grace=GraceConfig(window_s=3.0, max_s=30.0),
    freeze=FreezeConfig(threshold=0.5, limit_s=60.0),
    neighbor_probe_interval_s=0.0,
    solicit_neighbors=False,
)


def lost(*, after_s: float = 0.5) -> Guard:
    """Target 1 behind link 1, which is lost since `after_s`; targets 2 to 4 behind link 2."""
    guard = Guard(CONFIG, targets=0)
    guard.link(2, proxy=1)
    targets = tuple(TargetSpec(identifier=i, ips=(ipv4_of(i, 0 if i == 1 else 1),)) for i in range(1, 5))
    guard.source(StreamSpec(name=STREAM, targets=targets))
    guard.unlink(1)
    guard.wait(after_s)
    return guard


def stall(guard: Guard, duration_s: float, *events: ev.Event) -> list[fx.Effect]:
    """The guard is stopped for a while; when it goes on, it reads what happened and then decides."""
    guard.now += duration_s
    return guard.tell(ev.Stalled(duration_s=duration_s), *events)


def verdict(state: VerdictState, sequence: int, *, lease_s: float, heal_s: float = 0.0) -> ev.VerdictReported:
    said = Verdict(
        subject=TargetSubject(ip=ipv4_of(1)),
        state=state,
        generation=1,
        sequence=sequence,
        lease_s=lease_s,
        heal_s=heal_s,
    )
    return ev.VerdictReported(reporter="proxy-a", verdict=said)


def test_what_healed_in_a_stall_longer_than_the_window_is_not_withdrawn() -> None:
    guard = lost()
    stall(guard, 6.0, guard.link_seen(5), guard.address(5, "172.16.0.5/24"))
    assert guard.actions() == [(1, "recover")]
    assert guard.active() == {1, 2, 3, 4}


def test_what_is_still_lost_has_the_rest_of_its_window() -> None:
    guard = lost()
    stall(guard, 6.0)
    guard.wait(3.0 - 0.5 - LOOK_S - 0.01)
    assert guard.states()[1] == "held"
    guard.wait(0.02)
    assert guard.states()[1] == "withdrawn"
    [withdrawal] = guard.decisions(Action.WITHDRAW)
    assert withdrawal.duration_s == pytest.approx(3.0)


def test_a_guard_that_is_starved_all_the_time_decides_after_so_many_looks() -> None:
    guard = lost(after_s=0.0)
    looks = 0
    while guard.states()[1] == "held":
        stall(guard, 2.0)
        looks += 1
    assert looks == 3.0 / LOOK_S


def test_a_short_pause_is_no_stall() -> None:
    guard = lost()
    before = guard.deadline(1)
    stall(guard, LOOK_S)
    assert guard.deadline(1) == before


def test_a_freeze_lasts_so_much_longer() -> None:
    guard = Guard(CONFIG, targets=2)
    guard.unlink(1)
    guard.wait(10.0)
    before = guard.deadline(1)
    assert before is not None
    stall(guard, 120.0)
    assert guard.states() == {1: "frozen", 2: "frozen"}
    assert guard.deadline(1) == before + 120.0 - LOOK_S


def test_a_route_that_is_programmed_after_the_stall_is_in_time() -> None:
    guard = lost(after_s=2.99)
    guard.refuse = (fx.ProgramRoutes,)
    stall(guard, 6.0, guard.link_seen(5), guard.address(5, "172.16.0.5/24"))
    guard.wait(0.4)
    assert guard.states()[1] == "held"
    route = guard.route(2)
    assert route is not None
    guard.tell(ev.RoutesProgrammed(added=(route._replace(table=5001, gateway=ipv4_of(1), oif=5),)))
    assert guard.states()[1] == "active"


def test_no_stream_is_unavailable_before_what_came_back_is_repaired() -> None:
    guard = Guard(CONFIG, targets=1)
    guard.unlink(1)
    guard.wait(0.9)
    guard.refuse = (fx.ProgramRoutes,)
    stall(guard, 6.0, guard.link_seen(5), guard.address(5, "172.16.0.5/24"))
    guard.wait(0.4)
    assert not guard.of(fx.SetAvailability)
    guard.wait(0.2)
    assert [effect.available for effect in guard.of(fx.SetAvailability)] == [False]


def test_a_lease_that_nobody_could_renew_has_not_ended() -> None:
    guard = Guard(CONFIG, targets=2)
    guard.tell(verdict(VerdictState.DOWN, 1, lease_s=2.0))
    assert guard.states()[1] == "held"
    # The reporter went on saying so, and nothing heard it; a recovery now would be followed by a loss at once.
    stall(guard, 2.5)
    assert guard.states()[1] == "held"
    guard.tell(verdict(VerdictState.DOWN, 2, lease_s=2.0))
    assert guard.decisions() == []
    guard.wait(2.0)
    assert guard.states()[1] == "active"


def test_packets_that_nobody_could_count_veto_a_verdict_on() -> None:
    guard = Guard(CONFIG, targets=2)
    guard.tell(ev.TrafficSeen(ifindex=1, rx_packets=1))
    guard.tell(ev.TrafficSeen(ifindex=1, rx_packets=2))
    lb_ip = guard.target(1).paths[ipv4_of(1)].lb_ip
    assert lb_ip
    said = Verdict(
        subject=LinkSubject(lb_ip=lb_ip, proxy_ip=ipv4_of(99)),
        state=VerdictState.DOWN,
        generation=1,
        sequence=1,
        lease_s=60.0,
    )
    guard.tell(ev.VerdictReported(reporter="proxy-a", verdict=said))
    stall(guard, 4.0)
    assert guard.states() == {1: "active", 2: "active"}
    guard.tell(ev.TrafficSeen(ifindex=1, rx_packets=3))
    guard.wait(2.4)
    assert guard.states() == {1: "active", 2: "active"}


def test_a_stall_while_out_of_sync_is_left_out_once() -> None:
    guard = lost()
    began = guard.now
    before = guard.deadline(1)
    assert before is not None
    guard.tell(ev.KernelOutOfSync(reason="overrun"))
    guard.now += 1.0
    stall(guard, 6.0)
    guard.now += 1.0
    links = (guard.link_seen(2),)
    addresses = (guard.address(2, "172.16.1.2/24"),)
    guard.tell(
        ev.KernelSnapshot(links=links, addresses=addresses, routes=tuple(guard.routes), rules=tuple(guard.rules))
    )
    assert guard.deadline(1) == before + (guard.now - began) - LOOK_S
    assert guard.states()[1] == "held"


def test_a_damped_target_waits_no_longer_for_a_stall() -> None:
    guard = lost()
    guard.wait(3.0)
    guard.link(5)
    guard.unlink(5)
    guard.wait(4.0)
    guard.link(6)
    waits_until = guard.deadline(1)
    assert guard.states()[1] == "withdrawn"
    assert waits_until is not None
    stall(guard, waits_until - guard.now + 1.0)
    assert guard.states()[1] == "active"
