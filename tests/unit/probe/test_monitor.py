import errno
import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.core.addr import Ip, parse_ip
from lbguard.core.model import ConnectionSubject, LinkSubject, TargetSubject, Verdict, VerdictState
from lbguard.probe.connections import Connection, pairs_of
from lbguard.probe.failure_detector import Detector, DetectorSettings
from lbguard.probe.monitor import Monitor
from tests.effort import examples
from tests.fakes.echo import EchoNetwork, Time, drive

UP, DEGRADED, DOWN, HEALING, ENDED = VerdictState
OURS = (parse_ip("10.0.0.1"), parse_ip("fd00::1"))


def theirs(number: int) -> tuple[Ip, Ip]:
    return parse_ip(f"10.0.1.{number}"), parse_ip(f"fd00:1::{number}")


def connection(number: int = 1, *, families: Sequence[int] = (0, 1), peer: int | None = None) -> Connection:
    destinations = [theirs(number if peer is None else peer)[family] for family in families]
    id_ = f"c{number}"
    return Connection(id=id_, subject=ConnectionSubject(id=id_), pairs=pairs_of(OURS, destinations))


class World:
    """A monitor, its network, and what it said."""

    def __init__(self, judge: DetectorSettings | None = None, *, seed: int = 1, loss: float = 0.0) -> None:
        self.time = Time()
        self.network = EchoNetwork(self.time, seed=seed, loss=loss)
        self.said: list[tuple[float, Verdict]] = []
        self.monitor = Monitor(
            judge or DetectorSettings(),
            lambda verdict: self.said.append((self.time.now, verdict)),
            self.time,
            open_socket=self.network.open_socket,
            first_generation=0,
            seed=seed,
        )

    def follow(self, *connections: Connection) -> None:
        self.monitor.set_connections(connections)

    def run(self, seconds: float) -> None:
        drive(self.monitor, self.network, self.time.now + seconds)

    def until(self, state: VerdictState, seconds: float = 60.0) -> float:
        """Let time pass until a verdict says this; return how long it took."""
        began, seen = self.time.now, len(self.said)
        drive(
            self.monitor,
            self.network,
            began + seconds,
            stop=lambda: any(verdict.state is state for _, verdict in self.said[seen:]),
        )
        assert any(verdict.state is state for _, verdict in self.said[seen:]), f"no {state} within {seconds} s"
        return self.time.now - began

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict for _, verdict in self.said]

    @property
    def last(self) -> Verdict:
        return self.said[-1][1]


def test_the_first_good_round_says_up_and_every_round_renews_it() -> None:
    world = World()
    world.follow(connection())
    assert world.until(UP) < 0.2
    world.run(20)
    assert {verdict.state for verdict in world.verdicts} == {UP}
    assert [verdict.sequence for verdict in world.verdicts] == list(range(1, len(world.said) + 1))
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(world.said)]
    assert 9 <= len(gaps) <= 11
    assert max(gaps) < world.last.lease_s / 3


def test_evidence_tells_what_the_round_saw() -> None:
    world = World()
    world.follow(connection())
    world.run(9)
    assert [(e.ipv4, e.sent, e.received) for e in world.last.evidence] == [(True, 4, 4), (False, 4, 4)]
    for evidence in world.last.evidence:
        assert evidence.rtt_min_s == pytest.approx(0.0005)
        assert evidence.rtt_min_s <= evidence.rtt_median_s <= evidence.rtt_max_s
        assert evidence.since_reply_s is not None
        assert 0.3 < evidence.since_reply_s < 0.6


@pytest.mark.parametrize(("interval_s", "bound_s"), [(2.0, 3.0), (0.05, 0.3)])
@pytest.mark.parametrize("families", [(0,), (1,), (0, 1)])
def test_a_real_loss_is_seen_in_time(interval_s: float, bound_s: float, families: tuple[int, ...]) -> None:
    for seed in range(25):
        world = World(DetectorSettings(interval_s=interval_s), seed=seed)
        world.follow(connection(families=families))
        world.run(interval_s * (3 + seed / 25))
        assert world.last.state is UP
        world.network.cut = set(theirs(1))
        assert world.until(DOWN) <= bound_s, f"seed {seed}"
        assert [evidence.received for evidence in world.last.evidence] == [0] * len(families)
        world.network.cut = set()
        assert world.until(UP) <= interval_s, f"seed {seed}"


def test_one_family_missing_degrades_and_is_never_down() -> None:
    world = World()
    world.follow(connection())
    world.run(5)
    world.network.cut = {theirs(1)[1]}
    assert world.until(DEGRADED) <= 7
    world.run(600)
    assert DOWN not in {verdict.state for verdict in world.verdicts}
    assert world.last.state is DEGRADED
    assert [(e.ipv4, e.received) for e in world.last.evidence] == [(True, 4), (False, 0)]
    world.network.cut = set()
    world.until(UP)


def test_one_bad_round_is_not_enough() -> None:
    world = World()
    world.follow(connection())
    world.run(5)
    for _ in range(20):
        world.network.cut = set(theirs(1))
        world.run(1.2)
        world.network.cut = set()
        world.run(8)
    assert {verdict.state for verdict in world.verdicts} == {UP}
    assert world.monitor.counters.doubts == 20


@pytest.mark.parametrize("period_s", [0.3, 0.7, 1.9, 3.1])
def test_phi_without_cpu_for_moments_is_never_down(period_s: float) -> None:
    for seed in range(20):
        world = World(DetectorSettings(detector=Detector.PHI), seed=seed)
        world.follow(connection())
        world.run(20 + seed / 20)
        for _ in range(60):
            world.time.now += period_s
            world.run(0.3)
        assert DOWN not in {verdict.state for verdict in world.verdicts}, f"seed {seed}"


def test_a_starved_monitor_says_nothing_rather_than_down() -> None:
    world = World()
    world.follow(connection())
    world.run(5)
    world.network.cut = set(theirs(1))
    seen = len(world.said)
    for _ in range(40):
        world.time.now += 0.9  # no CPU for this long, again and again
        world.monitor.step()
    assert DOWN not in {verdict.state for verdict in world.verdicts[seen:]}
    assert world.monitor.counters.rounds["untested"] >= 5
    assert world.until(DOWN) < 6  # with CPU, the loss is seen


def test_a_starved_monitor_still_sees_who_answers() -> None:
    world = World()
    world.follow(connection())
    world.run(5)
    seen = len(world.said)
    for _ in range(40):
        world.time.now += 0.9
        world.monitor.step()
    assert {verdict.state for verdict in world.verdicts[seen:]} == {UP}


def test_a_monitor_that_was_stopped_does_not_make_up_for_it() -> None:
    world = World()
    world.follow(*(connection(number) for number in range(50)))
    world.run(5)
    world.time.now += 100
    sent = sum(world.network.asked.values())
    world.monitor.step()
    assert sum(world.network.asked.values()) - sent == 0
    world.run(5)
    assert {verdict.state for verdict in world.verdicts} == {UP}
    assert len(world.said) >= 150


def test_replies_read_late_count_by_when_they_came() -> None:
    world = World()
    world.follow(connection())
    world.run(5)
    late_before = world.monitor.counters.late_replies.copy()
    # The last pings of the round have left; the next look at the clock is long after its end.
    world.run(1.55 - (world.time.now - 1000) % 2 + 2)
    world.time.now += 1.0
    world.monitor.step()
    assert world.last.state is UP
    assert world.monitor.counters.late_replies == late_before


def test_a_reply_after_its_round_is_late() -> None:
    world = World(DetectorSettings(timeout_s=1.0, pings=1))
    world.follow(connection(families=(0,)))
    world.network.rtt_s = 1.5
    world.run(30)
    assert world.verdicts[0].state is DOWN
    assert UP not in {verdict.state for verdict in world.verdicts}
    assert world.monitor.counters.late_replies[True] > 5
    assert world.last.evidence[0].since_reply_s is not None


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.EAGAIN])
def test_a_ping_that_did_not_leave_for_want_of_memory_is_no_evidence(code: int) -> None:
    world = World(DetectorSettings(pings=1))
    world.follow(connection(families=(0,)))
    world.run(5)
    for _ in range(10):
        world.network.fail_next_send = code
        world.run(2)
    assert {verdict.state for verdict in world.verdicts} == {UP}
    assert world.monitor.counters.send_errors[errno.errorcode[code]] == 10


def test_a_ping_that_cannot_leave_is_as_good_as_unanswered() -> None:
    world = World(DetectorSettings(pings=1))
    world.follow(connection(families=(0,)))
    world.run(5)

    for _ in range(10):
        world.network.fail_next_send = errno.ENETUNREACH
        world.run(1)
    assert world.last.state is DOWN
    assert world.monitor.counters.send_errors["ENETUNREACH"] > 2


def test_replies_that_the_kernel_dropped_are_no_evidence() -> None:
    world = World()
    world.follow(connection())
    world.run(5)
    world.network.cut = set(theirs(1))
    for _ in range(60):
        world.network.drops_next = {True: 3}
        world.run(0.5)
    assert DOWN not in {verdict.state for verdict in world.verdicts}
    assert world.monitor.counters.overflows > 0


def test_new_addresses_are_followed_at_once_in_a_new_generation() -> None:
    world = World()
    world.follow(connection(peer=1))
    world.run(5)
    world.network.cut = set(theirs(1))  # the old addresses are gone
    world.follow(connection(peer=2))
    world.network.asked.clear()
    seen = len(world.said)
    world.run(0.1)
    assert set(world.network.asked) == set(theirs(2))
    assert [(verdict.state, verdict.generation, verdict.sequence) for verdict in world.verdicts[seen:]] == [(UP, 2, 1)]
    world.run(30)
    assert {verdict.state for verdict in world.verdicts} == {UP}
    assert set(world.network.asked) == set(theirs(2))


def test_a_reply_to_an_old_address_counts_for_nothing() -> None:
    world = World()
    world.network.rtt_s = 0.3
    world.follow(connection(peer=1))
    world.run(0.1)
    world.network.cut = set(theirs(2))
    world.follow(connection(peer=2))
    world.until(DOWN)
    assert world.monitor.counters.stray_replies == 2
    assert world.last.evidence[0].since_reply_s is None
    assert UP not in {verdict.state for verdict in world.verdicts}


def test_a_closed_connection_ends_once() -> None:
    world = World()
    world.follow(connection(1), connection(2))
    world.run(5)
    seen = len(world.said)
    world.follow(connection(2))
    assert [(v.state, v.subject) for v in world.verdicts[seen:]] == [(ENDED, ConnectionSubject(id="c1"))]
    world.follow(connection(2))
    world.run(30)
    assert [v.state for v in world.verdicts if v.subject == ConnectionSubject(id="c1")].count(ENDED) == 1


def test_a_connection_that_comes_back_has_a_newer_generation() -> None:
    world = World()
    world.follow(connection())
    world.run(1)
    ended = world.last.generation
    world.follow()
    world.follow(connection())
    world.run(1)
    assert world.last.generation > ended
    assert world.last.state is UP


def test_a_restarted_monitor_speaks_of_newer_generations() -> None:
    network = EchoNetwork(Time())
    said: list[Verdict] = []
    for _ in range(2):
        monitor = Monitor(DetectorSettings(), said.append, network.time, open_socket=network.open_socket)
        monitor.set_connections([connection()])
        drive(monitor, network, network.time.now + 1.5)
        monitor.close()
    assert said[-1].generation >= said[0].generation  # by the time of day, in milliseconds
    assert said[0].generation > 1_600_000_000_000


def test_another_subject_under_the_same_id_ends_the_first() -> None:
    world = World()
    first = replace(connection(families=(0,)), subject=TargetSubject(ip=theirs(1)[0]))
    second = replace(first, subject=LinkSubject(lb_ip=theirs(1)[0], proxy_ip=OURS[0]))
    world.follow(first)
    world.run(5)
    seen = len(world.said)
    world.follow(second)
    world.run(5)
    assert (world.verdicts[seen].state, world.verdicts[seen].subject) == (ENDED, first.subject)
    assert {verdict.subject for verdict in world.verdicts[seen + 1 :]} == {second.subject}


def test_the_mesh_heals() -> None:
    world = World()
    world.follow(connection())
    world.run(5)
    world.network.cut = set(theirs(1))
    seen = len(world.said)
    world.follow(replace(connection(), healing_s=15.0))
    assert [(v.state, v.heal_s, v.generation) for v in world.verdicts[seen:]] == [(HEALING, 15.0, 1)]
    world.run(14)
    assert {verdict.state for verdict in world.verdicts[seen:]} == {HEALING}
    heal_s = [verdict.heal_s for verdict in world.verdicts[seen:]]
    assert heal_s == sorted(heal_s, reverse=True)
    assert 0 < heal_s[-1] < 5
    world.until(DOWN, 5)  # it took longer than the mesh said
    world.network.cut = set()
    world.until(UP)


def test_healing_that_was_not_needed_is_over_with_the_next_good_round() -> None:
    world = World()
    world.follow(connection())
    world.run(5)
    world.follow(replace(connection(), healing_s=15.0))
    assert world.last.state is HEALING
    assert world.until(UP) <= 2.1


def test_a_link_that_was_made_anew_is_told_with_its_mac() -> None:
    world = World()
    world.follow(replace(connection(), mac=b"\2\0\0\0\0\1"))
    world.run(5)
    assert {verdict.new_mac for verdict in world.verdicts} == {b""}
    seen = len(world.said)
    world.follow(replace(connection(), mac=b"\2\0\0\0\0\2"))
    world.run(5)
    assert {(v.new_mac, v.generation) for v in world.verdicts[seen:]} == {(b"\2\0\0\0\0\2", 2)}


def test_without_its_link_a_connection_is_down_and_a_new_link_is_found() -> None:
    world = World()
    world.network.links["nsm-1"] = 7
    bound = replace(connection(), ifname="nsm-1")
    world.follow(bound)
    world.run(5)
    del world.network.links["nsm-1"]
    asked = dict(world.network.asked)
    assert world.until(DOWN) < 6
    world.network.links["nsm-1"] = 9
    world.until(UP)
    assert world.monitor.counters.send_errors["ENODEV"] > 0
    assert asked != world.network.asked


def test_what_comes_in_by_another_link_says_nothing_of_this_one() -> None:
    world = World()
    world.network.links["nsm-1"] = 7
    world.follow(replace(connection(), ifname="nsm-1"))
    world.run(5)
    world.network.arrive_by = 8
    assert world.until(DOWN) < 6
    assert world.monitor.counters.astray_replies > 0
    world.network.arrive_by = 0
    world.until(UP)


def test_a_kernel_without_ipv6() -> None:
    time = Time()
    network = EchoNetwork(time)
    network.families = {True}
    said: list[Verdict] = []
    monitor = Monitor(DetectorSettings(), said.append, time, open_socket=network.open_socket, first_generation=0)
    monitor.set_connections([connection()])
    drive(monitor, network, time.now + 30)
    assert {verdict.state for verdict in said} == {UP, DEGRADED}
    assert said[-1].state is DEGRADED


def test_a_kernel_that_allows_no_socket_at_all() -> None:
    network = EchoNetwork(Time())
    network.families = set()
    with pytest.raises(OSError, match="family"):
        Monitor(DetectorSettings(), lambda _: None, network.time, open_socket=network.open_socket)


def test_two_connections_of_one_id_are_refused_and_nothing_changes() -> None:
    world = World()
    world.follow(connection(1))
    world.run(1)
    with pytest.raises(ValueError, match="one id"):
        world.follow(connection(2), connection(2, peer=3))
    world.run(5)
    assert {verdict.subject for verdict in world.verdicts} == {ConnectionSubject(id="c1")}


def test_phi_sees_a_loss_without_waiting_for_the_round() -> None:
    world = World(DetectorSettings(detector=Detector.PHI))
    world.follow(connection())
    world.run(60)
    assert {verdict.state for verdict in world.verdicts} == {UP}
    world.network.cut = set(theirs(1))
    assert world.until(DOWN) < 3
    world.network.cut = set()
    assert world.until(UP) < 2


@pytest.mark.parametrize("detector", [Detector.ROUNDS, Detector.PHI])
def test_five_percent_loss_takes_nothing_down(detector: Detector) -> None:
    world = World(DetectorSettings(detector=detector), loss=0.05)
    world.follow(*(connection(number) for number in range(1, 11)))
    world.run(600)
    assert DOWN not in {verdict.state for verdict in world.verdicts}


def check_order(verdicts: Sequence[Verdict]) -> None:
    """Nothing after the end of a generation; ENDED once; generations and sequences only grow."""
    latest: dict[object, tuple[int, int]] = {}
    ended: dict[object, int] = {}
    for verdict in verdicts:
        assert verdict.generation > ended.get(verdict.subject, 0), "a verdict of a closed connection"
        assert (verdict.generation, verdict.sequence) > latest.get(verdict.subject, (0, 0)), "late or repeated"
        latest[verdict.subject] = (verdict.generation, verdict.sequence)
        if verdict.state is ENDED:
            ended[verdict.subject] = verdict.generation


@examples(150)
@given(seed=st.integers(0, 2**32 - 1), detector=st.sampled_from([Detector.ROUNDS, Detector.PHI]))
def test_no_verdict_of_a_closed_connection_whatever_happens(seed: int, detector: Detector) -> None:
    chance = random.Random(seed)
    world = World(DetectorSettings(interval_s=0.2, detector=detector), seed=seed, loss=0.2)
    world.network.rtt_s = chance.choice([0.0, 0.001, 0.06, 0.3])
    listed: dict[str, Connection] = {}
    ends = 0
    for _ in range(60):
        number = chance.randrange(1, 4)
        match chance.randrange(6):
            case 0:
                listed[f"c{number}"] = connection(number, peer=chance.randrange(1, 9))
            case 1:
                ends += listed.pop(f"c{number}", None) is not None
            case 2:
                world.network.cut = {ip for peer in range(9) if chance.random() < 0.4 for ip in theirs(peer)}
            case 3:
                world.time.now += chance.choice([0.05, 0.5, 3.0])
                world.monitor.step()
            case 4 if f"c{number}" in listed:
                listed[f"c{number}"] = replace(listed[f"c{number}"], healing_s=chance.choice([0.0, 1.0]))
            case _:
                world.run(chance.uniform(0.0, 0.5))
        world.follow(*listed.values())
        before = len(world.said)
        world.run(0.05)
        assert {v.subject for v in world.verdicts[before:]} <= {c.subject for c in listed.values()}
    check_order(world.verdicts)
    assert sum(verdict.state is ENDED for verdict in world.verdicts) == ends


@examples(100)
@given(seed=st.integers(0, 2**32 - 1))
def test_whoever_takes_a_verdict_may_change_the_connections(seed: int) -> None:
    chance = random.Random(seed)
    time = Time()
    network = EchoNetwork(time, seed=seed, loss=0.3)
    said: list[Verdict] = []
    listed: set[int] = {1, 2, 3}
    changing = True

    def take(verdict: Verdict) -> None:
        said.append(verdict)
        if changing and chance.random() < 0.3 and len(said) < 300:
            listed.symmetric_difference_update({chance.randrange(1, 4)})
            monitor.set_connections(
                [
                    replace(connection(number, peer=chance.randrange(1, 4)), healing_s=chance.choice([0.0, 0.0, 2.0]))
                    for number in listed
                ]
            )

    monitor = Monitor(
        DetectorSettings(interval_s=0.2), take, time, open_socket=network.open_socket, first_generation=0, seed=seed
    )
    monitor.set_connections([connection(number) for number in listed])
    drive(monitor, network, time.now + 5)
    changing = False
    monitor.set_connections([])
    check_order(said)
    assert not {v.subject for v in said} - {ConnectionSubject(id=f"c{number}") for number in range(1, 4)}
    assert all([v.state for v in said if v.subject == subject][-1] is ENDED for subject in {v.subject for v in said})
