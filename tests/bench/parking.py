"""Whether a flood into a held target delays decisions: from a link's end to the hold, without and with the flood.

    python -m tests.bench.parking [ROUNDS]

The flood is one UDP flow to a target that is held, from a process of its own, as fast as that sends. The row gives the
median of both, their ratio, the rate of the flood, and the processor time of lbguard in the meantime.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from lbguard.lab import sandbox
from lbguard.lab.netns import Namespace
from tests.netns.service.guarded import Process, stream, targets_yaml, wait_until
from tests.netns.service.test_parking import PORT, VIPS, Parked

ROUNDS = 7
_SENDER = """
import socket, sys
flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
flood.bind(("", int(sys.argv[3])))
flood.connect((sys.argv[1], int(sys.argv[2])))
while True:
    try:
        flood.send(b"x" * 64)
    except OSError:
        pass
"""


def main() -> int:
    """Measure in a sandbox and print one row."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    return sandbox.run_isolated(lambda: _inside(rounds))


def _inside(rounds: int) -> int:
    with tempfile.TemporaryDirectory() as directory:
        lab = Parked(Namespace("lb"), Namespace("px"), Namespace("client"), Path(directory))
        try:
            with lab.parking(targets=targets_yaml(stream("stream-a", 1, 3))) as service:
                _measure(lab, service, rounds)
        finally:
            lab.close()
    return 0


def _measure(lab: Parked, service: Process, rounds: int) -> None:
    lab.delete_link("nse-a")
    lab.wait_for(t1="held")
    quiet = [_hold_s(lab, service) for _ in range(rounds)]
    flood = _flood_of_held_target(lab)
    try:
        frames, cpu, began = _frames(lab), service.cpu_s(), time.monotonic()
        flooded = [_hold_s(lab, service) for _ in range(rounds)]
        took = time.monotonic() - began
        rate, share = (_frames(lab) - frames) / took, (service.cpu_s() - cpu) / took
    finally:
        flood.kill()
        flood.wait()
    print(
        f"link gone to hold: {median(quiet) * 1000:.1f} ms quiet, {median(flooded) * 1000:.1f} ms with"
        f" {rate / 1000:.0f} kpps into a held target, ratio {median(flooded) / median(quiet):.2f};"
        f" lbguard {share:.0%} of a core; {rounds} rounds each"
    )


def _hold_s(lab: Parked, service: Process) -> float:
    """Return the time from the end of a link until its target is held, and mend it."""
    before = len(_holds(service))
    began = time.time()
    lab.delete_link("nse-b")
    wait_until(lambda: len(_holds(service)) > before, "the hold")
    held_at = _holds(service)[-1]
    lab.make_link("nse-b")
    lab.wait_for(t3="active")
    return held_at - began


def _holds(service: Process) -> list[float]:
    lines = service.log("decision")
    return [float(line["ts"]) for line in lines if line["action"] == "hold" and line["identifier"] == 3]


def _frames(lab: Parked) -> int:
    """Return how many frames the kernel sent to the parking link, those included that it dropped there."""
    line = next(line for line in lab.lb.run("cat", "/proc/net/dev").splitlines() if "lbguard-park" in line)
    counts = line.split(":")[1].split()
    return int(counts[9]) + int(counts[11])


def _flood_of_held_target(lab: Parked) -> "subprocess.Popen[bytes]":
    """Start a flow that the table gives to the held target."""
    for port in range(20_000, 20_100):
        argv = lab.client_side.command(sys.executable, "-c", _SENDER, VIPS[4], str(PORT), str(port))
        flood, before = subprocess.Popen(argv), _frames(lab)
        time.sleep(1.0)
        if _frames(lab) > before + 100:
            return flood
        flood.kill()
        flood.wait()
    raise RuntimeError("no flow reaches the held target")


if __name__ == "__main__":
    sys.exit(main())
