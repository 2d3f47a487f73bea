"""Command line: one module for each kind of command, and modules that render the output."""

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
"""Option of several commands."""
