"""The commands that begin with the settings: run, check-config and probe."""

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lbguard import DEFAULT_SOCKET
from lbguard.cli import JsonOption
from lbguard.errors import EXIT_FAILED
from lbguard.telemetry.output import print_json

if TYPE_CHECKING:
    from lbguard.cli.host import Finding
    from lbguard.core.model import StreamSpec
    from lbguard.settings.model import Loaded, Settings

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML file of settings (or LBGUARD_CONFIG).", show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set one setting, such as grace.window=5s. Repeatable."),
]
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


def run(
    config: ConfigOption = None,
    assignments: SetOption = None,
    targets_file: TargetsOption = None,
    mode: ModeOption = None,
) -> None:
    """Run the service in the foreground.

    Flags override environment variables (LBGUARD_GRACE__WINDOW=5s), which override the file.
    SIGTERM stops the service and keeps the data path (unless withdraw_on_exit is set). A changed file of settings
    takes effect while the service runs, as far as its settings are live. SIGHUP reads it and the targets again.

    \b
    Examples:
      lbguard run --targets-file /etc/lbguard/targets.yaml
      lbguard run --config /etc/lbguard/lbguard.yaml --set grace.window=5s
      lbguard run --mode observe --targets-file targets.yaml     decide and log, change nothing

    Exit status: 0 stopped by a signal, 1 failed (perhaps the machine: check-config --host), 2 settings refused.
    """  # noqa: D301 (\b keeps the lines of a block)
    # A killed service must restart quickly. Imports make little garbage, and the collector took a sixth of the time
    # of the start. The daemon enables the collector again.
    gc.disable()
    _silence_grpc()
    from lbguard.service.memory import share_one_arena

    # The check of the host starts the first thread.
    share_one_arena()
    try:
        loaded = _load(config, assignments, targets_file=targets_file, mode=mode)
        if not _fit_to_start(loaded):
            raise typer.Exit(EXIT_FAILED)
        from lbguard.service import process

        raise typer.Exit(process.run(loaded.settings, loaded=loaded))
    finally:
        gc.enable()


def check_config(
    config: ConfigOption = None,
    assignments: SetOption = None,
    targets_file: TargetsOption = None,
    mode: ModeOption = None,
    host: Annotated[bool, typer.Option("--host", help="Check this machine too.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 when there are warnings.")] = False,
    as_json: JsonOption = False,
    show_all: Annotated[bool, typer.Option("--all", help="Show settings that have their default too.")] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Compare the file with the settings of the running service instead.")
    ] = False,
    socket: Annotated[
        Path,
        typer.Option("--socket", envvar="LBGUARD_SOCKET", metavar="PATH", help="With --diff: the service's socket."),
    ] = Path(DEFAULT_SOCKET),
) -> None:
    """Show problems, then the settings that are given.

    The command checks combinations of settings, the targets file and the probe's
    connections file. With --host it also checks this machine: kernel settings,
    capabilities, nfqlb's memory, directories, certificates, addresses. --all shows
    every setting, its source and its meaning; --json always has them all.

    \b
    Examples:
      lbguard check-config --config lbguard.yaml
      lbguard check-config --all
      lbguard check-config --host --strict
      LBGUARD_GRACE__WINDOW=5s lbguard check-config --json
      lbguard check-config --diff --config lbguard.yaml

    --diff asks the running service what the file would change, with the service's own flags and environment:
    "live" takes effect when the file changes, "restart" needs a restart.

    Exit status: 0 fine (perhaps with warnings), 1 unfit machine, or warnings with --strict, 2 settings refused.
    With --diff: 0 no difference, 1 differences, 2 the file is refused, or the service does not answer.
    """  # noqa: D301 (\b keeps the lines of a block)
    if diff:
        raise typer.Exit(_diff(config, socket, as_json, others=bool(assignments or targets_file or mode or host)))
    from lbguard.cli import show
    from lbguard.settings.check import ConfigWarning, check_settings, check_targets

    loaded = _load(config, assignments, targets_file=targets_file, mode=mode)
    streams, problems = _streams(loaded.settings)
    warnings = [ConfigWarning(name="environment", what=note, remedy="correct or unset it") for note in loaded.notes]
    warnings += check_settings(loaded.settings)
    warnings += check_targets(loaded.settings, streams)
    warnings += [
        ConfigWarning(name="targets-file", what=f"{loaded.settings.targets_file}: {problem}", remedy="correct the file")
        for problem in problems
    ]
    warnings += [
        ConfigWarning(
            name="connections-file",
            what=f"{loaded.settings.probe.connections_file}: {problem}",
            remedy="correct the file",
        )
        for problem in _connections_problems(loaded.settings)
    ]
    findings: Sequence[Finding] = ()
    if host:
        from lbguard.cli.host import Host
        from lbguard.cli.host_check import check_host
        from lbguard.service.affinity import affinity_refusal

        findings = check_host(
            loaded.settings, streams, Host(refuses_affinity=lambda: affinity_refusal(loaded.settings))
        )
    if as_json:
        print_json(show.config_json(loaded, warnings, findings))
    else:
        show.show_config(loaded, warnings, findings, show_all=show_all)
    failed = any(finding.severity == "error" for finding in findings)
    if failed or (strict and (warnings or findings)):
        raise typer.Exit(EXIT_FAILED)


def _diff(config: Path | None, socket: Path, as_json: bool, *, others: bool) -> int:
    """Compare the file with the running service; see `check_config`."""
    from lbguard.cli.settings_diff import show_difference
    from lbguard.settings.model import CONFIG_VARIABLE

    if others:
        raise typer.BadParameter("allowed only with --config, --socket and --json", param_hint="--diff")
    path = config or Path(os.environ.get(CONFIG_VARIABLE, ""))
    if not path.name:
        raise typer.BadParameter("needs a file: give --config, or set LBGUARD_CONFIG", param_hint="--diff")
    return show_difference(path, socket, as_json=as_json)


def probe(
    config: ConfigOption = None,
    assignments: SetOption = None,
    connections_file: ConnectionsOption = None,
    once: Annotated[bool, typer.Option("--once", help="Ping for one round, print the results, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: print JSON.")] = False,
) -> None:
    """Ping the datapath from a proxy's side, and report verdicts.

    The probe runs beside proxies, or beside targets, and reports its results to load balancers.
    It is off until probe.enabled is true (LBGUARD_PROBE__ENABLED=true), so it can be deployed before it is enabled.
    --once works at any time and sends no reports. SIGTERM stops the probe; SIGHUP makes it read the connections again.

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
        raise typer.BadParameter("allowed only with --once", param_hint="--json")
    loaded = _load(config, assignments, connections_file=connections_file)
    if not once:
        _silence_grpc()
        from lbguard.probe import service

        _warn_of_probe_settings(loaded)
        raise typer.Exit(service.run(loaded.settings))
    import asyncio

    from lbguard.cli import show
    from lbguard.probe.once import probe_once, results_json

    report = asyncio.run(probe_once(loaded.settings))
    if as_json:
        print_json(results_json(report))
    else:
        show.show_probe(report)
    raise typer.Exit(0 if report.all_up else EXIT_FAILED)


def _silence_grpc() -> None:
    """Disable gRPC's own messages on standard error; gRPC reads this variable when it is loaded.

    gRPC writes a line for each peer whose handshake fails, in a thread that serves other peers, and blocks until the
    line is read.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def _load(
    config: Path | None,
    assignments: Sequence[str] | None,
    *,
    targets_file: Path | None = None,
    mode: str | None = None,
    connections_file: Path | None = None,
) -> "Loaded":
    from lbguard.settings.model import load

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


def _streams(settings: "Settings") -> "tuple[tuple[StreamSpec, ...], tuple[str, ...]]":
    """Return the streams of the targets file and its problems; none where it is not read."""
    if settings.targets_file is None or settings.source != "file":
        return (), ()
    from lbguard.sources.file import TargetsFile, TargetsFileError

    try:
        return TargetsFile(settings.targets_file).read(), ()
    except TargetsFileError as error:
        return (), error.problems


def _connections_problems(settings: "Settings") -> tuple[str, ...]:
    """Return the problems of the probe's connections file; none where it is not read."""
    if settings.probe.connections_file is None or settings.probe.connections != "file":
        return ()
    from lbguard.probe.connections import ConnectionsFile, ConnectionsFileError

    try:
        ConnectionsFile(settings.probe.connections_file).read()
    except ConnectionsFileError as error:
        return error.problems
    return ()


def _fit_to_start(loaded: "Loaded") -> bool:
    """Log warnings about settings and host; return whether the service can start.

    The log has the format of the service's log, so that one parser reads all of standard error.
    """
    import logging

    from lbguard.cli.host_check import blocks_start, check_host
    from lbguard.settings.check import check_settings
    from lbguard.telemetry.log import fields, setup_logging

    settings = loaded.settings
    log = logging.getLogger("lbguard.start")
    logging_ = setup_logging(settings.log.format, settings.log.level)
    try:
        for note in loaded.notes:
            log.warning("environment", extra=fields(what=note))
        for warning in check_settings(settings):
            log.warning("settings", extra=fields(id=warning.name, what=warning.what, remedy=warning.remedy))
        findings = check_host(settings, _streams(settings)[0])
        for finding in findings:
            level = logging.ERROR if finding.severity == "error" else logging.WARNING
            log.log(level, "host", extra=fields(id=finding.id, what=finding.what, remedy=finding.remedy))
        return not any(blocks_start(finding) for finding in findings)
    finally:
        logging_.close()


def _warn_of_probe_settings(loaded: "Loaded") -> None:
    """Log warnings about the settings of the probe."""
    import logging

    from lbguard.settings.check import check_probe_settings
    from lbguard.telemetry.log import fields, setup_logging

    log = logging.getLogger("lbguard.start")
    logging_ = setup_logging(loaded.settings.log.format, loaded.settings.log.level)
    try:
        for note in loaded.notes:
            log.warning("environment", extra=fields(what=note))
        for warning in check_probe_settings(loaded.settings):
            log.warning("settings", extra=fields(id=warning.name, what=warning.what, remedy=warning.remedy))
    finally:
        logging_.close()
