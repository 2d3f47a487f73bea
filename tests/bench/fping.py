"""Debian's `fping` doing the same work as the monitor, as far as it can: an echo to each IPv4 address every 250 ms.

It judges nothing and reports nothing, so it is a lower bound for a program in C that does.
"""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from lbguard.core.addr import format_ip
from lbguard.lab.netns import Namespace
from tests.bench.detectors import connections_of, joined_ends

PACKAGE = "fping"
PER_PROCESS = 1250
"""It has 65,535 sequence numbers and keeps each for 10 s, which is enough for 6,500 pings a second and no more."""
_PERIOD_MS = 250
_GAP_MS = 0.04


def missing() -> str:
    """Say why it cannot be measured; empty when it can."""
    return "" if shutil.which("fping") else f"fping is not installed (apt-get install {PACKAGE})"


def measure(addresses: int, settle_s: float, watch_s: float) -> tuple[float, float]:
    """Ping so many addresses; return the processor time that it takes (percent of a core), and the pings a second."""
    ips = [format_ip(connection.pairs[0].destination) for connection in connections_of(addresses, "eth0")]
    with contextlib.ExitStack() as stack:
        near, _ = stack.enter_context(joined_ends())
        shares = [ips[start : start + PER_PROCESS] for start in range(0, addresses, PER_PROCESS)]
        pids = [stack.enter_context(_running(near, share)).pid for share in shares]
        time.sleep(settle_s)
        sent, cpu_s, began = _sent(near), sum(map(_cpu_s, pids)), time.monotonic()
        time.sleep(watch_s)
        took_s = time.monotonic() - began
        return 100 * (sum(map(_cpu_s, pids)) - cpu_s) / took_s, (_sent(near) - sent) / took_s


@contextlib.contextmanager
def _running(near: Namespace, ips: list[str]) -> Iterator[subprocess.Popen[str]]:
    command = near.command(
        "fping", "-4", "--loop", "--quiet", f"--period={_PERIOD_MS}", f"--interval={_GAP_MS}", "--iface=eth0"
    )
    with subprocess.Popen(
        [*command, "--file=-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        process.stdin.write("\n".join(ips) + "\n")
        process.stdin.close()
        try:
            yield process
            if process.poll() is not None:
                raise RuntimeError(f"fping ended with status {process.returncode}")
        finally:
            process.kill()


def _cpu_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _sent(near: Namespace) -> int:
    """Return how many ICMP messages the namespace has sent."""
    with near.entered():
        lines = [
            line for line in Path("/proc/thread-self/net/snmp").read_text().splitlines() if line.startswith("Icmp:")
        ]
    return int(dict(zip(lines[0].split(), lines[1].split(), strict=True))["OutMsgs"])
