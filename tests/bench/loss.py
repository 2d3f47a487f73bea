"""Packets lost while tables are committed 40 times a second under load.

A client sends UDP from 200 ports, IPv4 and IPv6, through the load balancer to 100 targets; a counter in the targets'
namespace tells how many came out. Without commits none may be missing, or the measurement itself is at fault. Beside
lbguard's commits stands what stock tools do: emptying and refilling the nft map, and, where a real nfqlb is on PATH,
its own commands against lbguard's writes to the same memory.
"""

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from lbguard.distributor.base import Distributor
from lbguard.distributor.maglev import TableKind
from lbguard.distributor.nfqlb.shm import NfqlbShmDistributor
from lbguard.distributor.nftables.distributor import NftDistributor
from lbguard.distributor.nftables.ruleset import FAMILY, TABLE, stream_names
from lbguard.distributor.nftables.session import LIBRARY, NftContext
from lbguard.lab import nfqlb
from lbguard.lab.netns import Namespace
from lbguard.lab.stock_nfqlb import StockCommands
from tests.bench import commit, flood
from tests.bench.results import Row, Say, Scale
from tests.bench.world import Pair, arrived, path

NAME = "loss"
_COMMITS_PER_S = 40.0
_CHANGED = 10
_SETTLE_S = 0.5
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class _Load:
    packets: int
    per_second: int


_LOADS = {
    Scale.FULL: _Load(60_000, 12_000),
    Scale.QUICK: _Load(24_000, 12_000),
    Scale.SMOKE: _Load(2_000, 4_000),
}


@dataclass(frozen=True, slots=True)
class _Outcome:
    sent: int
    lost: int
    commits: int
    took_s: float


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Send the same load once without commits and once for each way of committing."""
    load = _LOADS[scale]
    with path("loss", commit.TARGETS, f"udp dport {flood.PORT}") as (client, built):
        return asyncio.run(_Trial(load, say, client, built).nftables()) + asyncio.run(
            _Trial(load, say, client, built).nfqlb()
        )


class _Trial:
    def __init__(self, load: _Load, say: Say, client: Namespace, built: Pair) -> None:
        self._load = load
        self._say = say
        self._client = client
        self._lb = built.lb
        self._peer = built.peer
        self._chance = random.Random(1)

    async def nftables(self) -> list[Row]:
        with self._lb.entered():
            distributor = NftDistributor(TableKind.ANCHORED)
            plain = NftContext(LIBRARY)
        await distributor.attach(commit.stream())
        await commit.commit(distributor, commit.EVERYONE)
        flood.until_forwarded(self._client, self._peer)
        control = await self._send("no commits", None)
        guarded = await self._send("nftables, lbguard's commits", self._toggling(distributor))
        await commit.commit(distributor, commit.EVERYONE)
        refill = commit.Refill(plain, f"{FAMILY} {TABLE}", stream_names("stream-0").slots)
        stock = await self._send("nftables, emptying and refilling", lambda: asyncio.to_thread(refill.run))
        await distributor.detach(commit.stream(), withdraw=True)
        await distributor.close()
        plain.close()
        return [
            _row("nftables: packets lost without any commit", control, None, ""),
            _row("nftables: packets lost, 40 commits/s of 10 targets", guarded, stock, "emptying and refilling"),
        ]

    async def nfqlb(self) -> list[Row]:
        reason = nfqlb.missing()
        if reason:
            self._say(f"real nfqlb not measured: {reason}")
            return []
        process = nfqlb.NfqlbProcess(self._lb, "stream-0", commit.TARGETS)
        await process.start()
        try:
            memory = NfqlbShmDistributor(TableKind.ANCHORED)
            await memory.attach(commit.stream())
            await commit.commit(memory, commit.EVERYONE)
            guarded = await self._send("nfqlb, lbguard's writes to its memory", self._toggling(memory))
            await memory.close()
            commands = StockCommands()
            await commands.attach(commit.stream())
            await commit.commit(commands, commit.EVERYONE)
            stock = await self._send("nfqlb, stock commands", self._toggling(commands, changed=1))
            await commands.close()
        finally:
            await process.stop()
        return [
            _row("nfqlb's memory: packets lost, 40 commits/s of 10 targets", guarded, stock, "stock commands, of 1")
        ]

    def _toggling(self, distributor: Distributor, changed: int = _CHANGED) -> Callable[[], Awaitable[object]]:
        out = frozenset(self._chance.sample(sorted(commit.EVERYONE), changed))
        states = [commit.EVERYONE - out, commit.EVERYONE]

        async def toggle() -> None:
            await commit.commit(distributor, states[0])
            states.reverse()

        return toggle

    async def _send(self, what: str, work: Callable[[], Awaitable[object]] | None) -> _Outcome:
        self._say(f"{self._load.packets} packets: {what}")
        before = self._received()
        sender = await asyncio.create_subprocess_exec(
            *self._client.command(
                sys.executable, "-m", flood.__name__, str(self._load.packets), str(self._load.per_second)
            ),
            cwd=_ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        started = time.monotonic()
        told = asyncio.create_task(sender.communicate())
        commits = await commit.paced(work, _COMMITS_PER_S, told.done) if work else 0
        output, _ = await told
        took_s = time.monotonic() - started
        await asyncio.sleep(_SETTLE_S)
        if sender.returncode:
            raise RuntimeError(f"the sender failed with status {sender.returncode}")
        sent = int(output)
        return _Outcome(sent, sent - (self._received() - before), commits, took_s)

    def _received(self) -> int:
        return arrived(self._peer)


def _row(what: str, outcome: _Outcome, beside: _Outcome | None, beside_what: str) -> Row:
    details: dict[str, object] = {"sent": outcome.sent, "commits": outcome.commits, "took_s": outcome.took_s}
    if beside is not None:
        details |= {"reference_sent": beside.sent, "reference_commits": beside.commits}
    return Row(
        benchmark=NAME,
        what=f"{what} ({outcome.sent} sent)",
        unit="packets",
        measured=outcome.lost,
        repetitions=max(1, outcome.commits),
        aim=0,
        reference=None if beside is None else beside.lost,
        reference_what=beside_what and f"lost in {beside.commits if beside else 0} times {beside_what}",
        details=details,
    )
