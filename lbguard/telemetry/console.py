"""Output streams of the commands, for tables and coloured lines."""

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from lbguard.printable import printable_lines

WIDTH_WITHOUT_TERMINAL = 160
"""Columns of what goes into a file or a pipe."""


class TextConsole(Console):
    """Writes text as it is, never taking it for markup or names of emoji, and escapes what is not visible in it.

    Values from outside are made `printable` before they are put into a table or a sentence, for their newlines and
    widths. What was forgotten there is escaped here.
    """

    def __init__(self, *, width: int | None = None, stderr: bool = False) -> None:
        """Take the width (characters) of the terminal, if there is one, unless another is given."""
        if width is None and not (sys.stderr if stderr else sys.stdout).isatty():
            width = WIDTH_WITHOUT_TERMINAL
        super().__init__(highlight=False, markup=False, emoji=False, width=width, stderr=stderr)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text to be shown, with what is not visible escaped."""
        return super().render_str(printable_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the parts of what is shown; those that drive the terminal are rich's own."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable_lines(text), style, control)
