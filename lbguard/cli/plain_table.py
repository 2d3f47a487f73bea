"""Tables without lines, whose cells are text as it is."""

from rich.table import Table
from rich.text import Text


def plain_table(*columns: str) -> Table:
    """Return a table without rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, *cells: object, style: str = "") -> None:
    """Add a row of plain text: what comes from files or the network is never taken for markup."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells), style=style)
