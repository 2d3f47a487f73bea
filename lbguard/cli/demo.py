"""The command that runs the lab: demo."""

from pathlib import Path
from typing import Annotated

import typer

from lbguard.cli.conventions import JsonOption
from lbguard.telemetry.output import print_text


def demo(
    scenarios: Annotated[
        list[str] | None,
        typer.Option("--scenario", metavar="NAME", help="Scenario to run, or `all`. Repeatable."),
    ] = None,
    topology: Annotated[
        str,
        typer.Option(
            metavar="chain|meridio", help="chain: targets from a file. meridio: an unmodified load balancer, on nfqlb."
        ),
    ] = "chain",
    outage: Annotated[str, typer.Option(metavar="DURATION", help="Duration of the loss of a link.")] = "500ms",
    connections: Annotated[int, typer.Option(metavar="N", help="TCP connections to keep alive.")] = 200,
    distributors: Annotated[
        list[str] | None,
        typer.Option("--distributor", metavar="nftables|nfqlb", help="Distributor to use; default: both if possible."),
    ] = None,
    as_json: JsonOption = False,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write a page with timelines.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="DIR", help="Write recordings for replay and tune."),
    ] = None,
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
        record=record,
    )
    raise typer.Exit(run_demo(options))
