"""`lbguard top` on the terminal: the loop, the keyboard and the signals."""

import codecs
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.live import Live

from lbguard.api.client import GuardClient
from lbguard.cli.top import arrange, view
from lbguard.cli.top_browse import ESC, Browse, complete, keys_of, pressed
from lbguard.cli.top_feed import CALL_TIMEOUT_S, Feed, ask
from lbguard.telemetry.console import TextConsole

REDRAW_S = 0.2
PLAIN_SIZE = (160, 60)
"""Columns and lines without a terminal."""
_HINT = "q: quit  ?: help"
_SEQUENCE_S = 0.03
"""A lone Escape is a key of its own if nothing follows within this time (seconds)."""

Keys = Callable[[float], list[str] | None]
"""Wait for keys at most so long (seconds); None: the terminal is gone."""


def run_top(socket: Path, interval_s: float, *, once: bool = False) -> None:
    """Show the live view until `q` or Ctrl-C; print it once without a terminal, or with `once`.

    Raises:
        ClientError: it is to be printed once, and the service does not run or does not answer.
    """
    console = TextConsole()
    if once or not console.is_terminal or console.is_dumb_terminal:
        with GuardClient(socket, timeout_s=CALL_TIMEOUT_S) as client:
            snapshot = ask(client)
        width, height = console.size if console.is_terminal else PLAIN_SIZE
        plain = TextConsole(width=width)
        plain.print(view(snapshot, now=snapshot.received_at, width=width, height=height - 1))
        return
    screen = Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop")
    browse = Browse()
    with Feed(socket, interval_s) as feed, _keyboard() as keys, _ended_by_signal(), screen:
        while not browse.left:
            (width, height), now, snapshot = console.size, time.monotonic(), feed.latest()
            shown = view(snapshot, now=now, width=width, height=height, hint=_HINT, browse=browse)
            screen.update(shown, refresh=True)
            taken = keys(REDRAW_S)
            if taken is None:
                return
            for key in taken:
                page = arrange(snapshot, now=now, width=width, height=height, hint=_HINT, browse=browse)
                browse = pressed(browse, key, total=len(page.targets), page=page.rows)


@contextmanager
def _keyboard() -> Iterator[Keys]:
    """Take single keys without echo; yield a wait for them."""
    if not sys.stdin.isatty():

        def no_keys(timeout_s: float) -> list[str] | None:
            time.sleep(timeout_s)
            return []

        yield no_keys
        return
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    pending = ""

    def wait_for_keys(timeout_s: float) -> list[str] | None:
        nonlocal pending
        # The start of a sequence that a slow connection cut must not count as the key Escape, which clears the filter.
        while select.select([keys], [], [], _SEQUENCE_S if pending == ESC else timeout_s)[0]:
            got = os.read(keys, 64)
            if not got:
                return None
            taken, pending = complete(pending + decoder.decode(got))
            if taken:
                return keys_of(taken)
        alone, pending = (pending, "") if pending == ESC else ("", pending)
        return keys_of(alone)

    try:
        tty.setcbreak(keys)
        yield wait_for_keys
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
