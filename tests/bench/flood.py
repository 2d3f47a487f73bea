"""Sends a bounded number of UDP packets from many ports to the VIPs, evenly paced; prints how many were sent.

Run it in the client's namespace: `python -m tests.bench.flood COUNT PER_SECOND`.
"""

import socket
import sys
import time

PORT = 4000
VIPS = ((socket.AF_INET, "20.0.0.1"), (socket.AF_INET6, "2000::1"))
_SOURCES = 100
_TICK_S = 0.001


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
