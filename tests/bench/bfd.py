"""Debian's `bfdd` (package frr) keeping as many multihop BFD sessions, a packet each 250 ms: a ping's work in C.

BFD is what routers use to watch paths. It sends and receives as many packets as the monitor has pings and replies, and
judges them. It reads its sessions from a file, and takes minutes for thousands; so a few hundred are measured, whose
processor time per packet does not become less with more of them.
"""

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lbguard.core.addr import format_ip
from lbguard.lab.netns import Namespace
from tests.bench.detectors import connections_of, joined_ends

PACKAGE = "frr"
SESSIONS = 200
_PROGRAMS = Path("/usr/lib/frr")
_CRASH_LOGS = Path("/var/tmp/frr")
_USER = "frr"
_NEAR = "10.50.0.1"
_PERIOD_MS = 250
_START_S = 1.0
_ESTABLISHED_LIMIT_S = 60.0


def missing() -> str:
    """Say why it cannot be measured; empty when it can."""
    return "" if (_PROGRAMS / "bfdd").exists() else f"bfdd is not installed (apt-get install {PACKAGE})"


def measure(settle_s: float, watch_s: float) -> float:
    """Keep the sessions and return the processor time of one end for each packet that it sends, in microseconds."""
    with contextlib.ExitStack() as stack:
        near, far = stack.enter_context(joined_ends())
        peers = [format_ip(connection.pairs[0].destination) for connection in connections_of(SESSIONS, "eth0")]
        process = stack.enter_context(_running(near, [(peer, _NEAR) for peer in peers]))
        stack.enter_context(_running(far, [(_NEAR, peer) for peer in peers]))
        _await_rate(near)
        time.sleep(settle_s)
        sent, cpu_s = _sent(near), _cpu_s(process.pid)
        time.sleep(watch_s)
        return 1e6 * (_cpu_s(process.pid) - cpu_s) / (_sent(near) - sent)


def _await_rate(near: Namespace) -> None:
    """Wait until most packets of all sessions leave: a session that is down sends one a second."""
    deadline = time.monotonic() + _ESTABLISHED_LIMIT_S
    while time.monotonic() < deadline:
        sent, began = _sent(near), time.monotonic()
        time.sleep(1)
        if (_sent(near) - sent) / (time.monotonic() - began) > 0.8 * SESSIONS * 1000 / _PERIOD_MS:
            return
    raise TimeoutError("the BFD sessions were not established")


@contextlib.contextmanager
def _running(end: Namespace, sessions: list[tuple[str, str]]) -> Iterator[subprocess.Popen[bytes]]:
    """Run bfdd, and the zebra that it asks about links, with sessions to (peer, own address)."""
    lines = ["bfd", " profile p", f"  transmit-interval {_PERIOD_MS}", f"  receive-interval {_PERIOD_MS}", " exit"]
    for peer, own in sessions:
        lines += [f" peer {peer} multihop local-address {own}", "  profile p", " exit"]
    with tempfile.TemporaryDirectory(prefix="lbguard-bench-") as place, contextlib.ExitStack() as stack:
        directory = Path(place)
        (directory / "bfdd.conf").write_text("\n".join([*lines, "exit"]) + "\n")
        (directory / "zebra.conf").touch()
        shutil.chown(directory, _USER)
        stack.enter_context(_program(end, "zebra", directory))
        time.sleep(_START_S)
        yield stack.enter_context(_program(end, "bfdd", directory, "--bfdctl", str(directory / "control")))


@contextlib.contextmanager
def _program(end: Namespace, name: str, directory: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    paths = ("-f", directory / f"{name}.conf", "-i", directory / f"{name}.pid", "-z", directory / "zebra.api")
    command = end.command(
        str(_PROGRAMS / name),
        *map(str, paths),
        "--vty_socket",
        str(directory),
        "-P",
        "0",
        "--log",
        "syslog",
        *arguments,
    )
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with status {process.returncode}")
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(_CRASH_LOGS / f"{name}.{process.pid}", ignore_errors=True)


def _cpu_s(pid: int) -> float:
    """Return the processor time of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _sent(near: Namespace) -> int:
    """Return how many UDP datagrams the namespace has sent."""
    with near.entered():
        lines = [
            line for line in Path("/proc/thread-self/net/snmp").read_text().splitlines() if line.startswith("Udp:")
        ]
    return int(dict(zip(lines[0].split(), lines[1].split(), strict=True))["OutDatagrams"])
