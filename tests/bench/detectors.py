"""`python -m tests.bench.detectors`: how fast each judge of the monitor sees a loss, and how often it cries wolf.

Two parts, one table. Simulated: the whole monitor over a network that loses packets by a seeded random number, in time
that is told, so that half an hour of many connections takes seconds. Measured: the same monitor with real sockets in
namespaces, where nftables drops packets and SIGSTOP takes the CPU away, for a shorter time. Rounds are ten times faster
there, so a second holds as many of them as ten seconds at the defaults.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lbguard.core.addr import Ip
from lbguard.core.model import TargetSubject, Verdict, VerdictState
from lbguard.lab.netns import Namespace, connect
from lbguard.lab.sandbox import run_isolated
from lbguard.probe.connections import Connection, pairs_of
from lbguard.probe.monitor import Monitor
from tests.bench.nsm_rule import Judge, factory_of, settings_of
from tests.fakes.echo import EchoNetwork, Time, drive

LOSSES = (0.0, 0.01, 0.05, 0.2)
REAL_INTERVAL_S = 0.2
_HALF_HOUR_S = 1800.0
_OURS = (bytes((10, 50, 0, 1)), b"\xfd\x50" + bytes(13) + b"\1")
_STOPPED_S, _RUNNING_S = 1.5 * REAL_INTERVAL_S, 0.15 * REAL_INTERVAL_S
_STARVED_INTERVALS = 10


@dataclass(slots=True)
class Found:
    """What was found for one judge in one situation. Times in intervals from the cut to DOWN.

    `late`: the share of pings that left more than 25 ms late. Where it is not 0, the machine was part of what was
    measured.
    """

    false_downs: int = 0
    connection_hours: float = 0.0
    detection: list[float] = field(default_factory=list)
    missed: int = 0
    late: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Packets are lost with probability `loss`, each way; `starved`: the monitor gets CPU for moments only."""

    loss: float = 0.0
    starved: bool = False

    def __str__(self) -> str:
        return "no CPU" if self.starved else f"{self.loss:.0%} loss"


SITUATIONS = (*(Situation(loss=loss) for loss in LOSSES), Situation(starved=True))


def _theirs(number: int) -> tuple[Ip, Ip]:
    low = number.to_bytes(2)
    return b"\x0a\x33" + low, b"\xfd\x51" + bytes(12) + low


def connections_of(count: int, ifname: str = "") -> list[Connection]:
    return [
        Connection(
            id=str(number),
            subject=TargetSubject(ip=_theirs(number)[0]),
            pairs=pairs_of(_OURS, _theirs(number)),
            ifname=ifname,
        )
        for number in range(1, count + 1)
    ]


class _Simulation:
    """The monitor over a network in time that is told."""

    def __init__(self, detector: Judge, situation: Situation, connections: int, seed: int) -> None:
        self.time = Time()
        # A ping comes back if neither it nor its reply is lost.
        self.network = EchoNetwork(self.time, seed=seed, loss=1 - (1 - situation.loss) ** 2)
        self.settings = settings_of(detector)
        self.downs: list[tuple[float, Ip]] = []
        self._last: dict[Ip, VerdictState] = {}
        self._situation = situation
        self.monitor = Monitor(
            self.settings,
            self._take,
            self.time,
            open_socket=self.network.open_socket,
            first_generation=0,
            seed=seed,
            judge_of=factory_of(detector),
        )
        self.monitor.set_connections(connections_of(connections))

    def _take(self, verdict: Verdict) -> None:
        assert isinstance(verdict.subject, TargetSubject)
        ip = verdict.subject.ip
        if verdict.state is VerdictState.DOWN and self._last.get(ip) is not VerdictState.DOWN:
            self.downs.append((self.time.now, ip))
        self._last[ip] = verdict.state

    def run(self, seconds: float, *, starved: bool) -> None:
        until = self.time.now + seconds
        while starved and self.time.now < until:
            # Like SIGSTOP in the measured part: nothing for one and a half intervals, then CPU for a moment.
            self.time.now += 1.5 * self.settings.interval_s
            drive(self.monitor, self.network, self.time.now + 0.15 * self.settings.interval_s)
        drive(self.monitor, self.network, until)


def simulate(detector: Judge, situation: Situation, connections: int, cuts: int) -> Found:
    """Count false alarms in half an hour, and time real losses from moments spread over an interval."""
    long = _Simulation(detector, situation, connections, seed=1)
    long.run(_HALF_HOUR_S, starved=situation.starved)
    found = Found(false_downs=len(long.downs), connection_hours=connections * _HALF_HOUR_S / 3600)
    for number in range(cuts):
        short = _Simulation(detector, situation, 1, seed=100 + number)
        interval_s = short.settings.interval_s
        short.run(interval_s * (10 + number / cuts), starved=situation.starved)
        short.downs.clear()
        cut_at = short.time.now
        short.network.cut = set(_theirs(1))
        short.run(interval_s * _STARVED_INTERVALS, starved=situation.starved)
        short.run(interval_s * 10, starved=False)
        if short.downs:
            found.detection.append((short.downs[0][0] - cut_at) / interval_s)
        else:
            found.missed += 1
    return found


@contextlib.contextmanager
def joined_ends() -> Iterator[tuple[Namespace, Namespace]]:
    """Make two joined namespaces; the far one answers for any number of addresses."""
    with Namespace("near") as near, Namespace("far") as far:
        connect(near, "eth0", far, "eth0")
        for end, number in ((near, 1), (far, 2)):
            end.add_addresses("eth0", f"10.50.0.{number}/24", f"fd50::{number}/64")
        for prefix, gateway in (("10.51.0.0/16", "10.50.0.2"), ("fd51::/64", "fd50::2")):
            near.add_route(prefix, gateway)
            far.add_route(prefix, link="lo", kind="local")
        yield near, far


def _drop(end: Namespace, percent: int) -> None:
    """Have an end drop this share of what it receives; the rule replaces that of before."""
    lossy = f"numgen random mod 100 < {percent} drop" if percent < 100 else "drop"
    script = "add table inet loss\ndelete table inet loss\nadd table inet loss\n"
    script += "add chain inet loss in { type filter hook input priority 0; }\n"
    if percent:
        script += f"add rule inet loss in ip protocol icmp {lossy}\n"
        script += f"add rule inet loss in icmpv6 type {{ echo-request, echo-reply }} {lossy}\n"
    subprocess.run(end.command("nft", "-f", "-"), input=script, text=True, check=True)


def measure(situation: Situation, connections: int, seconds: float) -> dict[Judge, Found]:
    """Run one monitor process a judge beside each other: count false alarms, then cut the path and wait."""
    after_s = REAL_INTERVAL_S * 2 * _STARVED_INTERVALS
    with joined_ends() as (near, far):
        for end in (near, far):
            _drop(end, round(situation.loss * 100))
        command = [sys.executable, "-m", "tests.bench.detectors", "--probe", str(connections)]
        children = {
            detector: subprocess.Popen(
                near.command(*command, detector, str(seconds + after_s + 8)), stdout=subprocess.PIPE, text=True
            )
            for detector in Judge
        }
        time.sleep(3)  # until all are up; a DOWN before is counted like any other
        began = time.monotonic()
        with _starving(list(children.values())) if situation.starved else contextlib.nullcontext():
            time.sleep(seconds)
            cut_at = time.monotonic()
            _drop(far, 100)
            time.sleep(REAL_INTERVAL_S * _STARVED_INTERVALS)
        results = {detector: child.communicate(timeout=120)[0] for detector, child in children.items()}
    found = {}
    for detector, text in results.items():
        told = json.loads(text)
        downs = [(float(at), ip) for at, ip in told["downs"]]
        seen: dict[str, float] = {}
        for at, ip in downs:
            if at >= cut_at:
                seen.setdefault(ip, (at - cut_at) / REAL_INTERVAL_S)
        found[detector] = Found(
            false_downs=sum(at < cut_at for at, _ in downs),
            connection_hours=connections * (cut_at - began) / 3600,
            detection=list(seen.values()),
            missed=connections - len(seen),
            late=told["late"],
        )
    return found


@contextlib.contextmanager
def _starving(children: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Let the processes run for moments only, from a process of its own that ends with this context."""
    pids = [child.pid for child in children]
    starver = os.fork()
    if starver == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        while True:
            for sign, length_s in ((signal.SIGSTOP, _STOPPED_S), (signal.SIGCONT, _RUNNING_S)):
                for pid in pids:
                    os.kill(pid, sign)
                time.sleep(length_s)
    try:
        yield
    finally:
        os.kill(starver, signal.SIGTERM)
        os.waitpid(starver, 0)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def _probe(connections: int, detector: Judge, seconds: float) -> None:
    """Monitor in this process, then print when which subject became DOWN."""
    downs: list[tuple[float, str]] = []
    last: dict[Ip, VerdictState] = {}

    def take(verdict: Verdict) -> None:
        assert isinstance(verdict.subject, TargetSubject)
        ip = verdict.subject.ip
        if verdict.state is VerdictState.DOWN and last.get(ip) is not VerdictState.DOWN:
            downs.append((time.monotonic(), ip.hex()))
        last[ip] = verdict.state

    monitor = Monitor(settings_of(detector, REAL_INTERVAL_S), take, judge_of=factory_of(detector))
    monitor.set_connections(connections_of(connections, "eth0"))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(monitor.run(), seconds)
    lag = monitor.counters.lag
    late = sum(count for bound, count in zip((*lag.bounds_s, math.inf), lag.counts, strict=True) if bound > 0.025)
    json.dump({"downs": downs, "late": late / max(1, sum(lag.counts))}, sys.stdout)


def _detection(found: Found) -> str:
    if not found.detection:
        return "never"
    text = f"{statistics.median(found.detection):.2f} / {max(found.detection):.2f}"
    return f"{text} ({found.missed} missed)" if found.missed else text


def table(simulated: dict[tuple[Judge, Situation], Found], measured: dict[tuple[Judge, Situation], Found]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| situation | judge | simulated: false DOWN | detection | measured: false DOWN | detection | late pings |",
        "|---|---|---|---|---|---|---|",
    ]
    for situation in SITUATIONS:
        for detector in Judge:
            cells = [str(situation), detector.value]
            for results in (simulated, measured):
                found = results.get((detector, situation))
                if found is None:
                    cells += ["", ""]
                else:
                    cells += [f"{found.false_downs} in {found.connection_hours:.1f} h", _detection(found)]
            real = measured.get((detector, situation))
            cells.append(f"{real.late:.1%}" if real else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _compare(connections: int, seconds: float, cuts: int, output: Path | None) -> int:
    simulated: dict[tuple[Judge, Situation], Found] = {}
    measured: dict[tuple[Judge, Situation], Found] = {}
    for situation in SITUATIONS:
        if seconds:
            print(f"measuring: {situation}", file=sys.stderr, flush=True)
            for detector, found in measure(situation, connections, seconds).items():
                measured[detector, situation] = found
        for detector in Judge:
            print(f"simulating: {situation}, {detector}", file=sys.stderr, flush=True)
            simulated[detector, situation] = simulate(detector, situation, connections, cuts)
    text = table(simulated, measured)
    print(f"{os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}")
    print(text)
    if output:
        output.write_text(text + "\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, or be one of the processes compared."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.detectors", description=__doc__)
    parser.add_argument("--connections", type=int, default=50, help="dual-stack connections, simulated and measured")
    parser.add_argument(
        "--seconds", type=float, default=180.0, help="how long false alarms are counted; 0: simulate only"
    )
    parser.add_argument("--cuts", type=int, default=100, help="simulated losses")
    parser.add_argument("--output", type=Path, help="write the table to this file")
    parser.add_argument("--probe", nargs=3, metavar=("COUNT", "JUDGE", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.probe:
        count, detector, seconds = options.probe
        asyncio.run(_probe(int(count), Judge(detector), float(seconds)))
        return 0
    output = options.output.resolve() if options.output else None
    return run_isolated(lambda: _compare(options.connections, options.seconds, options.cuts, output))


if __name__ == "__main__":
    sys.exit(main())
