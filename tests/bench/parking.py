"""A flood into a held target whose packets are parked: how late the hold of another target is, and what lbguard takes.

A hold is late for two reasons: the flood competes with lbguard for the processors, and lbguard reads the flood itself.

- Competition: two load balancers are alike, but one has no parking, so the kernel drops the flood there.
- Own work: lbguard has real-time priority for a moment, with and without the flood, so that nothing else delays it.

All kinds of rounds take turns, so that other load on the machine meets all of them.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lbguard.lab.netns import Namespace
from tests.bench.results import Row, Say, Scale, Summary
from tests.netns.service.guarded import PATIENT, Process, stream, targets_yaml, wait_until
from tests.netns.service.test_parking import FAMILIES, PORT, VIPS, Parked

NAME = "parking"
_CPU_AIM = 20.0
_RATIO_AIM = 1.2
_ROUNDS = {Scale.FULL: 30, Scale.QUICK: 10, Scale.SMOKE: 1}
_TARGETS = targets_yaml(stream("stream-a", 1, 3))
_FULL_S = 0.5
"""Time in which the flood fills the buffer, before a round begins."""
_PER_MS = 100
_ROOT = Path(__file__).parents[2]


class Flooded:
    """A load balancer with one target that is held, and a flood to it that is stopped while it is not wanted."""

    def __init__(self, name: str, directory: Path, *, parking: bool) -> None:
        self.lab = Parked(Namespace(f"{name}-lb"), Namespace(f"{name}-px"), Namespace(f"{name}-client"), directory)
        self._parking = parking
        self.holds_ms: dict[tuple[bool, bool], list[float]] = {}
        """By whether the flood ran, and whether with real-time priority: from the end of a link to the hold."""
        self.cpu_s = self.flooded_s = self.packets = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the service, and have one target held."""
        lab = self.lab
        settings = PATIENT | {"LBGUARD_PARKING__ENABLED": str(self._parking).lower()}
        try:
            with lab.service(settings, targets=_TARGETS, admitted=2) as self.service:
                if self._parking:
                    lab.in_force()
                lab.forwards()
                lab.delete_link("nse-a")
                lab.wait_for(t1="held")
                self._flood = self._flood_of(self._port_to_held())
                try:
                    os.kill(self._flood.pid, signal.SIGSTOP)
                    yield
                finally:
                    self._flood.kill()
                    self._flood.wait()
        finally:
            lab.close()

    def _port_to_held(self) -> int:
        """Return a source port whose packets do not go to the other target."""
        for port in range(20_000, 20_100):
            with self.lab.client_side.entered():
                trial = socket.socket(FAMILIES[4], socket.SOCK_DGRAM)
            before = self._counter("nse-b", 9)
            with trial:
                trial.bind(("", port))
                for _ in range(200):
                    trial.sendto(b"x", (VIPS[4], PORT))
            if self._counter("nse-b", 9) < before + 100:
                return port
        raise RuntimeError("no flow reaches the held target")

    def _flood_of(self, port: int) -> "subprocess.Popen[bytes]":
        macs = (self.lab.client_side.link("up").mac, self.lab.lb.link("client").mac)
        argv = (sys.executable, "-m", "tests.bench.parking_flood", "up", *macs, str(port), str(_PER_MS))
        made = subprocess.Popen(self.lab.client_side.command(*argv), cwd=_ROOT)
        # On a busy machine it would send much less.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, made.pid, -20)
        return made

    def _counter(self, link: str, column: int) -> int:
        lines = self.lab.lb.run("cat", "/proc/net/dev").splitlines()
        return int(next(line for line in lines if line.strip().startswith(f"{link}:")).split(":")[1].split()[column])

    def measure(self, *, flooded: bool, real_time: bool = False) -> None:
        """Measure one hold."""
        samples = self.holds_ms.setdefault((flooded, real_time), [])
        with self._flowing() if flooded else contextlib.nullcontext():
            samples.append(1000 * hold_s(self.lab, self.service, real_time=real_time))

    @contextlib.contextmanager
    def _flowing(self) -> Iterator[None]:
        """Have the flood flow; it fills the buffer first, then lbguard's use of a processor is counted."""
        os.kill(self._flood.pid, signal.SIGCONT)
        try:
            time.sleep(_FULL_S)
            began, cpu_s, packets = time.monotonic(), self.service.cpu_s(), self._counter("client", 1)
            time.sleep(_FULL_S)
            self.cpu_s += self.service.cpu_s() - cpu_s
            self.packets += self._counter("client", 1) - packets
            self.flooded_s += time.monotonic() - began
            yield
        finally:
            os.kill(self._flood.pid, signal.SIGSTOP)


def hold_s(lab: Parked, service: Process, *, real_time: bool) -> float:
    """Return the time from the end of a link until its target is held, and make the link again."""

    def holds() -> list[float]:
        lines = service.log("decision")
        return [float(line["ts"]) for line in lines if line["action"] == "hold" and line["identifier"] == 3]

    before = len(holds())
    with _real_time(service.pid, os.getpid()) if real_time else contextlib.nullcontext():
        began = time.time()
        lab.delete_link("nse-b")
        wait_until(lambda: len(holds()) > before, "the hold")
    held_at = holds()[-1]
    lab.make_link("nse-b")
    lab.wait_for(t3="active")
    return held_at - began


@contextlib.contextmanager
def _real_time(*processes: int) -> Iterator[None]:
    """Give the threads of processes priority over everything else."""
    threads = [int(task.name) for process in processes for task in Path(f"/proc/{process}/task").iterdir()]

    def schedule(policy: int, priority: int) -> None:
        for thread in threads:
            # Threads of a pool end.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(thread, policy | os.SCHED_RESET_ON_FORK, os.sched_param(priority))

    try:
        schedule(os.SCHED_FIFO, 1)
        yield
    finally:
        schedule(os.SCHED_OTHER, 0)


def _real_time_permitted() -> bool:
    try:
        with _real_time(os.getpid()):
            return True
    except PermissionError:
        return False


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Flood two load balancers in turn, of which only one has parking."""
    rounds = _ROUNDS[scale]
    priorities = (False, True) if _real_time_permitted() else (False,)
    if len(priorities) == 1:
        say("real-time priority is not permitted: lbguard's own work is not told from competition")
    parked, dropped = (
        Flooded("parked", directory, parking=True),
        Flooded("dropped", directory, parking=False),
    )
    with parked.running(), dropped.running():
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}: no flood, a flood that is parked, one that is dropped")
            for real_time in priorities:
                parked.measure(flooded=False, real_time=real_time)
                parked.measure(flooded=True, real_time=real_time)
            dropped.measure(flooded=True)
    return _rows(parked, dropped)


def _rows(parked: Flooded, dropped: Flooded) -> list[Row]:
    rates = {
        "kpps": round(parked.packets / parked.flooded_s / 1000, 1),
        "dropped_kpps": round(dropped.packets / dropped.flooded_s / 1000, 1),
    }
    quiet = Summary.of(parked.holds_ms[False, False])
    rows = [
        Row.of(
            NAME,
            "link gone to hold while a flood to another held target is parked",
            "ms",
            parked.holds_ms[True, False],
            reference=Summary.of(dropped.holds_ms[True, False]).median,
            reference_what="while it is dropped",
            details=rates | {"without_flood_ms": quiet.median, "without_flood_p95_ms": quiet.p95},
        ),
        Row(
            benchmark=NAME,
            what=f"processor use during a flood of at most {_PER_MS} kpps to a held target",
            unit="% of a core",
            measured=100 * parked.cpu_s / parked.flooded_s,
            repetitions=sum(len(samples) for (flooded, _), samples in parked.holds_ms.items() if flooded),
            aim=_CPU_AIM,
            reference=100 * dropped.cpu_s / dropped.flooded_s,
            reference_what="without parking",
            details=rates,
        ),
    ]
    if (True, True) in parked.holds_ms:
        alone = Summary.of(parked.holds_ms[False, True]).median
        rows.append(
            Row.of(
                NAME,
                "the hold with real-time priority, so that only lbguard's own work delays it",
                "ms",
                parked.holds_ms[True, True],
                aim=_RATIO_AIM * alone,
                reference=alone,
                reference_what="without a flood",
                details=rates,
            )
        )
    return rows
