"""Where commands write tables and coloured lines."""

import sys

from rich.console import Console

WIDTH_WITHOUT_TERMINAL = 160
"""Columns of what goes into a file or a pipe."""


class TextConsole(Console):
    """Writes plain text as it is, never taking it for markup."""

    def __init__(self, *, width: int | None = None) -> None:
        """Take the width (characters) of the terminal, if there is one, unless another is given."""
        if width is None and not sys.stdout.isatty():
            width = WIDTH_WITHOUT_TERMINAL
        super().__init__(highlight=False, markup=False, width=width)

    def on_broken_pipe(self) -> None:
        """Tell the command line that the reader has gone (`| head`), which is no failure of the command."""
        raise BrokenPipeError
