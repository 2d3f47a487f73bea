"""`lbguard top`: a live view in the terminal.

`view` builds the view from plain values and uses no clock, socket or terminal. `Feed` asks the service in a thread of
its own, so that a hung or restarting service stops neither the countdowns nor the keyboard. `run_top` owns the
terminal.
"""

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lbguard.api.client import ClientError, GuardClient, ServiceNotRunning, Watched
from lbguard.cli.status_words import (
    STATE_COLOURS,
    TROUBLE_FIRST,
    age,
    condition,
    headline,
    list_change_note,
    local_vips_note,
    new_flows,
    then,
    until,
)
from lbguard.core.model import Action, TargetState
from lbguard.core.status import GuardStatus, LinkStatus, StreamStatus, TargetStatus
from lbguard.printable import printable, printable_values
from lbguard.telemetry.console import TextConsole
from lbguard.telemetry.sentences import decision_sentence

DECISIONS_KEPT = 50
REDRAW_S = 0.2
PLAIN_SIZE = (160, 60)
"""Columns and lines without a terminal."""
_CALL_TIMEOUT_S = 5.0
_FULL_WIDTH = 100
"""From this width on (characters) every column is shown; on a narrower terminal only those that decide."""
_TINY_WIDTH = 60
_LOW = 12
"""Below so many lines, parts are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Latest data received from the service.

    Attributes:
        status: its state; None: it was never reached.
        decisions: the last ones, oldest first.
        received_at: when that came, seconds of the reader's monotonic clock.
        trouble: why nothing newer came; empty: the service answers.
    """

    status: GuardStatus | None = None
    decisions: tuple[Watched, ...] = ()
    received_at: float = 0.0
    trouble: str = ""


# The view


def view(snapshot: Snapshot, *, now: float, width: int, height: int, hint: str = "") -> RenderableType:
    """Return the whole screen; it is never higher than `height` lines nor wider than `width` characters.

    Args:
        snapshot: what to show.
        now: the reader's monotonic clock, seconds. Deadlines count down with it while the service answers.
        width: characters in a line.
        height: lines.
        hint: how to leave.
    """
    elapsed_s = max(0.0, now - snapshot.received_at)
    head: list[RenderableType] = [_first_line(snapshot, elapsed_s, hint)]
    status = snapshot.status
    if status is None:
        return Group(*head)
    # A stopped service withdraws nothing, so the countdowns stop.
    clock = status.now if snapshot.trouble else status.now + elapsed_s
    rows = _share(height - len(head), len(status.streams), len(status.targets), len(status.links))
    parts = [
        _streams(status, clock, rows[0], width),
        _targets(status, clock, rows[1], width),
        _links(status.links, rows[2], width),
        _decisions(snapshot.decisions, rows[3]),
    ]
    return Group(*head, *(part for part in parts if part is not None))


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


def _first_line(snapshot: Snapshot, elapsed_s: float, hint: str) -> Text:
    if snapshot.trouble:
        heard = f" (last answer {age(elapsed_s)} ago)" if snapshot.status is not None else ""
        line = Text(f"{snapshot.trouble}{heard}", "bold yellow")
    elif snapshot.status is None:
        line = Text("asking the service ...", "dim")
    else:
        line = headline(snapshot.status)
    line.append(f"  {hint}" if hint else "", "dim")
    return _one_line(line)


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


def _fill(table: Table, rows: Sequence[Sequence[str | Text]], lines: int, what: str) -> Table | None:
    """Put rows into a table of at most `lines` lines, with its head, and note how many rows are left out."""
    if lines < 2:
        return None
    shown = len(rows) if len(rows) < lines else lines - 2
    for row in rows[:shown]:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    if shown < len(rows):
        table.add_row(Text(f"... {len(rows) - shown} more {what}", "dim"))
    return table


def _streams_in_few_columns(streams: Sequence[StreamStatus], lines: int) -> Table | None:
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


def _streams(status: GuardStatus, clock: float, lines: int, width: int) -> Table | None:
    streams = sorted(status.streams, key=lambda item: (item.available, not item.mass_failure, item.name))
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


def by_trouble(target: TargetStatus) -> tuple[int, float, str, int]:
    """Return a key that sorts the worst state first, and within a state the nearest deadline."""
    deadline = float("inf") if target.deadline is None else target.deadline
    return TROUBLE_FIRST.index(target.state), deadline, target.stream, target.identifier


def _targets(status: GuardStatus, clock: float, lines: int, width: int) -> Table | None:
    if width >= _FULL_WIDTH:
        steered = ["NEW FLOWS"] if status.affinity is not None else []
        table = _table("TARGET", "STATE", "FOR", "UNTIL", "THEN", "CAUSE", *steered, "PATHS")
    elif width >= _TINY_WIDTH:
        table = _table("TARGET", "STATE", "FOR", "UNTIL", "THEN", "CAUSE")
    else:
        table = _table("TARGET", "STATE", "UNTIL")
    rows: list[Sequence[str | Text]] = []
    for target in sorted(status.targets, key=by_trouble):
        cells: dict[str, str | Text] = {
            "TARGET": f"{target.stream}/{target.identifier}",
            "STATE": Text(target.state, STATE_COLOURS[target.state]),
            "FOR": age(clock - target.since),
            "UNTIL": _left(target, clock),
            "THEN": then(target),
            "CAUSE": "" if target.state is TargetState.ACTIVE else target.cause,
            "NEW FLOWS": "/".join(dict.fromkeys(new_flows(target, status.affinity))),
            "PATHS": "  ".join(f"{path.ip} {condition(path)} {path.ifname or '-'}" for path in target.paths),
        }
        rows.append([cells[str(column.header)] for column in table.columns])
    return _fill(table, rows, lines, "targets")


def _left(target: TargetStatus, clock: float) -> Text:
    """Return how long the state of a target lasts if nothing changes; the last second before a withdrawal is red."""
    prediction = target.prediction
    last = prediction is not None and prediction.action is Action.WITHDRAW and (prediction.at or clock) - clock < 1
    return Text(until(target, clock), "bold red" if last else "")


def _links(links: Sequence[LinkStatus], lines: int, width: int) -> Table | None:
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


# The service


class Feed:
    """Poller of the service, in a thread of its own; use it as a context manager.

    Args:
        socket: its socket.
        interval_s: seconds between two questions.
    """

    def __init__(self, socket: Path, interval_s: float) -> None:
        self._snapshot = Snapshot()  # replaced as a whole, so that another thread may read it
        self._socket = socket
        self._interval_s = interval_s
        self._ended = threading.Event()
        self._fault: BaseException | None = None
        # A call that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def __enter__(self) -> "Feed":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def latest(self) -> Snapshot:
        """Return the latest snapshot; raise the error that ended the thread, if any."""
        if self._fault is not None:
            raise self._fault
        return self._snapshot

    def _run(self) -> None:
        try:
            self._ask_for_ever()
        except BaseException as error:
            self._fault = error  # raised where it can be seen, not printed over the view

    def _ask_for_ever(self) -> None:
        while not self._ended.is_set():
            try:
                # A new connection after each failure: gRPC's own backoff would be slower to notice a new service.
                with GuardClient(self._socket, timeout_s=_CALL_TIMEOUT_S) as client:
                    while not self._ended.is_set():
                        self._snapshot = ask(client)
                        self._ended.wait(self._interval_s)
            except ServiceNotRunning:
                self._snapshot = replace(self._snapshot, trouble="not running, waiting")
            except ClientError as error:
                self._snapshot = replace(self._snapshot, trouble=f"{printable(str(error))}; trying again")
            self._ended.wait(self._interval_s)


def ask(client: GuardClient) -> Snapshot:
    """Return the state and the last decisions.

    Raises:
        ClientError: the service does not answer.
    """
    decisions = tuple(client.watch(DECISIONS_KEPT, follow=False))
    status, decisions = printable_values((client.status(), decisions))
    return Snapshot(status=status, decisions=decisions, received_at=time.monotonic())


# The terminal


def run_top(socket: Path, interval_s: float, *, once: bool = False) -> None:
    """Show the live view until `q` or Ctrl-C; print it once without a terminal, or with `once`.

    Raises:
        ClientError: it is to be printed once, and the service does not run or does not answer.
    """
    console = TextConsole()
    if once or not console.is_terminal or console.is_dumb_terminal:
        with GuardClient(socket, timeout_s=_CALL_TIMEOUT_S) as client:
            snapshot = ask(client)
        width, height = console.size if console.is_terminal else PLAIN_SIZE
        plain = TextConsole(width=width)
        plain.print(view(snapshot, now=snapshot.received_at, width=width, height=height - 1))
        return
    screen = Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop")
    with Feed(socket, interval_s) as feed, _keyboard() as quit_pressed, _ended_by_signal(), screen:
        while True:
            width, height = console.size
            shown = view(feed.latest(), now=time.monotonic(), width=width, height=height, hint="q: quit")
            screen.update(shown, refresh=True)
            if quit_pressed(REDRAW_S):
                return


@contextmanager
def _keyboard() -> Iterator[Callable[[float], bool]]:
    """Take single keys without echo; yield a wait (seconds) that tells whether it was ended by `q`."""
    if not sys.stdin.isatty():

        def wait(timeout_s: float) -> bool:
            time.sleep(timeout_s)
            return False

        yield wait
        return
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)

    def wait_for_key(timeout_s: float) -> bool:
        if not select.select([keys], [], [], timeout_s)[0]:
            return False
        pressed = os.read(keys, 64)
        return not pressed or b"q" in pressed.lower()  # nothing to read: the terminal is gone

    try:
        tty.setcbreak(keys)
        yield wait_for_key
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Make SIGTERM, SIGHUP and SIGINT end the block, so that the terminal is given back as it was."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0 if number == signal.SIGINT else 128 + number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, end) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
