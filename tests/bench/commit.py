"""How long a commit of 1, 10 or 100 changed targets takes in a table of 9973 slots.

Each repetition withdraws that many of 100 targets and admits them again; both directions are timed, and the slower one
is shown. Beside it, in turns: for nfqlb's memory the stock commands, one call a target (where a real nfqlb is on PATH);
for nftables a plain refill, which empties the map and adds every element.
"""

import asyncio
import random
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lbguard.core.addr import parse_prefix
from lbguard.core.model import StreamSpec, StreamTable
from lbguard.distributor.base import Distributor
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.shm import NfqlbShmDistributor
from lbguard.distributor.nftables.distributor import NftDistributor
from lbguard.distributor.nftables.session import LIBRARY, NftContext
from lbguard.lab.netns import Namespace
from lbguard.lab.stock_nfqlb import StockCommands
from tests.bench.results import Row, Say, Scale, Summary
from tests.fakes.nfqlb import make_memory

NAME = "commit"
TARGETS = 100
SLOTS = 9973
EVERYONE = frozenset(range(1, TARGETS + 1))
_AIM_MS = {100: 20.0}

_SIZES = {
    Scale.FULL: {1: 30, 10: 30, 100: 20},
    Scale.QUICK: {1: 10, 10: 10, 100: 5},
    Scale.SMOKE: {1: 1, 100: 1},
}


@dataclass(slots=True)
class Times:
    """Milliseconds of the commits in both directions, and how many slots each changed."""

    withdraw: list[float] = field(default_factory=list)
    admit: list[float] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)

    @property
    def slower(self) -> list[float]:
        """The direction whose median is the higher one."""
        return max(self.withdraw, self.admit, key=lambda samples: Summary.of(samples).median)


def stream() -> StreamSpec:
    """Return the stream whose table is committed; its memory is `tshm-stream-0`."""
    return StreamSpec(name="stream-0", max_targets=TARGETS, vips=(parse_prefix("20.0.0.1"), parse_prefix("2000::1")))


def table(active: frozenset[int]) -> StreamTable:
    """Return the table with all targets registered and these active."""
    return StreamTable(stream=stream(), registered=EVERYONE, active=active)


async def commit(distributor: Distributor, active: frozenset[int]) -> tuple[float, int]:
    """Commit a table; return how long it took in ms and the number of slots changed.

    Raises:
        RuntimeError: the distributor refused.
    """
    started = time.perf_counter()
    (result,) = await distributor.commit([table(active)])
    took_ms = (time.perf_counter() - started) * 1000
    if result.error:
        raise RuntimeError(result.error)
    return took_ms, result.slots_changed


def make_shared_memory() -> bool:
    """Make the stream's memory in /dev/shm, with the real nfqlb where there is one; tell whether there is."""
    real = shutil.which("nfqlb") is not None
    if real:
        command = ["nfqlb", "init", "--ownfw=0", "--shm=tshm-stream-0", f"--M={SLOTS}", f"--N={TARGETS}"]
        subprocess.run(command, check=True, capture_output=True)
    else:
        make_memory(Path("/dev/shm/tshm-stream-0"), SLOTS, TARGETS)
    return real


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Measure both distributors."""
    with Namespace("commit") as namespace:
        rows = asyncio.run(_nftables(scale, say, namespace))
        return rows + asyncio.run(_memory(scale, say))


async def _nftables(scale: Scale, say: Say, namespace: Namespace) -> list[Row]:
    rows = []
    with namespace.entered():
        distributor = NftDistributor(TableKind.ANCHORED)
        refill = Refill(NftContext(LIBRARY))
    await distributor.attach(stream())
    await commit(distributor, EVERYONE)
    for changed, repetitions in _SIZES[scale].items():
        say(f"nftables, {changed} changed, {repetitions} times, in turns with a plain refill")
        beside = [refill.run() for _ in range(min(5, repetitions))]
        times = await _turns(distributor, changed, repetitions)
        rows.append(_row("nftables", changed, times, beside, "emptying and refilling the map"))
    await distributor.close()
    return rows


async def _memory(scale: Scale, say: Say) -> list[Row]:
    rows = []
    real = make_shared_memory()
    distributor = NfqlbShmDistributor(TableKind.ANCHORED)
    stock = StockCommands() if real else None
    for changed, repetitions in _SIZES[scale].items():
        say(f"nfqlb's memory, {changed} changed, {repetitions} times" + (", beside the stock commands" if real else ""))
        beside: list[float] = []
        if stock is not None:
            await stock.attach(stream())
            # From the anchored table, and back to it below; only the timed calls are the stock commands' own.
            beside = (await _turns(stock, changed, max(1, min(repetitions, 60 // changed)))).slower
        await distributor.attach(stream())
        await commit(distributor, EVERYONE)
        times = await _turns(distributor, changed, repetitions)
        rows.append(_row("nfqlb's memory", changed, times, beside, "stock nfqlb commands"))
    await distributor.close()
    if stock is not None:
        await stock.close()
    return rows


async def _turns(distributor: Distributor, changed: int, repetitions: int) -> Times:
    chance = random.Random(1)
    times = Times()
    await commit(distributor, EVERYONE)
    for _ in range(repetitions):
        out = frozenset(chance.sample(sorted(EVERYONE), changed))
        took_ms, slots = await commit(distributor, EVERYONE - out)
        times.withdraw.append(took_ms)
        times.slots.append(slots)
        took_ms, _ = await commit(distributor, EVERYONE)
        times.admit.append(took_ms)
    return times


def _row(what: str, changed: int, times: Times, beside: Sequence[float], beside_what: str) -> Row:
    more: dict[str, Any] = {}
    if beside:
        more = {"reference": Summary.of(beside).median, "reference_what": beside_what}
    return Row.of(
        NAME,
        f"{what}: commit of {changed} changed target{'s' if changed > 1 else ''} of {TARGETS}, M = {SLOTS}",
        "ms",
        times.slower,
        aim=_AIM_MS.get(changed),
        details={
            "withdraw_ms": Summary.of(times.withdraw).median,
            "admit_ms": Summary.of(times.admit).median,
            "slots_changed": Summary.of(times.slots).median,
        },
        **more,
    )


class Refill:
    """What a plain tool does with an nft map: empty it, then add all elements, in two transactions."""

    def __init__(self, nft: NftContext, table_name: str = "inet plain", map_name: str = "slots") -> None:
        self._nft = nft
        self._flush = f"flush map {table_name} {map_name}"
        elements = ", ".join(f"{slot} : {5001 + slot % TARGETS}" for slot in range(SLOTS))
        self._add = f"add element {table_name} {map_name} {{ {elements} }}"
        if table_name == "inet plain":
            declared = f"add map inet plain slots {{ typeof numgen inc mod {SLOTS} : meta mark; size {SLOTS}; }}"
            nft.run(f"add table inet plain\n{declared}")

    def run(self) -> float:
        """Do it once; return how long it took, in ms."""
        started = time.perf_counter()
        self._nft.run(self._flush)
        self._nft.run(self._add)
        return (time.perf_counter() - started) * 1000


async def paced(work: Callable[[], Awaitable[object]], per_s: float, until: Callable[[], bool]) -> int:
    """Repeat work at this rate, or as fast as it goes, until told to end; return how often it was done."""
    done = 0
    due = time.monotonic()
    while not until():
        await work()
        done += 1
        due = max(due + 1 / per_s, time.monotonic())
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    return done
