"""Plays one scenario in one column: builds the chain, starts everything, acts, watches, and measures."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbguard.lab.controller import LINE_LIMIT, Column, Controller, Distribution, LabError, Topology, naming_what_ended
from lbguard.lab.flat_network import FlatNetwork
from lbguard.lab.measure import (
    WAITED_FOR_SYN_S,
    WAITED_OVER_S,
    Decided,
    Measurement,
    Scope,
    count_decisions,
    measure,
)
from lbguard.lab.meridio import LbFacts, Meridio2Lb, MeridioLb, gather_facts
from lbguard.lab.meridio_scenarios import AgainstToday
from lbguard.lab.nfqlb import NfqlbKind, NfqlbProcess, kind_here, search_path
from lbguard.lab.scenario_model import Do, Scenario, Step
from lbguard.lab.target_list import TargetList
from lbguard.lab.topology import LB_HOST, MAX_TARGETS, STREAM, Chain
from lbguard.lab.traffic import NEW_MAX, TrafficResult

if TYPE_CHECKING:
    from lbguard.lab.mesh import Mesh

WARM_UP_S = 1.0
LOST_PERCENT = 5
TRAFFIC_TIMEOUT_S = 60.0
COMMAND_ATTEMPTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Setup that every run shares. Times in seconds. `recording`: where lbguard records; None: it does not."""

    outage_s: float = 0.5
    connections: int = 200
    flows: int = 40
    proxies: int = 2
    targets_per_proxy: int = 2
    max_targets: int = MAX_TARGETS
    topology: Topology = Topology.CHAIN
    nfqlb: NfqlbKind = field(default_factory=kind_here)
    work_dir: Path = Path("/run/lbguard-lab")
    recording: Path | None = None


@dataclass(slots=True, kw_only=True)
class Run:
    """The outcome of one scenario in one column. Times are seconds since the epoch; `nfqlb` is None without one."""

    scenario: str
    column: Column
    distribution: Distribution
    nfqlb: NfqlbKind | None = None
    started: float = 0.0
    ended: float = 0.0
    measured: Measurement = field(default_factory=Measurement)
    decided: Decided = field(default_factory=Decided)
    misses: list[str] = field(default_factory=list)
    steps: list[tuple[float, Step]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    traffic: TrafficResult | None = None
    lb: LbFacts | None = None
    resets_sent: dict[str, int] = field(default_factory=dict)
    error: str = ""

    @property
    def stepped(self) -> float:
        """Time at which the first step was done; new connections count from then on."""
        return self.steps[0][0] if self.steps else self.started

    @property
    def kept(self) -> bool:
        """Return whether the promise of this column was kept; today's behaviour promises nothing."""
        return not self.error and not self.misses

    @property
    def promise(self) -> str:
        """Return what became of the promise: `failed`, `none` (today's behaviour), `kept` or `missed`."""
        if self.error:
            return "failed"
        if self.column is Column.WITHDRAW:
            return "none"
        return "missed" if self.misses else "kept"

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain JSON values, without the single packets."""
        return {
            "scenario": self.scenario,
            "column": str(self.column),
            "distributor": str(self.distribution),
            "nfqlb": str(self.nfqlb) if self.nfqlb else None,
            "promise": self.promise,
            "misses": self.misses,
            "error": self.error,
            "resets_sent": self.resets_sent,
            "load_balancer": asdict(self.lb) if self.lb else None,
            **asdict(self.measured),
            **asdict(self.decided),
        }


Progress = Callable[[str, float], None]
"""Told the phase of a run and how many seconds it has left (0: unknown)."""


async def play(scenario: Scenario, column: Column, distribution: Distribution, setup: Setup, progress: Progress) -> Run:
    """Play a scenario once, on a chain of its own. Errors of the lab are noted in the outcome, not raised."""
    run = Run(scenario=scenario.name, column=column, distribution=distribution)
    try:
        async with contextlib.AsyncExitStack() as stack:
            await _Player(scenario, setup, run, progress).play(stack)
    except LabError as error:
        run.error = str(error)
    except (OSError, RuntimeError) as error:
        run.error = f"{type(error).__name__}: {error}"
    if not run.error and column is Column.LBGUARD:
        run.misses = scenario.promise.misses(run.measured, setup.outage_s, run.decided)
        if isinstance(scenario.promise, AgainstToday) and run.lb is not None:
            run.misses += scenario.promise.misses_of(run.lb)
    return run


class _Player:
    """One run in the making."""

    def __init__(self, scenario: Scenario, setup: Setup, run: Run, progress: Progress) -> None:
        self._scenario = scenario
        self._setup = setup
        self._run = run
        self._progress = progress
        proxies = max(setup.proxies, scenario.proxies_min)
        kind = FlatNetwork if setup.topology is Topology.MERIDIO_2 else Chain
        self._chain = kind(proxies, setup.targets_per_proxy, scenario.dad, setup.max_targets)
        self._proxies = tuple(range(1, proxies + 1))
        self._mesh: Mesh | None = None

    async def play(self, stack: contextlib.AsyncExitStack) -> None:
        setup, run = self._setup, self._run
        self._progress("building the chain", 0)
        stack.callback(self._chain.close)
        await asyncio.to_thread(self._chain.build)
        setup.work_dir.mkdir(parents=True, exist_ok=True)
        targets_file = setup.work_dir / "targets.yaml"
        self._chain.write_targets_file(targets_file)
        self._targets = TargetList(targets_file)
        await self._targets.remove(*self._scenario.unlisted)
        self._controller = await self._make_controller(stack, targets_file)
        self._progress(f"starting {run.column}", 0)
        server = await stack.enter_async_context(_process(self._server_argv()))
        stack.push_async_callback(self._controller.stop)
        async with naming_what_ended(self._controller):
            await self._controller.start()
            await self._controller.wait_active(self._listed())
            await _expect(server, "ready")
            await self._start_mesh(stack)
            self._progress("opening connections", 0)
            await self._with_traffic()
        run.resets_sent = (await _expect(server, "resets", finish=True))["sent"]
        run.records = list(self._controller.records)
        dropped = self._mesh.dropped if self._mesh else 0
        run.decided = count_decisions(run.records, run.started, self._scope().lost, dropped)

    async def _start_mesh(self, stack: contextlib.AsyncExitStack) -> None:
        """Start what reports to lbguard, if the scenario has any; today's process listens to nobody."""
        says_something = self._scenario.monitored or any(
            step.do is Do.LIE for step in self._scenario.steps(self._setup.outage_s, self._proxies)
        )
        if self._run.column is not Column.LBGUARD or not says_something:
            return
        # gRPC takes long to load, and most scenarios do without.
        from lbguard.lab.mesh import Mesh

        self._progress("starting monitors", 0)
        work_dir, monitored = self._setup.work_dir, self._scenario.monitored
        self._mesh = Mesh(self._chain, self._proxies, work_dir, monitored=monitored)
        stack.push_async_callback(self._mesh.stop)
        await self._mesh.start()

    async def _make_controller(self, stack: contextlib.AsyncExitStack, targets_file: Path) -> Controller | MeridioLb:
        setup, run, namespace = self._setup, self._run, self._chain.lb
        settings = dict(self._scenario.settings)
        if setup.recording is not None:
            settings |= {
                "LBGUARD_RECORDING__ENABLED": "true",
                "LBGUARD_RECORDING__DIRECTORY": str(setup.recording / f"{run.scenario}-{run.distribution}"),
            }
        if run.distribution is not Distribution.NFQLB:
            return Controller(run.column, run.distribution, namespace, targets_file, settings=settings)
        run.nfqlb = setup.nfqlb
        shm = STREAM if setup.topology is Topology.MERIDIO_2 else ""
        nfqlb = NfqlbProcess(namespace, STREAM, setup.max_targets, search_path(setup.nfqlb, setup.work_dir), shm)
        stack.push_async_callback(nfqlb.stop)
        if setup.topology is not Topology.CHAIN:
            directory = setup.work_dir / "meridio"
            balancer = MeridioLb if setup.topology is Topology.MERIDIO else Meridio2Lb
            return balancer(run.column, nfqlb, namespace, targets_file, directory, settings=settings)
        await nfqlb.start()
        return Controller(run.column, run.distribution, namespace, targets_file, settings=settings, search=nfqlb.search)

    def _server_argv(self) -> list[str]:
        spaces = {str(place.identifier): self._chain.target(place.identifier).name for place in self._chain.places}
        return [sys.executable, "-m", "lbguard.lab.traffic_server", json.dumps(spaces)]

    async def _with_traffic(self) -> None:
        setup, run = self._setup, self._run
        result_file = setup.work_dir / "result.json"
        options = {
            "connections": setup.connections,
            "flows": setup.flows,
            "newcomers": NEW_MAX if self._scenario.newcomers else 0,
            "result": str(result_file),
        }
        argv = [sys.executable, "-m", "lbguard.lab.traffic_client", json.dumps(options)]
        async with _process(self._chain.client.command(*argv)) as client:
            await _expect(client, "ready")
            await self._act()
            await _expect(client, "done", finish=True)
        run.traffic = TrafficResult.from_json(json.loads(await asyncio.to_thread(result_file.read_text)))
        run.ended = run.traffic.ended
        run.records = list(self._controller.records)
        run.measured = measure(run.traffic, run.started, self._scope())
        if isinstance(self._controller, MeridioLb):
            run.lb = gather_facts(self._controller.lb_records, run.traffic, self._listed())

    async def _act(self) -> None:
        """Do every step at its time, then watch."""
        scenario, run = self._scenario, self._run
        steps = scenario.steps(self._setup.outage_s, self._proxies)
        length_s = steps[-1].at_s + scenario.observe_s
        self._progress("warming up", WARM_UP_S + length_s)
        await asyncio.sleep(WARM_UP_S)
        run.started = time.time()
        self._progress("playing", length_s)
        for step in steps:
            await asyncio.sleep(max(0.0, run.started + step.at_s - time.time()))
            await self._do(step)
            run.steps.append((time.time(), step))
        self._progress("watching", run.started + length_s - time.time())
        await asyncio.sleep(max(0.0, run.started + length_s - time.time()))
        await self._controller.check_alive()

    async def _do(self, step: Step) -> None:
        chain = self._chain
        changes: dict[Do, Callable[[int], None]] = {
            Do.DELETE_LB_LINK: chain.delete_lb_link,
            Do.CREATE_LB_LINK: chain.create_lb_link,
            Do.DELETE_SUPERSEDED_LINK: chain.delete_superseded_link,
            Do.DELETE_TARGET_LINK: chain.delete_target_link,
            Do.CREATE_TARGET_LINK: chain.create_target_link,
            Do.BLOCK_TARGET_IPV6: chain.block_target_ipv6,
            Do.UNBLOCK_TARGET_IPV6: chain.unblock_target_ipv6,
            Do.CUT_DATAPATH: lambda proxy: chain.filter_datapath(proxy, ""),
            Do.CUT_DATAPATH_IPV6: lambda proxy: chain.filter_datapath(proxy, "ether type ip6"),
            Do.LOSE_PACKETS: lambda proxy: chain.filter_datapath(proxy, f"numgen random mod 100 < {LOST_PERCENT}"),
            Do.MEND_DATAPATH: chain.mend_datapath,
            Do.DISABLE_LB_IPV6: chain.disable_lb_ipv6,
            Do.CHANGE_ADDRESSES: lambda proxy: chain.change_lb_addresses(proxy, LB_HOST + 1),
        }
        commands: dict[Do, Callable[[], Awaitable[None]]] = {
            Do.KILL_CONTROLLER: self._controller.kill,
            Do.START_CONTROLLER: self._controller.start,
            Do.REMOVE_TARGET: partial(self._remove, step.number),
            Do.ADD_TARGET: partial(self._add, step.number),
            Do.DRAIN_LINK: lambda: self._command("drain", "--link", chain.lb_links[step.number], "--for", "10m"),
            Do.RELEASE_ALL: lambda: self._command("release", "--all"),
        }
        if not isinstance(self._controller, MeridioLb):
            commands[Do.STOP_CONTROLLER] = self._controller.suspend
            commands[Do.CONTINUE_CONTROLLER] = self._controller.resume
        if isinstance(self._controller, Meridio2Lb):
            commands[Do.RESTART_LB] = partial(self._controller.restart, self._setup.outage_s)
            commands[Do.MOVE_TARGET] = partial(self._move, step.number, self._controller)
        if step.do in changes:
            await asyncio.to_thread(changes[step.do], step.number)
        if step.do in commands:
            await commands[step.do]()
        if self._mesh is not None:
            await self._mesh.do(step.do, step.number)

    async def _command(self, *argv: str) -> None:
        """Give lbguard a command of an operator, as soon as it takes commands; the other columns know none.

        Raises:
            LabError: it is refused.
        """
        if self._run.column is not Column.LBGUARD:
            return
        socket = self._setup.work_dir / "lbguard.sock"
        command = [sys.executable, "-m", "lbguard", *argv, "--socket", str(socket)]
        pipe = asyncio.subprocess.PIPE
        for attempts_left in reversed(range(COMMAND_ATTEMPTS)):
            process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
            said = (await process.communicate())[1].decode(errors="replace").strip()
            if not process.returncode:
                return
            # A controller that has just started opens its socket after its first decisions.
            if not attempts_left or "is not running" not in said:
                raise LabError(f"{' '.join(argv)}: {said}")

    async def _remove(self, identifier: int) -> None:
        await self._targets.remove(identifier)
        await self._controller.reread_without(identifier)

    async def _add(self, identifier: int) -> None:
        await self._targets.add(identifier)
        await self._controller.reread_with(identifier)

    async def _move(self, identifier: int, balancer: Meridio2Lb) -> None:
        await asyncio.to_thread(self._chain.move_target, identifier)
        place = self._chain.place(identifier)
        await self._targets.move(identifier, [f"{place.ipv4}/32", f"{place.ipv6}/128"])
        await balancer.reread_moved()

    def _listed(self) -> frozenset[int]:
        """Return the targets that are in the list at the start."""
        return frozenset(place.identifier for place in self._chain.places) - frozenset(self._scenario.unlisted)

    def _scope(self) -> Scope:
        scenario = self._scenario
        behind = self._chain.behind(scenario.disturbed_proxies(self._proxies))
        return Scope(
            disturbed=behind | frozenset(scenario.targets),
            lost=self._chain.behind(scenario.lost_proxies) | frozenset(scenario.lost_targets),
            lost_from=self._drain_began() + scenario.drain_s,
            relisted=scenario.relisted(self._setup.outage_s, self._proxies),
            family=scenario.family,
            stepped=self._run.stepped,
            waited_over_s=WAITED_FOR_SYN_S if self._run.nfqlb is NfqlbKind.STAND_IN else WAITED_OVER_S,
        )

    def _drain_began(self) -> float:
        """Return when the process that decides began to drain a target; without one, when the scenario started."""
        began = (record["ts"] for record in self._run.records if record.get("action") == "drain")
        return next(began, self._run.started)


@contextlib.asynccontextmanager
async def _process(argv: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a traffic process; it is killed if it is still there at the end."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=pipe, limit=LINE_LIMIT)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def _expect(process: asyncio.subprocess.Process, event: str, *, finish: bool = False) -> dict[str, Any]:
    """Read a traffic process's lines up to an event; with `finish`, ask it to end first.

    Raises:
        LabError: it failed, ended or took too long.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    if finish:
        process.stdin.close()
    try:
        async with asyncio.timeout(TRAFFIC_TIMEOUT_S):
            async for line in process.stdout:
                message: dict[str, Any] = json.loads(line)
                if message["event"] == event:
                    return message
                if message["event"] == "failed":
                    raise LabError(f"the traffic did not start: {message['reason']}")
    except TimeoutError:
        raise LabError(f"a traffic process said nothing for {TRAFFIC_TIMEOUT_S:g} s (waiting for {event!r})") from None
    assert process.stderr is not None
    said = (await process.stderr.read()).decode(errors="replace").strip()
    raise LabError(f"a traffic process ended early (waiting for {event!r}): {said[-1000:]}")
