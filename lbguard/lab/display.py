"""Display at the terminal: a live table, or plain lines where there is no terminal."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lbguard.lab.controller import Column, Distribution
from lbguard.lab.meridio_scenarios import BY_NAME, AgainstToday
from lbguard.lab.nfqlb import NfqlbKind
from lbguard.lab.play import Run
from lbguard.telemetry.console import TextConsole

WIDE = 124
"""From this width on (characters) every column is shown; on a narrower terminal only those that decide."""
REFRESH_PER_S = 4


@dataclass(frozen=True, slots=True)
class Slot:
    """One run to be played: which scenario, by whom, on what."""

    scenario: str
    column: Column
    distribution: Distribution


DECIDING_NUMBERS = ("broken", "moved", "median", "longest")
REMOVED = "removed in"
"""Only where something is removed."""
DECIDING_WITH_NEW = ("broken", "longest", "new ones")
NEW_NUMBERS = ("new", "new waited", "new broken", "longest connect")
"""Only where new connections are opened."""
NEW_WIDTH, SEVERAL_WIDTH = 36, 18
"""Characters that these numbers add to the width of the table, and with them the names of several distributors."""
ALL_NUMBERS = ("opened", "disturbed", "broken", "moved", "UDP lost", "median gap", "longest gap")


class Display:
    """Shows all runs, those to come, those under way with a countdown, and those that ended with their numbers."""

    def __init__(self, slots: Sequence[Slot], console: TextConsole) -> None:
        self._slots = list(slots)
        self._console = console
        self._phases: dict[Slot, tuple[str, float]] = {}
        self._runs: dict[Slot, Run] = {}
        self._several = len({slot.distribution for slot in slots}) > 1
        with_new = any(BY_NAME[slot.scenario].newcomers for slot in slots)
        extra = NEW_WIDTH + (SEVERAL_WIDTH if self._several else 0) if with_new else 0
        self._wide = console.width >= WIDE + extra
        self._names = ALL_NUMBERS if self._wide else DECIDING_NUMBERS
        if with_new:
            self._names = (*self._names, *NEW_NUMBERS) if self._wide else DECIDING_WITH_NEW
        if any(shows_removals(slot.scenario) for slot in slots):
            self._names = (*self._names, REMOVED)
        self._started = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, refresh_per_second=REFRESH_PER_S, get_renderable=self.table, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def phase(self, slot: Slot, phase: str, left_s: float) -> None:
        """Show what a run does now and how long it has left (seconds; 0: unknown)."""
        until = time.monotonic() + left_s if left_s > 0 else 0.0
        self._phases[slot] = (phase, until)
        if self._live is None:
            left = f", {left_s:.0f} s left" if left_s > 0 else ""
            elapsed = time.monotonic() - self._started
            self._console.print(f"[{elapsed:5.1f} s] {_title(slot, self._several)}: {phase}{left}")

    def finished(self, slot: Slot, run: Run) -> None:
        """Show the numbers of a run."""
        self._runs[slot] = run
        if self._live is None:
            elapsed = time.monotonic() - self._started
            measured = run.measured
            numbers = (
                run.error
                or f"{measured.opened} connections, {broken_text(run)} broken, {measured.moved} moved, "
                f"median gap {measured.median_gap_s:.2f} s, longest {measured.longest_gap_s:.2f} s"
                f"{newcomers_text(run)}"
            )
            self._console.print(f"[{elapsed:5.1f} s] {_title(slot, self._several)}: {numbers}")

    def table(self) -> Table:
        """Return the table as it stands."""
        done, total = len(self._runs), len(self._slots)
        elapsed = time.monotonic() - self._started
        table = Table(
            title=f"lbguard demo: {done} of {total} runs, {elapsed:.0f} s" if done < total else "lbguard demo",
            title_justify="left",
            box=SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
        )
        table.add_column("scenario", min_width=16, ratio=1)
        table.add_column("column", no_wrap=self._wide)
        for name in self._names:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("verdict", min_width=14)
        for scenario in dict.fromkeys(slot.scenario for slot in self._slots):
            rows = [slot for slot in self._slots if slot.scenario == scenario]
            for slot in rows:
                head = _head(scenario, rows.index(slot), len(rows))
                table.add_row(*self._row(slot, head), end_section=slot is rows[-1])
        return table

    def _row(self, slot: Slot, head: Text) -> list[str | Text]:
        names = self._names
        cells: list[str | Text] = [
            head,
            f"{slot.column} ({slot.distribution})" if self._several else str(slot.column),
        ]
        run = self._runs.get(slot)
        if run is None or run.error:
            verdict = self._phase_text(slot) if run is None else Text("FAILED, see below", style="bold red")
            return [*cells, *[""] * len(names), verdict]
        numbers = _numbers(run)
        return [*cells, *(numbers[name] for name in names), verdict_text(run)]

    def _phase_text(self, slot: Slot) -> Text:
        phase, until = self._phases.get(slot, ("waits its turn", 0.0))
        left = until - time.monotonic()
        return Text(
            f"{phase} ({left:.0f} s)" if left > 0 else phase, style="dim" if phase == "waits its turn" else "cyan"
        )


def _numbers(run: Run) -> dict[str, str | Text]:
    measured = run.measured
    median, longest = gap_text(measured.median_gap_s), gap_text(measured.longest_gap_s)
    return {
        "opened": str(measured.opened),
        "disturbed": str(measured.disturbed),
        "broken": Text(broken_text(run), style="bold red" if measured.broken else "green"),
        "moved": Text(str(measured.moved), style="bold red" if measured.moved else "green"),
        "UDP lost": str(measured.udp_lost),
        "median gap": median,
        "median": median,
        "longest gap": longest,
        "longest": longest,
        **_newcomer_numbers(run),
        REMOVED: removal_text(run),
    }


def _newcomer_numbers(run: Run) -> dict[str, str | Text]:
    measured = run.measured
    if measured.new_opened == 0:
        return dict.fromkeys((*NEW_NUMBERS, "new ones"), "-")
    waited, broken = (
        (str(count), "bold red" if count else "green") for count in (measured.new_waited, measured.new_broken)
    )
    return {
        "new": str(measured.new_opened),
        "new waited": Text(*waited),
        "new broken": Text(*broken),
        "longest connect": gap_text(measured.new_longest_connect_s),
        "new ones": Text.assemble(waited, " waited\n", broken, " broken"),
    }


def _head(scenario: str, row: int, rows: int) -> Text:
    """Return the first cell: the name in the first row, what happens in the second (or below, if there is one row)."""
    sentence = (BY_NAME[scenario].sentence, "dim")
    if row == 0:
        return Text.assemble((scenario, "bold"), *(("\n", sentence) if rows == 1 else ()))
    return Text.assemble(sentence) if row == 1 else Text()


def _title(slot: Slot, several: bool) -> str:
    return f"{slot.scenario}, {slot.column} on {slot.distribution}" if several else f"{slot.scenario}, {slot.column}"


def broken_text(run: Run) -> str:
    """Return the broken connections, with those of targets that are lost for good beside them."""
    measured = run.measured
    if measured.lost_connections == 0:
        return str(measured.broken)
    return f"{measured.broken} +{measured.lost_broken} lost"


def newcomers_text(run: Run) -> str:
    """Return what became of the new connections, to follow other numbers; empty where none was opened."""
    measured = run.measured
    if measured.new_opened == 0:
        return ""
    return (
        f"; {measured.new_opened} new ones, {measured.new_waited} waited (longest connect"
        f" {measured.new_longest_connect_s:.2f} s), {measured.new_broken} broken"
    )


def shows_removals(scenario: str) -> bool:
    """Return whether a scenario is about how long a removed target stays in the table."""
    promise = BY_NAME[scenario].promise
    return isinstance(promise, AgainstToday) and promise.removal_over_s is not None


def removal_text(run: Run) -> str:
    """Return how long removed targets stayed in the table, the middle one; `-` when none was removed."""
    if run.lb is None or not run.lb.removals_s:
        return "-"
    return f"{median(run.lb.removals_s) * 1000:.1f} ms"


def nfqlb_text(runs: Sequence[Run]) -> str:
    """Return which nfqlb was played on; empty when none was."""
    return " ".join(NFQLB_TEXTS[kind] for kind in NfqlbKind if any(run.nfqlb is kind for run in runs))


def gap_text(seconds: float) -> str:
    """Return a gap in seconds; `-` when no connection survived to have one."""
    return f"{seconds:.2f} s" if seconds > 0 else "-"


def verdict_text(run: Run) -> Text:
    """Return whether the promise was kept; today's behaviour promises nothing."""
    if run.column is Column.WITHDRAW:
        return Text("today", style="dim")
    if run.kept:
        return Text("kept", style="bold green")
    return Text("MISSED, see below", style="bold red")


MERIDIO_LEGEND = """\
Here both columns run the same stand-in for the load balancer's process, not modified, with the same nfqlb. In the
column lbguard, deploy/meridio/nfqlb comes first on its PATH, and lbguard runs beside it with the source interposer.
removed in: from its call of `nfqlb deactivate` until the target was out of the table, the middle one of them."""

NFQLB_TEXTS = {
    NfqlbKind.REAL: "nfqlb: real.",
    NfqlbKind.STAND_IN: "nfqlb: stand-in. The real one is not on PATH; the lab's own keeps the same memory layout."
    " It is slow and queues packets: a new connection has waited where its SYN was repeated, after 1 s.",
}

LEGEND = """\
withdraw: what a load balancer does today, it takes targets out as soon as their link is gone. lbguard: this project.
opened: long-lived TCP connections, one message every 50 ms. disturbed: those whose path the scenario breaks, and those
that broke because others were withdrawn, which moves some slots of every target today.
broken: reset, or silent for the rest of the run; "+N lost": those of targets that never come back, or only after the
window, or that left the list, once their drain is over: counted apart.
moved: their packets reached another target, which refused them. UDP lost: datagrams without an answer.
median gap: the middle one of the pauses of those that survived a broken path. longest gap: of all survivors."""

NEW_LEGEND = """\
new: TCP connections that are opened during the scenario, one every 20 ms, and live on. new waited: took over 300 ms to
be connected. new broken: reset, silent for the rest of the run, or answered by two targets."""
