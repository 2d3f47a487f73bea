"""What a link with many addresses costs: the whole of it at the start, and one address more.

Links with hundreds of addresses that lead to no target are common (a proxy that holds every service address). The cost
of one more address must not grow with those that are there, so that all of them cost in proportion to their number.
"""

import gc
import time
from pathlib import Path

from lbguard.core import events as ev
from lbguard.core.addr import Ip, parse_ip
from lbguard.core.config import EngineConfig
from lbguard.core.engine import Engine
from lbguard.core.model import StreamSpec, TargetSpec
from tests.bench.results import Row, Say, Scale

NAME = "addresses"
_SIZES = {Scale.FULL: (400, 4000), Scale.QUICK: (400, 4000), Scale.SMOKE: (10, 40)}
_WHOLE_AIM_MS = 1000.0
_ONE_MORE_AIM = 1.5
_REPETITIONS = 50


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Measure a full view and single changes, with few and with many addresses on one link."""
    few, many = _SIZES[scale]
    whole: dict[int, list[float]] = {}
    one_more: dict[int, list[float]] = {}
    for count in (few, many):
        say(f"{count} addresses on one link")
        whole[count], one_more[count] = _measure(count)
    base = sorted(one_more[few])[len(one_more[few]) // 2]
    return [
        Row.of(
            NAME,
            f"a full view with {many} addresses on one link",
            "ms",
            whole[many],
            aim=_WHOLE_AIM_MS,
            reference=sorted(whole[few])[0],
            reference_what=f"with {few} addresses",
        ),
        Row.of(
            NAME,
            f"one address more on a link with {many}",
            "us",
            one_more[many],
            aim=base * _ONE_MORE_AIM,
            reference=base,
            reference_what=f"with {few} addresses",
        ),
    ]


def _address(number: int) -> Ip:
    return bytes((10, 9 + number // 62500, number // 250 % 250, number % 250 + 1))


def _measure(count: int) -> tuple[list[float], list[float]]:
    """Return how long a full view takes (ms), and one address more or less (us)."""
    target = TargetSpec(identifier=1, ips=(parse_ip("172.16.0.10"),))
    links = (
        ev.LinkSeen(ifindex=2, name="nse-a", up=True, mac=bytes(6)),
        ev.LinkSeen(ifindex=3, name="ext0", up=True, mac=bytes(6)),
    )
    held = tuple(ev.AddressSeen(ifindex=3, ip=_address(n), prefix_length=32) for n in range(count))
    near = ev.AddressSeen(ifindex=2, ip=parse_ip("172.16.0.1"), prefix_length=24)
    whole = []
    gc.collect()
    for _ in range(3):
        engine = Engine(EngineConfig())
        engine.observe(ev.SourceSnapshot(streams=(StreamSpec(name="stream-a", targets=(target,)),)), 1000.0)
        started = time.process_time()
        engine.observe(ev.KernelSnapshot(links=links, addresses=(near, *held)), 1000.0)
        engine.decide(1000.0)
        whole.append((time.process_time() - started) * 1e3)
    one_more = []
    for n in range(_REPETITIONS):
        ip = _address(count + n)
        started = time.process_time()
        engine.observe(ev.AddressSeen(ifindex=3, ip=ip, prefix_length=32), 1000.0)
        engine.decide(1000.0)
        engine.observe(ev.AddressGone(ifindex=3, ip=ip, prefix_length=32), 1000.0)
        engine.decide(1000.0)
        one_more.append((time.process_time() - started) * 1e6)
    return whole, one_more
