"""`python -m tests.bench.windows`: play lost links in the lab for each grace window and each time that they are away.

Clients keep connections alive and open a new one every 20 ms. One of two links is lost, or with `--lost N` so many of
N + 1 at once: connections to targets behind them are their own targets' (`own`). Told of each run: how many of these
broke and how long the others of them paused, and how many connections of other targets, and new ones, broke or waited.
`gone` is a link that never comes back: then all of its connections break, and the pause is how long the last of them
waited for its reset.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lbguard.lab.controller import Column, Distribution
from lbguard.lab.measure import WAITED_OVER_S, connect_s, is_moved, is_stalled, longest_gap, newcomers
from lbguard.lab.play import Run, Setup, play
from lbguard.lab.promise import Promise
from lbguard.lab.sandbox import SandboxError, require_tools, run_isolated
from lbguard.lab.scenario_model import Do, Scenario, Step, recreate
from lbguard.lab.traffic import OPEN, Channel
from lbguard.settings.notation import format_duration, parse_duration

GONE = "gone"
_WATCHED_MIN_S, _WATCHED_MORE_S = 6.0, 4.0
"""A sender that waited repeats its packet after at most as long again as it waited, and some time is watched then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run. Own connections are those of targets behind the lost link. Times in seconds."""

    affinity: str
    window_s: float
    away_s: float | None
    own: int
    own_broken: int
    own_longest_s: float
    others: int
    others_broken: int
    new: int
    new_broken: int
    new_waited: int
    new_longest_s: float
    client_late_s: float
    error: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Play every combination; the exit status is 1 when a run failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.windows", description=__doc__)
    parser.add_argument("--window", default="3s,10s,20s")
    parser.add_argument("--away", default=f"500ms,2s,4s,8s,15s,{GONE}", help="how long the link is away")
    parser.add_argument("--affinity", default="off,incident")
    parser.add_argument("--lost", type=int, default=1, help="how many links are lost at once; one more stays")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--output", type=Path, help="write the results as JSON to this file")
    parser.add_argument("--record", type=Path, help="write recordings to this directory")
    options = parser.parse_args(argv)
    for name in ("output", "record"):
        place = getattr(options, name)
        setattr(options, name, place.resolve() if place else None)
    try:
        require_tools()
        return run_isolated(lambda: asyncio.run(_measure(options)))
    except SandboxError as error:
        print(f"windows: {error}", file=sys.stderr)
        return 1


async def _measure(options: argparse.Namespace) -> int:
    outcomes = []
    for affinity in options.affinity.split(","):
        for away in options.away.split(","):
            for window in options.window.split(","):
                away_s = None if away == GONE else parse_duration(away)
                print(f"{affinity} window {window} away {away}", file=sys.stderr, flush=True)
                outcomes.append(await _play(affinity, parse_duration(window), away_s, options))
                if options.output is not None:
                    options.output.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    Console(width=120).print(_table(outcomes))
    return int(any(outcome.error for outcome in outcomes))


async def _play(affinity: str, window_s: float, away_s: float | None, options: argparse.Namespace) -> Outcome:
    waited_s = 2 * window_s if away_s is None else away_s
    watched_s = max(_WATCHED_MIN_S, waited_s + _WATCHED_MORE_S)
    scenario = Scenario(
        name=f"{affinity}-{format_duration(window_s)}-{GONE if away_s is None else format_duration(away_s)}",
        sentence="One link is away.",
        promise=Promise(),
        steps=lambda _outage_s, proxies: _steps(away_s, proxies[:-1]),
        observe_s=watched_s,
        newcomers=True,
        settings={"LBGUARD_AFFINITY__MODE": affinity, "LBGUARD_GRACE__WINDOW": format_duration(window_s)},
    )
    setup = Setup(connections=options.connections, flows=0, proxies=options.lost + 1, recording=options.record)
    run = await play(scenario, Column.LBGUARD, Distribution.NFTABLES, setup, lambda _phase, _left_s: None)
    return _outcome(run, affinity, window_s, away_s, options.lost * setup.targets_per_proxy)


def _steps(away_s: float | None, lost: Sequence[int]) -> list[Step]:
    if away_s is None:
        return [Step(0.0, Do.DELETE_LB_LINK, proxy) for proxy in lost]
    return sorted((step for proxy in lost for step in recreate(proxy, 0.0, away_s)), key=lambda step: step.at_s)


def _outcome(run: Run, affinity: str, window_s: float, away_s: float | None, lost_targets: int) -> Outcome:
    traffic = run.traffic
    channels = traffic.connections if traffic else []
    # Targets are numbered by proxy, and the first links are lost.
    own = [channel for channel in channels if channel.target <= lost_targets]
    others = [channel for channel in channels if channel.target > lost_targets]
    new = newcomers(traffic, run.stepped) if traffic else []
    waits = [connect_s(channel, run.ended) for channel in new]
    return Outcome(
        affinity=affinity,
        window_s=window_s,
        away_s=away_s,
        own=len(own),
        own_broken=sum(_broken(channel, run.ended) for channel in own),
        own_longest_s=max(_pauses(own, run, away_s), default=0.0),
        others=len(others),
        others_broken=sum(_broken(channel, run.ended) for channel in others),
        new=len(new),
        new_broken=sum(_broken(channel, run.ended) for channel in new),
        new_waited=sum(wait_s > WAITED_OVER_S for wait_s in waits),
        new_longest_s=max(waits, default=0.0),
        client_late_s=traffic.late_s if traffic else 0.0,
        error=run.error,
    )


def _broken(channel: Channel, ended: float) -> bool:
    return channel.ending != OPEN or is_moved(channel) or is_stalled(channel, ended)


def _pauses(own: Sequence[Channel], run: Run, away_s: float | None) -> Iterator[float]:
    """Return how long connections paused, or waited for their reset."""
    for channel in own:
        if away_s is None:
            yield (channel.ended_at or run.ended) - run.stepped
        elif not _broken(channel, run.ended):
            yield longest_gap(channel, run.stepped)[0]


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(box=None, pad_edge=False)
    headings = ("away", "own broken", "own pause", "others broken", "new broken", "new waited", "longest wait")
    for heading in ("affinity", "window", *headings):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in outcomes:
        table.add_row(
            one.affinity,
            format_duration(one.window_s),
            GONE if one.away_s is None else format_duration(one.away_s),
            f"{one.own_broken} of {one.own}",
            f"{one.own_longest_s:.1f} s",
            f"{one.others_broken} of {one.others}",
            f"{one.new_broken} of {one.new}",
            str(one.new_waited),
            f"{one.new_longest_s:.1f} s",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
