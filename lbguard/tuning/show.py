"""What `lbguard tune` prints: a table with bars, the reasons, the values for Helm, or all of it as JSON."""

import datetime
from dataclasses import asdict
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lbguard.settings import Settings
from lbguard.settings_sources import leaves
from lbguard.tuning.tune import Result, TuneReport

_BAR = 24
_WIDTH_WITHOUT_TERMINAL = 160

APPROXIMATE = (
    "Links, addresses, neighbours, the list of targets and verdicts are as recorded. That other settings would have "
    "changed them (a flush, a question at another time, clients that give up) is not modelled.",
    "Every route, rule and commit of the engine succeeds, after 1 ms and 5 ms; refusals that were recorded are left "
    "out.",
    "Packets in the fallback: the target's rate when it was last well, times the time it was held. Clients that back "
    "off send less, so this is an upper bound.",
    "Connections moved: slots that change their target, as if connections were spread evenly over slots. Their number "
    "is not known, so it is of each 1000.",
    "After a gap in the recording, or where its beginning is gone, a hold that was under way begins anew.",
)
"""What the model leaves out or simplifies, for people."""


def helm_values(result: Result) -> str:
    """Return the values fragment for the chart, YAML."""
    units = {leaf.name: leaf for leaf in leaves(Settings)}
    values: dict[str, Any] = {}
    for name, text in result.variant.values:
        *groups, last = name.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        is_text = units[name].unit in ("duration", "text", "choice")
        place[last] = text if is_text else yaml.safe_load(text) if text else None
    return yaml.safe_dump({"settings": values}, sort_keys=False)


def _fallback(result: Result) -> str:
    return "-" if result.cost.fallback is None else str(result.cost.fallback)


def show_report(report: TuneReport) -> None:
    """Print the report."""
    terminal = Console().is_terminal
    console = Console(highlight=False, markup=False, width=None if terminal else _WIDTH_WITHOUT_TERMINAL)
    console.print(f"{_local(report.began)} to {_local(report.ended)}: {report.events} events")
    console.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ", ".join(name for name, _ in report.results[0].variant.values) or "VALUES"
    for heading in (names, "IN TIME", "TOO SOON", "FOR GOOD", "FROZEN", "IN VAIN", "FALLBACK", "MOVED", "COST", ""):
        table.add_column(heading, justify="left" if heading in (names, "") else "right")
    most = max((result.cost.total_s for result in report.results), default=0.0) or 1.0
    for index, result in enumerate(report.results):
        cost = result.cost
        mark = " <- recommended" if index == report.recommended else ""
        note = " (recorded)" if result.variant.recorded else ""
        bar = "█" * max(round(_BAR * cost.total_s / most), 1 if cost.total_s else 0)
        table.add_row(
            Text(f"{result.variant.label}{note}"),
            str(cost.in_time),
            str(cost.too_soon),
            str(cost.in_vain),
            str(cost.frozen),
            f"{cost.vain_s:.1f} s",
            _fallback(result),
            f"{cost.moved:.0f}",
            f"{cost.total_s:.0f}",
            Text(f"{bar}{mark}", style="green" if mark else ""),
        )
    console.print(table)
    console.print(
        "IN TIME: holds that recovered. TOO SOON: withdrawn, but the path came back. FOR GOOD: withdrawn, never back. "
        "IN VAIN: how long withdrawn targets were held before. FALLBACK: packets that met it (at most). MOVED: of each "
        "1000 connections. COST: seconds that 1000 connections wait, a broken one counted as "
        f"{report.broken_cost_s:g} s.",
        style="dim",
    )
    console.print()
    _show_recommendation(console, report)


def _show_recommendation(console: Console, report: TuneReport) -> None:
    for reason in report.reasons:
        console.print(reason, soft_wrap=True)
    real, modelled = report.real, next((r.cost for r in report.results if r.variant.recorded), None)
    if modelled is not None and (real.losses, real.withdrawn) != (modelled.losses, modelled.withdrawn):
        console.print(
            f"Recorded were {real.losses} losses and {real.withdrawn} withdrawals; the model comes to "
            f"{modelled.losses} and {modelled.withdrawn} with the same settings: take the numbers with care.",
            style="yellow",
            soft_wrap=True,
        )
    if report.held_packets is not None and modelled is not None and modelled.fallback is not None:
        console.print(
            f"Counted were {report.held_packets} packets that met the fallback; the model says at most "
            f"{modelled.fallback} with the recorded settings.",
            soft_wrap=True,
        )
    if report.recommended is not None:
        console.print()
        console.print("Helm values:")
        console.print(helm_values(report.results[report.recommended]), end="", soft_wrap=True)


def report_json(report: TuneReport) -> dict[str, Any]:
    """Return the report as plain values."""
    recommended = report.recommended
    return {
        "began": report.began,
        "ended": report.ended,
        "events": report.events,
        "broken_cost_s": report.broken_cost_s,
        "heals_s": list(report.heals_s),
        "never_healed": report.lost,
        "results": [
            {"values": dict(result.variant.values), "recorded": result.variant.recorded, **asdict(result.cost)}
            for result in report.results
        ],
        "recommended": None if recommended is None else dict(report.results[recommended].variant.values),
        "reasons": list(report.reasons),
        "helm_values": None if recommended is None else helm_values(report.results[recommended]),
        "recorded": asdict(report.real),
        "held_packets": report.held_packets,
        "approximate": list(APPROXIMATE),
    }


def _local(wall_time: float) -> str:
    return datetime.datetime.fromtimestamp(wall_time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
