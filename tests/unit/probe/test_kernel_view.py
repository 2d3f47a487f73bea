from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from lbguard.core.events import AddressGone, AddressSeen, KernelSnapshot, LinkGone, LinkSeen, NeighborSeen
from lbguard.core.model import NeighborState
from lbguard.probe.kernel_view import KernelView
from tests.unit.kernel.fake_kernel import eventually
from tests.unit.probe.verdicts import ip

OURS = ip("172.16.0.2")


class Watched(NamedTuple):
    """A view and how often it told of a change."""

    view: KernelView
    told: list[int]


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    view, told = KernelView(), list[int]()
    view.when_changed(lambda: told.append(1))
    yield Watched(view, told)
    await view.stop()


def link(ifindex: int, name: str) -> LinkSeen:
    return LinkSeen(ifindex=ifindex, name=name, up=True, mac=bytes(6))


def holds(ifindex: int, address: bytes = OURS) -> AddressSeen:
    return AddressSeen(ifindex=ifindex, ip=address, prefix_length=24)


async def test_the_link_of_an_address_is_the_preferred_one_or_the_newest(watched: Watched) -> None:
    view = watched.view
    view.observe([link(4, "nsm-0"), link(7, "nsm-1"), holds(4), holds(7)], 0.0)
    assert view.link_of(OURS) == "nsm-1"
    assert view.link_of(OURS, "nsm-0") == "nsm-0"
    assert view.link_of(OURS, "gone") == "nsm-1"
    assert view.link_of(ip("10.0.0.1"), "nsm-0") == ""


async def test_a_lost_link_keeps_its_place_until_another_has_the_address(watched: Watched) -> None:
    view = watched.view
    view.observe([link(4, "nsm-0"), holds(4)], 0.0)
    assert view.link_of(OURS) == "nsm-0"
    view.observe([AddressGone(ifindex=4, ip=OURS, prefix_length=24), LinkGone(ifindex=4)], 0.0)
    assert not view.has(OURS)
    assert view.link_of(OURS) == "nsm-0"
    view.observe([link(9, "nsm-9"), holds(9)], 0.0)
    assert view.link_of(OURS) == "nsm-9"


async def test_the_loopback_leads_nowhere(watched: Watched) -> None:
    watched.view.observe([link(1, "lo"), holds(1)], 0.0)
    assert watched.view.link_of(OURS) == ""
    assert watched.view.has(OURS)


async def test_an_address_that_stands_twice_on_a_link_is_ours_until_both_are_gone(watched: Watched) -> None:
    view = watched.view
    view.observe([link(4, "nsm-0"), holds(4), AddressSeen(ifindex=4, ip=OURS, prefix_length=32)], 0.0)
    view.observe([AddressGone(ifindex=4, ip=OURS, prefix_length=32)], 0.0)
    assert view.has(OURS)
    view.observe([AddressGone(ifindex=4, ip=OURS, prefix_length=24)], 0.0)
    assert not view.has(OURS)


async def test_changes_are_told_once_for_many_and_a_full_view_only_when_it_differs(watched: Watched) -> None:
    snapshot = KernelSnapshot(links=(link(4, "nsm-0"),), addresses=(holds(4),))
    watched.view.observe([snapshot, link(5, "nsm-1")], 0.0)
    await eventually(lambda: len(watched.told) == 1)
    entry = NeighborSeen(ifindex=4, ip=ip("172.16.0.1"), state=NeighborState.REACHABLE, mac=b"\x02\0\0\0\0\1")
    watched.view.observe([KernelSnapshot(links=(link(4, "nsm-0"), link(5, "nsm-1")), addresses=(holds(4),))], 0.0)
    watched.view.observe([entry], 0.0)
    await eventually(lambda: len(watched.told) == 2)
    # Only the neighbour's state changes, and the same full view comes again: nothing to tell until the link goes.
    watched.view.observe([NeighborSeen(ifindex=4, ip=entry.ip, state=NeighborState.STALE, mac=entry.mac)], 0.0)
    assert watched.view._notify_timer is None
    watched.view.observe([LinkGone(ifindex=5)], 0.0)
    await eventually(lambda: len(watched.told) == 3)
