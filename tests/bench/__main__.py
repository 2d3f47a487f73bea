"""`python -m tests.bench`: measure in namespaces of its own, print a table, write JSON."""

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lbguard.lab.sandbox import SandboxError, require_tools, run_isolated
from tests.bench import (
    addresses,
    affinity,
    codec,
    commit,
    counting,
    growth,
    idle,
    interposer,
    loss,
    parking,
    probing,
    recording,
    repair,
    start,
    storm,
    verdicts,
)
from tests.bench.results import Row, Say, Scale

Benchmark = Callable[[Scale, Say, Path], Iterable[Row]]

_BENCHMARKS: dict[str, Benchmark] = {
    module.NAME: module.run
    for module in (
        repair,
        commit,
        loss,
        affinity,
        counting,
        storm,
        verdicts,
        parking,
        probing,
        idle,
        growth,
        addresses,
        start,
        codec,
        interposer,
        recording,
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; the exit status is 1 when a benchmark could not be run, whatever it measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--output", type=Path, help="write the results as JSON to this file")
    parser.add_argument("--only", action="append", choices=list(_BENCHMARKS), help="run only this one (repeatable)")
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quick", action="store_const", const=Scale.QUICK, dest="scale", help="fewer repetitions")
    how_much.add_argument(
        "--smoke", action="store_const", const=Scale.SMOKE, dest="scale", help="only see that it works"
    )
    parser.set_defaults(scale=Scale.FULL)
    options = parser.parse_args(argv)
    output = options.output.resolve() if options.output else None
    # The limits of the kernel's neighbour tables are the host's; inside a namespace they cannot be seen.
    machine = _machine()
    try:
        require_tools()
        return run_isolated(lambda: _measure(options.only or list(_BENCHMARKS), options.scale, machine, output))
    except SandboxError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _measure(names: Sequence[str], scale: Scale, machine: dict[str, Any], output: Path | None) -> int:
    console = Console(width=None if sys.stdout.isatty() else 170)
    progress = Console(stderr=True, soft_wrap=True)
    rows: list[Row] = []
    failures: dict[str, str] = {}
    took: dict[str, float] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/run") as directory:
        for name in names:
            started = time.monotonic()

            def say(text: str, name: str = name) -> None:
                progress.print(f"[dim]{time.monotonic() - began:5.0f} s[/]  {name}: {text}", highlight=False)

            place = Path(directory) / name
            place.mkdir()
            try:
                for row in _BENCHMARKS[name](scale, say, place):
                    rows.append(row)
            except Exception as error:  # what one of them cannot do says nothing of the others
                failures[name] = f"{type(error).__name__}: {error}"
                say(f"[red]failed[/]: {error}")
            took[name] = round(time.monotonic() - started, 1)
    console.print(_table(rows, machine))
    for name, reason in failures.items():
        console.print(f"{name} could not be measured: {reason}", style="red", markup=False)
    if output is not None:
        document = {
            "scale": scale.value,
            "machine": machine,
            "seconds": took,
            "failures": failures,
            "rows": [row.as_json() for row in rows],
        }
        output.write_text(json.dumps(document, indent=1) + "\n")
        console.print(f"written to {os.path.relpath(output)}, {sum(took.values()):.0f} s in all", highlight=False)
    return 1 if failures else 0


def _machine() -> dict[str, Any]:
    model = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    limits = {}
    for family in ("ipv4", "ipv6"):
        with contextlib.suppress(OSError):
            limits[family] = int(Path(f"/proc/sys/net/{family}/neigh/default/gc_thresh3").read_text())
    return {
        "load": round(os.getloadavg()[0], 1),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "neighbors_max": limits,
    }


def _table(rows: Sequence[Row], machine: dict[str, Any]) -> Table:
    table = Table(
        title="lbguard in numbers",
        caption=(
            f"{machine['cores']} cores ({machine['cpu']}), Linux {machine['kernel']}, Python {machine['python']}; "
            f"load of others when it began: {machine['load']}"
        ),
    )
    table.add_column("measured")
    for heading in ("median", "p95", "n", "aim"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("in the same run")
    table.add_column("ratio", justify="right")
    before = ""
    for row in rows:
        if before and row.benchmark != before:
            table.add_section()
        before = row.benchmark
        table.add_row(
            row.what,
            _number(row.measured, row.unit),
            "" if row.p95 is None else _number(row.p95, row.unit),
            str(row.repetitions),
            "" if row.aim is None else f"{'≥' if row.at_least else '≤'} {_number(row.aim, row.unit)}",
            {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[row.met],
            "" if row.reference is None else f"{_number(row.reference, row.unit)} {row.reference_what}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
        )
    return table


def _number(value: float, unit: str) -> str:
    if value == int(value) and abs(value) < 1e6:
        text = f"{value:.0f}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
