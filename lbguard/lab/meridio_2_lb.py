"""A stand-in for the load balancer process of Meridio-2, not modified for lbguard: it runs `nfqlb` by name.

In the order of the real one (July 2026). At its start it deletes every rule with a mark of 5000 or above and the
default route of that table, starts nfqlb's packet process, and removes its readiness files. Then each reconcile:

1. The memory is made if this process has not made it (`init`).
2. Targets that are not listed, or not ready, are deactivated; then their rules and routes are deleted.
3. Each listed target gets a rule (unless one of that mark and table exists) and a route by gateway alone, replaced, for
   each address. If the addresses changed, the neighbour entries of the earlier ones are deleted first, and their rules
   and routes. Only a target that is new, or had a failed step, is activated. If a route is refused, its rule is
   deleted.
4. `lb-ready-STREAM` exists while one of them was activated without an error.
5. Flows are declared, and packets of the VIPs are queued, at priority filter.

It follows no link. A reconcile happens when the list changes (SIGHUP), and after a failure with a growing delay.

    python -m lbguard.lab.meridio_2_lb --targets FILE --readiness DIRECTORY [--shm-dir DIRECTORY]

The list has identifiers from 1, those here begin at 0. It logs as `stateless_lb` does.
"""

import argparse
import asyncio
import ctypes
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from lbguard.core.addr import format_ip
from lbguard.distributor.nftables.queueing import FILTER
from lbguard.lab.netns import CurrentNamespace
from lbguard.lab.network import Network
from lbguard.lab.nfqlb_calls import NfqlbCalls
from lbguard.lab.queueing import send_to_queues
from lbguard.lab.stand_in import accepted, any_of, log, read_stream
from lbguard.lab.topology import VIP4, VIP6

OFFSET = 5000
TABLE = "meridio-lb"
QUEUES = (0, 3)
READY_PREFIX = "lb-ready-"
RETRY_S, RETRY_MAX_S = 0.005, 60.0
NEVER_S = 3600.0
_FLOW_TRIES = 100
_PR_SET_PDEATHSIG = 1


class Targets:
    """The targets of one stream, by their identifiers: their addresses, and those with a failed step."""

    def __init__(self, network: Network, nfqlb: NfqlbCalls) -> None:
        self._network = network
        self._nfqlb = nfqlb
        self._targets: dict[int, tuple[str, ...]] = {}
        self._broken: set[int] = set()

    def sweep(self) -> None:
        """Delete every rule of a mark from the first offset on, and the default route of its table."""
        network = self._network
        for rule in network.rules():
            if rule.mark >= OFFSET:
                default = "default" if rule.ipv4 else "::/0"
                accepted(network.delete_route, default, table=rule.mark)
                accepted(network.delete_rule, rule.mark, rule.table, ipv4=rule.ipv4)

    def reconcile(self, wanted: Mapping[int, tuple[str, ...]]) -> tuple[bool, bool]:
        """Follow the list; return whether every step succeeded, and whether a target was activated without error."""
        done, ready = True, False
        for identifier in [known for known in self._targets if known not in wanted]:
            done &= self._delete(identifier)
        for identifier, ips in wanted.items():
            added = self._add(identifier, tuple(sorted(ips)))
            done &= added
            ready |= added
        return done, ready

    def _add(self, identifier: int, ips: tuple[str, ...]) -> bool:
        mark, known = OFFSET + identifier, self._targets.get(identifier)
        activate = known is None or identifier in self._broken
        for ip in known if known is not None and known != ips else ():
            self._clean_neighbor(ip)
            if ip not in ips:
                self._delete_path(mark, ip)
        self._targets[identifier] = ips
        paths = [self._create_path(mark, ip) for ip in ips]
        done = all(paths)
        if done and activate:
            done = self._nfqlb.activate(identifier, mark)
            if done:
                self._nfqlb.say(identifier, "admit" if known is None else "readmit", "active")
        (self._broken.discard if done else self._broken.add)(identifier)
        return done

    def _delete(self, identifier: int) -> bool:
        started = time.monotonic()
        if not self._nfqlb.deactivate(identifier):
            self._broken.add(identifier)
            return False
        for ip in self._targets[identifier]:
            self._delete_path(OFFSET + identifier, ip)
        # A target that drains stays in the table for long.
        threading.Thread(target=self._nfqlb.watch_removal, args=(identifier, started), daemon=True).start()
        del self._targets[identifier]
        self._broken.discard(identifier)
        self._nfqlb.say(identifier, "remove", None)
        return True

    def _create_path(self, mark: int, ip: str) -> bool:
        network, ipv4 = self._network, ":" not in ip
        there = any((rule.mark, rule.table) == (mark, mark) for rule in network.rules(ipv4=ipv4))
        if not there and not accepted(network.add_rule, mark, mark, ipv4=ipv4):
            return False
        if accepted(network.replace_route, "default", ip, table=mark):
            return True
        accepted(network.delete_rule, mark, mark, ipv4=ipv4)
        return False

    def _delete_path(self, mark: int, ip: str) -> None:
        """Delete rule and route; the absent ones are as wanted."""
        accepted(self._network.delete_rule, mark, mark, ipv4=":" not in ip)
        accepted(self._network.delete_route, "default", ip, table=mark)

    def _clean_neighbor(self, ip: str) -> None:
        for entry in self._network.neighbors():
            if entry.ip == ip:
                self._network.delete_neighbor(ip, entry.link)


class LoadBalancer:
    """The process: its packet process, flows and readiness file, beside the targets."""

    def __init__(self, targets_file: Path, shm_dir: Path, readiness: Path) -> None:
        self._targets_file = targets_file
        self._stream = read_stream(targets_file)
        self._nfqlb = NfqlbCalls(self._stream, self._stream.name, shm_dir, first=0)
        self._targets = Targets(Network(), self._nfqlb)
        self._ready_file = readiness / f"{READY_PREFIX}{self._stream.name}"
        self._initialised = self._has_flows = False
        self._flowlb: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Do what comes before the first reconcile."""
        self._targets.sweep()
        first, last = QUEUES
        # Kept, because asyncio kills the process of an object that is collected.
        self._flowlb = await asyncio.create_subprocess_exec(
            *("nfqlb", "flowlb", "--promiscuous_ping", f"--queue={first}:{last}", "--qlength=1024"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            # It ends with its container.
            preexec_fn=lambda: ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        self._ready_file.parent.mkdir(parents=True, exist_ok=True)
        for file in self._ready_file.parent.glob(f"{READY_PREFIX}*"):
            file.unlink(missing_ok=True)

    async def packets_ended(self) -> str:
        """Wait until the packet process has ended, which ends the container; return its last words."""
        assert self._flowlb is not None
        _, said = await self._flowlb.communicate()
        return f"status {self._flowlb.returncode}: {said.decode(errors='replace')[-500:].strip()}"

    async def reconcile(self) -> bool:
        """Follow the list; return whether every step succeeded."""
        if not self._initialised:
            self._initialised = self._nfqlb.init()
        if not self._initialised:
            return False
        listed = read_stream(self._targets_file).targets
        wanted = {target.identifier - 1: tuple(map(format_ip, target.ips)) for target in listed if not target.draining}
        done, ready = self._targets.reconcile(wanted)
        if ready:
            self._ready_file.touch()
        else:
            self._ready_file.unlink(missing_ok=True)
        if done and not self._has_flows:
            self._has_flows = done = await self._declare_flows()
        log("reconciled", done=done)
        return done

    async def _declare_flows(self) -> bool:
        name = self._stream.name
        options = (f"--name={name}", f"--target={name}", f"--dsts={VIP4}/32,{VIP6}/128", "--prio=1")
        for _ in range(_FLOW_TRIES):
            if self._nfqlb.set_flow("--protocols=tcp,udp", *options):
                here = CurrentNamespace()
                for family in ("ip", "ip6"):
                    here.run("nft", f"add table {family} {TABLE}; delete table {family} {TABLE}")
                send_to_queues(here, {"ip": VIP4, "ip6": VIP6}, *QUEUES, priority=FILTER, table=TABLE)
                return True
            await asyncio.sleep(0.05)
        return False


async def follow(balancer: LoadBalancer) -> int:
    """Reconcile now, when the list changes, and after a failure, until SIGTERM; leave everything as it is.

    Returns the exit status: 1 when the packet process ended by itself.
    """
    loop = asyncio.get_running_loop()
    stop, reread = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reread.set)
    await balancer.start()
    packets = asyncio.create_task(balancer.packets_ended())
    packets.add_done_callback(lambda task: stop.set())
    ready, retry_s = False, RETRY_S
    while not stop.is_set():
        reread.clear()
        done = await balancer.reconcile()
        if done and not ready:
            ready = True
            log("ready")
        retry_s = RETRY_S if done else min(2 * retry_s, RETRY_MAX_S)
        await any_of(stop, reread, timeout_s=NEVER_S if done else retry_s)
    if not packets.done():
        packets.cancel()
        return 0
    log("nfqlb ended", level="error", reason=packets.result())
    return 1


def main() -> None:
    """Entry of the process."""
    parser = argparse.ArgumentParser(description="stand-in for the load balancer process of Meridio-2")
    parser.add_argument("--targets", type=Path, required=True)
    parser.add_argument("--readiness", type=Path, required=True)
    parser.add_argument("--shm-dir", type=Path, default=Path("/dev/shm"))
    arguments = parser.parse_args()
    sys.exit(asyncio.run(follow(LoadBalancer(arguments.targets, arguments.shm_dir, arguments.readiness))))


if __name__ == "__main__":
    main()
