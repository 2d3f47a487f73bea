"""Help of `lbguard top`: keys, columns and states."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lbguard.cli.status_words import STATE_COLOURS
from lbguard.core.model import TargetState

_KEYS = {
    "up down, k j": "one target up or down",
    "PgUp PgDn, b space": "one page",
    "Home End, g G": "first or last target",
    "/": "filter by words in name, state, cause, next step, paths",
    "Esc": "clear the filter, back to the first target",
    "?": "this help; any key leaves it",
    "q, Ctrl-C": "quit",
}
_COLUMNS = {
    "UNTIL, THEN": "end of its state, and what follows if nothing changes",
    "NEW FLOWS": "new connections: elsewhere, wait, or - (to it)",
}
_STATES = {
    TargetState.ACTIVE: "gets traffic",
    TargetState.HELD: "a path is broken; stays in the table until the window ends",
    TargetState.FROZEN: "too many broke at once: stays in the table longer",
    TargetState.WITHDRAWN: "out of the table until its paths are ok",
    TargetState.PENDING: "never admitted yet",
    TargetState.DRAINING: "keeps its connections and gets no new ones",
}


def help_view(height: int) -> RenderableType:
    """Return the help, cut to that many lines."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=18)
    table.add_column(no_wrap=True, overflow="ellipsis")
    rows: list[tuple[Text, str]] = [(Text("KEYS", "bold reverse"), "")]
    rows += [(Text(key, "bold"), meaning) for key, meaning in _KEYS.items()]
    rows += [(Text("COLUMNS", "bold reverse"), "")]
    rows += [(Text(name, "bold"), meaning) for name, meaning in _COLUMNS.items()]
    rows += [(Text("STATES", "bold reverse"), "")]
    rows += [(Text(state, STATE_COLOURS[state]), meaning) for state, meaning in _STATES.items()]
    more = Text("What happens to one target, and why: lbguard explain STREAM/IDENTIFIER", "dim")
    for key, meaning in rows[: height - 1]:
        table.add_row(key, Text(meaning))
    return Group(table, more) if height > len(rows) else table
