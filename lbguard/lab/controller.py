"""The process that looks after the distributor in the load balancer's namespace: lbguard, or today's stand-in."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from lbguard.lab.netns import Namespace
from lbguard.printable import printable

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
LAST_WORDS_S = 1.0
SHOWN_LINES = 8
SHOWN_ERRORS = 4
"""Of what was said before the last lines, so many errors are shown: more may be said after the reason of an end."""
LINE_LIMIT = 2**20
_VALUE_LENGTH = 300


def _environment() -> dict[str, str]:
    """Return our environment, but let Python keep compiled code as every installation does.

    Otherwise each start compiles everything anew, and a guard killed in the middle of an outage comes back late.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class LabError(Exception):
    """Something the lab needs did not work; the message names it and shows what the process said."""


class Column(StrEnum):
    """Controller of the distributor: today's behaviour, or lbguard."""

    WITHDRAW = "withdraw"
    LBGUARD = "lbguard"


class Distribution(StrEnum):
    """Distributor that maps the packets."""

    NFTABLES = "nftables"
    NFQLB = "nfqlb"


class Topology(StrEnum):
    """Kind of load balancer: the chain's, with targets from a file, or one that calls nfqlb itself."""

    CHAIN = "chain"
    MERIDIO = "meridio"
    MERIDIO_2 = "meridio2"


@dataclass(slots=True)
class Controller:
    """Starts, kills and stops the process, and keeps its log (one JSON object a line of standard error).

    `started_as` (command line, environment) is another process than the column's own; `name` is what errors call it.
    `first_identifier` is what the process calls the lab's target 1. `settings` are environment variables for lbguard.
    `search` is the PATH on which today's process finds nfqlb; None
    means our own.
    """

    column: Column
    distribution: Distribution
    namespace: Namespace
    targets_file: Path
    started_as: tuple[list[str], dict[str, str]] | None = None
    name: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    search: str | None = None
    first_identifier: int = 1
    records: list[dict[str, Any]] = field(default_factory=list)
    _said: list[dict[str, Any] | str] = field(default_factory=list)
    _process: asyncio.subprocess.Process | None = None
    _reader: asyncio.Task[None] | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Start the process; `wait_active` waits until it is at work."""
        argv, environment = self._command()
        self._process = await asyncio.create_subprocess_exec(
            *self.namespace.command(*argv),
            env={**_environment(), **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
        )
        self._reader = asyncio.create_task(self._read(self._process))

    async def wait_active(self, identifiers: frozenset[int]) -> None:
        """Wait until the process says that it is ready and that all these targets are active.

        Raises:
            LabError: it ended, or did not get there in time.
        """
        await self.wait_until(lambda: self.is_active(identifiers), "become ready")

    async def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the log makes a condition true; `what` is what the process does then, for the error.

        Raises:
            LabError: it ended, or did not get there in time.
        """
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._until(condition)
        except TimeoutError:
            raise LabError(f"{self._title} did not {what} in {READY_TIMEOUT_S:g} s{self.last_words()}") from None

    async def kill(self) -> None:
        """Kill the process at once (SIGKILL)."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._ended()

    async def suspend(self) -> None:
        """Stop the process until `resume` (SIGSTOP)."""
        self.send_signal(signal.SIGSTOP)

    async def resume(self) -> None:
        """Continue a stopped process (SIGCONT)."""
        self.send_signal(signal.SIGCONT)

    async def reread_without(self, identifier: int) -> None:
        """Have the process read the list of targets, which a target left, and wait until that one is not active."""
        self.send_signal(signal.SIGHUP)
        await self.wait_until(lambda: not self.is_active(frozenset({identifier})), f"remove target {identifier}")

    async def reread_with(self, identifier: int) -> None:
        """Have the process read the list of targets, which has a new one, and wait until that one is active."""
        self.send_signal(signal.SIGHUP)
        await self.wait_active(frozenset({identifier}))

    async def stop(self) -> None:
        """Ask the process to end (SIGTERM), and kill it when it does not."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._ended()
        except TimeoutError:
            await self.kill()

    async def check_alive(self) -> None:
        """Check that the process still runs.

        Raises:
            LabError: it ended by itself.
        """
        if self._process is not None and self._process.returncode is not None:
            if self._reader is not None:
                # The reason may not have been read yet; a child of the process may keep the pipe open.
                await asyncio.wait({self._reader}, timeout=LAST_WORDS_S)
            raise LabError(f"{self._title} ended with status {self._process.returncode}{self.last_words()}")

    def send_signal(self, number: signal.Signals) -> None:
        """Send the process a signal; one that ended gets none."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    @property
    def _title(self) -> str:
        return self.name or str(self.column)

    def _command(self) -> tuple[list[str], dict[str, str]]:
        if self.started_as is not None:
            return self.started_as
        if self.column is Column.WITHDRAW:
            kind = "nfqlb" if self.distribution is Distribution.NFQLB else "nftables"
            module = ["-m", "lbguard.lab.baseline", "--targets", str(self.targets_file), "--distributor", kind]
            return [sys.executable, *module], {"PATH": self.search or os.environ["PATH"]}
        kind = "nfqlb-shm" if self.distribution is Distribution.NFQLB else "nftables"
        return [sys.executable, "-m", "lbguard", "run"], {
            "LBGUARD_TARGETS_FILE": str(self.targets_file),
            "LBGUARD_DISTRIBUTOR__KIND": kind,
            "LBGUARD_SOCKET": str(self.targets_file.with_name("lbguard.sock")),
            "LBGUARD_METRICS__LISTEN": "127.0.0.1:9464",
            "LBGUARD_LOG__FORMAT": "json",
            **self.settings,
        }

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            text = line.decode(errors="replace").rstrip()
            try:
                record = json.loads(text)
            except ValueError:
                record = None
            if isinstance(record, dict):
                if isinstance(record.get("identifier"), int):
                    record["identifier"] += 1 - self.first_identifier
                self.records.append(record)
            self._said.append(record if isinstance(record, dict) else text)
            self._news.set()
        self._news.set()

    async def _ended(self) -> None:
        assert self._process is not None
        assert self._reader is not None
        await self._process.wait()
        await self._reader

    async def _until(self, condition: Callable[[], bool]) -> None:
        assert self._reader is not None
        while not condition():
            if self._reader.done():
                assert self._process is not None
                await self._process.wait()
                await self.check_alive()
            self._news.clear()
            await self._news.wait()

    def is_active(self, identifiers: frozenset[int]) -> bool:
        """Return whether the process has said that it is ready, and that all these targets are active."""
        active: set[int] = set()
        ready = False
        for record in self.records:
            if record.get("event") == "ready":
                ready = True
            elif record.get("event") == "decision" and isinstance(record.get("identifier"), int):
                if record.get("state_to") == "active":
                    active.add(record["identifier"])
                else:
                    active.discard(record["identifier"])
        return ready and active >= identifiers

    def last_words(self) -> str:
        """Return what the process said last, to follow a sentence: earlier errors too, for they hold the reason."""
        said = [line for line in self._said if line]
        errors = [line for line in said[:-SHOWN_LINES] if isinstance(line, dict) and line.get("level") in _ERRORS]
        lines = [_shown(line) for line in (*errors[-SHOWN_ERRORS:], *said[-SHOWN_LINES:])]
        return "; it said:\n  " + "\n  ".join(lines) if lines else " and said nothing"


class Checked(Protocol):
    """Interface of a process that can be checked for life."""

    async def check_alive(self) -> None:
        """Raise LabError, with the reason, if it ended by itself."""


@contextlib.asynccontextmanager
async def naming_what_ended(controller: Checked) -> AsyncIterator[None]:
    """Add to an error that the controller had ended, and why: the error may be what followed from it."""
    try:
        yield
    except (LabError, OSError, RuntimeError) as error:
        try:
            await controller.check_alive()
        except LabError as reason:
            if str(reason) != str(error):
                raise LabError(f"{error}\n{reason}") from error
        raise


_ERRORS = frozenset({"error", "critical"})
_LEFT_OUT = frozenset({"ts", "time", "level", "logger", "event", "exception"})


def _shown(said: dict[str, Any] | str) -> str:
    """Return a line of the log in short: what happened, its fields, and the last line of a traceback."""
    if isinstance(said, str):
        return printable(said)
    words = [str(said.get("level", "")), str(said.get("event", ""))]
    words += [f"{name}={str(value)[:_VALUE_LENGTH]}" for name, value in said.items() if name not in _LEFT_OUT]
    words += str(said.get("exception", "")).strip().splitlines()[-1:]
    return printable(" ".join(word for word in words if word))
