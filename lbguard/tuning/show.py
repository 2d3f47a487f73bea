"""Output of `lbguard tune`: table with bars, reasons, values for Helm, and JSON; `page.py` has the picture."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import yaml
from rich.table import Table
from rich.text import Text

from lbguard.printable import printable
from lbguard.recording.format import local_time
from lbguard.settings.model import Settings
from lbguard.settings.sources import leaves
from lbguard.telemetry.console import TextConsole
from lbguard.tuning.cost import Cost, Remembered
from lbguard.tuning.recommendation import Result, counted
from lbguard.tuning.tune import TuneReport

_BAR = 24
_BAR_MIN = 8

APPROXIMATE = (
    "Links, addresses, neighbours, the list of targets and verdicts are as recorded. That other settings would have "
    "changed them (a flush, a question at another time, clients that give up) is not modelled.",
    "Every route, rule and commit of the engine succeeds, after 1 ms and 5 ms; refusals that were recorded are left "
    "out.",
    "Packets in the fallback: the target's rate when it was last well, times the time it was held. Clients that back "
    "off send less, so this is an upper bound.",
    "Connections moved: slots that change their target, as if connections were spread evenly over slots. Their number "
    "is not known, so it is of each 1000.",
    "With flow affinity every connection that begins during an incident is remembered; the maps have room for all. One "
    "that began in an earlier incident counts as a connection of its slot's target. A target with two families has as "
    "many connections of either.",
    "With flow affinity, connections that are silent during affinity.learn, and those left at the end of a drain, are "
    "not counted.",
    "After a gap in the recording, or where its beginning is gone, a hold that was under way begins anew.",
)
"""Simplifications of the model, as a text for people."""


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


def fallback_text(cost: Cost) -> str:
    """Return how many packets were dropped while held; a dash where nothing was counted."""
    return "-" if cost.fallback is None else str(cost.fallback)


COLUMNS: dict[str, Callable[[Cost], str]] = {
    "IN TIME": lambda cost: str(cost.in_time),
    "TOO SOON": lambda cost: str(cost.too_soon),
    "LOST": lambda cost: str(cost.in_vain),
    "FAMILIES": lambda cost: str(cost.families),
    "FROZEN": lambda cost: str(cost.frozen),
    "WASTED": lambda cost: f"{cost.vain_s:.1f} s",
    "FALLBACK": fallback_text,
    "NEW WAIT": lambda cost: f"{cost.new_waited_s:.1f} s",
    "MOVED": lambda cost: f"{cost.moved:.0f}",
    "COST": lambda cost: f"{cost.total_s:.0f}",
}
_FEWER = (("IN TIME", "TOO SOON", "LOST", "MOVED", "COST"), ("IN TIME", "COST"))
"""Choices of columns for narrow terminals: the first one that fits is shown."""


def columns_of(report: TuneReport) -> tuple[str, ...]:
    """Return the headings of all columns; those of flow affinity only where they tell something."""
    left_out = set()
    if not any(result.cost.families for result in report.results):
        left_out.add("FAMILIES")
    if all(result.variant.remembered is Remembered.NONE for result in report.results):
        left_out.add("NEW WAIT")
    return tuple(name for name in COLUMNS if name not in left_out)


def _width_of(columns: Sequence[str]) -> int:
    # Two characters between columns; a cost may be longer than its heading.
    return sum(max(len(name), 6) + 2 for name in columns)


def show_report(report: TuneReport) -> None:
    """Print the report."""
    console = TextConsole()
    console.print(f"{local_time(report.began)} to {local_time(report.ended)}: {report.events} events")
    console.print()
    console.print(results_table(report, console.width))
    console.print()
    console.print(". ".join(f"{name}: {meaning}" for name, meaning in meanings(report).items()) + ".", style="dim")
    console.print()
    _show_recommendation(console, report)


def results_table(report: TuneReport, width: int) -> Table:
    """Return the results; on a narrow terminal (characters) only the columns that decide, and no bars."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ", ".join(name for name, _ in report.results[0].variant.values)
    labels = [printable(label_of(report, index)) for index in range(len(report.results))]
    label_width = max(map(len, [names, *labels]))
    choices = (columns_of(report), *_FEWER)
    columns = next((names for names in choices if label_width + _width_of(names) <= width), choices[-1])
    bar_length = min(_BAR, width - label_width - _width_of(columns) - 2) if columns == choices[0] else 0
    table.add_column(names, overflow="fold", min_width=min(label_width, width // 2))
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    if bar_length >= _BAR_MIN:
        table.add_column("", no_wrap=True)
    most = max((result.cost.total_s for result in report.results), default=0.0) or 1.0
    for index, (result, label) in enumerate(zip(report.results, labels, strict=True)):
        cost = result.cost
        cells = [Text(label), *(Text(COLUMNS[name](cost)) for name in columns)]
        if bar_length >= _BAR_MIN:
            cells.append(Text("█" * max(round(bar_length * cost.total_s / most), 1 if cost.total_s else 0)))
        table.add_row(*cells, style="green" if index == report.recommended else "")
    return table


def meanings(report: TuneReport) -> dict[str, str]:
    """Return the meaning of the columns, by heading."""
    explained = {
        "IN TIME": "recovered while held",
        "TOO SOON": "withdrawn, but the path came back",
        "LOST": "real losses: withdrawn, and the path did not come back in the recording",
        "FAMILIES": "families that were withdrawn alone, while the target kept its other one",
        "FROZEN": "withdrawals that a mass failure suppressed",
        "WASTED": "wasted hold time: how long withdrawn targets were held",
        "FALLBACK": "packets dropped while held, at most (- where none were counted)",
        "NEW WAIT": "the new connections that a stream gets in this time waited for held targets (not in the cost)",
        "MOVED": "connections that got another target, of each 1000 of a stream; who is moved twice counts twice",
        "COST": "seconds of waiting of 1000 connections altogether, a broken one counted as "
        f"{report.broken_cost_s:g} s",
    }
    return {heading: explained[heading] for heading in columns_of(report)}


def label_of(report: TuneReport, index: int) -> str:
    """Return the values of a result, and its special role."""
    variant = report.results[index].variant
    marks = ["recorded"] if variant.recorded else []
    marks += ["recommended"] if index == report.recommended else []
    return f"{variant.label} ({', '.join(marks)})" if marks else variant.label


def _show_recommendation(console: TextConsole, report: TuneReport) -> None:
    for reason in report.reasons:
        console.print(printable(reason), soft_wrap=True)
    for remark in report.remarks:
        console.print(remark, soft_wrap=True)
    for warning in warnings_of(report):
        console.print(warning, style="yellow", soft_wrap=True)
    if report.recommended is not None:
        console.print()
        console.print("Helm values:")
        console.print(helm_values(report.results[report.recommended]), end="", soft_wrap=True)


def warnings_of(report: TuneReport) -> list[str]:
    """Return the differences between the model and the recording."""
    real, modelled = report.real, next((r.cost for r in report.results if r.variant.recorded), None)
    warnings = []
    if report.settings_changed:
        warnings.append("The settings changed while it was recorded; those called recorded are the first.")
    if modelled is not None and _counts(real) != _counts(modelled):
        warnings.append(
            f"Recorded were {counted(real.losses, 'loss', 'losses')} and "
            f"{counted(real.withdrawn + real.families, 'withdrawal', 'withdrawals')}; the model comes to "
            f"{modelled.losses} and {modelled.withdrawn + modelled.families} with the same settings: take the numbers "
            "with care."
        )
    if report.held_packets is not None and modelled is not None and modelled.fallback is not None:
        warnings.append(
            f"Measured: {counted(report.held_packets, 'packet', 'packets')} dropped while held; the model "
            f"says at most {modelled.fallback} with the recorded settings."
        )
    return warnings


def _counts(cost: Cost) -> tuple[int, int, int]:
    return cost.losses, cost.withdrawn, cost.families


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
        "remarks": list(report.remarks),
        "warnings": warnings_of(report),
        "helm_values": None if recommended is None else helm_values(report.results[recommended]),
        "recorded": asdict(report.real),
        "held_packets": report.held_packets,
        "with_affinity": None if report.with_affinity is None else asdict(report.with_affinity),
        "approximate": list(APPROXIMATE),
    }
