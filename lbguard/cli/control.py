"""Commands that steer targets by hand: drain, hold, withdraw and release."""

import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lbguard.cli import JsonOption
from lbguard.cli.query import DEFAULT_SOCKET_PATH, SocketOption
from lbguard.errors import CommandError
from lbguard.telemetry.output import print_json, print_text

if TYPE_CHECKING:
    from lbguard.api.client import Carried, Command
    from lbguard.core.model import ManualAction

TargetsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TARGET]...", help="STREAM/IDENTIFIER, an identifier, or an IP. Repeatable."),
]
LinkOption = Annotated[
    list[str] | None,
    typer.Option("--link", metavar="NAME", help="Every target that is reached through this link. Repeatable."),
]
StreamOption = Annotated[
    list[str] | None, typer.Option("--stream", metavar="NAME", help="Every target of this stream. Repeatable.")
]
ForOption = Annotated[
    str,
    typer.Option(
        "--for", metavar="DURATION", help="Time to the end; default: control.duration, at most control.max_duration."
    ),
]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Reason, shown in events and status.")]
ByOption = Annotated[
    str,
    typer.Option("--by", metavar="NAME", help="Name of the operator, shown in events and status; default: the user."),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Also when a stream keeps no active target for new connections.")
]


def drain(
    targets: TargetsArgument = None,
    links: LinkOption = None,
    streams: StreamOption = None,
    duration: ForOption = "",
    reason: ReasonOption = "",
    by: ByOption = "",
    force: ForceOption = False,
    socket: SocketOption = DEFAULT_SOCKET_PATH,
    as_json: JsonOption = False,
) -> None:
    """Give targets no new connections; their connections go on.

    It needs flow affinity (affinity.mode). A target that drains stays in the table until the end of the command; then,
    or with `lbguard release`, it gets new connections again. For work on a node, drain every target behind its link.

    \b
    Examples:
      lbguard drain stream-a/3
      lbguard drain --link nsm0 --for 30m --reason "kernel update of node 7"
      lbguard drain 172.16.1.10 172.16.1.11 --for 2h

    Exit status: 0 done; 1 no such target, refused (the message says why, and what would be left), or the service does
    not run; 2 wrong usage.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard.core.model import ManualAction

    _give(ManualAction.DRAIN, targets, links, streams, duration, reason, by, force, socket, as_json)


def hold(
    targets: TargetsArgument = None,
    links: LinkOption = None,
    streams: StreamOption = None,
    duration: ForOption = "",
    reason: ReasonOption = "",
    by: ByOption = "",
    socket: SocketOption = DEFAULT_SOCKET_PATH,
    as_json: JsonOption = False,
) -> None:
    """Keep targets in the table against all evidence.

    Use it when a path is expected to be away for longer than the grace window, and to come back. Packets to a target
    without a path are dropped meanwhile. A target that is not in the table is admitted by the usual rules first. When
    the command ends and the path is still broken, the target is withdrawn at once.

    \b
    Examples:
      lbguard hold stream-a/3 --for 5m
      lbguard hold --link nsm0 --for 2m --reason "forwarder restarts"

    Exit status: 0 done; 1 no such target, refused (the message says why), or the service does not run; 2 wrong usage.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard.core.model import ManualAction

    _give(ManualAction.HOLD, targets, links, streams, duration, reason, by, False, socket, as_json)


def withdraw(
    targets: TargetsArgument = None,
    links: LinkOption = None,
    streams: StreamOption = None,
    duration: ForOption = "",
    reason: ReasonOption = "",
    by: ByOption = "",
    force: ForceOption = False,
    socket: SocketOption = DEFAULT_SOCKET_PATH,
    as_json: JsonOption = False,
) -> None:
    """Take targets out of the table at once.

    Their connections are reset: other targets get the packets. `lbguard drain` avoids that. The targets are admitted
    again by the usual rules when the command ends, or with `lbguard release`.

    \b
    Examples:
      lbguard withdraw stream-a/3 --for 1h --reason "answers with errors"
      lbguard withdraw --stream stream-a --force --for 5m

    Exit status: 0 done; 1 no such target, refused (the message says why, and what would be left), or the service does
    not run; 2 wrong usage.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard.core.model import ManualAction

    _give(ManualAction.WITHDRAW, targets, links, streams, duration, reason, by, force, socket, as_json)


def release(
    targets: TargetsArgument = None,
    links: LinkOption = None,
    streams: StreamOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Every target under a command.")] = False,
    by: ByOption = "",
    socket: SocketOption = DEFAULT_SOCKET_PATH,
    as_json: JsonOption = False,
) -> None:
    """End drains, holds and withdrawals that were given by hand.

    The usual rules apply at once: a target with a good path gets connections again, one whose grace window has passed
    is withdrawn.

    \b
    Examples:
      lbguard release stream-a/3
      lbguard release --link nsm0
      lbguard release --all

    Exit status: 0 done, or there was nothing to release; 1 no such target, or the service does not run; 2 wrong usage.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard.core.model import ManualAction

    _give(ManualAction.RELEASE, targets, links, streams, "", "", by, False, socket, as_json, everything=everything)


def _give(
    action: "ManualAction",
    targets: list[str] | None,
    links: list[str] | None,
    streams: list[str] | None,
    duration: str,
    reason: str,
    by: str,
    force: bool,
    socket: Path,
    as_json: bool,
    *,
    everything: bool = False,
) -> None:
    if not (targets or links or streams or everything):
        choices = "a TARGET, --link NAME or --stream NAME" + (", or --all" if action == "release" else "")
        raise typer.BadParameter(f"nothing is named; name {choices}", param_hint="TARGET")
    duration_s = _seconds(duration) if duration else 0.0
    from lbguard.api.client import Command, FieldRefused, GuardClient

    command = Command(
        action=action,
        targets=tuple(targets or ()),
        streams=tuple(streams or ()),
        links=tuple(links or ()),
        all=everything,
        duration_s=duration_s,
        reason=reason,
        who=by or _user(),
        force=force,
    )
    with GuardClient(socket) as client:
        try:
            carried = client.override(command)
        except FieldRefused as refused:
            given = {
                "duration_s": f"--for {duration}",
                "reason": "--reason",
                "who": "--by",
                "targets": f"TARGET ({len(command.targets)} are named)",
            }
            if refused.field not in given:
                raise
            raise CommandError(f"{given[refused.field]}: {refused.allowed}") from None
    if as_json:
        print_json(_json(command, carried))
    else:
        for line in _lines(command, carried):
            print_text(line)


def _seconds(duration: str) -> float:
    from lbguard.settings.notation import DURATION_EXAMPLES, parse_duration

    try:
        seconds = parse_duration(duration)
        if seconds < 1:
            raise ValueError("at least 1s")
    except ValueError as error:
        raise typer.BadParameter(
            f"{duration!r}: {error}; write one such as {DURATION_EXAMPLES}", param_hint="--for"
        ) from None
    return seconds


def _user() -> str:
    """Return the name of the user who gives the command; behind sudo, of the one who called it."""
    name = os.environ.get("SUDO_USER", "")
    if not name:
        try:
            name = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            name = f"uid {os.getuid()}"
    return name[:64]


_DONE = {
    "drain": "gets no new connections",
    "hold": "stays in the table against all evidence",
    "withdraw": "is out of the table",
}


def _lines(command: "Command", carried: "Carried") -> list[str]:
    from lbguard.telemetry.sentences import span

    lines = []
    for each in carried.targets:
        state = "gone" if each.state is None else each.state.value
        if command.action == "release":
            what = "is released" if each.changed else "was under no command"
        else:
            what = f"{_DONE[command.action]} for {span(carried.duration_s)}"
        lines.append(f"{each.key} {what} (state now: {state})")
    if not carried.targets:
        lines.append("No target is under a command.")
    elif command.action != "release":
        lines.append(
            "`lbguard release` with the same names ends it earlier; `lbguard status` shows what is left of it."
        )
    if carried.not_remembered:
        lines.append(f"warning: a restart of lbguard forgets this command: {carried.not_remembered}")
    return lines


def _json(command: "Command", carried: "Carried") -> dict[str, object]:
    return {
        "action": str(command.action),
        "duration_s": carried.duration_s,
        "who": command.who,
        "reason": command.reason,
        "targets": [
            {
                "stream": each.key.stream,
                "identifier": each.key.identifier,
                "state": None if each.state is None else str(each.state),
                "changed": each.changed,
            }
            for each in carried.targets
        ],
        "not_remembered": carried.not_remembered,
    }
