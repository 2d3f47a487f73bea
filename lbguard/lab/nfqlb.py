"""nfqlb in the load balancer's namespace: shared memory, one flow, packets to NFQUEUE, and its packet process."""

import asyncio
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import lbguard
from lbguard.lab.controller import LabError
from lbguard.lab.netns import Namespace
from lbguard.lab.queueing import QueueingError, send_to_queues
from lbguard.lab.topology import VIP4, VIP6

SLOTS_PER_TARGET = 100
FIRST_QUEUE, LAST_QUEUE = 0, 3
START_TIMEOUT_S = 10.0
STAND_IN_MODULE = "lbguard.lab.nfqlb_stand_in"


class NfqlbKind(StrEnum):
    """Kind of the program `nfqlb`: the real one, or the lab's own with the same memory layout."""

    REAL = "real"
    STAND_IN = "stand-in"


def missing() -> str:
    """Return why the real nfqlb cannot be played here; empty when it can."""
    return "" if shutil.which("nfqlb") else "nfqlb is not on PATH (github.com/Nordix/nfqueue-loadbalancer)"


def kind_here() -> NfqlbKind:
    """Return the real one where it is on PATH, else the stand-in."""
    return NfqlbKind.STAND_IN if missing() else NfqlbKind.REAL


def install_stand_in(directory: Path) -> Path:
    """Write the program `nfqlb` that is the stand-in into a directory, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / "nfqlb"
    sources = shlex.quote(str(Path(lbguard.__file__).parents[1]))
    # Python starts faster when it does not look for installed packages, and only the packet process needs one.
    program.write_text(
        "#!/bin/sh\n"
        'packages=-S; [ "$1" != flowlb ] || packages=\n'
        f'PYTHONPATH={sources} exec {shlex.quote(sys.executable)} $packages -P -m {STAND_IN_MODULE} "$@"\n'
    )
    program.chmod(0o755)
    return program


def search_path(kind: NfqlbKind, work_dir: Path) -> str:
    """Return the PATH on which `nfqlb` is found; the stand-in is installed in the work directory first."""
    if kind is NfqlbKind.REAL:
        return os.environ["PATH"]
    return f"{install_stand_in(work_dir / 'stand-in').parent}{os.pathsep}{os.environ['PATH']}"


class NfqlbProcess:
    """nfqlb for one stream, as Meridio starts it.

    Args:
        namespace: the load balancer's.
        stream: the name of the stream, and with it of the memory.
        max_targets: how many targets the memory has room for.
        search: the PATH on which nfqlb is found; None means our own.
        shm: the name of the memory; empty means Meridio's.
    """

    def __init__(
        self, namespace: Namespace, stream: str, max_targets: int, search: str | None = None, shm: str = ""
    ) -> None:
        self.search = search or os.environ["PATH"]
        self._namespace = namespace
        self._shm = shm or f"tshm-{stream}"
        self._stream = stream
        self._max_targets = max_targets
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Make the memory, then serve.

        Raises:
            LabError: nfqlb or the kernel refused.
        """
        slots = self._max_targets * SLOTS_PER_TARGET
        await asyncio.to_thread(
            self._run, "init", "--ownfw=0", f"--shm={self._shm}", f"--M={slots}", f"--N={self._max_targets}"
        )
        await self.serve()

    async def serve(self) -> None:
        """Start the packet process, declare the flow, and send the VIPs' packets to it. The memory is there already.

        Raises:
            LabError: nfqlb or the kernel refused.
        """
        queues = f"--queue={FIRST_QUEUE}:{LAST_QUEUE}"
        self._process = await asyncio.create_subprocess_exec(
            *self._namespace.command("nfqlb", "flowlb", queues, "--hash_mode=0", "--qlength=8192"),
            env=self._environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await self._declare_flow()
        vips = {"ip": VIP4, "ip6": VIP6}
        try:
            await asyncio.to_thread(send_to_queues, self._namespace, vips, FIRST_QUEUE, LAST_QUEUE)
        except QueueingError as error:
            raise LabError(f"packets cannot be queued: {error}") from error

    async def stop(self) -> None:
        """End the packet process and remove the memory."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        (Path("/dev/shm") / self._shm).unlink(missing_ok=True)

    async def _declare_flow(self) -> None:
        """Declare the flow as soon as the process listens for it."""
        arguments = [f"--name={self._stream}", f"--target={self._shm}", f"--dsts={VIP4}/32,{VIP6}/128", "--prio=1"]
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while True:
                    try:
                        await asyncio.to_thread(self._run, "flow-set", "--protocols=tcp,udp", *arguments)
                    except LabError:
                        await asyncio.sleep(0.1)
                    else:
                        return
        except TimeoutError:
            raise LabError("nfqlb flowlb did not accept a flow in time") from None

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": self.search}

    def _run(self, *arguments: str) -> None:
        argv = self._namespace.command("nfqlb", *arguments)
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env=self._environment())
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip() or done.returncode
            raise LabError(f"nfqlb {' '.join(arguments)}: {said}")
