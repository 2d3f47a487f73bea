"""What the packet counters of each target add to the cost of a packet, beside the nftables distributor alone.

Measured as `affinity_packets.py` does: the table is switched off and on before each few thousand packets. For a
target whose path may be lost, the kernel looks up the route of each packet, to count what the fallback drops.
"""

import asyncio
from pathlib import Path

from lbguard.distributor.nftables.counters import FAMILY, TABLE, FallbackCounters
from tests.bench.affinity_packets import SIZES, TARGETS, UNKNOWN, Trial
from tests.bench.results import Row, Say, Scale
from tests.bench.world import mark_of, path

NAME = "counting"


class _CountingTrial(Trial):
    """The packet counters in the place of flow affinity."""

    where = " by its counters"
    table = f"{FAMILY} {TABLE}"


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Measure packets to targets whose paths are good, and to suspected ones whose paths are good all the same."""
    del directory
    return asyncio.run(_run(scale, say))


async def _run(scale: Scale, say: Say) -> list[Row]:
    marks = tuple(map(mark_of, range(TARGETS)))
    rows = []
    with path("counting", TARGETS, "tcp dport 443") as (client, built):
        trial = _CountingTrial(NAME, SIZES[scale], say, client, built)
        await trial.start()
        with built.lb.entered():
            counters = FallbackCounters()
        try:
            for what, suspected in (("path good", ()), ("path may be lost", marks)):
                await counters.ensure(marks, suspected)
                rows += [trial.compare(f"IPv{family}, {what}", family, UNKNOWN) for family in (4, 6)]
        finally:
            await counters.close()
            await trial.stop()
    return rows
