"""Conventions of all commands: exit statuses, and options that several commands take."""

from typing import Annotated

import typer

EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
