"""Standard output and standard error of every command, and the handling of failed writes.

A closed pipe (`| head`) is not a failure of the command. A full disk or a closed standard output is a failure, because
the output did not reach its reader.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from lbguard.errors import CommandError
from lbguard.printable import json_text, printable, printable_lines

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class OutputError(CommandError):
    """Standard output cannot be written, as on a full disk; the text says why."""


class _Output:
    """Standard output whose failures are distinguished from those of files and sockets.

    After its reader has closed the pipe, output is discarded, so that the command ends with its own exit status.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.read = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text.

        Raises:
            OutputError: it cannot be written.
        """
        with self._failures():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OutputError: it cannot be written.
        """
        with self._failures():
            self._stream.flush()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self.read = False
            discard_output()
        except OSError as error:
            raise OutputError(f"the output cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Prepare standard output and standard error for commands, however the process was started."""
    _open_standard_descriptors()
    before = sys.stdout
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # In the C locale a name, a dot or a bar may be none of the encoding's characters.
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = cast("TextIO", _Output(before))
    try:
        yield
    finally:
        sys.stdout = before
        try:
            sys.stderr.flush()
        except OSError:
            _discard(_STDERR)


def _open_standard_descriptors() -> None:
    """Open closed standard descriptors (`>&-`), so that no file or socket gets their numbers, and the output.

    Lost output is an error, so standard output is opened unwritable; standard error is opened writable.
    """
    for number, flags in ((_STDIN, os.O_RDONLY), (_STDOUT, os.O_RDONLY), (_STDERR, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            os.dup2(opened, number)  # which lets child processes have it, too
            if opened != number:
                os.close(opened)
    if sys.stdout is None:
        sys.stdout = open(_STDOUT, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (a descriptor)
    if sys.stderr is None:
        sys.stderr = open(_STDERR, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (a descriptor)


def discard_output() -> None:
    """Let what waits for standard output go, and what follows, so that neither we nor the interpreter fail on it."""
    _discard(_STDOUT)


def _discard(number: int) -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, number)
    os.close(devnull)


def is_read() -> bool:
    """Return whether standard output still has a reader; endless output ends without one."""
    return not isinstance(sys.stdout, _Output) or sys.stdout.read


def print_text(text: str, *, flush: bool = False) -> None:
    """Print lines of text; values from outside were made `printable` before, so that they hold no newline."""
    print(printable_lines(text), flush=flush)


def print_json(value: object, *, indent: int | None = 2, flush: bool = False) -> None:
    """Print a value as JSON."""
    print(json_text(value, indent=indent), flush=flush)


def print_error(text: str) -> None:
    """Print one line about what went wrong to standard error; if that takes nothing, the exit status has to do."""
    print_error_lines(f"lbguard: {printable(text)}")


def print_error_lines(text: str) -> None:
    """Print lines to standard error."""
    with contextlib.suppress(OSError):
        print(printable_lines(text), file=sys.stderr, flush=True)
