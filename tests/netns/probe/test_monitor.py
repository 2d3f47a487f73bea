import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from lbguard.core.model import ConnectionSubject, Verdict, VerdictState
from lbguard.lab.netns import connect
from lbguard.probe.connections import Connection, pairs_of
from lbguard.probe.failure_detector import Detector, DetectorSettings
from lbguard.probe.monitor import Monitor
from tests.netns.probe.conftest import Ends

pytestmark = pytest.mark.netns

UP, DEGRADED, DOWN, HEALING, ENDED = VerdictState


class Probing:
    """A monitor that runs, and what it said."""

    def __init__(self, ends: Ends, settings: DetectorSettings) -> None:
        self.said: list[Verdict] = []
        self._news = asyncio.Event()
        with ends.near.entered():
            self.monitor = Monitor(settings, self._take)

    def _take(self, verdict: Verdict) -> None:
        self.said.append(verdict)
        self._news.set()

    async def until(self, holds: Callable[[Verdict], bool]) -> Verdict:
        """Wait for a new verdict for which this holds."""
        seen = len(self.said)
        async with asyncio.timeout(30):
            while True:
                for verdict in self.said[seen:]:
                    if holds(verdict):
                        return verdict
                self._news.clear()
                await self._news.wait()


def connection(ends: Ends, *, peer: int = 2, ifname: str = "eth0") -> Connection:
    theirs = ends.theirs if peer == 2 else tuple(ip[:-1] + bytes([peer]) for ip in ends.theirs)
    return Connection(id="c1", subject=ConnectionSubject(id="c1"), pairs=pairs_of(ends.ours, theirs), ifname=ifname)


@pytest.fixture(params=[Detector.ROUNDS, Detector.PHI])
async def probing(request: pytest.FixtureRequest, ends: Ends) -> AsyncIterator[Probing]:
    probing = Probing(ends, DetectorSettings(interval_s=0.4, detector=request.param))
    probing.monitor.set_connections([connection(ends)])
    task = asyncio.create_task(probing.monitor.run())
    yield probing
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_cut_datapath_is_down_and_back_up(ends: Ends, probing: Probing) -> None:
    verdict = await probing.until(lambda verdict: verdict.state is UP and len(verdict.evidence) == 2)
    assert all(0 < evidence.rtt_median_s < 0.4 for evidence in verdict.evidence if evidence.received)
    ends.drop("meta l4proto { icmp, ipv6-icmp } meta iifname eth0")
    verdict = await probing.until(lambda verdict: verdict.state is DOWN)
    assert verdict.generation == probing.said[0].generation
    ends.pass_all()
    await probing.until(lambda verdict: verdict.state is UP)


async def test_one_family_cut_is_degraded(ends: Ends, probing: Probing) -> None:
    await probing.until(lambda verdict: verdict.state is UP)
    ends.drop("icmpv6 type echo-request")
    verdict = await probing.until(lambda verdict: verdict.state is DEGRADED and not verdict.evidence[1].received)
    assert verdict.evidence[0].ipv4
    ends.pass_all()
    await probing.until(lambda verdict: verdict.state is UP)
    assert DOWN not in {verdict.state for verdict in probing.said}


async def test_addresses_move(ends: Ends, probing: Probing) -> None:
    first = await probing.until(lambda verdict: verdict.state is UP)
    ends.far.delete_addresses("eth0", "10.7.0.2/24", "fd07::2/64")
    ends.far.add_addresses("eth0", "10.7.0.3/24", "fd07::3/64")
    probing.monitor.set_connections([connection(ends, peer=3)])
    moved = await probing.until(lambda verdict: verdict.state is UP)
    assert moved.generation == first.generation + 1
    assert all(verdict.state is UP for verdict in probing.said if verdict.generation == moved.generation)


async def test_the_end(ends: Ends, probing: Probing) -> None:
    await probing.until(lambda verdict: verdict.state is UP)
    probing.monitor.set_connections([])
    assert probing.said[-1].state is ENDED
    count = len(probing.said)
    await asyncio.sleep(1)
    assert len(probing.said) == count


async def test_a_link_that_is_made_anew_under_its_name_is_found(ends: Ends, probing: Probing) -> None:
    await probing.until(lambda verdict: verdict.state is UP)
    ends.near.delete_link("eth0")
    await probing.until(lambda verdict: verdict.state is DOWN)
    ends.join()
    await probing.until(lambda verdict: verdict.state is UP)


async def test_another_way_to_the_same_address_is_not_this_link(ends: Ends, probing: Probing) -> None:
    await probing.until(lambda verdict: verdict.state is UP)
    connect(ends.near, "way", ends.far, "way")
    for end, number in ((ends.near, 1), (ends.far, 2)):
        end.add_addresses("way", f"10.8.0.{number}/24", f"fd08::{number}/64")
    # The addresses of eth0 stay ours and theirs, but the link itself is down: the other way still leads there.
    ends.near.add_route("10.7.0.2", "10.8.0.2")
    ends.near.add_route("fd07::2", "fd08::2")
    ends.near.set_link("eth0", up=False)
    ends.near.add_addresses("lo", "fd07::1/128", dad=True)
    await probing.until(lambda verdict: verdict.state is DOWN)
