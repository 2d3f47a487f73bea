"""Opinions: what is dropped and why, how long one counts, and what several reporters come to."""

import gc
import sys

import pytest

from lbguard.core.addr import Ip
from lbguard.core.config import EvidenceConfig
from lbguard.core.events import VerdictReported
from lbguard.core.model import ConnectionSubject, LinkSubject, Subject, TargetSubject, Verdict, VerdictState
from lbguard.core.opinions import NO_OPINION, REMEMBERED_S, Fused, Opinions, Source, Taken, addresses_of, subject_key
from tests.unit.core.harness import ip

UP, DEGRADED, DOWN, HEALING, ENDED = VerdictState
TARGET, PROXY, OURS = ip("172.16.0.11"), ip("172.16.0.250"), ip("172.16.0.1")
SUBJECT = TargetSubject(ip=TARGET)


class Desk:
    """Opinions and a clock; sequences count up by themselves."""

    def __init__(self, **config: float) -> None:
        self.opinions = Opinions(EvidenceConfig(**config))  # type: ignore[arg-type]
        self.now = 100.0
        self._sequence = 0

    def say(
        self,
        state: VerdictState,
        *,
        by: str = "a",
        of: Subject = SUBJECT,
        generation: int = 1,
        sequence: int | None = None,
        lease: float = 10.0,
        heal: float = 0.0,
        new_mac: bytes = b"",
    ) -> Taken:
        self._sequence = self._sequence + 1 if sequence is None else sequence
        verdict = Verdict(
            subject=of,
            state=state,
            generation=generation,
            sequence=self._sequence,
            lease_s=lease,
            heal_s=heal,
            new_mac=new_mac,
        )
        return self.opinions.apply(VerdictReported(reporter=by, verdict=verdict), self.now)

    def state(self, address: Ip = TARGET) -> VerdictState | None:
        return self.opinions.fused(address).state

    def weight(self, by: str = "a", of: Subject = SUBJECT) -> str:
        return self.opinions.weight(self.opinions.of(addresses_of(of)[0])[Source(by, of)])


@pytest.mark.parametrize("state", [UP, DEGRADED, DOWN, HEALING])
def test_one_reporter_is_believed(state: VerdictState) -> None:
    desk = Desk()
    assert desk.say(state) == Taken("", (TARGET,))
    assert desk.state() is state
    assert desk.weight() == "counts"


def test_nobody_speaks_of_what_nobody_spoke_of() -> None:
    desk = Desk()
    desk.say(DOWN)
    assert desk.opinions.fused(PROXY) is NO_OPINION


# Order


def test_the_same_verdict_again_is_repeated_and_an_older_one_late() -> None:
    desk = Desk()
    desk.say(DOWN, sequence=5)
    assert desk.say(UP, sequence=5).reason == "repeated"
    assert desk.say(UP, sequence=4).reason == "late"
    assert desk.say(UP, sequence=9, generation=0).reason == "late"
    assert desk.state() is DOWN
    assert desk.say(UP, sequence=6).reason == ""
    assert desk.state() is UP


def test_a_new_generation_counts_its_sequences_anew() -> None:
    desk = Desk()
    desk.say(DOWN, sequence=500)
    assert desk.say(UP, generation=2, sequence=1).reason == ""
    assert desk.state() is UP


def test_nothing_of_an_ended_generation_counts() -> None:
    desk = Desk()
    desk.say(DOWN, sequence=1)
    assert desk.say(ENDED, sequence=2) == Taken("", (TARGET,))
    assert desk.state() is None
    assert len(desk.opinions) == 0
    assert desk.say(DOWN, sequence=3).reason == "ended"
    assert desk.say(ENDED, sequence=9).reason == "ended"
    assert desk.say(DOWN, generation=0, sequence=3).reason == "ended"
    assert desk.say(UP, generation=2, sequence=1).reason == ""
    assert desk.state() is UP


def test_the_end_may_come_before_the_beginning() -> None:
    desk = Desk()
    assert desk.say(ENDED, sequence=7).reason == ""
    assert desk.say(DOWN, sequence=6).reason == "ended"
    assert desk.state() is None


def test_an_end_of_an_older_generation_ends_nothing() -> None:
    desk = Desk()
    desk.say(DOWN, generation=2)
    assert desk.say(ENDED, generation=1).reason == "late"
    assert desk.state() is DOWN


def test_what_was_said_before_a_lease_ran_out_is_not_said_anew_by_coming_late() -> None:
    desk = Desk()
    desk.say(UP, sequence=4)
    desk.say(DOWN, sequence=5, lease=1.0)
    desk.now += 1.0
    assert desk.opinions.expire(desk.now) == [TARGET]
    assert desk.say(DOWN, sequence=5).reason == "repeated"
    assert desk.say(UP, sequence=4).reason == "late"
    assert desk.say(UP, generation=0, sequence=99).reason == "late"
    assert desk.state() is None
    assert desk.say(DOWN, sequence=6).reason == ""


def test_reporters_and_subjects_have_orders_of_their_own() -> None:
    desk = Desk()
    desk.say(DOWN, sequence=5, generation=7)
    assert desk.say(DOWN, sequence=1, by="b").reason == ""
    assert desk.say(DOWN, sequence=1, of=TargetSubject(ip=PROXY)).reason == ""


# Leases


def test_a_verdict_counts_until_its_lease_ends() -> None:
    desk = Desk()
    desk.say(DOWN, lease=3.0)
    assert desk.opinions.next() == 103.0
    assert desk.opinions.expire(102.999) == []
    assert desk.state() is DOWN
    assert desk.opinions.expire(103.0) == [TARGET]
    assert desk.state() is None
    assert desk.opinions.next() is None


def test_a_renewal_begins_the_lease_anew() -> None:
    desk = Desk()
    desk.say(DOWN, lease=3.0)
    desk.now += 2.0
    desk.say(DOWN, lease=3.0)
    assert desk.opinions.expire(103.5) == []
    assert desk.opinions.expire(105.0) == [TARGET]


def test_an_end_ends_the_lease() -> None:
    desk = Desk()
    desk.say(DOWN)
    desk.say(ENDED)
    assert desk.opinions.next() is None


# k of n


def test_down_counts_when_k_of_the_last_n_say_so() -> None:
    desk = Desk(confirm_k=2, confirm_n=3)
    desk.say(DOWN)
    assert (desk.state(), desk.weight()) == (DEGRADED, "unconfirmed")
    desk.say(UP)
    assert desk.state() is UP
    desk.say(DOWN)
    assert (desk.state(), desk.weight()) == (DOWN, "counts")


def test_what_lies_further_back_than_n_is_forgotten() -> None:
    desk = Desk(confirm_k=2, confirm_n=2)
    for state in (DOWN, UP, DOWN):
        desk.say(state)
    assert desk.state() is DEGRADED


def test_a_new_generation_and_a_lease_that_ran_out_begin_to_count_anew() -> None:
    desk = Desk(confirm_k=2, confirm_n=3)
    desk.say(DOWN)
    desk.say(DOWN, generation=2)
    assert desk.state() is DEGRADED
    desk.say(DOWN, generation=2, lease=1.0)
    assert desk.state() is DOWN
    desk.opinions.expire(desk.now + 1.0)
    desk.say(DOWN, generation=2)
    assert desk.state() is DEGRADED


# Several reporters


@pytest.mark.parametrize("other", [UP, DEGRADED])
def test_who_gets_packets_through_contradicts_a_down(other: VerdictState) -> None:
    desk = Desk()
    desk.say(DOWN)
    desk.say(other, by="b")
    assert desk.state() is DEGRADED
    assert desk.weight() == "contradicted"
    assert desk.weight("b") == "counts"
    desk.say(ENDED, by="b")
    assert desk.state() is DOWN
    assert desk.weight() == "counts"


@pytest.mark.parametrize("other", [DOWN, HEALING])
def test_who_gets_none_through_contradicts_nobody(other: VerdictState) -> None:
    desk = Desk()
    desk.say(DOWN)
    desk.say(other, by="b")
    assert desk.state() is DOWN


def test_an_unconfirmed_down_does_not_become_one_by_company() -> None:
    desk = Desk(confirm_k=2)
    desk.say(DOWN)
    desk.say(DOWN, by="b")
    assert desk.state() is DEGRADED
    desk.say(DOWN, by="b")
    assert desk.state() is DOWN


# Healing


def test_healing_says_how_long_to_wait_and_nothing_of_the_path() -> None:
    desk = Desk()
    desk.say(HEALING, heal=5.0)
    desk.say(HEALING, heal=8.0, by="b")
    fused = desk.opinions.fused(TARGET)
    assert (fused.state, fused.healing_until) == (HEALING, 108.0)


def test_healing_is_over_when_its_reporter_says_otherwise_or_falls_silent() -> None:
    desk = Desk()
    desk.say(HEALING, heal=5.0)
    desk.say(UP)
    assert desk.opinions.fused(TARGET).healing_until == float("-inf")
    desk.say(HEALING, heal=50.0, lease=1.0)
    desk.opinions.expire(desk.now + 1.0)
    assert desk.opinions.fused(TARGET) is NO_OPINION


def test_a_down_that_is_being_repaired_is_still_down() -> None:
    desk = Desk()
    desk.say(DOWN)
    desk.say(HEALING, heal=5.0)
    fused = desk.opinions.fused(TARGET)
    assert (fused.state, fused.healing_until) == (DOWN, 105.0)
    desk.say(UP)
    desk.say(HEALING, heal=5.0)
    assert desk.state() is HEALING


def test_a_down_that_never_counted_does_not_count_by_being_repaired() -> None:
    desk = Desk(confirm_k=2)
    desk.say(DOWN)
    desk.say(HEALING, heal=5.0)
    assert desk.state() is HEALING


def test_another_generation_repairs_nothing_of_the_one_before() -> None:
    desk = Desk()
    desk.say(DOWN)
    desk.say(HEALING, heal=5.0, generation=2)
    assert desk.state() is HEALING


def test_very_many_leases_that_end_at_once_end_in_turns() -> None:
    desk = Desk()
    for number in range(1000):
        desk.say(DOWN, of=TargetSubject(ip=number.to_bytes(4)), lease=3.0)
    turns = 0
    while (due := desk.opinions.next()) is not None and due <= 103.0:
        before = len(desk.opinions)
        assert len(desk.opinions.expire(103.0)) == before - len(desk.opinions) <= 256
        turns += 1
    assert turns == 4
    assert len(desk.opinions) == 0


def test_an_opinion_whose_lease_has_ended_counts_for_nothing_although_nobody_has_looked_since() -> None:
    desk = Desk(confirm_k=2)
    desk.say(DOWN, generation=5, lease=1.0)
    desk.now += 1.0
    assert desk.say(DOWN, generation=4) == Taken("late", (TARGET,), generation=5)
    assert desk.state() is None
    desk.say(DOWN, generation=5)
    assert desk.state() is DEGRADED
    desk.now += 10.0 + REMEMBERED_S
    assert desk.say(DOWN, generation=1).reason == ""


# Subjects


def test_a_link_is_spoken_of_by_our_address_and_a_connection_by_all_of_its_own() -> None:
    assert addresses_of(LinkSubject(lb_ip=OURS, proxy_ip=PROXY)) == (OURS,)
    both = ConnectionSubject(id="c", lb_ips=(OURS, OURS), peer_ips=(PROXY, OURS))
    assert addresses_of(both) == (OURS, PROXY)


def test_a_connection_is_known_by_its_id_and_speaks_of_its_latest_addresses() -> None:
    desk = Desk()
    desk.say(DOWN, of=ConnectionSubject(id="c", lb_ips=(OURS,)))
    taken = desk.say(UP, of=ConnectionSubject(id="c", lb_ips=(PROXY,)))
    assert set(taken.addresses) == {OURS, PROXY}
    assert len(desk.opinions) == 1
    assert desk.state(OURS) is None
    assert desk.state(PROXY) is UP
    assert desk.say(ENDED, of=ConnectionSubject(id="c")).addresses == (PROXY,)
    assert desk.state(PROXY) is None


def test_a_new_mac_is_news_once() -> None:
    desk = Desk()
    mac, other = bytes(5) + b"\1", bytes(5) + b"\2"
    assert desk.say(DOWN).new_mac == b""
    assert desk.say(DOWN, new_mac=mac).new_mac == mac
    assert desk.say(UP, new_mac=mac).new_mac == b""
    assert desk.say(UP, new_mac=other).new_mac == other
    assert desk.say(UP, new_mac=other, generation=2).new_mac == other
    assert desk.say(UP, new_mac=mac, generation=1).new_mac == b""


# Bounds


def test_no_more_opinions_are_held_than_allowed_and_those_held_go_on() -> None:
    desk = Desk(opinions_max=2)
    desk.say(UP, of=TargetSubject(ip=ip("10.0.0.1")))
    desk.say(UP, of=TargetSubject(ip=ip("10.0.0.2")), lease=1.0)
    third = TargetSubject(ip=ip("10.0.0.3"))
    assert desk.say(DOWN, of=third).reason == "state_full"
    assert desk.say(DOWN, of=TargetSubject(ip=ip("10.0.0.1"))).reason == ""
    assert len(desk.opinions) == 2
    desk.opinions.expire(desk.now + 1.0)
    assert desk.say(DOWN, of=third).reason == ""


def test_what_is_remembered_of_the_past_is_bounded() -> None:
    desk = Desk(remembered_max=100)
    for number in range(300):
        desk.say(ENDED, of=TargetSubject(ip=number.to_bytes(4)), lease=1.0 + number)
    assert len(desk.opinions._past) == 100
    assert len(desk.opinions) == 0
    # What would be forgotten first by itself gives way.
    assert desk.say(DOWN, of=TargetSubject(ip=(299).to_bytes(4)), sequence=5).reason == "ended"
    assert desk.say(DOWN, of=TargetSubject(ip=(0).to_bytes(4)), sequence=5).reason == ""


@pytest.mark.parametrize("ended", [False, True])
def test_what_is_remembered_ends_soon_after_the_lease(ended: bool) -> None:
    desk = Desk()
    desk.say(UP, generation=9, lease=5.0)
    if ended:
        desk.say(ENDED, generation=9, lease=0.01)
    desk.now += 5.0 + REMEMBERED_S - 0.001
    desk.opinions.expire(desk.now)
    taken = desk.say(UP, generation=2)
    assert (taken.reason, taken.generation) == ("ended" if ended else "late", 9)
    desk.now += 0.001
    desk.opinions.expire(desk.now)
    assert len(desk.opinions._past) == 0
    assert desk.say(UP, generation=2).reason == ""
    assert desk.state() is UP


def test_what_is_remembered_of_a_connection_is_not_its_addresses() -> None:
    desk = Desk()
    many = tuple(number.to_bytes(16) for number in range(16))
    before = sys.getallocatedblocks()
    for number in range(1000):
        subject = ConnectionSubject(id=f"{number}" + "x" * 240, lb_ips=many, peer_ips=many)
        desk.say(ENDED, of=subject)
    kept = gc.get_referents(*gc.get_referents(desk.opinions._past))
    assert len(desk.opinions._past) == 1000
    assert sys.getallocatedblocks() - before < 20_000
    assert not any(isinstance(item, ConnectionSubject | Verdict) for item in kept)
    assert max(len(key) for _, key in desk.opinions._past) <= 33


def test_no_two_subjects_are_taken_for_one() -> None:
    subjects: list[Subject] = [
        TargetSubject(ip=OURS),
        TargetSubject(ip=OURS + bytes(12)),
        LinkSubject(lb_ip=OURS, proxy_ip=PROXY),
        LinkSubject(lb_ip=PROXY, proxy_ip=OURS),
        ConnectionSubject(id="c"),
        ConnectionSubject(id="d"),
    ]
    assert len({subject_key(subject) for subject in subjects}) == len(subjects)


# Cost


def test_what_a_thousand_hold_of_one_address_is_counted_as_it_comes() -> None:
    desk = Desk()
    connections = [ConnectionSubject(id=str(number), lb_ips=(TARGET,)) for number in range(1000)]
    assert desk.say(DOWN, of=connections[0]).addresses == (TARGET,)
    for connection in connections[1:]:
        # Nothing else is held of the address, so no path has to be judged again.
        assert desk.say(DOWN, of=connection).addresses == ()
    assert desk.say(UP, by="b").addresses == (TARGET,)
    assert desk.state() is DEGRADED
    assert desk.weight(of=connections[5]) == "contradicted"
    assert desk.opinions.count(TARGET) == 1001
    assert len(desk.opinions.of(TARGET, 8)) == 8
    assert desk.say(ENDED, by="b").addresses == (TARGET,)
    assert desk.state() is DOWN
    for number, connection in enumerate(connections):
        desk.say(HEALING, of=connection, heal=5.0 + number % 7)
    assert desk.opinions.fused(TARGET) == Fused(DOWN, 111.0)
    for connection in connections:
        desk.say(ENDED, of=connection)
    assert desk.opinions.fused(TARGET) is NO_OPINION


def test_asking_for_what_is_held_looks_at_no_opinion() -> None:
    desk = Desk()

    def calls_of_a_question() -> int:
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            desk.opinions.fused(TARGET)
        finally:
            sys.setprofile(None)
        return calls

    desk.say(DOWN)
    with_one = calls_of_a_question()
    for number in range(500):
        desk.say(HEALING, of=ConnectionSubject(id=str(number), lb_ips=(TARGET,)), heal=1.0)
    assert calls_of_a_question() == with_one


def test_nothing_is_left_of_opinions_that_are_gone() -> None:
    desk = Desk()
    connection = ConnectionSubject(id="c", lb_ips=(OURS,), peer_ips=(PROXY, TARGET))
    desk.say(DOWN, of=connection)
    desk.say(DOWN, by="b", lease=1.0)
    desk.say(ENDED, of=connection)
    desk.opinions.expire(desk.now + 1.0)
    assert desk.opinions._by_address == {}
    assert len(desk.opinions) == 0
