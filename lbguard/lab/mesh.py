"""Reporters on the datapath in the lab.

Real monitors in the proxies' namespaces, a stand-in for the mesh's manager that reports their connections, and a
reporter that lies or comes late.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

import grpc

from lbguard.api.client import ClientError, GuardClient
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.lab.controller import LabError
from lbguard.lab.manager import StandInManager
from lbguard.lab.scenario_model import Do
from lbguard.lab.topology import Chain
from lbguard.rpc.channels import REPORTER_KEY

ROUND_S = 0.5
"""Interval of a monitor's rounds here: four times as often as by default, so that a run stays short."""
HEAL_S = 15.0
STARVED_S = 1.5 * ROUND_S
FED_S = 0.15 * ROUND_S
LIE_EVERY_S = 0.5
READY_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0


class Mesh:
    """Monitors (if asked for) and their manager, in one run. `dropped`: verdicts of ours that were dropped by name."""

    def __init__(self, chain: Chain, proxies: Sequence[int], work_dir: Path, *, monitored: bool) -> None:
        self.dropped = 0
        self._chain = chain
        self._proxies = proxies if monitored else ()
        self._work_dir = work_dir
        self._api = work_dir / "lbguard.sock"
        self._manager = StandInManager(work_dir / "manager.sock")
        self._monitors: dict[int, asyncio.subprocess.Process] = {}
        self._sequence = 0
        self._background: asyncio.Task[None] | None = None
        self._steps: dict[Do, Callable[[int], None]] = {
            Do.CHANGE_ADDRESSES: self._tell,
            Do.TELL_MESH_HEALS: lambda proxy: self._tell(proxy, healing=True),
            Do.TELL_MESH_HEALED: self._tell,
            Do.CLOSE_CONNECTION: lambda proxy: self._manager.close(_connection(proxy)),
            Do.STARVE_MONITORS: lambda _: self._in_background(self._starve()),
            Do.LIE: lambda _: self._in_background(self._lie()),
        }

    async def start(self) -> None:
        """Start all, and wait until lbguard has heard from every monitor that its paths are up.

        Raises:
            LabError: they did not get there in time, or one of them ended.
        """
        await self._manager.start()
        for proxy in self._proxies:
            self._tell(proxy)
            self._monitors[proxy] = await self._start_monitor(proxy)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while self._proxies and not await asyncio.to_thread(self._all_up):
            ended = [proxy for proxy, monitor in self._monitors.items() if monitor.returncode is not None]
            if ended or time.monotonic() > deadline:
                what = f"the monitor of proxy {ended[0]} ended" if ended else "lbguard heard nothing from the monitors"
                raise LabError(f"{what}; the last lines: {self._last_lines()}")
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Stop all."""
        await self._end_background()
        for monitor in self._monitors.values():
            with contextlib.suppress(ProcessLookupError):
                monitor.terminate()
        for monitor in self._monitors.values():
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await monitor.wait()
            except TimeoutError:
                monitor.kill()
                await monitor.wait()
        await self._manager.stop()

    async def do(self, do: Do, proxy: int) -> None:
        """Carry out a step; those that are not its own change nothing here."""
        if do in (Do.FEED_MONITORS, Do.STOP_LYING):
            await self._end_background()
        elif do is Do.REPORT_LATE:
            # A generation of long ago: every monitor counts from the time of day in milliseconds.
            await self._report(f"proxy-{proxy}", [self._down(_of_connection(proxy), generation=1)])
        elif do in self._steps:
            self._steps[do](proxy)

    # Monitors and their manager

    def _tell(self, proxy: int, *, healing: bool = False) -> None:
        host = self._chain.lb_hosts[proxy]
        ours = (f"172.16.{proxy}.1/24", f"fd00:0:0:{proxy}::1/64")
        theirs = (f"172.16.{proxy}.{host}/24", f"fd00:0:0:{proxy}::{host}/64")
        self._manager.update(_connection(proxy), ours, theirs, healing=healing)

    async def _start_monitor(self, proxy: int) -> asyncio.subprocess.Process:
        settings = {
            "PROBE__ENABLED": "true",
            "PROBE__NAME": f"proxy-{proxy}",
            "PROBE__INTERVAL": f"{ROUND_S}s",
            "PROBE__TIMEOUT": f"{ROUND_S}s",
            "PROBE__CONNECTIONS": "nsm",
            "PROBE__NSM__ADDRESS": f"unix://{self._work_dir}/manager.sock",
            "PROBE__NSM__HEAL_TIME": f"{HEAL_S}s",
            "PROBE__REPORT_TO": f"unix:{self._api}",
            "METRICS__LISTEN": "",
            "LOG__FORMAT": "text",
        }
        with (self._work_dir / f"monitor-{proxy}.log").open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *self._chain.proxy(proxy).command(sys.executable, "-m", "lbguard", "probe"),
                env={**os.environ, **{f"LBGUARD_{name}": value for name, value in settings.items()}},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _all_up(self) -> bool:
        try:
            with GuardClient(self._api) as client:
                targets = client.status().targets
        except ClientError:
            return False
        return all(path.verdict == "up" for target in targets for path in target.paths)

    def _last_lines(self) -> str:
        logs = [self._work_dir / f"monitor-{proxy}.log" for proxy in self._monitors]
        return " / ".join(log.read_text(errors="replace").strip()[-300:] for log in logs)

    # What goes on until it is ended

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        self._background = asyncio.create_task(work)

    async def _end_background(self) -> None:
        task, self._background = self._background, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _starve(self) -> None:
        """Let the monitors run for moments only."""
        try:
            while True:
                self._signal(signal.SIGSTOP)
                await asyncio.sleep(STARVED_S)
                self._signal(signal.SIGCONT)
                await asyncio.sleep(FED_S)
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for monitor in self._monitors.values():
            with contextlib.suppress(ProcessLookupError):
                monitor.send_signal(number)

    async def _lie(self) -> None:
        """Say again and again that every link and every target is down."""
        subjects = [
            pb.Subject(link=pb.LinkSubject(lb_ip=lb_ip, proxy_ip=proxy_ip))
            for proxy in dict.fromkeys(place.proxy for place in self._chain.places)
            for lb_ip, proxy_ip in zip(_lb_ips(proxy), _proxy_ips(proxy), strict=True)
        ]
        subjects += [pb.Subject(target_ip=ip) for place in self._chain.places for ip in (place.ipv4, place.ipv6)]
        while True:
            await self._report("liar", [self._down(subject, generation=1) for subject in subjects])
            await asyncio.sleep(LIE_EVERY_S)

    def _down(self, subject: pb.Subject, *, generation: int) -> pb.Verdict:
        self._sequence += 1
        return pb.Verdict(
            subject=subject,
            state=pb.VERDICT_STATE_DOWN,
            generation=generation,
            sequence=self._sequence,
            lease_s=4 * LIE_EVERY_S,
        )

    async def _report(self, reporter: str, verdicts: Sequence[pb.Verdict]) -> None:
        """Report in somebody's name over lbguard's own socket, and count what was dropped."""
        async with grpc.aio.insecure_channel(f"unix:{self._api}") as channel:
            stub: pb_grpc.VerdictServiceAsyncStub = pb_grpc.VerdictServiceStub(channel)
            try:
                response = await stub.ReportOnce(
                    pb.ReportOnceRequest(verdicts=verdicts),
                    timeout=CALL_TIMEOUT_S,
                    metadata=((REPORTER_KEY, reporter),),
                )
            except grpc.aio.AioRpcError as error:
                raise LabError(f"lbguard took no verdict: {error.code().name}: {error.details()}") from None
        self.dropped += len(response.ignored)


def _connection(proxy: int) -> str:
    return f"proxy-{proxy}-to-lb"


def _lb_ips(proxy: int) -> tuple[str, str]:
    return f"172.16.{proxy}.2", f"fd00:0:0:{proxy}::2"


def _proxy_ips(proxy: int) -> tuple[str, str]:
    return f"172.16.{proxy}.1", f"fd00:0:0:{proxy}::1"


def _of_connection(proxy: int) -> pb.Subject:
    return pb.Subject(connection=pb.ConnectionSubject(id=_connection(proxy), lb_ips=_lb_ips(proxy)))
