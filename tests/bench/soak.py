"""`python -m tests.bench.soak --minutes 20`: the real service under all kinds of trouble at once, for a while.

Links flap, are made anew and lose a family, ten reporters chatter over gRPC, the targets file is written anew, metrics
and status are asked for. Told each minute: resident memory, the longest step of the loop, decisions. The aims: memory
is flat once the histories are full, no step of the loop takes over 50 ms, and the service neither ends nor loses its
view of the kernel.

The loop's steps are timed from outside of it (`timed_run`), for the buckets of `lbguard_engine_step_seconds` tell no
maximum. The time in which other processes had the processors is taken off, so that a busy machine fails nothing.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from lbguard.lab.sandbox import SandboxError, require_tools, run_isolated
from tests.bench.results import Row
from tests.bench.service import Service
from tests.bench.soak_load import METRICS_PORT, Load, SoakNet, soak_targets, targets_text

NAME = "soak"
REPORTERS = 10
STEP_AIM_MS = 50.0
SLOPE_AIM_MIB = 0.2
_SETTLED_AFTER_S = 300.0
_JUDGED_OVER_S = 300.0
"""The slope of the memory is judged only when it was watched for so long after it settled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was read at one moment, `at_s` seconds after the beginning; counts are since then."""

    at_s: float
    resident_mib: float
    cpu_s: float
    decisions: int
    overruns: int
    in_sync: bool


class TimedService(Service):
    """The service with its loop's steps timed."""

    command = (sys.executable, "-m", "tests.bench.timed_run", "run")


def main(argv: Sequence[str] | None = None) -> int:
    """Soak; the exit status is 1 when an aim is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--targets", type=int, default=200, help="dual-stack targets, half behind either link")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the results as JSON to this file")
    options = parser.parse_args(argv)
    output = options.output.resolve() if options.output else None
    try:
        require_tools()
        return run_isolated(lambda: _soak(options.minutes * 60, options.targets, options.seed, output))
    except SandboxError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1


def _soak(duration_s: float, count: int, seed: int, output: Path | None) -> int:
    console = Console(width=None if sys.stdout.isatty() else 170)
    targets = soak_targets(count)
    with tempfile.TemporaryDirectory(dir="/run") as name, SoakNet(targets).built() as net:
        place = Path(name)
        steps = place / "steps.jsonl"
        settings = {"STEPS_FILE": str(steps), "LBGUARD_METRICS__LISTEN": f"127.0.0.1:{METRICS_PORT}"}
        with TimedService(net.lb, place, targets_text(targets), settings=settings) as service:
            service.wait_until_admitted(count)
            load = Load(
                net=net,
                targets=targets,
                targets_path=place / f"{net.lb.name}.yaml",
                api=place / f"{net.lb.name}.sock",
                random=random.Random(seed),
            )
            began = time.time()
            samples = asyncio.run(_run(service, load, duration_s, console))
            ended = time.time()
            ended_as = service.process.poll() if service.process is not None else None
            service.terminate()
        long = [json.loads(line) for line in steps.read_text().splitlines()]
    total = sum(line.get("steps", 0) for line in long)
    long = [line | {"at_s": line["at"] - began} for line in long if began <= line["at"] <= ended and "took_ms" in line]
    rows = list(soak_rows(samples, long, ended_as))
    _print(console, samples, long, rows, load)
    if output is not None:
        document = {
            "minutes": duration_s / 60,
            "targets": count,
            "seed": seed,
            "rows": [row.as_json() for row in rows],
            "samples": [asdict(sample) for sample in samples],
            "steps": total,
            "long_steps": long,
            "load": load.done,
        }
        output.parent.mkdir(exist_ok=True)
        output.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(row.met is not False for row in rows) else 1


async def _run(service: Service, load: Load, duration_s: float, console: Console) -> list[Sample]:
    samples: list[Sample] = []
    began = time.monotonic()
    parts = [load.flap(), load.rewrite(), load.scrape(), *(load.report(number) for number in range(REPORTERS))]
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        while time.monotonic() - began < duration_s:
            # A part that fails ends the run: then the service did not do what it must.
            done, _ = await asyncio.wait(tasks, timeout=min(10.0, duration_s / 6), return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            samples.append(_sample(service, load.metrics, time.monotonic() - began))
            if len(samples) % 6 == 0:
                last = samples[-1]
                console.print(
                    f"{last.at_s:5.0f} s  {last.resident_mib:.1f} MiB  {last.decisions} decisions", style="dim"
                )
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return samples


def _sample(service: Service, metrics: str, at_s: float) -> Sample:
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return Sample(
        at_s=at_s,
        resident_mib=service.resident_mib(),
        cpu_s=service.cpu_s(),
        decisions=int(values.get("lbguard_decisions_total", 0)),
        overruns=int(values.get("lbguard_kernel_overruns_total", 0)),
        in_sync=values.get("lbguard_kernel_in_sync", 1) == 1,
    )


def own_ms(step: dict[str, Any]) -> float:
    """Return how long a step took without the time that other processes had the processors.

    Where the loop's thread slept, it waited for another thread of the service to give the interpreter back; as long as
    that one waited for a processor, it is no fault of the service either.
    """
    slept_ms = max(0.0, step["took_ms"] - step["ran_ms"] - step["waited_ms"])
    return float(step["ran_ms"] + slept_ms - min(slept_ms, step["others_waited_ms"]))


def soak_rows(samples: Sequence[Sample], long: Sequence[dict[str, Any]], ended_as: int | None) -> list[Row]:
    """Return what is judged.

    Args:
        samples: at least one, in order.
        long: the long steps, as `timed_run` writes them.
        ended_as: the service's exit status, if it ended by itself.
    """
    settled = [sample for sample in samples if sample.at_s >= _SETTLED_AFTER_S]
    watched_s = settled[-1].at_s - settled[0].at_s if settled else 0.0
    judged = watched_s >= _JUDGED_OVER_S
    over = settled if judged else samples[len(samples) // 2 :]
    slope = (
        statistics.linear_regression([s.at_s / 60 for s in over], [s.resident_mib for s in over]).slope
        if len(over) > 1
        else 0.0
    )
    own = sorted(map(own_ms, long))
    took_s = samples[-1].at_s - samples[0].at_s
    cpu = 100 * (samples[-1].cpu_s - samples[0].cpu_s) / took_s if took_s else 0.0

    def row(what: str, unit: str, measured: float, aim: float | None = None, **details: object) -> Row:
        return Row(benchmark=NAME, what=what, unit=unit, measured=measured, aim=aim, details=details)

    return [
        row(
            "growth of resident memory" + (" after 5 min" if judged else ", second half (too short to be judged)"),
            "MiB/min",
            max(0.0, slope),
            SLOPE_AIM_MIB if judged else None,
            slope=slope,
        ),
        row("resident memory at the end", "MiB", samples[-1].resident_mib),
        row("longest step of the loop", "ms", own[-1] if own else 0.0, STEP_AIM_MS),
        row("steps over 50 ms", "", sum(one > STEP_AIM_MS for one in own), 0),
        row("steps over 20 ms", "", sum(one > 20 for one in own)),
        row("views of the kernel lost (overruns)", "", samples[-1].overruns, 0),
        row("the service ended by itself", "", ended_as is not None, 0),
        row("processor use", "% of a core", cpu),
    ]


def _print(
    console: Console, samples: Sequence[Sample], long: Sequence[dict[str, Any]], rows: Sequence[Row], load: Load
) -> None:
    table = Table(title="lbguard soaked", caption=", ".join(f"{what}: {n}" for what, n in sorted(load.done.items())))
    for heading in ("minute", "resident MiB", "% of a core", "decisions", "longest step, ms", "of that garbage"):
        table.add_column(heading, justify="right")
    table.add_column("where")
    minutes = sorted({int(sample.at_s // 60) for sample in samples})
    before = samples[0]
    for minute in minutes:
        last = [sample for sample in samples if sample.at_s // 60 == minute][-1]
        steps = [step for step in long if step["at_s"] // 60 == minute]
        longest = max(steps, key=own_ms, default=None)
        passed_s = last.at_s - before.at_s
        table.add_row(
            str(minute + 1),
            f"{last.resident_mib:.1f}",
            f"{100 * (last.cpu_s - before.cpu_s) / passed_s:.1f}" if passed_s else "",
            str(last.decisions - before.decisions),
            f"{own_ms(longest):.0f}" if longest else "< 20",
            f"{longest['garbage_ms']:.0f}" if longest else "",
            str(longest["where"])[:90] if longest else "",
        )
        before = last
    console.print(table)
    for row in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        aim = "" if row.aim is None else f" (aim: at most {row.aim:g})"
        console.print(f"{row.what}: {row.measured:.3g} {row.unit}{aim} {verdict}".rstrip(), highlight=False)


if __name__ == "__main__":
    sys.exit(main())
