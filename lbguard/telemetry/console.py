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
    """Console that prints text as it is, without markup and emoji names, and escapes invisible characters.

    Callers make values from outside `printable` before they put them into a table or a sentence, because of newlines
    and widths. This class escapes the rest.
    """

    def __init__(self, *, width: int | None = None, stderr: bool = False) -> None:
        """Take the width (characters) of the terminal, if there is one, unless another is given."""
        if width is None and not (sys.stderr if stderr else sys.stdout).isatty():
            width = WIDTH_WITHOUT_TERMINAL
        super().__init__(highlight=False, markup=False, emoji=False, width=width, stderr=stderr)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text with its invisible characters escaped."""
        return super().render_str(printable_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of the output; control segments are rich's own."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable_lines(text), style, control)
