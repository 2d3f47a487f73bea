"""The commands that read recordings: replay and tune."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lbguard.cli import JsonOption
from lbguard.errors import EXIT_INTERRUPTED
from lbguard.printable import printable, printable_values
from lbguard.telemetry.output import print_json, print_text

EXIT_DIFFERENT = 1

FilesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="FILE", help="Recordings (lbguard-*.jsonl.gz), or directories of them."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(replay)
    app.command()(tune)


class Progress:
    """Progress display of the files that are read; empty if standard error is not a terminal."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._total = sum(path.stat().st_size for path in files) or 1
        self._read = 0
        self._shown_at = time.monotonic()
        self._shown = False

    def __call__(self, more: int) -> None:
        """Record bytes that were read."""
        self._read += more
        now = time.monotonic()
        if sys.stderr.isatty() and now - self._shown_at > 0.5:
            self._shown_at, self._shown = now, True
            share = min(self._read / self._total, 1.0)
            sys.stderr.write(f"\r{share:4.0%} of {self._total / 1e6:.1f} MB")
            sys.stderr.flush()

    def done(self) -> None:
        """Clear the line."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _with_progress(files: Sequence[Path], work: Callable[[Callable[[int], None]], Any]) -> Any:
    progress = Progress(files)
    try:
        return work(progress)
    except KeyboardInterrupt:
        # Not 1, which would mean that a decision differs.
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        progress.done()


def replay(
    files: FilesArgument,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="TIME",
            help="Show the state at this moment: 12:03:04.5 (local time), an ISO date and time, epoch seconds, or"
            " +90s after the beginning.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    show_all: Annotated[bool, typer.Option("--all", help="With --at: show every target.")] = False,
) -> None:
    """Check the decisions of a recording, or show a past state.

    The core runs on the recorded inputs, and its decisions must equal the recorded ones, bit for bit.
    The service records when recording.enabled is true. Several files are sorted automatically. Each file can also be
    replayed alone, because it begins with the whole state.

    \b
    Examples:
      lbguard replay /var/lib/lbguard/recording
      lbguard replay --at 12:03:04.5 lbguard-20250102T120000Z-1f2e3d4c-000001.jsonl.gz
      lbguard replay --at +90s --json recording/ | jq '.targets[] | select(.state != "active")'

    Exit status: 0 equal, or the state was shown; 1 a decision differs; 2 a file cannot be read, or nothing was recorded
    at that moment; 130 left with Ctrl-C.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard.cli import show as cli_show
    from lbguard.cli.status_tables import show_status
    from lbguard.recording import replay as replaying
    from lbguard.recording import show
    from lbguard.recording.format import local_time
    from lbguard.recording.reader import find_files

    found = find_files(files)
    if at is None:
        report = _with_progress(found, lambda on_read: replaying.replay(found, on_read))
        if as_json:
            print_json(show.report_json(report))
        else:
            print_text(show.report_text(printable_values(report)))
        if report.difference is not None:
            raise typer.Exit(EXIT_DIFFERENT)
        return
    try:
        past = _with_progress(found, lambda on_read: replaying.state_at(found, at, on_read))
    except ValueError:
        raise typer.BadParameter(
            f"{at!r} is not a moment; write 12:03:04.5 (local time), 2025-01-02T12:03:04Z, 1735819384.5 or +90s",
            param_hint="--at",
        ) from None
    if as_json:
        print_json({"at": past.at, "host": past.host, **cli_show.status_json(past.status)})
    else:
        print_text(f"state at {local_time(past.at)}{f' on {printable(past.host)}' if past.host else ''}")
        show_status(past.status, show_all=show_all)


def tune(
    files: FilesArgument,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE,VALUE",
            help="Values to try, such as grace.window=1s,2s,5s. Repeatable: every combination is tried. Default:"
            " grace windows that suit the recording.",
        ),
    ] = None,
    broken_cost: Annotated[
        str,
        typer.Option(
            "--broken-cost", metavar="DURATION", help="Cost of a broken connection for its user, as waiting time."
        ),
    ] = "10s",
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write the picture: one HTML page.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate other settings on recorded incidents.

    The incidents are replayed with each value; the value with the lowest cost is recommended.

    A connection to a held target waits; a connection to a withdrawn target breaks. With a longer window more losses
    heal in time, but clients wait longer during a real loss. --broken-cost sets the relation of these costs.
    docs/tuning.md explains the picture and the approximations.

    \b
    Examples:
      lbguard tune /var/lib/lbguard/recording
      lbguard tune --set grace.window=1s,2s,5s --report tune.html recording/
      lbguard tune --set freeze.threshold=0.3,0.5 --set grace.window=2s,4s recording/

    Exit status: 0 done, 2 a file cannot be read, a value is wrong, or the picture cannot be written, 130 left with
    Ctrl-C.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard.recording.reader import find_files
    from lbguard.settings.notation import DURATION_EXAMPLES, parse_duration
    from lbguard.tuning import page, show
    from lbguard.tuning.candidates import parse_choices
    from lbguard.tuning.tune import tune as try_values

    try:
        cost_s = parse_duration(broken_cost)
    except ValueError:
        raise typer.BadParameter(
            f"{broken_cost!r} is not a duration; write one such as {DURATION_EXAMPLES}", param_hint="--broken-cost"
        ) from None
    found = find_files(files)
    try:
        choices = parse_choices(assignments or ())
        outcome = _with_progress(
            [*found, *found], lambda on_read: try_values(found, choices, broken_cost_s=cost_s, on_read=on_read)
        )
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from None
    if as_json:
        print_json(show.report_json(outcome))
    else:
        show.show_report(outcome)
    if report is None:
        return
    try:
        report.write_text(page.render(outcome), encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{printable(str(report))}: {error.strerror}", param_hint="--report") from None
    if not as_json:
        print_text(f"picture: {printable(str(report))}")
