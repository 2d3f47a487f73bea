"""The command line: its commands in the order of `lbguard --help`, and the exit statuses of errors.

Every command imports its modules when it runs, so that `lbguard status` starts quickly.
"""

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from lbguard import __version__
from lbguard.cli import JsonOption
from lbguard.cli import control as cli_control
from lbguard.cli import query as cli_query
from lbguard.cli import recording as cli_recording
from lbguard.cli import run as cli_run
from lbguard.errors import EXIT_FAILED, CommandError
from lbguard.telemetry.output import (
    OutputError,
    discard_output,
    print_error,
    print_error_lines,
    print_text,
    standard_streams,
)


def demo(
    scenarios: Annotated[
        list[str] | None,
        typer.Option("--scenario", metavar="NAME", help="Scenario to run, or `all`. Repeatable."),
    ] = None,
    topology: Annotated[
        str,
        typer.Option(
            metavar="chain|meridio|meridio2",
            help="chain: lbguard runs the distributor. meridio, meridio2: beside an unmodified load balancer of Meridio"
            " or Meridio-2 (nfqlb).",
        ),
    ] = "chain",
    outage: Annotated[
        str, typer.Option(metavar="DURATION", help="Time for which a link is lost (link-gone: for good).")
    ] = "500ms",
    connections: Annotated[int, typer.Option(metavar="N", help="TCP connections to keep alive.")] = 200,
    distributors: Annotated[
        list[str] | None,
        typer.Option("--distributor", metavar="nftables|nfqlb", help="Distributor to use; default: both if possible."),
    ] = None,
    as_json: JsonOption = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write a page with timelines.")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE.svg", help="Write a picture of the first scenario.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="DIR", help="Write recordings for replay and tune."),
    ] = None,
    parking: Annotated[
        bool, typer.Option("--parking", help="lbguard keeps packets of held targets and gives them back.")
    ] = False,
    list_scenarios: Annotated[bool, typer.Option("--list", help="List the scenarios and end.")] = False,
) -> None:
    """Break links in a lab, and count the broken connections.

    The lab is a load balancer with clients, proxies and targets in network namespaces, with real packets between them.
    Every scenario runs twice: without and with lbguard. Nothing outside the namespaces is changed, and they are deleted
    at the end and after Ctrl-C. The command needs root, or unprivileged user namespaces.

    \b
    Examples:
      lbguard demo
      lbguard demo --scenario all --report demo.html
      lbguard demo --scenario flap --outage 2s --connections 50
      lbguard demo --topology meridio
      lbguard demo --topology meridio2 --scenario lb-restart
      lbguard demo --scenario lb-link --outage 2s --record recordings

    Exit status: 0 every promise kept, 1 a promise missed, 2 not run (the message says why).
    """  # noqa: D301 (\b keeps the lines of a block)
    if list_scenarios:
        from lbguard.lab.meridio_scenarios import SCENARIOS

        listed = {str(name): there for name, there in SCENARIOS.items()}
        if topology not in listed:
            raise typer.BadParameter(f"{topology!r}: there are {', '.join(listed)}", param_hint="--topology")
        for scenario in listed[topology]:
            print_text(f"{scenario.name:<18} {scenario.sentence}")
        return
    from lbguard.lab.demo import DemoOptions, run_demo
    from lbguard.settings.notation import DURATION_EXAMPLES, parse_duration

    try:
        outage_s = parse_duration(outage)
    except ValueError as error:
        raise typer.BadParameter(
            f"{outage!r}: {error}; write one such as {DURATION_EXAMPLES}", param_hint="--outage"
        ) from None
    options = DemoOptions(
        scenarios=tuple(scenarios or ()),
        topology=topology,
        distributors=tuple(distributors or ()),
        outage_s=outage_s,
        connections=connections,
        json_output=as_json,
        report=report,
        svg=svg,
        record=record,
        parking=parking,
    )
    raise typer.Exit(run_demo(options))


_USAGE_ERROR: Any = typer.BadParameter.__base__
"""Base class of the errors that typer raises for wrong usage; typer does not export it."""

COMPLETED_SHELLS = ("bash", "zsh", "fish")
COMPLETION_VARIABLE = "_LBGUARD_COMPLETE"
"""Environment variable by which the script of a shell asks for completions."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="""Keeps load-balanced connections alive while a service mesh heals its links.

    \b
    First steps:
      lbguard demo                          run a demonstration in network namespaces
      lbguard check-config --host           check the settings and this machine
      lbguard run --targets-file FILE       run the service (--mode observe changes nothing)
      lbguard status                        show streams, targets and links
      lbguard top                           show the same live, until you press q
      lbguard explain stream-a/1            explain a target's state
      lbguard drain --link nsm0 --for 30m   take a node's targets out of service, by hand
      lbguard probe --once                  ping the datapath from a proxy's side
      lbguard tune RECORDING                evaluate other settings on recorded incidents

    \b
    Every command takes --help, with examples. Documentation: docs/README.md.

    \b
    Exit status: 0 done, 1 failed (or a promise was missed, or the output cannot be written), 2 wrong
    usage or settings. A closed pipe (`| head`) is not a failure.
    """,
)

for command in (
    cli_run.run,
    cli_run.check_config,
    cli_query.status,
    cli_query.top,
    cli_query.events,
    cli_query.explain,
    cli_control.drain,
    cli_control.hold,
    cli_control.withdraw,
    cli_control.release,
    cli_run.probe,
    demo,
    cli_query.health,
):
    app.command()(command)
cli_recording.register(app)


@app.callback()
def show_version(
    ctx: typer.Context,
    wanted: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Print the version, where no command is given."""
    if wanted:
        version()
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        raise typer.Exit


@app.command()
def completion(
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", help="The shell.", show_default=False)],
) -> None:
    """Print the script that completes commands in a shell.

    \b
    Examples:
      lbguard completion bash >/etc/bash_completion.d/lbguard
      lbguard completion zsh >"${fpath[1]}/_lbguard"
      lbguard completion fish >~/.config/fish/completions/lbguard.fish

    Exit status: 0.
    """  # noqa: D301 (\b keeps the lines of a block)
    if shell not in COMPLETED_SHELLS:
        raise typer.BadParameter(f"{shell!r}: there are {', '.join(COMPLETED_SHELLS)}", param_hint="SHELL")
    from typer import completion as scripts

    script = scripts.get_completion_script(  # type: ignore[attr-defined] # typer marks nothing of it as public
        prog_name="lbguard", complete_var=COMPLETION_VARIABLE, shell=shell
    )
    for line in script.splitlines():
        print_text(line)


@app.command()
def version() -> None:
    """Print the version.

    \b
    Examples:
      lbguard version

    Exit status: 0.
    """  # noqa: D301 (\b keeps the lines of a block)
    print_text(f"lbguard {__version__}")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit status."""
    with standard_streams():
        status = _run(argv)
    sys.exit(status)


def _run(argv: Sequence[str] | None) -> int:
    """Run a command until its output is written, and return its exit status."""
    status = 0
    try:
        status = _command(argv)
        # Buffered output is written here, so that a failed write is noticed.
        sys.stdout.flush()
    except OutputError as error:
        discard_output()
        print_error(str(error))
        return status or error.exit_status
    return status


def _command(argv: Sequence[str] | None) -> int:
    try:
        if COMPLETION_VARIABLE in os.environ:
            from typer import completion as scripts

            scripts.completion_init()  # type: ignore[attr-defined]
        outcome = app(args=None if argv is None else list(argv), prog_name="lbguard", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except OutputError:
        raise
    except typer.Abort:
        return EXIT_FAILED
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else EXIT_FAILED
    except Exception as error:
        if isinstance(error, _USAGE_ERROR):
            return _refuse_usage(error)
        if not isinstance(error, CommandError):
            raise
        for line in error.lines:
            print_error(line)
        return error.exit_status


def _refuse_usage(error: Any) -> int:
    """Print the error of the command line, and how to get help."""
    shown = io.StringIO()
    error.show(file=shown)
    print_error_lines(shown.getvalue().rstrip("\n"))
    return int(error.exit_code)
