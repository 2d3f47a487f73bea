"""Neighbour operations and timers on the real kernel, with a peer that changes its link-layer address or is deaf."""

import time
from collections.abc import Callable

import pytest

from lbguard.core.addr import parse_ip
from lbguard.core.effects import FlushNeighbors, ProbeNeighbors, ResolveNeighbors
from lbguard.core.events import NeighborSeen
from lbguard.core.model import LinkKey, NeighborState
from lbguard.kernel.batches import Neighbors
from lbguard.kernel.links import LinkOperations, NeighborTimers
from tests.netns.kernel.conftest import Bench
from tests.netns.kernel.recorder import Recorder, mirrored

PEERS = pytest.mark.parametrize("peer", ["172.16.0.2", "fd00::2"])
NEW_MAC = "02:00:00:00:00:99"


def seen(recorder: Recorder, entry: tuple[int, bytes], state: NeighborState) -> Callable[[], bool]:
    def holds() -> bool:
        neighbor = recorder.neighbors.get(entry)
        return neighbor is not None and neighbor.state == state

    return holds


@PEERS
async def test_resolve_then_flush(bench: Bench, peer: str) -> None:
    neighbors, entry = Neighbors(bench.channel), (bench.lb.index("nse-a"), parse_ip(peer))
    recorder = Recorder()
    async with mirrored(bench.lb, recorder):
        await neighbors.flush(FlushNeighbors(entries=(entry,)))
        await recorder.until(lambda: entry not in recorder.neighbors)
        assert await neighbors.resolve(ResolveNeighbors(entries=(entry,))) == []
        await recorder.until(seen(recorder, entry, NeighborState.REACHABLE))
        shown = bench.lb.neighbor(peer)
        assert shown is not None
        assert bytes.fromhex(shown.mac.replace(":", "")) == recorder.neighbors[entry].mac
        assert await neighbors.flush(FlushNeighbors(entries=(entry,))) == []
        assert bench.lb.neighbor(peer) is None
        assert await neighbors.flush(FlushNeighbors(entries=(entry, (4242, parse_ip(peer))))) == []


@PEERS
async def test_flush_takes_only_what_is_named(bench: Bench, peer: str) -> None:
    other = "172.16.0.50" if "." in peer else "fd00::50"
    for ip in (peer, other):
        bench.lb.replace_neighbor(ip, "nse-a", NEW_MAC, state="reachable")
    await Neighbors(bench.channel).flush(FlushNeighbors(entries=((bench.lb.index("nse-a"), parse_ip(peer)),)))
    assert bench.lb.neighbor(peer) is None
    assert bench.lb.neighbor(other) is not None


@PEERS
async def test_probe_verifies_an_entry_and_resolves_a_missing_one(
    bench: Bench, links: LinkOperations, peer: str
) -> None:
    neighbors, entry = Neighbors(bench.channel), (bench.lb.index("nse-a"), parse_ip(peer))
    # The probing goes on for as long as this test may need to look at it.
    assert await links.tune(entry[0], "nse-a", NeighborTimers(ucast_probes=1000)) == ""
    recorder = Recorder()
    async with mirrored(bench.lb, recorder):
        await neighbors.flush(FlushNeighbors(entries=(entry,)))
        await recorder.until(lambda: entry not in recorder.neighbors)
        assert await neighbors.probe(ProbeNeighbors(entries=(entry,))) == []
        await recorder.until(seen(recorder, entry, NeighborState.REACHABLE))
        bench.drop(True)
        assert await neighbors.probe(ProbeNeighbors(entries=(entry,))) == []
        shown = bench.lb.neighbor(peer)
        assert shown is not None
        assert shown.state == "probe"
        bench.drop(False)
        before = len(recorder.events)
        await recorder.until(lambda: len(recorder.events) > before)
        await recorder.until(seen(recorder, entry, NeighborState.REACHABLE))
        # That the probe began is no news; only how it ended is told.
        states = [event.state for event in recorder.events[before:] if isinstance(event, NeighborSeen)]
        assert NeighborState.PROBE not in states


@PEERS
async def test_changed_mac_is_found_without_failing(bench: Bench, links: LinkOperations, peer: str) -> None:
    """The address changes right after the entry was confirmed: ARP's lock time must not stand in the way."""
    neighbors, entry = Neighbors(bench.channel), (bench.lb.index("nse-a"), parse_ip(peer))
    assert await links.tune(entry[0], "nse-a", NeighborTimers()) == ""
    recorder = Recorder()
    async with mirrored(bench.lb, recorder):
        await neighbors.resolve(ResolveNeighbors(entries=(entry,)))
        await recorder.until(seen(recorder, entry, NeighborState.REACHABLE))
        bench.peer.set_link("lb-a", address=NEW_MAC)
        before = len(recorder.events)
        await neighbors.probe(ProbeNeighbors(entries=(entry,)))
        new_mac = bytes.fromhex(NEW_MAC.replace(":", ""))
        await recorder.until(lambda: entry in recorder.neighbors and recorder.neighbors[entry].mac == new_mac)
        states = [event.state for event in recorder.events[before:] if isinstance(event, NeighborSeen)]
        assert NeighborState.FAILED not in states


@PEERS
async def test_silent_neighbor_fails_only_after_every_probe(bench: Bench, links: LinkOperations, peer: str) -> None:
    """One unicast and four multicast probes 0.2 s apart: one second at least, whatever the machine's speed."""
    neighbors, entry = Neighbors(bench.channel), (bench.lb.index("nse-a"), parse_ip(peer))
    assert await links.tune(entry[0], "nse-a", NeighborTimers()) == ""
    recorder = Recorder()
    async with mirrored(bench.lb, recorder):
        await neighbors.resolve(ResolveNeighbors(entries=(entry,)))
        await recorder.until(seen(recorder, entry, NeighborState.REACHABLE))
        bench.drop(True)
        started_at = time.monotonic()
        await neighbors.probe(ProbeNeighbors(entries=(entry,)))
        await recorder.until(seen(recorder, entry, NeighborState.FAILED))
        assert time.monotonic() - started_at >= 0.9
        bench.drop(False)
        await neighbors.resolve(ResolveNeighbors(entries=(entry,)))
        await recorder.until(seen(recorder, entry, NeighborState.REACHABLE))


async def test_resolving_on_a_fresh_link_outlasts_duplicate_detection(bench: Bench, links: LinkOperations) -> None:
    """Until its link-local address is usable the kernel sends no solicitation; the entry must not fail meanwhile."""
    bench.lb.add_veth("nse-b", "lb-b", bench.peer.path, up=False)
    for namespace, link, host in ((bench.peer, "lb-b", 2), (bench.lb, "nse-b", 1)):
        namespace.set_link(link, up=True)
        namespace.add_addresses(link, f"fd01::{host}/64")
    neighbors, entry = Neighbors(bench.channel), (bench.lb.index("nse-b"), parse_ip("fd01::2"))
    assert await links.tune(entry[0], "nse-b", NeighborTimers()) == ""
    recorder = Recorder()
    async with mirrored(bench.lb, recorder):
        await neighbors.resolve(ResolveNeighbors(entries=(entry,)))
        await recorder.until(seen(recorder, entry, NeighborState.REACHABLE))
        states = [event.state for event in recorder.events if isinstance(event, NeighborSeen) and event.ip == entry[1]]
        assert NeighborState.FAILED not in states


async def test_resolving_on_a_missing_link_is_a_failure(bench: Bench) -> None:
    [failure] = await Neighbors(bench.channel).resolve(ResolveNeighbors(entries=((4242, parse_ip("172.16.0.2")),)))
    assert failure.reason.startswith("ENODEV")
    assert failure.ifindex == 4242


async def test_timers_of_one_link(bench: Bench, links: LinkOperations) -> None:
    index = bench.lb.index("nse-a")
    timers = NeighborTimers(
        retrans_ms=300,
        delay_probe_ms=2000,
        base_reachable_ms=7000,
        ucast_probes=4,
        mcast_probes=6,
        mcast_reprobes=5,
        locktime_ms=500,
    )
    assert await links.tune(index, "nse-a", timers) == ""
    expected = {
        "retrans_time_ms": "300",
        "delay_first_probe_time": "2",
        "base_reachable_time_ms": "7000",
        "ucast_solicit": "4",
        "mcast_solicit": "6",
        "mcast_resolicit": "5",
    }
    for family in ("ipv4", "ipv6"):
        directory = f"/proc/sys/net/{family}/neigh/nse-a"
        assert {name: bench.lb.run("cat", f"{directory}/{name}").strip() for name in expected} == expected
        assert bench.lb.run("cat", f"/proc/sys/net/{family}/neigh/lo/ucast_solicit").strip() == "3"


async def test_links_are_checked_by_name(bench: Bench, links: LinkOperations) -> None:
    index = bench.lb.index("nse-a")
    assert await links.tune(index, "nse-b", NeighborTimers()) == f"ifindex {index} is no longer nse-b"
    outcome = await links.set_down(LinkKey(index, 1), "nse-b")
    assert outcome.reason == f"ifindex {index} is no longer nse-b"
    assert bench.lb.link("nse-a").up
    assert (await links.set_down(LinkKey(4242, 1), "nse-a")).reason.startswith("ENODEV")
    for _ in range(2):
        with bench.lb.entered():
            outcome = await links.set_down(LinkKey(index, 1), "nse-a")
        assert (outcome.link, outcome.reason) == (LinkKey(index, 1), "")
        assert not bench.lb.link("nse-a").up
