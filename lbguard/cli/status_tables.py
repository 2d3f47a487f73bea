"""Tables of `lbguard status`, on a narrow terminal in fewer columns."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lbguard.cli.plain_table import add_row, plain_table
from lbguard.cli.status_words import (
    STATE_COLOURS,
    TROUBLE_FIRST,
    age,
    by_hand,
    condition,
    headline,
    kept_packets,
    list_change_note,
    local_vips_note,
    new_flows,
    settings_file_notes,
    then,
    until,
    until_time,
)
from lbguard.core.model import TargetState
from lbguard.core.status import GuardStatus, PathStatus, TargetStatus
from lbguard.printable import printable_values
from lbguard.telemetry.console import TextConsole

TARGETS_SHOWN = 200
_UNLIMITED = 10_000


def show_status(status: GuardStatus, *, show_all: bool, console: TextConsole | None = None) -> None:
    """Print streams, targets (troubled ones first) and links; `console` None: on standard output."""
    console = console or TextConsole()
    status = printable_values(status)
    console.print(headline(status))
    for note in settings_file_notes(status):
        console.print(note, style="bold yellow")
    console.print()
    _show_streams(console, status)
    _show_targets(console, status, show_all=show_all)
    _show_links(console, status)


def _show_streams(console: TextConsole, status: GuardStatus) -> None:
    names = [state.value.upper() for state in TROUBLE_FIRST]
    table = plain_table("STREAM", "AVAILABLE", *names, "TABLE", "NOTE")
    narrow = plain_table("STREAM", "AVAILABLE", "TARGETS", "TABLE", "NOTE")
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
        counts = {state: stream.counts.get(state, 0) for state in TROUBLE_FIRST}
        committed = "committed" if stream.table_committed else "changing"
        add_row(table, stream.name, available, *counts.values(), committed, note)
        some = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        add_row(narrow, stream.name, available, some or "none", committed, note)
    console.print("No streams." if not status.streams else table if _fits(console, table) else narrow)
    console.print()


def _fits(console: TextConsole, table: Table) -> bool:
    """Return whether a table needs no folded cell."""
    return console.measure(table, options=console.options.update(max_width=_UNLIMITED)).maximum <= console.width


def _show_targets(console: TextConsole, status: GuardStatus, *, show_all: bool) -> None:
    """Print the targets with their paths in one table; where that is too wide, in two."""
    targets = sorted(status.targets, key=lambda item: (TROUBLE_FIRST.index(item.state), item.stream, item.identifier))
    shown = targets if show_all else targets[:TARGETS_SHOWN]
    decided, paths = _decided(status, shown), _paths(status, shown)
    tables = [_joined(shown, {**decided, **paths})]
    if not _fits(console, tables[0]):
        if "AT" in decided and not _fits(console, _joined(shown, decided)):
            del decided["AT"]
        tables = [_joined(shown, decided), _joined(shown, {"TARGET": decided["TARGET"], **paths})]
    for number, table in enumerate(tables if targets else []):
        if number:
            console.print()
        console.print(table)
    if not targets:
        console.print("No targets.")
    if len(shown) < len(targets):
        console.print(f"... and {len(targets) - len(shown)} more: lbguard status --all")
    console.print()


_Columns = dict[str, list[str | Text]]


def _joined(shown: Sequence[TargetStatus], columns: _Columns) -> Table:
    table = plain_table(*columns)
    for row in range(len(shown)):
        add_row(table, *(cells[row] for cells in columns.values()))
    return table


def _decided(status: GuardStatus, shown: Sequence[TargetStatus]) -> _Columns:
    """Return the columns about the state of each target."""
    columns: _Columns = {
        "TARGET": [f"{target.stream}/{target.identifier}" for target in shown],
        "STATE": [Text(target.state, STATE_COLOURS[target.state]) for target in shown],
        "FOR": [age(status.now - target.since) for target in shown],
        "UNTIL": [until(target, status.now) for target in shown],
        "AT": [until_time(target, status) for target in shown],
        "THEN": [then(target) for target in shown],
        "CAUSE": ["" if target.state is TargetState.ACTIVE else target.cause for target in shown],
    }
    if not any(columns["AT"]):
        del columns["AT"]
    if any(target.override is not None for target in shown):
        columns["BY HAND"] = [by_hand(target, status) for target in shown]
    return columns


def _paths(status: GuardStatus, shown: Sequence[TargetStatus]) -> _Columns:
    """Return the columns about the paths of each target, a line for each path."""
    affinity, parking = status.affinity, status.parking
    columns: _Columns = {
        "IP": ["\n".join(path.ip for path in target.paths) for target in shown],
        "PATH": ["\n".join(condition(path) for path in target.paths) for target in shown],
    }
    if affinity is not None:
        columns["NEW FLOWS"] = ["\n".join(new_flows(target, affinity)) for target in shown]
    if parking is not None:
        columns["KEPT"] = ["\n".join(kept_packets(target, parking)) for target in shown]
    columns["LINK"] = ["\n".join(path.ifname or "-" for path in target.paths) for target in shown]
    columns["NEIGHBOUR"] = ["\n".join(map(_neighbor, target.paths)) for target in shown]
    if any(path.verdicts for target in shown for path in target.paths):
        columns["VERDICT"] = ["\n".join(_verdicts(path, status.now) for path in target.paths) for target in shown]
    return columns


def _neighbor(path: PathStatus) -> str:
    return f"{path.neighbor or '-'} {path.mac if path.mac != '-' else ''}".strip()


def _verdicts(path: PathStatus, now: float) -> str:
    """Return the reporters' verdict on a path, the number of opinions that count, and the age of the newest."""
    if not path.verdicts:
        return "-"
    counting = sum(verdict.weight == "counts" for verdict in path.verdicts)
    newest = max(verdict.at for verdict in path.verdicts)
    more = f", {path.verdicts_left_out} not shown" if path.verdicts_left_out else ""
    return f"{path.verdict} ({counting} of {len(path.verdicts)} count{more}), {age(now - newest)} ago"


def _show_links(console: TextConsole, status: GuardStatus) -> None:
    table = plain_table("LINK", "ROLE", "STATE", "MAC", "ADDRESSES")
    for link in status.links:
        state = "up" if link.up else "down"
        name = f"{link.name} ({link.ifindex}#{link.generation})"
        add_row(table, name, link.role, state, link.mac, " ".join(link.addresses))
    console.print(table if status.links else "No links that face targets.")
