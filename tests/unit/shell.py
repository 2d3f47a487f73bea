"""Commands as a test runs them."""

import pytest

from lbguard.cli.main import main


class Outcome:
    """How a command ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


class Shell:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str) -> Outcome:
        try:
            main(argv)
        except SystemExit as end:
            status = end.code
        assert isinstance(status, int)
        captured = self._capsys.readouterr()
        return Outcome(status, captured.out, captured.err)
