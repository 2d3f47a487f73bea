"""Lines of a watch, from the pieces in which they arrive. Pure."""

LINE_BYTES_MAX = 8 * 2**20
"""The longest event; the database of an API server takes no object of more than about 1.5 MiB."""


class LineTooLongError(Exception):
    """A line that does not end."""


class LineSplitter:
    """Splits a stream of bytes into lines.

    Only a line feed ends a line: JSON text may hold the other characters that text libraries take for line ends.
    """

    def __init__(self, bytes_max: int = LINE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._rest = bytearray()

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the lines that a piece completes, without empty ones.

        Raises:
            LineTooLongError: a line is longer than the limit.
        """
        if b"\n" not in piece:
            self._rest += piece
            lines: list[bytes] = []
        else:
            *complete, rest = piece.split(b"\n")
            complete[0] = bytes(self._rest) + complete[0]
            self._rest = bytearray(rest)
            lines = [line for line in complete if line.strip()]
        if len(self._rest) > self._bytes_max or any(len(line) > self._bytes_max for line in lines):
            raise LineTooLongError(f"an event of the watch is longer than {self._bytes_max} bytes")
        return lines

    @property
    def cut(self) -> bool:
        """Return whether a line began and has not ended."""
        return bool(self._rest.strip())
