"""Page of `lbguard tune --report`: one HTML file with the picture, the reasons and the numbers."""

import math
from collections.abc import Sequence

from lbguard.printable import html_text
from lbguard.recording.format import local_time
from lbguard.telemetry.page_style import BASE_STYLE
from lbguard.tuning.show import APPROXIMATE, COLUMNS, helm_values, label_of, meanings, warnings_of
from lbguard.tuning.tune import TuneReport, windows_of

_WIDTH, _HEIGHT = 900, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 96, 24, 18, 74
_TICKS_MAX = 6
_LABEL_WIDTH = 34

_STYLE = (
    BASE_STYLE
    + """
body { max-width: 1000px; } h2 { font-size: 18px; margin: 28px 0 4px; }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-size: 13px; } .text { text-align: left; }
tr.best td { color: var(--ok); font-weight: 600; } .nowrap { white-space: nowrap; } .card { overflow-x: auto; }
svg { width: 100%; min-width: 640px; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--soft); } .grid { stroke: var(--line); } .wait { fill: var(--held); opacity: .8; }
.broken { fill: var(--out); opacity: .8; } .total { fill: none; stroke: var(--fg); stroke-width: 1.5; }
.dot { fill: var(--fg); stroke: var(--fg); stroke-width: 1.5; } .recorded { fill: var(--card); }
.best { stroke: var(--ok); stroke-width: 2; stroke-dasharray: 5 4; }
svg .besttext { fill: var(--ok); font-weight: 600; } .heal { stroke: var(--draining); stroke-width: 2; opacity: .7; }
pre { background: var(--card); border: 1px solid var(--line); padding: 10px; }
i { display: inline-block; width: 14px; height: 12px; border-radius: 2px; margin: 0 6px 0 14px; }
"""
)


class _Scale:
    """Turns values into places."""

    def __init__(self, x_max: float, y_max: float) -> None:
        self.x_max = x_max or 1.0
        self.y_max = y_max or 1.0

    def x(self, value: float) -> float:
        return _LEFT + min(value / self.x_max, 1.0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - value / self.y_max * (_HEIGHT - _TOP - _BOTTOM)


def render(report: TuneReport) -> str:
    """Return the page."""
    windows = windows_of(report.results)
    svg = _curve(report, windows) if windows is not None and len(windows) > 1 else _bars(report)
    period = f"{local_time(report.began)} to {local_time(report.ended)}, {report.events} events"
    sentences = (*report.reasons, *report.remarks, *warnings_of(report))
    reasons = "".join(f"<li>{html_text(sentence)}</li>" for sentence in sentences)
    approximate = "".join(f"<li>{html_text(text)}</li>" for text in APPROXIMATE)
    values = ""
    if report.recommended is not None:
        values = f"<h2>Helm values</h2><pre>{html_text(helm_values(report.results[report.recommended]))}</pre>"
    ticks = ""
    if windows is not None:
        ticks = (
            " Short lines below the axis: how long losses took to heal. Dots: the windows that were tried; the hollow "
            "one is the recorded one."
        )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>lbguard tune</title><style>{_STYLE}</style></head><body><h1>lbguard tune</h1>"
        f'<p class="soft">{html_text(period)}.</p>'
        f'<p class="soft">Cost: seconds of waiting of 1000 connections altogether. The lower, the better.{ticks}<br>'
        '<span class="nowrap"><i style="background:var(--held)"></i>waiting for a held target</span> '
        '<span class="nowrap"><i style="background:var(--out)"></i>broken because moved '
        f"({report.broken_cost_s:g} s each)</span></p>"
        f'<div class="card">{svg}</div><h2>Why</h2><ul>{reasons}</ul>{values}'
        f"<h2>Numbers</h2>{_table(report)}<h2>What is approximate</h2>"
        f"<ul>{approximate}</ul></body></html>\n"
    )


def _axes(scale: _Scale, title: str) -> list[str]:
    """Draw both axes: the cost from bottom to top, and below it what was tried, as `title` says with its unit."""
    high = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts = [
        f'<text x="16" y="{high:.0f}" text-anchor="middle" transform="rotate(-90 16 {high:.0f})">'
        "cost of 1000 connections (s)</text>"
    ]
    step = _step(scale.y_max)
    for tick in range(math.floor(scale.y_max / step) + 1):
        value = step * tick
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g} s</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{html_text(title)}</text>')
    return parts


def _step(value_max: float) -> float:
    """Return a round distance between ticks, of which at most `_TICKS_MAX` fit."""
    power = 10.0 ** math.floor(math.log10(value_max / _TICKS_MAX))
    return next(power * factor for factor in (1, 2, 5, 10) if value_max <= power * factor * _TICKS_MAX)


def _curve(report: TuneReport, windows: Sequence[float]) -> str:
    costs = [result.cost for result in report.results]
    scale = _Scale(max(windows) * 1.03, max(cost.total_s for cost in costs) * 1.05)
    waits = [(scale.x(window), scale.y(cost.stalled_s)) for window, cost in zip(windows, costs, strict=True)]
    totals = [(scale.x(window), scale.y(cost.total_s)) for window, cost in zip(windows, costs, strict=True)]
    parts = _axes(scale, "grace.window (duration)")
    floor = [(waits[-1][0], scale.y(0)), (waits[0][0], scale.y(0))]
    parts.append(f'<polygon class="wait" points="{_points([*waits, *floor])}"/>')
    parts.append(f'<polygon class="broken" points="{_points([*totals, *reversed(waits)])}"/>')
    parts.append(f'<polyline class="total" points="{_points(totals)}"/>')
    for (x, y), result in zip(totals, report.results, strict=True):
        title = html_text(f"{result.variant.label}: {result.cost.total_s:.0f}")
        kind = "dot recorded" if result.variant.recorded else "dot"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{title}</title></circle>')
    parts += _window_labels(report, [x for x, _ in totals])
    bottom = _HEIGHT - _BOTTOM
    for heal in report.heals_s:
        if heal <= scale.x_max:
            x = scale.x(heal)
            title = f"<title>healed after {heal:.2f} s</title>"
            parts.append(
                f'<line class="heal" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom + 4}" y2="{bottom + 18}">{title}</line>'
            )
    if report.recommended is not None:
        x = totals[report.recommended][0]
        anchor = "end" if x > _WIDTH / 2 else "start"
        label = html_text(f"recommended: {report.results[report.recommended].variant.label}")
        parts.append(f'<line class="best" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        shift = -6 if anchor == "end" else 6
        parts.append(
            f'<text class="besttext" x="{x + shift:.1f}" y="{_TOP + 12}" text-anchor="{anchor}">{label}</text>'
        )
    return _svg(parts)


def _window_labels(report: TuneReport, places: Sequence[float]) -> list[str]:
    """Write the windows below the axis as far as there is room, first those that matter most."""
    order = sorted(
        range(len(places)), key=lambda index: (index != report.recommended, not report.results[index].variant.recorded)
    )
    written: list[float] = []
    parts = []
    for index in order:
        x = places[index]
        if all(abs(x - other) > _LABEL_WIDTH for other in written):
            written.append(x)
            label = html_text(report.results[index].variant.label)
            parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 36}" text-anchor="middle">{label}</text>')
    return parts


def _bars(report: TuneReport) -> str:
    scale = _Scale(len(report.results), max(result.cost.total_s for result in report.results) * 1.05)
    parts = _axes(scale, ", ".join(name for name, _ in report.results[0].variant.values))
    for index, result in enumerate(report.results):
        left, right = scale.x(index + 0.15), scale.x(index + 0.85)
        cost = result.cost
        for kind, low, high in (("wait", 0.0, cost.stalled_s), ("broken", cost.stalled_s, cost.total_s)):
            y, height = scale.y(high), scale.y(low) - scale.y(high)
            title = f"<title>{html_text(f'{result.variant.label}: {cost.total_s:.0f}')}</title>"
            parts.append(
                f'<rect class="{kind}" x="{left:.1f}" y="{y:.1f}" width="{right - left:.1f}" '
                f'height="{height:.1f}">{title}</rect>'
            )
        best = index == report.recommended
        if best:
            y = max(scale.y(cost.total_s) - 6, _TOP)
            middle = (left + right) / 2
            parts.append(f'<text class="besttext" x="{middle:.1f}" y="{y:.1f}" text-anchor="middle">recommended</text>')
        kind = ' class="besttext"' if best else ""
        label = html_text("\n".join(value for _, value in result.variant.values) or result.variant.label)
        middle = (left + right) / 2
        parts.append(f'<text{kind} x="{middle:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{label}</text>')
    return _svg(parts)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _svg(parts: Sequence[str]) -> str:
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    return f'<svg viewBox="{box}" role="img" aria-label="cost of each set of values">{"".join(parts)}</svg>'


def _table(report: TuneReport) -> str:
    explained = meanings(report)
    headings = ("values", *(heading.lower() for heading in explained))
    head = "".join(f"<th{_text_class(i)}>{heading}</th>" for i, heading in enumerate(headings))
    rows = []
    for index, result in enumerate(report.results):
        cells = [label_of(report, index), *(COLUMNS[name](result.cost) for name in explained)]
        kind = ' class="best"' if index == report.recommended else ""
        rows.append(
            f"<tr{kind}>{''.join(f'<td{_text_class(i)}>{html_text(c)}</td>' for i, c in enumerate(cells))}</tr>"
        )
    legend = ". ".join(f"<b>{heading.lower()}</b>: {html_text(meaning)}" for heading, meaning in explained.items())
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    return f'<div class="scroll">{table}</div><p class="soft">{legend}.</p>'


def _text_class(column: int) -> str:
    return ' class="text"' if column == 0 else ""
