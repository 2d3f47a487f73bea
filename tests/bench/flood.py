"""Sends a bounded number of UDP packets from many ports to the VIPs, evenly paced; prints how many were sent.

Run it in the client's namespace: `python -m tests.bench.flood COUNT PER_SECOND`.
"""

import socket
import subprocess
import sys
import time
from pathlib import Path

from lbguard.lab.netns import Namespace
from tests.bench.world import arrived

_ROOT = Path(__file__).parents[2]
PORT = 4000
_TRIAL, _TRIAL_PER_S = 400, 4000
_FORWARDED_WITHIN_S = 30.0
VIPS = ((socket.AF_INET, "20.0.0.1"), (socket.AF_INET6, "2000::1"))
_SOURCES = 100
_TICK_S = 0.001


def until_forwarded(client: Namespace, peer: Namespace) -> None:
    """Send a few packets again and again until all arrive: a new path loses some while neighbours are resolved.

    Raises:
        TimeoutError: that did not happen.
    """
    deadline = time.monotonic() + _FORWARDED_WITHIN_S
    command = client.command(sys.executable, "-m", __spec__.name, str(_TRIAL), str(_TRIAL_PER_S))
    while time.monotonic() < deadline:
        before = arrived(peer)
        subprocess.run(command, cwd=_ROOT, check=True, capture_output=True)
        if arrived(peer) - before == _TRIAL:
            return
    raise TimeoutError(f"the path lost packets for {_FORWARDED_WITHIN_S} s, before anything was measured")


def main() -> None:
    """Send, at most what the kernel takes."""
    count, per_second = int(sys.argv[1]), int(sys.argv[2])
    sockets = []
    for family, vip in VIPS:
        for _ in range(_SOURCES):
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.connect((vip, PORT))
            sockets.append(sock)
    sent, due = 0, time.monotonic()
    burst = max(1, round(per_second * _TICK_S))
    while sent < count:
        for _ in range(min(burst, count - sent)):
            sockets[sent % len(sockets)].send(b"x" * 32)
            sent += 1
        # What was missed is not made up for in a burst: that would fill queues and lose packets on its own account.
        due = max(due + burst / per_second, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
    print(sent)


if __name__ == "__main__":
    main()
