"""Flow affinity: what it adds to a packet, packets lost while it changes, memory of a flow, and the time of changes.

Beside nfqlb it is measured where a real one is on PATH.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from lbguard.affinity.flows import forget_flows
from lbguard.affinity.names import AffinityOptions
from lbguard.affinity.table import AffinityTable
from lbguard.core.model import StreamSteering
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nftables.distributor import NftDistributor
from lbguard.distributor.nftables.session import LIBRARY, NftContext
from lbguard.lab import nfqlb
from lbguard.lab.netns import Namespace
from tests.bench import commit, flood
from tests.bench.affinity_nfqlb import nfqlb_rows
from tests.bench.affinity_packets import SIZES, packet_rows
from tests.bench.packet_flood import Flood, tcp_frames
from tests.bench.results import Row, Say, Scale
from tests.bench.world import Pair, arrived, mark_of, path
from tests.steering import steering

NAME = "affinity"
_ROOT = Path(__file__).parents[2]
_PER_S = 40.0
_SETTLE_S = 0.5
_LOADS = {Scale.FULL: (60_000, 12_000), Scale.QUICK: (24_000, 12_000), Scale.SMOKE: (2_000, 4_000)}
"""UDP packets, and how many a second."""
_STREAMS = {Scale.FULL: 100, Scale.QUICK: 100, Scale.SMOKE: 3}
_REPETITIONS = {Scale.FULL: 7, Scale.QUICK: 3, Scale.SMOKE: 1}
_TARGETS = 100
_BYTES_AIM = 200.0


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Measure packets first: the other rows leave more in the kernel's memory."""
    return asyncio.run(_run(scale, say))


async def _run(scale: Scale, say: Say) -> list[Row]:
    rows = await packet_rows(NAME, scale, say)
    reason = nfqlb.missing()
    if reason:
        say(f"beside nfqlb not measured: {reason}")
    else:
        rows += await nfqlb_rows(NAME, scale, say)
    with path("affinity-loss", commit.TARGETS, f"udp dport {flood.PORT}") as (client, built):
        rows += await _loss(scale, say, client, built)
    with path("affinity-memory", commit.TARGETS, "tcp dport 443") as (client, built):
        rows += await _flows(scale, say, client, built)
    with Namespace("affinity-streams") as namespace:
        rows += await _changes(scale, say, namespace)
    return rows


@contextlib.asynccontextmanager
async def _table(namespace: Namespace, options: AffinityOptions | None = None) -> AsyncIterator[AffinityTable]:
    with namespace.entered():
        made = AffinityTable(options or AffinityOptions())
    try:
        yield made
    finally:
        await made.close()


# Packets lost


async def _loss(scale: Scale, say: Say, client: Namespace, built: Pair) -> list[Row]:
    """Send UDP flows, which are remembered, while targets are withdrawn and admitted 40 times a second."""
    marks = tuple(map(mark_of, range(commit.TARGETS)))
    with built.lb.entered():
        distributor = NftDistributor(TableKind.ANCHORED)
    await distributor.attach(commit.stream())
    await commit.commit(distributor, commit.EVERYONE)
    async with _table(built.lb, AffinityOptions(udp=True)) as table:
        await table.apply([steering("stream-0", marks)])
        gone = frozenset(range(1, 100, 10))
        rest = tuple(marks[identifier - 1] for identifier in sorted(commit.EVERYONE - gone))
        states = [
            (commit.EVERYONE - gone, steering("stream-0", marks, served=rest)),
            (commit.EVERYONE, steering("stream-0", marks)),
        ]

        async def toggle() -> None:
            await commit.commit(distributor, states[0][0])
            await table.apply([states[0][1]])
            states.reverse()

        flood.until_forwarded(client, built.peer)
        say(f"{_LOADS[scale][0]} packets, 40 commits and changes of steering a second")
        sent, lost, count = await _send(scale, client, built.peer, toggle)
        say(f"{_LOADS[scale][0]} packets, no change")
        still_sent, still_lost, _ = await _send(scale, client, built.peer, None)
        orphaned = (await table.read()).orphaned
    await distributor.close()
    return [
        Row(
            benchmark=NAME,
            what=f"packets lost, 40 commits/s of 10 targets, steering changes too ({sent} sent)",
            unit="packets",
            measured=lost,
            repetitions=max(1, count),
            aim=0,
            reference=still_lost,
            reference_what=f"lost of {still_sent} without a change",
            details={"sent": sent, "commits": count, "fell_back": orphaned},
        )
    ]


async def _send(
    scale: Scale, client: Namespace, peer: Namespace, work: Callable[[], Awaitable[object]] | None
) -> tuple[int, int, int]:
    """Return the packets sent, those lost, and how often the work was done meanwhile."""
    count, per_second = _LOADS[scale]
    before = arrived(peer)
    command = client.command(sys.executable, "-m", flood.__name__, str(count), str(per_second))
    sender = await asyncio.create_subprocess_exec(*command, cwd=_ROOT, stdout=asyncio.subprocess.PIPE)
    told = asyncio.create_task(sender.communicate())
    done = await commit.paced(work, _PER_S, told.done) if work else 0
    output, _ = await told
    await asyncio.sleep(_SETTLE_S)
    if sender.returncode:
        raise RuntimeError(f"the sender failed with status {sender.returncode}")
    return int(output), int(output) - (arrived(peer) - before), done


# Remembered flows


async def _flows(scale: Scale, say: Say, client: Namespace, built: Pair) -> list[Row]:
    count = SIZES[scale].flows
    macs = client.link("lb").mac, built.lb.link("client").mac
    marks = tuple(map(mark_of, range(commit.TARGETS)))
    desired = [steering("stream-0", marks)]
    with built.lb.entered():
        distributor = NftDistributor(TableKind.ANCHORED)
        nft = NftContext(LIBRARY)
    await distributor.attach(commit.stream())
    await commit.commit(distributor, commit.EVERYONE)
    bytes_each, with_flows, without = [], [], []
    rows = []
    async with _table(built.lb) as table, contextlib.AsyncExitStack() as stack:
        floods = [
            stack.enter_context(Flood(client, "lb", tcp_frames(*macs, family, first=0, count=count, begin=True)))
            for family in (4, 6)
        ]
        await table.apply(desired)
        for number in range(_REPETITIONS[scale]):
            say(f"{count} flows of each family remembered, and adopted")
            without.append(await _adopt(built.lb, desired))
            before = _slab_bytes()
            for sender in floods:
                sender.send(count)
            bytes_each.append(max(0, _slab_bytes() - before) / (2 * count))
            with_flows.append(await _adopt(built.lb, desired))
            flows = (await table.read()).flows
            if flows["tcp", 4] != count or flows["tcp", 6] != count:
                raise RuntimeError(f"{flows} are remembered, and not {count} of each family")
            if not number:
                rows.append(_forgetting(nft, count, marks))
            await table.remove()
            await table.apply(desired)
            # The kernel frees the elements after a grace period.
            await asyncio.sleep(_SETTLE_S)
    await distributor.close()
    nft.close()
    what = f"adoption by a new process, {count} flows of each family remembered"
    return [
        Row.of(NAME, "memory of a remembered flow (unreclaimable slab)", "bytes", bytes_each, aim=_BYTES_AIM),
        Row.of(NAME, what, "ms", with_flows, reference=sorted(without)[len(without) // 2], reference_what="without"),
        *rows,
    ]


def _forgetting(nft: NftContext, count: int, marks: tuple[int, ...]) -> Row:
    """Return how long it takes to forget the flows of one target, as when another stream gets its mark."""
    began = time.perf_counter()
    found = forget_flows(nft.kernel, AffinityOptions(), marks[:1])
    took_ms = 1000 * (time.perf_counter() - began)
    return Row(
        benchmark=NAME,
        what=f"forgetting the flows of one target among {count} of each family",
        unit="ms",
        measured=took_ms,
        details={"flows": found},
    )


async def _adopt(namespace: Namespace, desired: list[StreamSteering]) -> float:
    """Return how long a new process takes to take over the table, in ms."""
    async with _table(namespace) as table:
        # The session's thread and libnftables are there.
        await table.look()
        return await _timed(table, desired)


async def _timed(table: AffinityTable, desired: list[StreamSteering]) -> float:
    began = time.perf_counter()
    await table.apply(desired)
    return 1000 * (time.perf_counter() - began)


def _slab_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("SUnreclaim:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell its memory")


# Changes


async def _changes(scale: Scale, say: Say, namespace: Namespace) -> list[Row]:
    streams = _STREAMS[scale]
    say(f"changes in {streams} streams of {_TARGETS} targets")

    def state(number: int, lost: int) -> StreamSteering:
        marks = tuple(range(10_000 + number * _TARGETS, 10_000 + (number + 1) * _TARGETS))
        return steering(f"s{number}", marks, avoid=marks[:lost], learning=bool(lost))

    well = [state(number, 0) for number in range(streams)]
    every = [state(number, 5) for number in range(streams)]
    ones, alls, adopted = [], [], []
    async with _table(namespace) as table:
        first = await _timed(table, well)
        for _ in range(_REPETITIONS[scale]):
            ones += [await _timed(table, [every[0], *well[1:]]), await _timed(table, well)]
            alls += [await _timed(table, every), await _timed(table, well)]
            adopted.append(await _adopt(namespace, well))
    of = f"of {streams} streams of {_TARGETS} targets"
    return [
        Row.of(NAME, f"change of one {of}: 5 targets lost, and back", "ms", ones),
        Row.of(NAME, f"change of all {of}: 5 targets of each lost, and back", "ms", alls),
        Row(benchmark=NAME, what=f"first writing {of}", unit="ms", measured=first),
        Row.of(NAME, f"adoption by a new process {of}", "ms", adopted),
    ]
