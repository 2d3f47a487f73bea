"""The command line: its commands in the order of `lbguard --help`, and how errors end the process.

Every command imports what it needs when it runs, so that `lbguard status` starts quickly.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from lbguard import __version__
from lbguard.cli import demo as cli_demo
from lbguard.cli import query as cli_query
from lbguard.cli import recording as cli_recording
from lbguard.cli import run as cli_run
from lbguard.cli.conventions import EXIT_FAILED, EXIT_REFUSED
from lbguard.cli.standard_streams import open_standard_streams

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="""Keeps load-balanced connections alive while a service mesh heals its links.

    \b
    First steps:
      lbguard demo                          see it work, in network namespaces of its own
      lbguard check-config --host           what is set, and is this machine fit for it?
      lbguard run --targets-file FILE       the service (LBGUARD_MODE=observe touches nothing)
      lbguard status                        what it sees and decided
      lbguard top                           the same, live, until you press q
      lbguard explain stream-a/1            why a target is where it is
      lbguard probe --once                  does the datapath answer, seen from a proxy?
      lbguard tune RECORDING                which grace window would have been best?

    \b
    Every command takes --help, with examples. Pages: docs/README.md.

    Exit status: 0 done, 1 failed (or a promise was missed), 2 wrong usage or settings.
    """,
)

for command in (
    cli_run.run,
    cli_run.check_config,
    cli_query.status,
    cli_query.top,
    cli_query.events,
    cli_query.explain,
    cli_run.probe,
    cli_demo.demo,
    cli_query.health,
):
    app.command()(command)
cli_recording.register(app)


@app.command()
def version() -> None:
    """Print the version.

    \b
    Examples:
      lbguard version

    Exit status: 0.
    """  # noqa: D301 (\b keeps the lines of a block)
    print(f"lbguard {__version__}")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit status."""
    open_standard_streams()
    stdout = sys.stdout
    try:
        try:
            app(args=None if argv is None else list(argv), prog_name="lbguard")
        finally:
            # What was printed leaves here, where it can be noticed that nobody reads it.
            sys.stdout.flush()
    except BrokenPipeError as error:
        # What the command came to stands, such as a difference that a replay found, though nobody reads of it.
        ended = error.__context__
        _end_unread(ended.code if isinstance(ended, SystemExit) else 0)
    except SystemExit:
        if sys.stdout is not stdout:
            # Typer met the closed pipe first: it puts something else there, and ends with 1.
            _end_unread(0)
        raise
    except Exception as error:
        status = _status_of(error)
        if status is None:
            raise
        for line in str(error).splitlines():
            print(f"lbguard: {line}", file=sys.stderr)
        sys.exit(status)
    sys.exit(0)


def _end_unread(status: int | str | None) -> NoReturn:
    """End though whoever read our output has gone (`| head`), which alone is no failure."""
    # Keep the interpreter from flushing into the pipe again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(status)


def _status_of(error: Exception) -> int | None:
    """Return the exit status of an error that is meant for people; None for a fault of ours.

    The classes are looked up among the modules that the command has loaded: importing them here would load all.
    """
    for module, name, status in (
        ("lbguard.settings.sources", "SettingsError", EXIT_REFUSED),
        ("lbguard.api.client", "ClientError", EXIT_FAILED),
        ("lbguard.probe.build", "ProbeError", EXIT_FAILED),
        ("lbguard.recording.format", "RecordingError", EXIT_REFUSED),
    ):
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(error, getattr(loaded, name)):
            return status
    return None
