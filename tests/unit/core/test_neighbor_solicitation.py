"""Neighbours of a link that just came: asked for in our own name until they answer."""

import pytest

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.config import EngineConfig
from lbguard.core.model import LinkKey, NeighborState
from lbguard.core.neighbor_solicitation import PAUSES_S, NeighborSolicitation
from tests.unit.core.harness import Guard, ip, ipv4_of, mac

LINK = LinkKey(3, 1)
IP = bytes((172, 16, 0, 11))


def test_the_pauses_grow_and_the_chase_ends() -> None:
    chase = NeighborSolicitation()
    chase.begin(LINK, IP, 100.0)
    moments = []
    while (at := chase.next()) is not None:
        assert chase.take_due(at) == [(LINK, IP)]
        moments.append(at)
    assert moments == pytest.approx([100.0 + sum(PAUSES_S[: n + 1]) for n in range(len(PAUSES_S))])


def test_an_address_that_answered_is_asked_for_no_more() -> None:
    chase = NeighborSolicitation()
    chase.begin(LINK, IP, 100.0)
    chase.end(LINK, IP)
    chase.end(LINK, IP)
    assert chase.next() is None
    assert chase.take_due(200.0) == []


def answering(guard: Guard, target: int) -> None:
    """The kernel knows the neighbour of a target on link 1."""
    guard.tell(ev.NeighborSeen(ifindex=1, ip=ipv4_of(target), state=NeighborState.REACHABLE, mac=mac(90)))


def test_the_engine_asks_for_the_silent_ones_only_and_from_its_own_address() -> None:
    guard = Guard(EngineConfig(neighbor_probe_interval_s=0.0), targets=2)
    answering(guard, 1)
    guard.wait(0.05)
    asked = guard.of(fx.SolicitNeighbors)
    assert [effect.pairs for effect in asked] == [((ip("172.16.0.1"), ipv4_of(2)),)] * 2
    assert {(effect.link.ifindex, effect.mac) for effect in asked} == {(1, mac(1))}


def test_nobody_is_asked_through_a_link_that_is_gone() -> None:
    guard = Guard(EngineConfig(neighbor_probe_interval_s=0.0), targets=1)
    guard.unlink(1)
    guard.wait(2.0)
    assert guard.of(fx.SolicitNeighbors) == []


def test_observing_asks_nobody() -> None:
    guard = Guard(EngineConfig(observe=True), targets=1)
    guard.wait(2.0)
    assert guard.of(fx.SolicitNeighbors) == []
