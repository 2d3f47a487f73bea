"""Commands that query the running service: status, top, events, explain and health."""

import os
from pathlib import Path
from typing import Annotated

import typer

from lbguard import DEFAULT_SOCKET
from lbguard.cli import JsonOption
from lbguard.errors import EXIT_FAILED, EXIT_INTERRUPTED
from lbguard.telemetry.output import is_read, print_error, print_json, print_text

_INTERVAL_MIN_S, _INTERVAL_MAX_S = 0.1, 60.0

DEFAULT_SOCKET_PATH = Path(DEFAULT_SOCKET)

SocketOption = Annotated[
    Path, typer.Option("--socket", envvar="LBGUARD_SOCKET", metavar="PATH", help="Socket of the running service.")
]


def status(
    socket: SocketOption = DEFAULT_SOCKET_PATH,
    as_json: JsonOption = False,
    show_all: Annotated[bool, typer.Option("--all", help="Show every target, not only the first 200.")] = False,
) -> None:
    """Show streams, targets and links as the service sees them.

    Targets that are not active come first. `lbguard top` shows a live view.

    \b
    Examples:
      lbguard status
      lbguard status --json | jq '.targets[] | select(.state != "active")'

    Exit status: 0 shown, 1 the service does not run or does not answer.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard.api.client import GuardClient
    from lbguard.cli import show
    from lbguard.cli.status_tables import show_status

    with GuardClient(socket) as client:
        state = client.status()
    if as_json:
        print_json(show.status_json(state))
    else:
        show_status(state, show_all=show_all)


def top(
    socket: SocketOption = DEFAULT_SOCKET_PATH,
    interval: Annotated[
        str, typer.Option("--interval", metavar="DURATION", help="Time between two updates, 100ms to 1m.")
    ] = "1s",
    once: Annotated[bool, typer.Option("--once", help="Print the view once and end.")] = False,
) -> None:
    """Watch streams, targets, links and decisions live.

    Deadlines count down; targets that are not active come first. The arrow keys and PgUp, PgDn, Home and End scroll
    through the targets, / filters them by words (`held nsm0`), ? shows every key, q or Ctrl-C leaves. The view waits
    while the service does not run, and continues when it is back. Without a terminal it is printed once.

    \b
    Examples:
      lbguard top
      lbguard top --interval 200ms
      lbguard top --once

    Exit status: 0 left, or printed; 1 the service does not run (printed once only); 2 wrong usage.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard.settings.notation import DURATION_EXAMPLES, parse_duration

    try:
        interval_s = parse_duration(interval)
        if not _INTERVAL_MIN_S <= interval_s <= _INTERVAL_MAX_S:
            raise ValueError("from 100ms to 1m")
    except ValueError as error:
        raise typer.BadParameter(
            f"{interval!r}: {error}; write one such as {DURATION_EXAMPLES}", param_hint="--interval"
        ) from None
    # gRPC would print its own messages over the view when the service ends. It reads this variable when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from lbguard.cli.top_terminal import run_top

    run_top(socket, interval_s, once=once)


def events(
    socket: SocketOption = DEFAULT_SOCKET_PATH,
    last: Annotated[
        int, typer.Option("--last", metavar="N", min=0, max=10_000, help="Show this many past decisions first.")
    ] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue with new decisions until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show decisions: action, target and reason.

    The oldest comes first. docs/runbook.md explains every named reason.

    \b
    Examples:
      lbguard events --follow
      lbguard events --last 1000 --json | jq 'select(.action == "withdraw")'

    Exit status: 0 shown, 1 the service does not run, or ended while following, 130 left with Ctrl-C.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard.api.client import GuardClient
    from lbguard.cli import show

    try:
        with GuardClient(socket) as client:
            for watched in client.watch(last, follow=follow):
                if as_json:
                    values = show.decision_json(watched.decision, watched.wall_time, lost=watched.lost)
                    print_json(values, indent=None, flush=follow)
                else:
                    line = show.decision_line(watched.decision, watched.wall_time, lost=watched.lost)
                    print_text(line, flush=follow)
                if not is_read():
                    break
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def explain(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="STREAM/IDENTIFIER, an identifier, or an IP.")],
    socket: SocketOption = DEFAULT_SOCKET_PATH,
    as_json: JsonOption = False,
) -> None:
    """Explain why a target is in its state, and what happens next.

    The output lists its state, its paths, the verdicts of reporters, the time of its withdrawal or re-admission, what
    its new and its open connections get and until when, which settings would change it, and its last decisions. An
    identifier or an IP alone suffices if only one target has it.

    \b
    Examples:
      lbguard explain stream-a/1
      lbguard explain 172.16.1.10

    Exit status: 0 explained, 1 no such target, or the service does not run.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard.api.client import GuardClient
    from lbguard.cli import show

    with GuardClient(socket) as client:
        explanation = client.explain(target)
    if as_json:
        print_json(show.explanation_json(explanation))
    else:
        show.show_explanation(explanation)


def health(
    socket: SocketOption = DEFAULT_SOCKET_PATH,
    ready: Annotated[bool, typer.Option("--ready/--live", help="Ready: all inputs are read. Live: it answers.")] = True,
) -> None:
    """Query whether the service is ready, or alive.

    For the probes of a container runtime.

    \b
    Examples:
      lbguard health --live
      lbguard health --ready

    Exit status: 0 yes, 1 no (the message says why).
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard.api.health_client import unhealthy_reason

    reason = unhealthy_reason(socket, "Readiness" if ready else "Liveness")
    if reason:
        print_error(reason)
        raise typer.Exit(EXIT_FAILED)
