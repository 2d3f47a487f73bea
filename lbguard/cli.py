"""The command line. Every command imports what it needs when it runs, so that `lbguard status` starts quickly."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from lbguard import __version__, cli_recording

if TYPE_CHECKING:
    from lbguard.core.model import StreamSpec
    from lbguard.settings import Loaded

EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130

_INTERVAL_MIN_S, _INTERVAL_MAX_S = 0.1, 60.0

DEFAULT_SOCKET = Path("/run/lbguard/lbguard.sock")

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

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML file of settings (or LBGUARD_CONFIG).", show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set one setting, such as grace.window=5s. Repeatable."),
]
SocketOption = Annotated[
    Path, typer.Option("--socket", envvar="LBGUARD_SOCKET", metavar="PATH", help="Socket of the running service.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TargetsOption = Annotated[
    Path | None,
    typer.Option("--targets-file", metavar="FILE", help="Same as --set targets_file=FILE.", show_default=False),
]
ModeOption = Annotated[
    str | None,
    typer.Option("--mode", metavar="enforce|companion|observe", help="Same as --set mode=MODE.", show_default=False),
]


ConnectionsOption = Annotated[
    Path | None,
    typer.Option(
        "--connections-file", metavar="FILE", help="Same as --set probe.connections_file=FILE.", show_default=False
    ),
]


def _load(
    config: Path | None,
    assignments: Sequence[str] | None,
    *,
    targets_file: Path | None = None,
    mode: str | None = None,
    connections_file: Path | None = None,
) -> "Loaded":
    from lbguard.settings import load

    flags: dict[str, object] = {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{assignment!r} is not NAME=VALUE, such as grace.window=5s", param_hint="--set")
        flags[name.strip()] = value
    if targets_file is not None:
        flags["targets_file"] = str(targets_file)
    if mode is not None:
        flags["mode"] = mode
    if connections_file is not None:
        flags["probe.connections_file"] = str(connections_file)
    return load(config=config, flags=flags)


def _streams(path: Path | None) -> "tuple[tuple[StreamSpec, ...], tuple[str, ...]]":
    """Return the streams of a targets file and its problems."""
    from lbguard.sources.file import TargetsFile, TargetsFileError

    if path is None:
        return (), ()
    try:
        return TargetsFile(path).read(), ()
    except TargetsFileError as error:
        return (), error.problems


@app.command()
def run(
    config: ConfigOption = None,
    assignments: SetOption = None,
    targets_file: TargetsOption = None,
    mode: ModeOption = None,
) -> None:
    """Run the service in the foreground.

    Flags override environment variables (LBGUARD_GRACE__WINDOW=5s), which override the file.
    SIGTERM stops it and leaves the data path as it is; SIGHUP reads the targets again.

    \b
    Examples:
      lbguard run --targets-file /etc/lbguard/targets.yaml
      lbguard run --config /etc/lbguard/lbguard.yaml --set grace.window=5s
      lbguard run --mode observe --targets-file targets.yaml     decide and log, touch nothing

    Exit status: 0 stopped by a signal, 1 failed or unfit machine, 2 settings refused.
    """  # noqa: D301 (\b keeps the lines of a block)
    loaded = _load(config, assignments, targets_file=targets_file, mode=mode)
    if not _fit_to_start(loaded):
        raise typer.Exit(EXIT_FAILED)
    from lbguard import daemon

    raise typer.Exit(daemon.run(loaded.settings))


def _fit_to_start(loaded: "Loaded") -> bool:
    """Log what deserves a look in settings and host; tell whether nothing stands in the way of starting.

    It is logged in the form that the service logs in, so that one reader understands all of standard error.
    """
    import logging

    from lbguard.config_check import check_settings
    from lbguard.hostcheck import blocks_start, check_host
    from lbguard.log import fields, setup_logging

    settings = loaded.settings
    log = logging.getLogger("lbguard.start")
    logging_ = setup_logging(settings.log.format, settings.log.level)
    try:
        for note in loaded.notes:
            log.warning("environment", extra=fields(what=note))
        for warning in check_settings(settings):
            log.warning("settings", extra=fields(id=warning.name, what=warning.what, remedy=warning.remedy))
        findings = check_host(settings, _streams(settings.targets_file)[0])
        for finding in findings:
            level = logging.ERROR if finding.severity == "error" else logging.WARNING
            log.log(level, "host", extra=fields(id=finding.id, what=finding.what, remedy=finding.remedy))
        return not any(blocks_start(finding) for finding in findings)
    finally:
        logging_.close()


def _warn_of_probe_settings(loaded: "Loaded") -> None:
    """Log what deserves a look in the settings of the probe."""
    import logging

    from lbguard.config_check import check_probe_settings
    from lbguard.log import fields, setup_logging

    log = logging.getLogger("lbguard.start")
    logging_ = setup_logging(loaded.settings.log.format, loaded.settings.log.level)
    try:
        for note in loaded.notes:
            log.warning("environment", extra=fields(what=note))
        for warning in check_probe_settings(loaded.settings):
            log.warning("settings", extra=fields(id=warning.name, what=warning.what, remedy=warning.remedy))
    finally:
        logging_.close()


@app.command("check-config")
def check_config(
    config: ConfigOption = None,
    assignments: SetOption = None,
    targets_file: TargetsOption = None,
    mode: ModeOption = None,
    host: Annotated[bool, typer.Option("--host", help="Look at this machine too.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when there are warnings.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show every setting and where it came from, and warn.

    Looks at bad combinations and at the targets file; with --host also at this machine: kernel, modules, capabilities.

    \b
    Examples:
      lbguard check-config --config lbguard.yaml
      lbguard check-config --host --strict
      LBGUARD_GRACE__WINDOW=5s lbguard check-config --json

    Exit status: 0 fine (perhaps with warnings), 1 unfit machine, or warnings with --strict, 2 settings refused.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard import cli_show
    from lbguard.config_check import ConfigWarning, check_settings
    from lbguard.hostcheck import check_host

    loaded = _load(config, assignments, targets_file=targets_file, mode=mode)
    streams, problems = _streams(loaded.settings.targets_file)
    warnings = [ConfigWarning(name="environment", what=note, remedy="correct or unset it") for note in loaded.notes]
    warnings += check_settings(loaded.settings)
    warnings += [
        ConfigWarning(name="targets-file", what=f"{loaded.settings.targets_file}: {problem}", remedy="correct the file")
        for problem in problems
    ]
    findings = check_host(loaded.settings, streams) if host else ()
    if as_json:
        print(json.dumps(cli_show.config_json(loaded, warnings, findings), indent=2))
    else:
        cli_show.show_config(loaded, warnings, findings)
    failed = any(finding.severity == "error" for finding in findings)
    if failed or (strict and (warnings or findings)):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def status(
    socket: SocketOption = DEFAULT_SOCKET,
    as_json: JsonOption = False,
    show_all: Annotated[bool, typer.Option("--all", help="Show every target, not only the first 200.")] = False,
) -> None:
    """Show streams, targets and links as the service sees them.

    Troubled targets come first. For a live view see lbguard top.

    \b
    Examples:
      lbguard status
      lbguard status --json | jq '.targets[] | select(.state != "active")'

    Exit status: 0 shown, 1 the service does not run or does not answer.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard import cli_show
    from lbguard.api.client import GuardClient

    with GuardClient(socket) as client:
        state = client.status()
    if as_json:
        print(json.dumps(cli_show.status_json(state), indent=2))
    else:
        cli_show.show_status(state, show_all=show_all)


@app.command()
def top(
    socket: SocketOption = DEFAULT_SOCKET,
    interval: Annotated[
        str, typer.Option("--interval", metavar="DURATION", help="Time between two questions, 100ms to 1m.")
    ] = "1s",
    once: Annotated[bool, typer.Option("--once", help="Print the view once and end.")] = False,
) -> None:
    """Watch streams, targets, links and decisions live.

    Deadlines count down; troubled targets come first. Leave with q or Ctrl-C. It waits while the service does not run,
    and goes on when it is back. Where there is no terminal, the view is printed once, as with --once.

    \b
    Examples:
      lbguard top
      lbguard top --interval 200ms
      lbguard top --once

    Exit status: 0 left, or printed; 1 the service does not run (printed once only); 2 wrong usage.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard.durations import EXAMPLES, parse_duration

    try:
        interval_s = parse_duration(interval)
        if not _INTERVAL_MIN_S <= interval_s <= _INTERVAL_MAX_S:
            raise ValueError("from 100ms to 1m")
    except ValueError as error:
        raise typer.BadParameter(
            f"{interval!r}: {error}; write one such as {EXAMPLES}", param_hint="--interval"
        ) from None
    # gRPC would write its own words about a service that goes away over the view. It reads this when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from lbguard import cli_top

    cli_top.run_top(socket, interval_s, once=once)


@app.command()
def events(
    socket: SocketOption = DEFAULT_SOCKET,
    last: Annotated[
        int, typer.Option("--last", metavar="N", min=0, max=10_000, help="Show this many past decisions first.")
    ] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show decisions: what was done with which target, and why.

    The oldest comes first. docs/runbook.md explains every named reason.

    \b
    Examples:
      lbguard events --follow
      lbguard events --last 1000 --json | jq 'select(.action == "withdraw")'

    Exit status: 0 shown, 1 the service does not run, or ended while following, 130 left with Ctrl-C.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard import cli_show
    from lbguard.api.client import GuardClient

    try:
        with GuardClient(socket) as client:
            for watched in client.watch(last, follow=follow):
                if as_json:
                    line = json.dumps(cli_show.decision_json(watched.decision, watched.wall_time, lost=watched.lost))
                else:
                    line = cli_show.decision_line(watched.decision, watched.wall_time, lost=watched.lost)
                print(line, flush=follow)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


@app.command()
def explain(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="STREAM/IDENTIFIER, an identifier, or an IP.")],
    socket: SocketOption = DEFAULT_SOCKET,
    as_json: JsonOption = False,
) -> None:
    """Tell why a target is where it is, and what happens next.

    Plain sentences: its state, its paths, what reporters say, when it is withdrawn or re-admitted, its last decisions.
    An identifier or an IP alone will do where only one target has it.

    \b
    Examples:
      lbguard explain stream-a/1
      lbguard explain 172.16.1.10

    Exit status: 0 explained, 1 no such target, or the service does not run.
    """  # noqa: D301 (\b keeps the lines of a block)
    from lbguard import cli_show
    from lbguard.api.client import GuardClient

    with GuardClient(socket) as client:
        explanation = client.explain(target)
    if as_json:
        print(json.dumps(cli_show.explanation_json(explanation), indent=2))
    else:
        cli_show.show_explanation(explanation)


@app.command()
def probe(
    config: ConfigOption = None,
    assignments: SetOption = None,
    connections_file: ConnectionsOption = None,
    once: Annotated[bool, typer.Option("--once", help="Ping for one round, print what answered, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: print JSON.")] = False,
) -> None:
    """Ping the datapath from a proxy's side, and report verdicts.

    It runs beside proxies, or beside targets, and tells load balancers what it found.
    It does nothing until probe.enabled is true (LBGUARD_PROBE__ENABLED=true), so that it can be deployed before it is
    switched on; --once works at any time and reports to nobody. SIGTERM stops it; SIGHUP reads the connections again.

    \b
    Examples:
      lbguard probe --once --connections-file connections.yaml
      lbguard probe --once --set probe.connections=nsm --json
      LBGUARD_PROBE__ENABLED=true LBGUARD_PROBE__CONNECTIONS=nsm \\
        LBGUARD_PROBE__REPORT_TO=link:7443 lbguard probe

    \b
    The connections file:
      connections:
        - {id: lb-a, local: [172.16.0.2], remote: [172.16.0.1]}

    Exit status: 0 stopped by a signal, or all up (--once); 1 failed, or not all up (--once); 2 settings refused.
    """  # noqa: D301 (\b keeps the lines of a block)
    if as_json and not once:
        raise typer.BadParameter("goes with --once only", param_hint="--json")
    loaded = _load(config, assignments, connections_file=connections_file)
    if not once:
        from lbguard.probe import service

        _warn_of_probe_settings(loaded)
        raise typer.Exit(service.run(loaded.settings))
    import asyncio

    from lbguard import cli_show
    from lbguard.probe.once import probe_once, results_json

    report = asyncio.run(probe_once(loaded.settings))
    if as_json:
        print(json.dumps(results_json(report), indent=2))
    else:
        cli_show.show_probe(report)
    raise typer.Exit(0 if report.all_up else EXIT_FAILED)


@app.command()
def demo(
    scenarios: Annotated[
        list[str] | None,
        typer.Option("--scenario", metavar="NAME", help="What to play; `all` is everything. Repeatable."),
    ] = None,
    topology: Annotated[
        str,
        typer.Option(
            metavar="chain|meridio", help="chain: targets from a file. meridio: an unmodified load balancer, on nfqlb."
        ),
    ] = "chain",
    outage: Annotated[str, typer.Option(metavar="DURATION", help="How long links are away.")] = "500ms",
    connections: Annotated[int, typer.Option(metavar="N", help="TCP connections to keep alive.")] = 200,
    distributors: Annotated[
        list[str] | None,
        typer.Option("--distributor", metavar="nftables|nfqlb", help="Where to play it; default: both if possible."),
    ] = None,
    as_json: JsonOption = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write a page with timelines.")
    ] = None,
    list_scenarios: Annotated[bool, typer.Option("--list", help="List the scenarios and end.")] = False,
) -> None:
    """Break links in a lab of network namespaces, and count.

    The lab is a load balancer with clients, proxies and targets, and real packets between them.
    Every scenario is played twice: as load balancers behave today, and with lbguard. Nothing outside the namespaces
    is touched, and they vanish at the end and after Ctrl-C. Needs root, or unprivileged user namespaces.

    \b
    Examples:
      lbguard demo
      lbguard demo --scenario all --report demo.html
      lbguard demo --scenario flap --outage 2s --connections 50
      lbguard demo --topology meridio

    Exit status: 0 every promise kept, 1 one was missed, 2 not played (the message says why).
    """  # noqa: D301 (\b keeps the lines of a block)
    if list_scenarios:
        from lbguard.lab.meridio_scenarios import SCENARIOS

        listed = {str(name): there for name, there in SCENARIOS.items()}
        if topology not in listed:
            raise typer.BadParameter(f"{topology!r}: there are {', '.join(listed)}", param_hint="--topology")
        for scenario in listed[topology]:
            print(f"{scenario.name:<18} {scenario.sentence}")
        return
    from lbguard.durations import EXAMPLES, parse_duration
    from lbguard.lab.demo import DemoOptions, run_demo

    try:
        outage_s = parse_duration(outage)
    except ValueError as error:
        raise typer.BadParameter(f"{outage!r}: {error}; write one such as {EXAMPLES}", param_hint="--outage") from None
    options = DemoOptions(
        scenarios=tuple(scenarios or ()),
        topology=topology,
        distributors=tuple(distributors or ()),
        outage_s=outage_s,
        connections=connections,
        json_output=as_json,
        report=report,
    )
    raise typer.Exit(run_demo(options))


@app.command()
def health(
    socket: SocketOption = DEFAULT_SOCKET,
    ready: Annotated[
        bool, typer.Option("--ready/--live", help="Ready: it has read all it needs. Live: it answers.")
    ] = True,
) -> None:
    """Ask the service whether it is ready, or alive.

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
        print(f"lbguard: {reason}", file=sys.stderr)
        raise typer.Exit(EXIT_FAILED)


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
    try:
        app(args=None if argv is None else list(argv), prog_name="lbguard")
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`). Keep the interpreter from flushing into the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        status = _status_of(error)
        if status is None:
            raise
        for line in str(error).splitlines():
            print(f"lbguard: {line}", file=sys.stderr)
        sys.exit(status)
    sys.exit(0)


def _status_of(error: Exception) -> int | None:
    """Return the exit status of an error that is meant for people; None for a fault of ours.

    The classes are looked up among the modules that the command has loaded: importing them here would load all.
    """
    for module, name, status in (
        ("lbguard.settings_sources", "SettingsError", EXIT_REFUSED),
        ("lbguard.api.client", "ClientError", EXIT_FAILED),
        ("lbguard.probe.build", "ProbeError", EXIT_FAILED),
        ("lbguard.recording.format", "RecordingError", EXIT_REFUSED),
    ):
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(error, getattr(loaded, name)):
            return status
    return None
