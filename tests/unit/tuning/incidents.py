"""Scripted incidents: a real engine, recorded while links behind four proxies go and come back."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lbguard.core.config import EngineConfig, FreezeConfig
from lbguard.core.events import KernelSnapshot
from lbguard.core.model import StreamSpec, TargetSpec
from lbguard.distributor.maglev import largest_prime_at_most
from lbguard.recording.reader import find_files
from lbguard.recording.recorder import RecordedEngine
from lbguard.recording.writer import RecordingWriter
from tests.fakes.direct_tape import DirectTape
from tests.unit.core.harness import STREAM, Guard, ipv4_of

PROXIES = 4
SLOTS = largest_prime_at_most(100 * PROXIES)
PACKETS_PER_S = 200
WALL = 1_700_000_000.0
BETWEEN_S = 60.0
CONFIG = EngineConfig(neighbor_probe_interval_s=0.0, solicit_neighbors=False, freeze=FreezeConfig(threshold=0.9))


class Outage(NamedTuple):
    """The link of a proxy, and of others at the same time, is away for so long (seconds; None: for good)."""

    proxy: int
    away_s: float | None
    others: tuple[int, ...] = ()


class _Counters:
    """Packet counters that grow evenly, read every five seconds."""

    def __init__(self, guard: Guard, tape: DirectTape) -> None:
        self._guard = guard
        self._tape = tape
        self._began = guard.now
        self._read_at = guard.now

    def pass_until(self, end: float) -> None:
        while self._read_at + 5.0 <= end:
            self._read_at += 5.0
            self._guard.wait(self._read_at - self._guard.now)
            packets = round((self._read_at - self._began) * PACKETS_PER_S)
            self._tape.put("packets", self._guard.now, [(STREAM, i, packets, 0) for i in range(1, PROXIES + 1)])
        self._guard.wait(end - self._guard.now)


def record(
    directory: Path, outages: Sequence[Outage], config: EngineConfig = CONFIG, *, began: float = WALL, host: str = ""
) -> list[Path]:
    """Record a service with one target behind each of four proxies; outages follow each other by a minute."""
    guard = Guard(config, start=False)
    facts = {"host": host} if host else {}
    writer = RecordingWriter(directory, config, facts=facts, wall_offset=lambda: began - 100.0)
    tape = DirectTape(writer)
    guard.engine = RecordedEngine(config, tape)
    guard.tell(KernelSnapshot())
    for proxy in range(1, PROXIES + 1):
        guard.link(proxy, proxy=proxy)
    targets = tuple(TargetSpec(identifier=i, ips=(ipv4_of(i, i),)) for i in range(1, PROXIES + 1))
    guard.source(StreamSpec(name=STREAM, max_targets=PROXIES, targets=targets))
    tape.put("commit", guard.now, (STREAM, SLOTS, SLOTS, 0.001, ""))
    counters = _Counters(guard, tape)
    for outage in outages:
        counters.pass_until(guard.now + BETWEEN_S)
        proxies = (outage.proxy, *outage.others)
        for proxy in proxies:
            guard.unlink(proxy)
        if outage.away_s is not None:
            counters.pass_until(guard.now + outage.away_s)
            for proxy in proxies:
                guard.link(proxy, proxy=proxy)
    counters.pass_until(guard.now + BETWEEN_S)
    writer.close()
    return find_files([directory])
