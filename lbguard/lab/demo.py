"""`lbguard demo`: plays scenarios in both columns and says whether lbguard kept its promises."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lbguard.lab import meridio, nfqlb, picture, report, sandbox
from lbguard.lab.controller import Column, Distribution, Topology
from lbguard.lab.display import LEGEND, MERIDIO_LEGEND, NEW_LEGEND, Display, Slot, nfqlb_text
from lbguard.lab.meridio_scenarios import SCENARIOS, AgainstToday, select
from lbguard.lab.play import Run, Setup, play
from lbguard.lab.sandbox import SandboxError
from lbguard.lab.scenario_model import Scenario
from lbguard.lab.scenarios import DEFAULT, UnknownScenarioError
from lbguard.lab.topology import MAX_TARGETS, MAX_TARGETS_UNPRIVILEGED
from lbguard.printable import printable
from lbguard.telemetry.console import TextConsole
from lbguard.telemetry.output import print_error, print_json

KEPT = 0
MISSED = 1
REFUSED = 2
"""Exit statuses: every promise kept, one missed (or a run failed), not played at all."""

BUSY_S = 0.2
"""A client that was later than this says that the machine is too busy for its gaps to mean much."""
OUTAGE_RANGE_S = (0.05, 60.0)
CONNECTIONS_MAX = 5000
PROXIES_MAX = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Options of the demo: scenarios to play, and how to show them.

    No scenarios mean the default ones, `all` every one. No distributors mean nftables, and nfqlb too when it is on
    PATH; no columns mean both. `outage_s` is how long a link is away (seconds). nfqlb is the real one when it is on
    PATH, else the lab's stand-in; the topologies `meridio` and `meridio2` are played on it alone. lbguard records each
    run in a directory of its own below `record`. `parking`: lbguard parks packets. `report` and `svg` are files
    that are written.
    """

    topology: str = Topology.CHAIN
    scenarios: Sequence[str] = ()
    distributors: Sequence[str] = ()
    columns: Sequence[str] = ()
    outage_s: float = 0.5
    connections: int = 200
    proxies: int = 2
    json_output: bool = False
    report: Path | None = None
    svg: Path | None = None
    record: Path | None = None
    parking: bool = False


class OptionError(Exception):
    """An option is out of bounds; the message names it and what is allowed."""


def run_demo(options: DemoOptions) -> int:
    """Play the scenarios in a sandbox of their own and return the exit status (0 kept, 1 missed, 2 not played).

    It forks, so call it while the process has one thread. The calling process itself ends up in the sandbox's
    namespaces and should do nothing afterwards but exit.
    """
    try:
        scenarios = select(_topology(options), list(options.scenarios))
        if options.parking:
            scenarios = [scenario.with_parking() for scenario in scenarios]
        distributions = _distributions(options)
        columns = _columns(options)
        _check(options)
        sandbox.require_tools()
        max_targets = MAX_TARGETS if os.getuid() == 0 else MAX_TARGETS_UNPRIVILEGED
        return sandbox.run_isolated(lambda: _inside(options, scenarios, columns, distributions, max_targets))
    except (UnknownScenarioError, OptionError, SandboxError) as error:
        print_error(f"demo: {error}")
        return REFUSED


def _check(options: DemoOptions) -> None:
    low, high = OUTAGE_RANGE_S
    if not low <= options.outage_s <= high:
        raise OptionError(f"outage {options.outage_s:g} s: {low:g} to {high:g} s are allowed")
    if not 1 <= options.connections <= CONNECTIONS_MAX:
        raise OptionError(f"connections {options.connections}: 1 to {CONNECTIONS_MAX} are allowed")
    if not 2 <= options.proxies <= PROXIES_MAX:
        raise OptionError(f"proxies {options.proxies}: 2 to {PROXIES_MAX} are allowed")
    for name, file in (("report", options.report), ("svg", options.svg)):
        if file is None:
            continue
        _check_place(name, file)
        if not file.resolve().parent.is_dir():
            raise OptionError(f"{name} {file}: its directory does not exist")
        if file.is_dir():
            raise OptionError(f"{name} {file}: it is a directory; name a file")
    if options.record is not None:
        _check_place("record", options.record)
        if options.record.is_dir() and any(options.record.iterdir()):
            raise OptionError(
                f"record {options.record}: there is something in it already; name an empty or a new directory"
            )


def _check_place(name: str, path: Path) -> None:
    """Refuse a place that the sandbox has one of its own of: what is written there vanishes with it."""
    for private in sandbox.PRIVATE_DIRECTORIES:
        if path.resolve().is_relative_to(private):
            raise OptionError(f"{name} {path}: {private} is the lab's own and vanishes at the end; name another place")


def _topology(options: DemoOptions) -> Topology:
    try:
        return Topology(options.topology)
    except ValueError as error:
        raise OptionError(f"topology: {error}; there are: {', '.join(Topology)}") from None


def _distributions(options: DemoOptions) -> list[Distribution]:
    reason = nfqlb.missing()
    if options.topology != Topology.CHAIN:
        if reason := meridio.missing():
            raise OptionError(f"topology {options.topology} is not played here: {reason}")
        if set(options.distributors) - {Distribution.NFQLB}:
            raise OptionError(
                f"topology {options.topology}: its load balancer calls nfqlb, so that is the only distributor"
            )
        return [Distribution.NFQLB]
    if not options.distributors:
        return [Distribution.NFTABLES] if reason else [Distribution.NFTABLES, Distribution.NFQLB]
    try:
        wanted = [Distribution(name) for name in dict.fromkeys(options.distributors)]
    except ValueError as error:
        raise OptionError(f"distributor: {error}; there are: {', '.join(Distribution)}") from None
    return wanted


def _columns(options: DemoOptions) -> list[Column]:
    try:
        return [Column(name) for name in dict.fromkeys(options.columns)] or list(Column)
    except ValueError as error:
        raise OptionError(f"column: {error}; there are: {', '.join(Column)}") from None


def _inside(
    options: DemoOptions,
    scenarios: Sequence[Scenario],
    columns: Sequence[Column],
    distributions: Sequence[Distribution],
    max_targets: int,
) -> int:
    console = TextConsole(stderr=options.json_output)
    slots = [
        Slot(scenario.name, column, distribution)
        for scenario in scenarios
        for column in columns
        for distribution in distributions
    ]
    runs = asyncio.run(_play_all(slots, scenarios, options, max_targets, console))
    failed = any(run.error or run.misses for run in runs)
    if options.json_output:
        print_json(_summary(options, runs))
    if options.report is not None:
        written = _write("report", options.report, report.render(runs, options.outage_s), console)
        failed = failed or not written
    if options.svg is not None:
        written = _write("picture", options.svg, picture.draw(runs), console)
        failed = failed or not written
    if options.record is not None:
        _check_place("record", options.record)
    if options.record is not None and options.record.is_dir():
        one = next(iter(sorted(options.record.iterdir())), options.record)
        console.print(f"recordings: {printable(str(options.record))}; ask them: lbguard tune {printable(str(one))}")
    return MISSED if failed else KEPT


def _write(name: str, place: Path, content: str, console: TextConsole) -> bool:
    """Write a page or a picture; return whether it is there."""
    if not content:
        print_error(f"demo: {name} {place}: no scenario was played to its end without and with lbguard")
        return False
    try:
        place.write_text(content, encoding="utf-8")
    except OSError as error:
        print_error(f"demo: {name} {place}: {error.strerror}; write it to another place")
        return False
    console.print(f"{name}: {printable(str(place))}")
    return True


async def _play_all(
    slots: Sequence[Slot], scenarios: Sequence[Scenario], options: DemoOptions, max_targets: int, console: TextConsole
) -> list[Run]:
    """Play everything. The distributors of one scenario and column go side by side, each on a chain of its own."""
    by_name = {scenario.name: scenario for scenario in scenarios}
    runs: list[Run] = []
    display = Display(slots, console)

    async def one(slot: Slot) -> Run:
        setup = Setup(
            outage_s=options.outage_s,
            connections=options.connections,
            proxies=options.proxies,
            max_targets=max_targets,
            topology=Topology(options.topology),
            work_dir=Path("/run/lbguard-lab") / str(slot.distribution),
            recording=options.record.resolve() if options.record is not None else None,
        )
        progress = partial(display.phase, slot)
        run = await play(by_name[slot.scenario], slot.column, slot.distribution, setup, progress)
        compare(run, by_name[slot.scenario], runs)
        display.finished(slot, run)
        return run

    with display:
        for together in _side_by_side(slots):
            runs.extend(await asyncio.gather(*(one(slot) for slot in together)))
    console.print(display.table())
    _explain(scenarios, runs, options, console)
    return runs


def compare(run: Run, scenario: Scenario, earlier: Sequence[Run]) -> None:
    """Note in what a run of lbguard's was worse than today's, where that is the promise."""
    promise = scenario.promise
    if run.column is Column.WITHDRAW or run.error or not isinstance(promise, AgainstToday):
        return
    for today in earlier:
        same = (today.scenario, today.distribution) == (run.scenario, run.distribution)
        if same and today.column is Column.WITHDRAW and today.lb is not None and run.lb is not None:
            run.misses += promise.misses_beside(run.measured, run.lb, today.measured, today.lb)


def _side_by_side(slots: Sequence[Slot]) -> list[list[Slot]]:
    groups: dict[tuple[str, Column], list[Slot]] = {}
    for slot in slots:
        groups.setdefault((slot.scenario, slot.column), []).append(slot)
    return list(groups.values())


def _explain(scenarios: Sequence[Scenario], runs: Sequence[Run], options: DemoOptions, console: TextConsole) -> None:
    console.print(LEGEND, style="dim")
    if any(scenario.newcomers for scenario in scenarios):
        console.print(NEW_LEGEND, style="dim")
    if options.topology != Topology.CHAIN:
        console.print(MERIDIO_LEGEND, style="dim")
    if text := nfqlb_text(runs):
        console.print(text, style="dim")
    by_name = {scenario.name: scenario for scenario in scenarios}
    missed = [run for run in runs if run.error or run.misses]
    for run in missed:
        promise = by_name[run.scenario].promise.sentence(options.outage_s)
        why = run.error or "; ".join(run.misses)
        console.print(
            f"{'FAILED' if run.error else 'MISSED'} {run.scenario}, {run.column} on {run.distribution} "
            f"(promised: {promise}): {why}",
            style="bold red",
        )
    if not missed and any(run.column is Column.LBGUARD for run in runs):
        console.print("Every promise was kept.", style="bold green")
    late_s = max((run.measured.client_late_s for run in runs), default=0.0)
    if late_s > BUSY_S:
        console.print(
            f"This machine was busy: the client itself paused for up to {late_s:.2f} s, and gaps grew by as much.",
            style="yellow",
        )
    there = SCENARIOS[Topology(options.topology)]
    if len(scenarios) < len(there):
        rest = ", ".join(scenario.name for scenario in there if scenario.name not in by_name)
        option = "" if options.topology == Topology.CHAIN else f" --topology {options.topology}"
        console.print(f"More scenarios ({rest}): lbguard demo{option} --scenario all")
    if (reason := nfqlb.missing()) and not options.distributors and options.topology == Topology.CHAIN:
        console.print(f"Played on nftables only: {reason}; `--distributor nfqlb` plays a stand-in.", style="dim")


def _summary(options: DemoOptions, runs: Sequence[Run]) -> dict[str, object]:
    return {
        "topology": options.topology,
        "outage_s": options.outage_s,
        "connections": options.connections,
        "proxies": options.proxies,
        "kept": all(run.kept for run in runs),
        "runs": [run.to_json() for run in runs],
    }


__all__ = ["DEFAULT", "DemoOptions", "run_demo"]
