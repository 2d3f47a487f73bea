"""The report: one self-contained HTML page with the numbers and a timeline of every run; pure."""

import time
from collections.abc import Sequence

from lbguard.lab.controller import Column
from lbguard.lab.display import (
    MERIDIO_LEGEND,
    NEW_LEGEND,
    broken_text,
    gap_text,
    newcomers_text,
    nfqlb_text,
    removal_text,
)
from lbguard.lab.meridio_scenarios import BY_NAME, AgainstToday
from lbguard.lab.play import Run
from lbguard.lab.timeline import draw
from lbguard.printable import html_text
from lbguard.telemetry.page_style import BASE_STYLE

STYLE = (
    BASE_STYLE
    + """
body { max-width: 1300px; } h2 { font-size: 20px; margin: 40px 0 2px; }
h3 { font-size: 15px; margin: 0 0 8px; font-weight: 600; } p { margin: 4px 0 10px; } table { margin: 14px 0; }
th, td { text-align: right; padding: 5px 7px; border-bottom: 1px solid var(--line); vertical-align: top; }
td { white-space: nowrap; font-size: 14px; } tr.why td { white-space: normal; }
th { font-weight: 600; color: var(--soft); font-size: 13px; } .text { text-align: left; }
tr.first td { border-top: 2px solid var(--line); } th.group { text-align: center; }
.new { border-left: 2px solid var(--line); } tr.has-why td { border-bottom: 0; }
.bad { color: var(--out); font-weight: 600; } .good { color: var(--ok); font-weight: 600; }
.card { padding: 14px 14px 6px; margin: 12px 0; }
svg { width: 100%; min-width: 760px; height: auto; display: block; font: 12px system-ui, sans-serif; }
svg text { fill: var(--fg); } svg .label, svg .tick { fill: var(--soft); } svg .head { font-weight: 600; }
svg .scale { fill: var(--soft); font-size: 10px; } svg .in { font-size: 11px; pointer-events: none; }
svg .on-ok, svg .on-out, svg .on-draining { fill: #ffffff; } svg .on-held, svg .on-frozen { fill: #1d2327; }
.grid { stroke: var(--line); stroke-width: 1; } .zero { stroke: var(--fg); stroke-width: 1; stroke-dasharray: 3 3; }
.base { stroke: var(--line); } .s-up, .s-active { fill: var(--ok); } .s-away, .s-withdrawn { fill: var(--out); }
.s-held { fill: var(--held); } .s-frozen { fill: var(--frozen); } .s-pending, .s-removed { fill: var(--pending); }
.s-draining { fill: var(--draining); } .g-wait { fill: var(--wait); }
.answers { fill: var(--answers); } .gapback { fill: var(--back); } .g-gap { fill: var(--held); }
.g-broken { fill: var(--out); } .g-stalled { fill: var(--stalled); }
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 8px 0 0; padding: 0; list-style: none; }
.legend i { display: inline-block; width: 14px; height: 12px; border-radius: 2px; margin-right: 6px; }
@media print { th, td { padding: 3px 4px; font-size: 10.5px; } }
"""
)

LEGEND = (
    ("--ok", "link there, target active"),
    ("--out", "link away, target withdrawn, or connection broken by a reset"),
    ("--held", "target held in the table, or a connection waiting for an answer"),
    ("--frozen", "target frozen (withdrawal suppressed)"),
    ("--draining", "target draining (keeps its connections, gets no new ones)"),
    ("--pending", "target not in the list, or not admitted yet"),
    ("--wait", "new connection waiting to be connected"),
    ("--stalled", "connection silent for the rest of the run"),
    ("--answers", "answers a second, TCP and UDP"),
)

HOW_TO_READ = (
    "Time runs from left to right and the dashed line is the moment the scenario starts: look how long each connection "
    "at the bottom waits (yellow) and whether it ever breaks (dark orange), first with today's behaviour, then with "
    "lbguard."
)
HOW_TO_READ_NEW = (
    " New connections have a band of their own at the bottom. Each line begins when its connection is opened, and is "
    "violet until it is connected."
)

HEADINGS = ("opened", "disturbed", "broken", "moved", "UDP lost", "median gap", "longest gap")
NEW_HEADINGS = ("opened", "waited", "broken", "longest connect")
"""Only where new connections are opened."""


def render(runs: Sequence[Run], outage_s: float) -> str:
    """Return the page as HTML text. It refers to nothing outside itself."""
    names = list(dict.fromkeys(run.scenario for run in runs))
    legend = "".join(f'<li><i style="background:var({colour})"></i>{html_text(text)}</li>' for colour, text in LEGEND)
    sections = "".join(_section(name, [run for run in runs if run.scenario == name], outage_s) for name in names)
    meridio = f"<p>{html_text(MERIDIO_LEGEND)}</p>" if any(run.lb for run in runs) else ""
    nfqlb = f"<p>{html_text(nfqlb_text(runs))}</p>" if nfqlb_text(runs) else ""
    how_new = HOW_TO_READ_NEW if any(run.measured.new_opened for run in runs) else ""
    made = time.strftime("%Y-%m-%d %H:%M")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>lbguard demo</title><style>{STYLE}</style></head><body>"
        "<h1>lbguard demo</h1>"
        f'<p class="soft">{made}, outage {outage_s:g} s unless a scenario has its own. Real packets through client, '
        "load balancer, proxies and targets, each in a network namespace of its own.</p>"
        f"<p>{html_text(_headline(runs))}</p>{meridio}{nfqlb}{_table(names, runs)}"
        '<p class="soft">Disturbed: connections whose path the scenario breaks, and those that broke because others '
        "were withdrawn, which moves some slots of every target today. Broken: reset, or silent for the rest of the "
        "run; +N lost: those of targets that never return, or only after the window. Moved: their packets reached "
        "another target, which refused them. Gaps: the longest pause of each connection that survived; the median is "
        f"over those whose path was broken.{html_text(_newcomers_legend(runs))}</p>"
        f'<h2>How to read the timelines</h2><p>{html_text(HOW_TO_READ + how_new)}</p><ul class="legend">{legend}</ul>'
        f"{sections}</body></html>\n"
    )


def _newcomers_legend(runs: Sequence[Run]) -> str:
    return f" {NEW_LEGEND[0].upper()}{NEW_LEGEND[1:]}" if any(run.measured.new_opened for run in runs) else ""


def _headline(runs: Sequence[Run]) -> str:
    # Where the promise is to be like today, as many break in both columns.
    about_grace = [run for run in runs if not isinstance(BY_NAME[run.scenario].promise, AgainstToday)]
    today = sum(run.measured.broken for run in about_grace if run.column is Column.WITHDRAW)
    guarded = [run for run in runs if run.column is Column.LBGUARD]
    broken = sum(run.measured.broken for run in about_grace if run.column is Column.LBGUARD)
    missed = sum(1 for run in guarded if not run.kept)
    promises = "kept every promise" if missed == 0 else f"missed its promise in {missed} of {len(guarded)} runs"
    shown = f"Today's behaviour broke {today} connections whose targets were there to serve them"
    sentence = f"{shown}; lbguard broke {broken} and {promises}." if guarded else f"{shown}."
    return sentence + _newcomers_headline(runs)


def _newcomers_headline(runs: Sequence[Run]) -> str:
    with_new = [run for run in runs if run.measured.new_opened]
    parts = []
    for column, name in ((Column.WITHDRAW, "today"), (Column.LBGUARD, "with lbguard")):
        measured = [run.measured for run in with_new if run.column is column]
        if measured:
            opened, waited, broken = (
                sum(getattr(each, f"new_{kind}") for each in measured) for kind in ("opened", "waited", "broken")
            )
            parts.append(f"{name} {waited} waited and {broken} broke of {opened}")
    return f" New connections: {', '.join(parts)}." if parts else ""


def _table(names: Sequence[str], runs: Sequence[Run]) -> str:
    rows = []
    with_new = any(run.measured.new_opened for run in runs)
    for name in names:
        for index, run in enumerate(each for each in runs if each.scenario == name):
            link = f'<a href="#{html_text(name)}">{html_text(name)}</a>' if index == 0 else ""
            kinds = ("first" if index == 0 else "", "has-why" if run.misses else "")
            rows.append(
                f'<tr class="{" ".join(kinds).strip()}"><td class="text">{link}</td>'
                f'<td class="text">{run.column}, {run.distribution}</td>{_cells(run, with_new=with_new)}</tr>'
                f"{_why_row(run, with_new=with_new)}"
            )
    heads = _heads(with_new=with_new)
    return f'<div class="scroll"><table><thead>{heads}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _heads(*, with_new: bool) -> str:
    """Return the rows of headings; long-lived and new connections have a group each."""
    groups: list[tuple[str, tuple[str, ...], str]] = [("long-lived connections", HEADINGS, "")]
    if with_new:
        groups.append(("new connections", NEW_HEADINGS, "new"))
    over = "".join(f'<th class="group {kind}" colspan="{len(names)}">{name}</th>' for name, names, kind in groups)
    heads = "".join(
        f'<th class="{kind if name == names[0] else ""}">{name}</th>' for _, names, kind in groups for name in names
    )
    return (
        f'<tr><th colspan="2"></th>{over}<th></th></tr>'
        f'<tr><th class="text">scenario</th><th class="text">behaviour</th>{heads}<th>promise</th></tr>'
    )


def _columns(*, with_new: bool) -> int:
    """Return the number of columns after the names, the promise included."""
    return len(HEADINGS) + (len(NEW_HEADINGS) if with_new else 0) + 1


def _cells(run: Run, *, with_new: bool) -> str:
    measured = run.measured
    if run.error:
        return f'<td colspan="{_columns(with_new=with_new)}" class="text bad">not played, see below</td>'
    broken = "bad" if measured.broken else "good"
    moved = "bad" if measured.moved else "good"
    return (
        f"<td>{measured.opened}</td><td>{measured.disturbed}</td>"
        f'<td class="{broken}">{html_text(broken_text(run))}</td><td class="{moved}">{measured.moved}</td>'
        f"<td>{measured.udp_lost} of {measured.udp_sent}</td>"
        f"<td>{gap_text(measured.median_gap_s)}</td><td>{gap_text(measured.longest_gap_s)}</td>"
        f"{_new_cells(run) if with_new else ''}{_promise(run)}"
    )


def _new_cells(run: Run) -> str:
    measured = run.measured
    if measured.new_opened == 0:
        return '<td class="new">-</td>' + "<td>-</td>" * (len(NEW_HEADINGS) - 1)
    waited, broken = ("bad" if count else "good" for count in (measured.new_waited, measured.new_broken))
    return (
        f'<td class="new">{measured.new_opened}</td><td class="{waited}">{measured.new_waited}</td>'
        f'<td class="{broken}">{measured.new_broken}</td><td>{gap_text(measured.new_longest_connect_s)}</td>'
    )


def _promise(run: Run) -> str:
    if run.column is Column.WITHDRAW:
        return '<td class="soft">none</td>'
    return '<td class="good">kept</td>' if run.kept else '<td class="bad">MISSED</td>'


def _why_row(run: Run, *, with_new: bool) -> str:
    """Return a row that names what a run missed; empty for one that kept its promise."""
    if not run.misses:
        return ""
    columns = _columns(with_new=with_new) + 1
    return (
        f'<tr class="why"><td></td><td colspan="{columns}" class="text bad">'
        f"MISSED: {html_text('; '.join(run.misses))}</td></tr>"
    )


def _section(name: str, runs: Sequence[Run], outage_s: float) -> str:
    scenario = BY_NAME[name]
    promise = scenario.promise.sentence(outage_s)
    cards = "".join(_card(run) for run in runs)
    return (
        f'<h2 id="{html_text(name)}">{html_text(name)}</h2><p>{html_text(scenario.sentence)} '
        f'<span class="soft">Promise of lbguard: {html_text(promise)}.</span></p>{cards}'
    )


def _card(run: Run) -> str:
    title = "Today's behaviour (withdraw)" if run.column is Column.WITHDRAW else "With lbguard"
    body = f'<pre class="bad">{html_text(run.error)}</pre>' if run.error else f'<div class="scroll">{draw(run)}</div>'
    return f'<div class="card"><h3>{title}, on {run.distribution}: {html_text(_result(run))}</h3>{body}</div>'


def _result(run: Run) -> str:
    if run.error:
        return "not played"
    measured = run.measured
    if measured.lost_connections:
        kept = measured.opened - measured.lost_connections
        return (
            f"{measured.broken} of {kept} connections of the other targets broken "
            f"({measured.lost_broken} of {measured.lost_connections} of the lost ones){newcomers_text(run)}"
        )
    removed = f", removed targets out of the table in {removal_text(run)}" if run.lb and run.lb.removals_s else ""
    return f"{measured.disturbed} connections disturbed, {measured.broken} broken{removed}{newcomers_text(run)}"
