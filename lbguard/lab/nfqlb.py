"""The real nfqlb in the load balancer's namespace: shared memory, one flow, NFQUEUE rules, and its packet process."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from lbguard.lab.controller import LabError
from lbguard.lab.netns import Namespace
from lbguard.lab.topology import VIP4, VIP6

SLOTS_PER_TARGET = 100
QUEUES = "0:3"
START_TIMEOUT_S = 10.0


def missing() -> str:
    """Say why real nfqlb cannot be played here; empty when it can."""
    for tool, source in (("nfqlb", "github.com/Nordix/nfqueue-loadbalancer"), ("iptables", "apt-get install iptables")):
        if shutil.which(tool) is None:
            return f"{tool} is not on PATH ({source})"
    return ""


class NfqlbProcess:
    """nfqlb for one stream, as Meridio starts it."""

    def __init__(self, namespace: Namespace, stream: str, max_targets: int) -> None:
        self._namespace = namespace
        self._shm = f"tshm-{stream}"
        self._stream = stream
        self._max_targets = max_targets
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Make the memory, then serve.

        Raises:
            LabError: nfqlb or iptables refused.
        """
        slots = self._max_targets * SLOTS_PER_TARGET
        await asyncio.to_thread(
            self._run, "nfqlb", "init", "--ownfw=0", f"--shm={self._shm}", f"--M={slots}", f"--N={self._max_targets}"
        )
        await self.serve()

    async def serve(self) -> None:
        """Start the packet process, declare the flow, and send the VIPs' packets to it. The memory is there already.

        Raises:
            LabError: nfqlb or iptables refused.
        """
        self._process = await asyncio.create_subprocess_exec(
            *self._namespace.command("nfqlb", "flowlb", f"--queue={QUEUES}", "--hash_mode=0", "--qlength=8192"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await self._declare_flow()
        for command, vip in (("iptables", f"{VIP4}/32"), ("ip6tables", f"{VIP6}/128")):
            rule = ["-t", "mangle", "-A", "PREROUTING", "-d", vip, "-j", "NFQUEUE", "--queue-balance", QUEUES]
            await asyncio.to_thread(self._run, command, *rule)

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
                        await asyncio.to_thread(self._run, "nfqlb", "flow-set", "--protocols=tcp,udp", *arguments)
                    except LabError:
                        await asyncio.sleep(0.1)
                    else:
                        return
        except TimeoutError:
            raise LabError("nfqlb flowlb did not accept a flow in time") from None

    def _run(self, *argv: str) -> None:
        done = subprocess.run(
            self._namespace.command(*argv), check=False, capture_output=True, text=True, env=os.environ
        )
        if done.returncode != 0:
            raise LabError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip() or done.returncode}")
