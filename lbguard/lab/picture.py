"""One scenario as a picture for a page: every connection as a line, today's behaviour above lbguard's; pure SVG text.

The picture is a file of its own, so it brings its colours, for light and dark.
"""

from collections.abc import Sequence

from lbguard.lab.controller import Column
from lbguard.lab.measure import newcomers
from lbguard.lab.meridio_scenarios import BY_NAME
from lbguard.lab.play import Run
from lbguard.lab.timeline import channel_marks, link_lanes
from lbguard.lab.traffic import TrafficResult
from lbguard.printable import html_text

WIDTH = 860
LEFT, RIGHT = 118, 14
BEFORE_S, AFTER_S = 1.0, 4.0
"""Seconds that are shown before the first step and after the last."""
LANE = 14
LINES = 132
PANEL = LINES + LANE + 52
TOP, BOTTOM = 50, 46

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1d2327; } .big { font-size: 17px; font-weight: 600; }
.soft { fill: #5c666d; } .bad { fill: #b3261e; } .good { fill: #1f7a48; } .page { fill: #ffffff; }
.back { fill: #e6ece8; } .grid { stroke: #d9dcde; } .s-up { fill: #2f8f5b; }
.s-away { fill: #ffffff; stroke: #b3261e; stroke-dasharray: 3 2; }
.g-gap { fill: #e0a100; } .g-wait { fill: #d9650b; } .g-broken { fill: #c2372e; } .g-stalled { fill: #c2372e; }
@media (prefers-color-scheme: dark) { text { fill: #e4e8ea; } .soft { fill: #9aa5ac; } .bad { fill: #ff8a80; }
.good { fill: #6cd39b; } .page { fill: #15191c; } .back { fill: #303b41; } .grid { stroke: #333a3f; }
.s-away { fill: #15191c; stroke: #ff8a80; } .g-gap { fill: #f0b92c; } .g-broken { fill: #ec6a5e; }
.g-stalled { fill: #ec6a5e; } }
"""

TITLES = {Column.WITHDRAW: "Without lbguard", Column.LBGUARD: "With lbguard"}
LEGEND = (
    ("back", "connection answers"),
    ("g-gap", "it waits for an answer"),
    ("g-wait", "new one waits to be connected"),
    ("g-broken", "broken"),
)


def draw(runs: Sequence[Run]) -> str:
    """Draw the first scenario that was played in both columns, on the first distributor; without one: empty."""
    for today in runs:
        if today.column is not Column.WITHDRAW or today.traffic is None:
            continue
        for run in runs:
            same = (run.scenario, run.distribution) == (today.scenario, today.distribution)
            if same and run.column is Column.LBGUARD and run.traffic is not None:
                return _draw([today, run])
    return ""


def _draw(runs: Sequence[Run]) -> str:
    end_s = min(run.traffic.ended - run.started for run in runs if run.traffic is not None)
    end_s = min(end_s, max((at - run.started for run in runs for at, _ in run.steps), default=0.0) + AFTER_S)
    height = TOP + PANEL * len(runs) + BOTTOM
    scenario = BY_NAME[runs[0].scenario]
    parts = [f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>']
    opened = len(runs[0].traffic.connections) if runs[0].traffic else 0
    parts.append(_text(14, 22, f"{opened} connections through a load balancer, one line each.", "big"))
    parts.append(_text(14, 41, scenario.sentence, "soft"))
    bottom = TOP + PANEL * len(runs)
    for second in range(-int(BEFORE_S), int(end_s) + 1):
        x = _x(second, end_s)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP + 6}" y2="{bottom}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{second} s</text>')
    for number, run in enumerate(runs):
        parts += _panel(run, TOP + PANEL * number, end_s)
    x = LEFT
    for kind, words in LEGEND:
        if kind == "g-wait" and not any(run.measured.new_opened for run in runs):
            continue
        parts.append(f'<rect class="{kind}" x="{x}" y="{bottom + 26}" width="14" height="11"/>')
        parts.append(_text(x + 19, bottom + 36, words, "soft"))
        x += 48 + 7 * len(words)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{html_text(_alternative(runs))}"><style>{STYLE}</style>{"".join(parts)}</svg>\n'
    )


def _panel(run: Run, top: int, end_s: float) -> list[str]:
    traffic = run.traffic
    assert traffic is not None
    broken = run.measured.broken + run.measured.lost_broken + run.measured.new_broken
    parts = [
        _text(14, top + 24, f"{TITLES[run.column]}:", "big"),
        _text(186, top + 24, _result(run), f"big {'bad' if broken else 'good'}"),
    ]
    y = top + 34
    for name, intervals in link_lanes(run.steps, run.started, end_s).items():
        parts.append(_text(14, y + 11, "link", "soft"))
        for since, until, state in intervals:
            left, right = _x(since, end_s), _x(until, end_s)
            if state != "none" and right > left:
                title = f"<title>{html_text(f'{name}: {state}')}</title>"
                parts.append(_rect(f"s-{state}", left, y, max(right - left, 2), LANE - 2, title))
        break  # one lane tells when; the report has them all
    return parts + _lines(run, traffic, y + LANE + 4, end_s)


def _lines(run: Run, traffic: TrafficResult, top: float, end_s: float) -> list[str]:
    """Return the lines of the connections by target, and below them those of new ones as they were opened."""
    started = run.started
    new = newcomers(traffic, run.stepped)
    channels = [*sorted(traffic.connections, key=lambda channel: (channel.target, channel.number)), *new]
    step = LINES / max(len(channels), 1)
    parts = [_rect("back", LEFT, top, WIDTH - LEFT - RIGHT, LINES)]
    if new:
        since = top + len(traffic.connections) * step
        births = " ".join(f"{_x(c.opened_at - started, end_s):.1f},{since + n * step:.2f}" for n, c in enumerate(new))
        parts.append(f'<polygon class="page" points="{LEFT},{since:.2f} {births} {LEFT},{top + LINES:.2f}"/>')
    first: dict[str, float] = {}
    for number, channel in enumerate(channels):
        y = top + number * step
        first.setdefault(f"of target {channel.target}" if number < len(traffic.connections) else "new ones", y)
        for since, until, kind in channel_marks(channel, traffic.ended):
            left, right = _x(since - started, end_s), _x(until - started, end_s)
            if until - started > -BEFORE_S and right > left:
                parts.append(_rect(f"g-{kind}", left, y, right - left, step))
    for words, y in first.items():
        parts.append(f'<line class="grid" x1="14" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(14, y + 13, words, "soft"))
    return parts


def _result(run: Run) -> str:
    measured = run.measured
    words = f"{measured.broken + measured.lost_broken} of {measured.opened} connections broken"
    if measured.new_opened:
        words += f", {measured.new_broken} of {measured.new_opened} new ones"
    return words


def _alternative(runs: Sequence[Run]) -> str:
    return "; ".join(f"{TITLES[run.column].lower()} {_result(run)}" for run in runs)


def _x(at_s: float, end_s: float) -> float:
    at_s = min(max(at_s, -BEFORE_S), end_s)
    return LEFT + (at_s + BEFORE_S) / (end_s + BEFORE_S) * (WIDTH - LEFT - RIGHT)


def _rect(kind: str, x: float, y: float, width: float, height: float, inside: str = "") -> str:
    shape = f'<rect class="{kind}" x="{x:.1f}" y="{y:.2f}" width="{width:.1f}" height="{height:.2f}"'
    return f"{shape}>{inside}</rect>" if inside else f"{shape}/>"


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{html_text(words)}</text>'
