"""Output of the command line: tables for people, plain values for JSON."""

import datetime
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from typing import TYPE_CHECKING, Any

from rich.text import Text

from lbguard.cli.plain_table import add_row, plain_table
from lbguard.core.addr import format_ip, is_ipv4
from lbguard.core.model import Decision, FamilyEvidence
from lbguard.core.status import GuardStatus, TargetStatus
from lbguard.printable import printable, printable_lines, printable_values
from lbguard.telemetry.console import TextConsole
from lbguard.telemetry.log import decision_fields, override_fields
from lbguard.telemetry.sentences import decision_sentence

if TYPE_CHECKING:
    from lbguard.api.client import Explanation
    from lbguard.cli.host import Finding
    from lbguard.probe.once import OnceReport
    from lbguard.settings.check import ConfigWarning
    from lbguard.settings.model import Loaded

_LEFT_OUT_SHOWN = 10


# Settings


def config_json(
    loaded: "Loaded", warnings: "Sequence[ConfigWarning]", findings: "Sequence[Finding]"
) -> dict[str, object]:
    """Return settings, warnings and findings as plain values."""
    from lbguard.settings.model import Settings
    from lbguard.settings.sources import leaves

    return {
        "config": None if loaded.config_path is None else str(loaded.config_path),
        "settings": [
            {
                "name": leaf.name,
                "variable": leaf.variable,
                "value": leaf.show(_value(loaded, leaf.name)),
                "default": leaf.show(leaf.default),
                "origin": loaded.origins[leaf.name],
                "unit": leaf.unit,
                "allowed": leaf.allowed,
                "help": leaf.help,
            }
            for leaf in leaves(Settings)
        ],
        "warnings": [asdict(warning) for warning in warnings],
        "findings": [asdict(finding) for finding in findings],
    }


def show_config(
    loaded: "Loaded",
    warnings: "Sequence[ConfigWarning]",
    findings: "Sequence[Finding]",
    *,
    show_all: bool = False,
) -> None:
    """Print what deserves a look, and after it the settings that a source gives (or all of them)."""
    from lbguard.settings.model import Settings
    from lbguard.settings.sources import leaves

    console = TextConsole()
    _show_problems(console, warnings, findings)
    every = list(leaves(Settings))
    given = [leaf for leaf in every if loaded.origins[leaf.name] != "default"]
    shown = every if show_all else given
    table = plain_table("SETTING", "VALUE", "DEFAULT", "FROM", "MEANING")
    for leaf in shown:
        origin = loaded.origins[leaf.name]
        value, default = (printable(leaf.show(what)) or "-" for what in (_value(loaded, leaf.name), leaf.default))
        style = "dim" if show_all and origin == "default" else ""
        add_row(table, leaf.name, value, default, printable(origin), leaf.help, style=style)
    if shown:
        console.print()
        console.print(table)
    if not show_all:
        console.print()
        others = len(every) - len(given)
        console.print(
            f"{others} {'other settings have' if given else 'settings have'} their default: --all shows them."
        )


def _show_problems(console: TextConsole, warnings: "Sequence[ConfigWarning]", findings: "Sequence[Finding]") -> None:
    """Print errors, then warnings, each with its remedy."""
    said = [("warning", warning.name, warning.what, warning.remedy) for warning in warnings]
    said += [(str(finding.severity), finding.id, finding.what, finding.remedy) for finding in findings]
    # In a file or a pipe each takes one line, however long.
    soft_wrap = not console.is_terminal
    for severity, name, what, remedy in sorted(printable_values(said), key=lambda each: each[0] != "error"):
        console.print(f"{severity} {name}: {what}", style=_severity_style(severity), soft_wrap=soft_wrap)
        console.print(f"        -> {remedy}", soft_wrap=soft_wrap)
    if not said:
        console.print("Nothing to warn of.", style="green")


def _severity_style(severity: str) -> str:
    return "bold red" if severity == "error" else "yellow"


def _value(loaded: "Loaded", name: str) -> Any:
    return reduce(getattr, name.split("."), loaded.settings)


# Probe

_VERDICT_COLOURS = {"up": "green", "degraded": "yellow", "healing": "yellow", "down": "bold red", "unknown": "dim"}


def show_probe(report: "OnceReport") -> None:
    """Print what one round of pings found."""
    console = TextConsole()
    report = printable_values(report)
    table = plain_table("CONNECTION", "STATE", "FAMILY", "REPLIES", "RTT MIN/MEDIAN/MAX", "FROM", "TO", "LINK")
    for result in report.results:
        connection, verdict = result.connection, result.verdict
        colour = _VERDICT_COLOURS.get(result.state, "")
        for ipv4 in (True, False):
            pairs = [pair for pair in connection.pairs if is_ipv4(pair.source) == ipv4]
            if not pairs:
                continue
            families = verdict.evidence if verdict is not None else ()
            family = next((family for family in families if family.ipv4 == ipv4), None)
            add_row(
                table,
                connection.id,
                Text(result.state, style=colour),
                "IPv4" if ipv4 else "IPv6",
                f"{family.received}/{family.sent}" if family else "-",
                _round_trips(family) if family and family.received else "-",
                " ".join(dict.fromkeys(format_ip(pair.source) for pair in pairs)),
                " ".join(dict.fromkeys(format_ip(pair.destination) for pair in pairs)),
                connection.ifname or "-",
            )
    console.print(table)
    if not report.results:
        console.print("There is nothing to ping.", style="yellow")
    for words in report.left_out[:_LEFT_OUT_SHOWN]:
        console.print(f"left out: {words}", style="yellow")
    if len(report.left_out) > _LEFT_OUT_SHOWN:
        console.print(f"left out: {len(report.left_out) - _LEFT_OUT_SHOWN} more", style="yellow")


def _round_trips(family: FamilyEvidence) -> str:
    times_ms = (family.rtt_min_s * 1000, family.rtt_median_s * 1000, family.rtt_max_s * 1000)
    return "/".join(f"{time_ms:.2f}" for time_ms in times_ms) + " ms"


# Status


def status_json(status: GuardStatus) -> dict[str, object]:
    """Return a status as plain values; moments become ages and times left, in seconds."""
    values: dict[str, Any] = asdict(status)
    del values["now"]
    if (file := values["settings_file"]) is not None:
        since = file.pop("refused_since")
        file["refused_for_s"] = None if since is None else round(status.now - since, 3)
    for stream in values["streams"]:
        stream["commit_in_s"] = _left_s(stream.pop("commit_at"), status.now)
    values["targets"] = [target_json(target, status.now) for target in status.targets]
    return values


def _left_s(at: float | None, now: float) -> float | None:
    return None if at is None else round(at - now, 3)


def target_json(target: TargetStatus, now: float) -> dict[str, object]:
    """Return a target as plain values; moments become ages and times left, in seconds."""
    values: dict[str, Any] = asdict(target)
    del values["since"], values["deadline"], values["commit_at"]
    values["age_s"] = round(now - target.since, 3)
    values["deadline_in_s"] = _left_s(target.deadline, now)
    values["commit_in_s"] = _left_s(target.commit_at, now)
    prediction = target.prediction
    values["prediction"] = prediction and {
        "action": str(prediction.action),
        "in_s": _left_s(prediction.at, now),
        "until_in_s": _left_s(prediction.until, now),
        "wait_s": round(prediction.wait_s, 3),
        "why": prediction.why,
    }
    values["override"] = None if target.override is None else override_fields(target.override, now)
    return values


# Decisions


def decision_json(decision: Decision, wall_time: float, *, lost: int = 0) -> dict[str, object]:
    """Return a decision as the log writes it; `lost` decisions before it were dropped for a slow reader."""
    values: dict[str, object] = {
        "ts": round(wall_time, 6),
        "time": datetime.datetime.fromtimestamp(wall_time, datetime.UTC).isoformat(timespec="microseconds"),
    }
    values |= decision_fields(decision)
    if lost:
        values["lost"] = lost
    return values


def decision_line(decision: Decision, wall_time: float, *, lost: int = 0) -> str:
    """Return a decision as one line, in local time."""
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_time))
    warning = f"({lost} decisions were lost here: this reader was too slow)\n" if lost else ""
    return f"{warning}{clock}.{int(wall_time % 1 * 1000):03} {decision_sentence(printable_values(decision))}"


def explanation_json(explanation: "Explanation") -> dict[str, object]:
    """Return an explanation as plain values."""
    target = explanation.target
    return {
        "stream": explanation.key.stream,
        "identifier": explanation.key.identifier,
        "story": explanation.story,
        "target": None if target is None else target_json(target, explanation.now),
        "decisions": [decision_json(decision, wall_time) for decision, wall_time in explanation.decisions],
    }


def show_explanation(explanation: "Explanation") -> None:
    """Print the description and the decisions behind it."""
    console = TextConsole()
    console.print(printable_lines(explanation.story), soft_wrap=not console.is_terminal)
    console.print()
    for decision, wall_time in explanation.decisions:
        console.print(decision_line(decision, wall_time), soft_wrap=True)
    if not explanation.decisions:
        console.print("No decisions are on record.")
