"""The topologies `meridio` and `meridio2`: an unmodified load balancer, and lbguard's program before its `nfqlb`.

Both columns run the same stand-in for the load balancer's process (`stateless_lb.py`, `meridio_2_lb.py`) with the real
`nfqlb`, or with the one of the lab (`nfqlb_stand_in.py`). In the column `withdraw` it finds nfqlb itself on its PATH.
In the column `lbguard` the program of `deploy/meridio` comes first there, run by the shell that the real container has,
and `lbguard run` with the source `interposer` works beside it.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lbguard
from lbguard.lab.controller import READY_TIMEOUT_S, Column, Controller, Distribution, LabError
from lbguard.lab.netns import Namespace
from lbguard.lab.nfqlb import NfqlbProcess
from lbguard.lab.traffic import BIN_S, TrafficResult

PROGRAM = Path(lbguard.__file__).parents[1] / "deploy" / "meridio" / "nfqlb"
SERVING_S = 1.0
"""A target that answered nothing in this last part of a run does not serve."""

_READ_WITH_TIMEOUT = 'echo word | { read -r -t 0.2 word && [ "$word" = word ]; }'


def shell_for_program(search: str | None = None) -> list[str]:
    """Return how the program is run: busybox ash as in the real container, else sh where its `read` has `-t`.

    `search` is a PATH; None means the environment's. Empty when there is no such shell.
    """
    busybox = shutil.which("busybox", path=search)
    candidates = [[busybox, "ash"]] if busybox else []
    if shell := shutil.which("sh", path=search):
        candidates.append([shell])
    for candidate in candidates:
        done = subprocess.run([*candidate, "-c", _READ_WITH_TIMEOUT], check=False, capture_output=True)
        if done.returncode == 0:
            return candidate
    return []


def missing() -> str:
    """Return why the program cannot be played here; empty when it can."""
    if not PROGRAM.is_file():
        return f"{PROGRAM} is not there: play it from a checkout of the sources"
    if not shell_for_program():
        return "no shell runs deploy/meridio/nfqlb, their `read` has no `-t` (apt-get install busybox)"
    return ""


def install_program(directory: Path) -> Path:
    """Put the program into a directory that is to come first on PATH, with the shell that runs it; return its path."""
    directory.mkdir(parents=True)
    _, _, rest = PROGRAM.read_text().partition("\n")
    program = directory / "nfqlb"
    program.write_text(f"#!{' '.join(shell_for_program())}\n{rest}")
    program.chmod(0o755)
    return program


@dataclass(frozen=True, slots=True, kw_only=True)
class LbFacts:
    """Facts about the load balancer's process and the traffic at the end of a run.

    `removals_s`: how long each deliberately removed target stayed in the table after `nfqlb deactivate` was called.
    `stayed`: those that did not leave it at all. `withdrawals`: how often the process took a target out because its
    route was gone. `refused`: calls of nfqlb that failed. `silent`: targets that answered nobody in the last second.
    """

    removals_s: tuple[float, ...] = ()
    stayed: int = 0
    withdrawals: int = 0
    refused: int = 0
    silent: tuple[int, ...] = ()


def gather_facts(records: Sequence[dict[str, Any]], traffic: TrafficResult, targets: frozenset[int]) -> LbFacts:
    """Read the log of the load balancer's process, and who answered last."""
    removed = [record for record in records if record.get("event") == "removed"]
    # The last bin is not whole.
    last = slice(-1 - int(SERVING_S / BIN_S), -1)
    serving = {
        int(target)
        for bins in (traffic.tcp_bins, traffic.udp_bins)
        for target, counts in bins.items()
        if any(counts[last])
    }
    return LbFacts(
        removals_s=tuple(record["took_s"] for record in removed if record["out"]),
        stayed=sum(1 for record in removed if not record["out"]),
        withdrawals=sum(1 for record in records if record.get("action") == "withdraw"),
        refused=sum(1 for record in records if record.get("event") == "refused"),
        silent=tuple(sorted(targets - serving)),
    )


class MeridioLb:
    """The load balancer's processes: the stand-in, nfqlb's, and in lbguard's column the service.

    Used as a `Controller` is. `name` is what errors call the load balancer.

    Args:
        column: with lbguard or without.
        nfqlb: the packet process; the stand-in for Meridio's process makes its memory.
        namespace: the load balancer's.
        targets_file: the registry's list.
        directory: for the program and the volume that both containers share; emptied.
    """

    name = "stateless-lb"
    first_identifier = 1

    def __init__(
        self,
        column: Column,
        nfqlb: NfqlbProcess,
        namespace: Namespace,
        targets_file: Path,
        directory: Path,
        *,
        settings: Mapping[str, str],
    ) -> None:
        self._nfqlb = nfqlb
        self._targets_file = targets_file
        self._shared = directory / "shared"
        self._directory = directory
        self._killed_at: float | None = None
        shutil.rmtree(directory, ignore_errors=True)
        self._shared.mkdir(parents=True)
        search = nfqlb.search
        environment = {"PATH": search}
        self._guard: Controller | None = None
        if column is Column.LBGUARD:
            front = install_program(directory / "front").parent
            environment = {
                "PATH": f"{front}{os.pathsep}{search}",
                "LBGUARD_NFQLB_DIR": str(self._shared),
            }
            guard_argv = [sys.executable, "-m", "lbguard", "run"]
            started = (guard_argv, {**self._guard_environment(), **settings})
            self._guard = Controller(column, Distribution.NFQLB, namespace, targets_file, started_as=started)
            self._guard.first_identifier = self.first_identifier
        self._lb = Controller(
            column,
            Distribution.NFQLB,
            namespace,
            targets_file,
            started_as=([sys.executable, "-m", *self._stand_in()], environment),
            name=self.name,
            first_identifier=self.first_identifier,
        )

    @property
    def records(self) -> list[dict[str, Any]]:
        """The log of the process that decides: lbguard's while it lives, then the load balancer's."""
        if self._guard is None:
            return self.lb_records
        since = self._killed_at
        after = [record for record in self.lb_records if since is not None and record["ts"] >= since]
        return [*self._guard.records, *after]

    @property
    def lb_records(self) -> list[dict[str, Any]]:
        """The log of the load balancer's process."""
        return self._lb.records

    async def start(self) -> None:
        """Start all, in the order in which a pod's containers come up when lbguard is quick.

        Raises:
            LabError: one of them did not get ready.
        """
        if self._guard is not None:
            await self._guard.start()
            await self._guard_listens(self._guard)
        await self._lb.start()
        await self._lb.wait_active(frozenset())
        await self._serve()

    async def wait_active(self, identifiers: frozenset[int]) -> None:
        """Wait until everybody says that all these targets are active; see `Controller.wait_active`."""
        await self._lb.wait_active(identifiers)
        if self._guard is not None:
            await self._guard.wait_active(identifiers)

    async def kill(self) -> None:
        """Kill lbguard at once (SIGKILL), for good. Without lbguard there is nobody to kill."""
        if self._guard is not None:
            await self._guard.kill()
            self._killed_at = time.time()

    async def stop(self) -> None:
        """Stop the load balancer's process, then lbguard."""
        await self._lb.stop()
        if self._guard is not None:
            await self._guard.stop()

    async def check_alive(self) -> None:
        """Check that nobody ended by itself; see `Controller.check_alive`."""
        if self._guard is not None and self._killed_at is None:
            await self._guard.check_alive()
        await self._lb.check_alive()

    async def reread_without(self, identifier: int) -> None:
        """Notify the load balancer that a target left the registry's list, and wait until it has removed it."""
        self._lb.send_signal(signal.SIGHUP)
        # Removed is what it says last of a removal; the record of how long it took comes before.
        await self._lb.wait_until(
            lambda: not self._lb.is_active(frozenset({identifier})), f"remove target {identifier}"
        )

    async def reread_with(self, identifier: int) -> None:
        """Notify the load balancer that a target came into the registry's list, and wait until it has activated it."""
        self._lb.send_signal(signal.SIGHUP)
        await self._lb.wait_active(frozenset({identifier}))

    def _stand_in(self) -> list[str]:
        """Return the module of the load balancer's process, and its arguments."""
        return ["lbguard.lab.stateless_lb", "--targets", str(self._targets_file)]

    async def _serve(self) -> None:
        """Start the packet process, which the stand-in for Meridio's process does not."""
        await self._nfqlb.serve()

    async def _guard_listens(self, guard: Controller) -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not (self._shared / "requests").is_fifo():
                    await guard.check_alive()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise LabError(
                f"lbguard did not listen for calls of nfqlb in {READY_TIMEOUT_S:g} s{guard.last_words()}"
            ) from None

    def _guard_environment(self) -> dict[str, str]:
        return {
            "LBGUARD_SOURCE": "interposer",
            "LBGUARD_INTERPOSER__DIRECTORY": str(self._shared),
            "LBGUARD_DISTRIBUTOR__KIND": "nfqlb-shm",
            "LBGUARD_SOCKET": str(self._targets_file.with_name("lbguard.sock")),
            "LBGUARD_METRICS__LISTEN": "127.0.0.1:9464",
            "LBGUARD_LOG__FORMAT": "json",
        }


class Meridio2Lb(MeridioLb):
    """The load balancer's processes of Meridio-2: its stand-in starts nfqlb's packet process itself."""

    name = "meridio-2-lb"
    first_identifier = 0

    async def restart(self, away_s: float) -> None:
        """Kill the load balancer's process, and its packet process with it; start it again after a time (seconds)."""
        await self._lb.kill()
        await asyncio.sleep(away_s)
        started = len(self._lb.records)
        await self._lb.start()
        await self._lb.wait_until(lambda: "ready" in self._events(started), "become ready again")

    async def reread_moved(self) -> None:
        """Notify the load balancer that a target has other addresses, and wait until it has followed."""
        before = len(self._lb.records)
        self._lb.send_signal(signal.SIGHUP)
        await self._lb.wait_until(lambda: "reconciled" in self._events(before), "follow the list")

    def _events(self, since: int) -> set[object]:
        return {record.get("event") for record in self._lb.records[since:]}

    def _stand_in(self) -> list[str]:
        readiness = ["--readiness", str(self._directory / "readiness")]
        return ["lbguard.lab.meridio_2_lb", "--targets", str(self._targets_file), *readiness]

    async def _serve(self) -> None:
        """Nothing is left to do."""
