"""Output of the command line: tables for people, plain values for JSON."""

import datetime
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from lbguard.cli.status_words import (
    STATE_COLOURS,
    TROUBLE_FIRST,
    age,
    condition,
    headline,
    kept_packets,
    list_change_note,
    local_vips_note,
    new_flows,
    settings_file_notes,
    then,
    until,
)
from lbguard.core.addr import format_ip, is_ipv4
from lbguard.core.model import Decision, FamilyEvidence, TargetState
from lbguard.core.status import GuardStatus, PathStatus, TargetStatus
from lbguard.printable import printable, printable_lines, printable_values
from lbguard.telemetry.console import TextConsole
from lbguard.telemetry.log import decision_fields, override_fields
from lbguard.telemetry.sentences import decision_sentence, given_by, span

if TYPE_CHECKING:
    from lbguard.api.client import Explanation
    from lbguard.cli.host import Finding
    from lbguard.probe.once import OnceReport
    from lbguard.settings.check import ConfigWarning
    from lbguard.settings.model import Loaded

TARGETS_SHOWN = 200
_LEFT_OUT_SHOWN = 10


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _row(table: Table, *cells: object, style: str = "") -> None:
    """Add a row of plain text: what comes from files or the network is never taken for markup."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells), style=style)


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
    table = _table("SETTING", "VALUE", "DEFAULT", "FROM", "MEANING")
    for leaf in shown:
        origin = loaded.origins[leaf.name]
        value, default = (printable(leaf.show(what)) or "-" for what in (_value(loaded, leaf.name), leaf.default))
        style = "dim" if show_all and origin == "default" else ""
        _row(table, leaf.name, value, default, printable(origin), leaf.help, style=style)
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
    table = _table("CONNECTION", "STATE", "FAMILY", "REPLIES", "RTT MIN/MEDIAN/MAX", "FROM", "TO", "LINK")
    for result in report.results:
        connection, verdict = result.connection, result.verdict
        colour = _VERDICT_COLOURS.get(result.state, "")
        for ipv4 in (True, False):
            pairs = [pair for pair in connection.pairs if is_ipv4(pair.source) == ipv4]
            if not pairs:
                continue
            families = verdict.evidence if verdict is not None else ()
            family = next((family for family in families if family.ipv4 == ipv4), None)
            _row(
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


def show_status(status: GuardStatus, *, show_all: bool) -> None:
    """Print streams, targets (troubled ones first) and links."""
    console = TextConsole()
    status = printable_values(status)
    console.print(headline(status))
    for note in settings_file_notes(status):
        console.print(note, style="bold yellow")
    console.print()
    _show_streams(console, status)
    _show_targets(console, status, show_all=show_all)
    _show_links(console, status)


def _show_streams(console: TextConsole, status: GuardStatus) -> None:
    table = _table("STREAM", "AVAILABLE", *(state.value.upper() for state in TROUBLE_FIRST), "TABLE", "NOTE")
    for stream in status.streams:
        available = Text("yes", "green") if stream.available else Text("NO", "bold red")
        note = "; ".join(
            text
            for text in (
                "" if stream.available else stream.availability_reason,
                "mass failure: targets are frozen, not withdrawn" if stream.mass_failure else "",
                list_change_note(stream, status.now),
                local_vips_note(stream),
            )
            if text
        )
        counts = (stream.counts.get(state, 0) for state in TROUBLE_FIRST)
        committed = "committed" if stream.table_committed else "changing"
        _row(table, stream.name, available, *counts, committed, note)
    console.print(table if status.streams else "No streams.")
    console.print()


def _show_targets(console: TextConsole, status: GuardStatus, *, show_all: bool) -> None:
    targets = sorted(status.targets, key=lambda item: (TROUBLE_FIRST.index(item.state), item.stream, item.identifier))
    shown = targets if show_all else targets[:TARGETS_SHOWN]
    judged = any(path.verdicts for target in shown for path in target.paths)
    columns = ["TARGET", "STATE", "FOR", "UNTIL", "THEN", "CAUSE", "IP", "PATH"]
    columns += ["NEW FLOWS"] if status.affinity is not None else []
    columns += ["KEPT"] if status.parking is not None else []
    by_hand = any(target.override is not None for target in shown)
    table = _table(*columns, "LINK", "NEIGHBOUR", *(["VERDICT"] if judged else []), *(["BY HAND"] if by_hand else []))
    for target in shown:
        paths = target.paths
        _row(
            table,
            f"{target.stream}/{target.identifier}",
            Text(target.state, STATE_COLOURS[target.state]),
            age(status.now - target.since),
            until(target, status.now),
            then(target),
            "" if target.state is TargetState.ACTIVE else target.cause,
            "\n".join(path.ip for path in paths),
            "\n".join(condition(path) for path in paths),
            *(["\n".join(new_flows(target, status.affinity))] if status.affinity is not None else []),
            *(["\n".join(kept_packets(target, status.parking))] if status.parking is not None else []),
            "\n".join(path.ifname or "-" for path in paths),
            "\n".join(f"{path.neighbor or '-'} {path.mac if path.mac != '-' else ''}".strip() for path in paths),
            *(["\n".join(_verdicts(path, status.now) for path in paths)] if judged else []),
            *([_by_hand(target, status.now)] if by_hand else []),
        )
    console.print(table if targets else "No targets.")
    if len(shown) < len(targets):
        console.print(f"... and {len(targets) - len(shown)} more: lbguard status --all")
    console.print()


def _by_hand(target: TargetStatus, now: float) -> str:
    """Return an operator's override in a few words; empty: there is none."""
    override = target.override
    if override is None:
        return ""
    return f"{override.action} for {span(override.until - now)} more{given_by(override)}"


def _verdicts(path: PathStatus, now: float) -> str:
    """Return the reporters' verdict on a path, the number of opinions that count, and the age of the newest."""
    if not path.verdicts:
        return "-"
    counting = sum(verdict.weight == "counts" for verdict in path.verdicts)
    newest = max(verdict.at for verdict in path.verdicts)
    more = f", {path.verdicts_left_out} not shown" if path.verdicts_left_out else ""
    return f"{path.verdict} ({counting} of {len(path.verdicts)} count{more}), {age(now - newest)} ago"


def _show_links(console: TextConsole, status: GuardStatus) -> None:
    table = _table("LINK", "ROLE", "STATE", "MAC", "ADDRESSES")
    for link in status.links:
        state = "up" if link.up else "down"
        _row(
            table,
            f"{link.name} ({link.ifindex}#{link.generation})",
            link.role,
            state,
            link.mac,
            *([" ".join(link.addresses)]),
        )
    console.print(table if status.links else "No links that face targets.")


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
