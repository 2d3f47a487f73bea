"""`lbguard top`: the view of a state, built from plain values. It uses no clock, socket or terminal."""

import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lbguard.api.client import Watched
from lbguard.cli.status_words import (
    STATE_COLOURS,
    TROUBLE_FIRST,
    age,
    by_hand,
    condition,
    headline_parts,
    kept_packets,
    list_change_note,
    local_vips_note,
    new_flows,
    then,
    until,
    until_time,
)
from lbguard.cli.top_browse import Browse, matching
from lbguard.cli.top_feed import Snapshot
from lbguard.cli.top_help import help_view
from lbguard.core.model import Action, TargetState
from lbguard.core.status import GuardStatus, LinkStatus, StreamStatus, TargetStatus
from lbguard.telemetry.sentences import decision_sentence

_FULL_WIDTH = 100
"""From this width on (characters) every column is shown; on a narrower terminal only those that decide."""
_TIMES_WIDTH = 120
"""From this width on the time of day of a deadline is shown beside the time left."""
_TINY_WIDTH = 60
_LOW = 12
"""Below so many lines, parts are left out."""
_SEPARATOR = " · "
_UNFILTERED = Browse()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Parts of the view that fit on a screen.

    Attributes:
        head: its first lines.
        streams: all, or with a filter those of the targets that match.
        targets: the targets that match the filter, the worst state first.
        rows: the number of them on the screen.
        lines: lines of streams, targets, links and decisions, with their headings.
    """

    head: tuple[Text, ...]
    streams: Sequence[StreamStatus]
    targets: Sequence[TargetStatus]
    rows: int
    lines: tuple[int, int, int, int]


def arrange(
    snapshot: Snapshot, *, now: float, width: int, height: int, hint: str = "", browse: Browse = _UNFILTERED
) -> Page:
    """Return what a screen of that many characters and lines has room for; arguments as those of `view`."""
    status = snapshot.status
    head = _head(snapshot, max(0.0, now - snapshot.received_at), hint, width, max(1, height // 4))
    if status is None:
        return Page(head=head, streams=(), targets=(), rows=0, lines=(0, 0, 0, 0))
    targets = matching(status.targets, browse.words)
    names = {target.stream for target in targets}
    streams = [stream for stream in status.streams if not browse.words or stream.name in names]
    if height > len(head) + 1 and (browse.typing or browse.words):
        head += (_filter_line(browse, len(targets), len(status.targets)),)
    lines = _share(height - len(head), len(streams), len(targets), len(status.links))
    rows = len(targets) if len(targets) < lines[1] else max(0, lines[1] - 2)
    return Page(head=head, streams=streams, targets=targets, rows=rows, lines=lines)


def view(
    snapshot: Snapshot, *, now: float, width: int, height: int, hint: str = "", browse: Browse = _UNFILTERED
) -> RenderableType:
    """Return the whole screen; it is never higher than `height` lines nor wider than `width` characters.

    Args:
        snapshot: what to show.
        now: the reader's monotonic clock, seconds. Deadlines count down with it while the service answers.
        width: characters in a line.
        height: lines.
        hint: the keys to know.
        browse: scroll position and filter.
    """
    if browse.help:
        return help_view(height)
    page = arrange(snapshot, now=now, width=width, height=height, hint=hint, browse=browse)
    status = snapshot.status
    if status is None:
        return Group(*page.head)
    # A stopped service withdraws nothing, so the countdowns stop.
    clock = status.now if snapshot.trouble else status.now + max(0.0, now - snapshot.received_at)
    parts = [
        _streams(page.streams, clock, page.lines[0], width),
        _targets(status, page, browse.first, clock, width),
        _links(status.links, page.lines[2], width),
        _decisions(snapshot.decisions, page.lines[3]),
    ]
    return Group(*page.head, *(part for part in parts if part is not None))


def _share(lines: int, streams: int, targets: int, links: int) -> tuple[int, int, int, int]:
    """Divide the lines between streams, targets, links and decisions: targets get the lines that the others leave.

    On a low terminal links and decisions are dropped first, then streams.
    """
    roomy = lines >= _LOW
    streams_lines = min(streams + 1, max(3, lines // 5)) if lines > _LOW // 2 else 0
    links_lines = min(links + 1, max(3, lines // 6)) if roomy else 0
    decisions_lines = lines // 4 if roomy else 0
    left = lines - streams_lines - links_lines - decisions_lines
    targets_lines = min(targets + 1, left)
    return streams_lines, targets_lines, links_lines, decisions_lines + left - targets_lines


def _head(snapshot: Snapshot, elapsed_s: float, hint: str, width: int, lines_max: int) -> tuple[Text, ...]:
    """Return the lines about the service as a whole, cut between their parts where one line is too short."""
    if snapshot.trouble:
        heard = f" (last answer {age(elapsed_s)} ago)" if snapshot.status is not None else ""
        parts, style = [f"{snapshot.trouble}{heard}"], "bold yellow"
    elif snapshot.status is None:
        parts, style = ["asking the service ..."], "dim"
    else:
        parts, style = headline_parts(snapshot.status)
    lines = _wrapped(parts, width, lines_max)
    if hint and len(lines) < lines_max and len(lines[-1]) + 2 + len(hint) > width:
        lines.append("")
    texts = [Text(line, style) for line in lines]
    if hint:
        texts[-1].append(f"  {hint}" if lines[-1] else hint, "dim")
    return tuple(_one_line(text) for text in texts)


def _wrapped(parts: Sequence[str], width: int, lines_max: int) -> list[str]:
    """Return lines of at most `width` characters, cut between parts, or else between words; the last may be longer."""
    lines = [""]
    for part in parts:
        for piece in textwrap.wrap(part, width, break_on_hyphens=False) or [""]:
            joined = lines[-1] + (_SEPARATOR if lines[-1] and part.startswith(piece) else " ") + piece
            if not lines[-1]:
                lines[-1] = piece
            elif len(lines) < lines_max and len(joined) > width:
                lines.append(piece)
            else:
                lines[-1] = joined
    return lines


def _filter_line(browse: Browse, matched: int, total: int) -> Text:
    text = Text("filter: ", "bold").append(browse.words, "bold cyan")
    if browse.typing:
        text.append("_", "bold cyan blink")
    text.append(f"  {matched} of {total} targets; ", "dim")
    return _one_line(text.append("Enter: keep, Esc: clear" if browse.typing else "Esc: clear", "dim"))


def _one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _table(*columns: str) -> Table:
    """Return a table whose last column gets the remaining width; countdowns do not move other columns."""
    table = Table(box=None, pad_edge=False, header_style="bold reverse", expand=True, padding=(0, 2, 0, 0))
    for column in columns:
        last = column == columns[-1]
        min_width = {"FOR": 6, "UNTIL": 9}.get(column)
        table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if last else None, min_width=min_width)
    return table


def _fill(table: Table, rows: Sequence[Sequence[str | Text]], lines: int, what: str) -> RenderableType | None:
    """Put rows into a table of at most `lines` lines, with its head, and note how many rows are left out."""
    if lines < 2:
        return None
    shown = len(rows) if len(rows) < lines else lines - 2
    for row in rows[:shown]:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table if shown == len(rows) else _noted(table, f"{len(rows) - shown} more {what}")


def _noted(table: Table, what_is_left_out: str) -> RenderableType:
    # A line of its own: a row would widen the first column.
    return Group(table, _one_line(Text(f"... {what_is_left_out}", "dim")))


def _streams_in_few_columns(streams: Sequence[StreamStatus], lines: int) -> RenderableType | None:
    """Return the streams with the counts in one column, those of troubled states first, and none that is zero."""
    rows = [
        (
            stream.name,
            Text("yes", "green") if stream.available else Text("NO", "bold red"),
            " ".join(f"{stream.counts[state]} {state}" for state in TROUBLE_FIRST if stream.counts.get(state)),
        )
        for stream in streams
    ]
    return _fill(_table("STREAM", "AVAIL", "TARGETS"), rows, lines, "streams")


def _streams(unsorted: Sequence[StreamStatus], clock: float, lines: int, width: int) -> RenderableType | None:
    streams = sorted(unsorted, key=lambda item: (item.available, not item.mass_failure, item.name))
    if width < _TINY_WIDTH:
        return _streams_in_few_columns(streams, lines)
    names = [state.value.upper() if width >= _FULL_WIDTH else state.value[:4].upper() for state in TROUBLE_FIRST]
    table = _table("STREAM", "AVAILABLE" if width >= _FULL_WIDTH else "AVAIL", *names, "NOTE")
    rows: list[Sequence[str | Text]] = []
    for stream in streams:
        notes = [
            "" if stream.available else stream.availability_reason,
            "mass failure: targets are frozen, not withdrawn" if stream.mass_failure else "",
            list_change_note(stream, clock) or ("" if stream.table_committed else "table changing"),
            local_vips_note(stream),
        ]
        rows.append(
            (
                stream.name,
                Text("yes", "green") if stream.available else Text("NO", "bold red"),
                *(_count(state, stream.counts.get(state, 0)) for state in TROUBLE_FIRST),
                "; ".join(note for note in notes if note),
            )
        )
    return _fill(table, rows, lines, "streams")


def _count(state: TargetState, count: int) -> Text:
    return Text(str(count), STATE_COLOURS[state] if count else "dim")


def _targets(status: GuardStatus, page: Page, first: int, clock: float, width: int) -> RenderableType | None:
    if page.lines[1] < 2:
        return None
    if width >= _FULL_WIDTH:
        steered = ["NEW FLOWS"] if status.affinity is not None else []
        steered += ["KEPT"] if status.parking is not None else []
        by_hand_too = ["BY HAND"] if any(target.override is not None for target in page.targets) else []
        times = ["AT"] if width >= _TIMES_WIDTH and any(until_time(target, status) for target in page.targets) else []
        table = _table("TARGET", "STATE", "FOR", "UNTIL", *times, "THEN", "CAUSE", *by_hand_too, *steered, "PATHS")
    elif width >= _TINY_WIDTH:
        table = _table("TARGET", "STATE", "FOR", "UNTIL", "THEN", "CAUSE")
    else:
        table = _table("TARGET", "STATE", "UNTIL")
    total = len(page.targets)
    first = min(first, total - page.rows)
    for target in page.targets[first : first + page.rows]:
        cells: dict[str, str | Text] = {
            "TARGET": f"{target.stream}/{target.identifier}",
            "STATE": Text(target.state, STATE_COLOURS[target.state]),
            "FOR": age(clock - target.since),
            "UNTIL": _left(target, clock),
            "THEN": then(target),
            "AT": until_time(target, status),
            "CAUSE": _cause(target, mark_by_hand=width < _FULL_WIDTH),
            "BY HAND": by_hand(target, status),
            "NEW FLOWS": "/".join(dict.fromkeys(new_flows(target, status.affinity))),
            "KEPT": "/".join(dict.fromkeys(kept_packets(target, status.parking))),
            "PATHS": "  ".join(f"{path.ip} {condition(path)} {path.ifname or '-'}" for path in target.paths),
        }
        row = [cells[str(column.header)] for column in table.columns]
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    if page.rows < total:
        span = f"targets {first + 1} to {first + page.rows}" if page.rows else "no room for targets,"
        return _noted(table, f"{span} of {total}")
    return table


def _cause(target: TargetStatus, *, mark_by_hand: bool) -> str:
    """Return why a target is in its state, and (where its own column is missing) what an operator ordered."""
    cause = "" if target.state is TargetState.ACTIVE else target.cause
    marked = mark_by_hand and target.override is not None
    order = f"{target.override.action} by hand" if marked and target.override is not None else ""
    return ", ".join(part for part in (cause, order) if part)


def _left(target: TargetStatus, clock: float) -> Text:
    """Return how long the state of a target lasts if nothing changes; the last second before a withdrawal is red."""
    prediction = target.prediction
    last = prediction is not None and prediction.action is Action.WITHDRAW and (prediction.at or clock) - clock < 1
    return Text(until(target, clock), "bold red" if last else "")


def _links(links: Sequence[LinkStatus], lines: int, width: int) -> RenderableType | None:
    columns = ["LINK", "ROLE", "STATE", "ADDRESSES"]
    table = _table(*columns)
    rows = [
        (
            f"{link.name} ({link.ifindex}#{link.generation})" if width >= _TINY_WIDTH else link.name,
            link.role,
            Text("up", "green") if link.up else Text("down", "bold red"),
            " ".join(link.addresses),
        )
        for link in sorted(links, key=lambda item: (item.up, item.role == "owner", item.name, item.generation))
    ]
    return _fill(table, rows, lines, "links")


def _decisions(decisions: Sequence[Watched], lines: int) -> RenderableType | None:
    """Return the last decisions, the newest on top."""
    if lines < 2:
        return None
    shown: list[RenderableType] = [_one_line(Text("LAST DECISIONS", "bold reverse"))]
    for watched in reversed(decisions[-(lines - 1) :]):
        clock = time.strftime("%H:%M:%S", time.localtime(watched.wall_time))
        colour = STATE_COLOURS.get(watched.decision.state_to, "") if watched.decision.state_to else "dim"
        line = Text(f"{clock}.{int(watched.wall_time % 1 * 1000):03} ")
        shown.append(_one_line(line.append(decision_sentence(watched.decision), colour)))
    if len(shown) == 1:
        shown.append(Text("none yet", "dim"))
    return Group(*shown)
