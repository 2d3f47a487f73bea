import re
from html.parser import HTMLParser

from lbguard.lab import report
from lbguard.lab.controller import Column, Distribution
from lbguard.lab.measure import Measurement
from lbguard.lab.meridio import LbFacts
from lbguard.lab.nfqlb import NfqlbKind
from lbguard.lab.play import Run
from lbguard.lab.scenario_model import Do, Step
from lbguard.lab.traffic import RESET, Channel, TrafficResult
from tests.unit.hostile import HOSTILE

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Checks that tags are balanced, and collects links, identifiers and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.refs: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "srcset", "xlink:href", "data", "action"):
                self.refs.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _traffic() -> TrafficResult:
    fine = Channel(0, 4, target=1, sent=10, answered=10, first_at=99.0, last_at=104.9, gaps=[(100.0, 0.7)])
    broken = Channel(1, 6, target=2, sent=9, answered=1, first_at=99.0, last_at=100.0, ending=RESET, ended_at=100.3)
    return TrafficResult(
        started=99.0,
        ended=105.0,
        connections=[fine, broken],
        flows=[],
        tcp_bins={"1": [2] * 60, "2": [1] * 60},
        udp_bins={},
    )


def _run(column: Column, measured: Measurement, **fields: object) -> Run:
    run = Run(
        scenario="lb-link",
        column=column,
        distribution=Distribution.NFTABLES,
        started=100.0,
        ended=105.0,
        measured=measured,
        steps=[(100.0, Step(0, Do.DELETE_LB_LINK, 1)), (100.5, Step(0.5, Do.CREATE_LB_LINK, 1))],
        records=[{"ts": 99.0, "event": "decision", "identifier": 1, "state_to": "active"}],
        traffic=_traffic(),
    )
    for name, value in fields.items():
        setattr(run, name, value)
    return run


def _read(runs: list[Run]) -> Reader:
    page = report.render(runs, 0.5)
    assert page.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|//|@import|url\(", page), "the page must not refer to anything outside"
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


TODAY = _run(Column.WITHDRAW, Measurement(opened=2, disturbed=1, broken=1, reset=1, moved=1))
GUARDED = _run(Column.LBGUARD, Measurement(opened=2, disturbed=1, median_gap_s=0.7, longest_gap_s=0.7))


def test_the_page_is_whole_and_refers_only_to_itself() -> None:
    reader = _read([TODAY, GUARDED])
    assert reader.counts["svg"] == 2
    assert set(reader.refs) == {"#lb-link"}
    assert set(reader.ids) == {"lb-link"}


def test_the_page_says_what_it_shows() -> None:
    text = _read([TODAY, GUARDED]).text
    assert "Today's behaviour broke 1 connections" in text
    assert "lbguard broke 0 and kept every promise" in text
    assert "How to read the timelines" in text
    assert "Promise of lbguard: 0 broken, 0 moved, median gap at most 1.5 s." in text


def test_new_connections_have_columns_and_a_band_of_their_own() -> None:
    traffic = _traffic()
    fine = Channel(0, 4, target=1, sent=3, answered=3, last_at=104.9, opened_at=100.2, connect_s=0.01)
    waiting = Channel(1, 6, opened_at=102.0)
    traffic.newcomers = [Channel(9, 4, opened_at=99.5), fine, waiting]
    measured = Measurement(opened=2, disturbed=1, new_opened=2, new_waited=1, new_broken=0, new_longest_connect_s=3.0)
    run = _run(Column.LBGUARD, measured, scenario="newcomers", traffic=traffic)
    text = _read([TODAY, run]).text
    assert "long-lived connections" in text
    assert "; 2 new ones, 1 waited (longest connect 3.00 s), 0 broken" in text
    assert "New connections, one line each" in text
    assert "2 opened1 waited0 broken" in text
    assert "New connections: with lbguard 1 waited and 0 broke of 2." in text
    assert "New: TCP connections that are opened during the scenario" in text
    today = _run(Column.WITHDRAW, Measurement(opened=2, new_opened=9, new_waited=2, new_broken=3), scenario="newcomers")
    text = _read([today, run]).text
    assert "New connections: today 2 waited and 3 broke of 9, with lbguard 1 waited and 0 broke of 2." in text
    without = _read([TODAY, GUARDED]).text
    assert "new connections" not in without
    assert "New connections" not in without


def test_a_missed_promise_and_a_failed_run_are_named() -> None:
    missed = _run(Column.LBGUARD, Measurement(opened=2, disturbed=1, broken=1), misses=["1 connections broken"])
    failed = _run(Column.LBGUARD, Measurement(), error="it said: <no & nothing>", traffic=None)
    text = _read([missed, failed]).text
    assert "MISSED: 1 connections broken" in text
    assert "it said: <no & nothing>" in text
    assert "missed its promise in 2 of 2 runs" in text


def test_what_a_process_said_is_text_in_the_page() -> None:
    failed = _run(Column.LBGUARD, Measurement(), error=HOSTILE, traffic=None)
    missed = _run(Column.LBGUARD, Measurement(opened=2), misses=[HOSTILE])
    page = report.render([failed, missed], 0.5)
    assert "<i>&" not in page
    assert "[bold]c[/bold]:warning:&lt;i&gt;&amp;" in page
    assert not set(HOSTILE) & set(page) & set("\x1b\x07\x7f\x9b\r\u2028\u202e\u200b\ufeff\ue000\xad")


def test_without_a_run_of_lbguard_the_page_claims_nothing_of_it() -> None:
    assert "lbguard broke" not in _read([TODAY]).text


def test_with_an_unmodified_load_balancer_the_page_says_so_and_how_fast_removed_targets_left() -> None:
    measured = Measurement(opened=2, disturbed=1)
    facts = LbFacts(removals_s=(0.0123,))
    on_nfqlb: dict[str, object] = {"distribution": Distribution.NFQLB, "nfqlb": NfqlbKind.STAND_IN}
    run = _run(Column.LBGUARD, measured, scenario="deliberate-removal", lb=facts, **on_nfqlb)
    text = _read([run]).text
    assert "nfqlb: stand-in." in text
    assert "stand-in for the load balancer's process, not modified" in text
    assert "removed targets out of the table in 12.3 ms" in text
    assert "out of the table at most 50 ms later than today" in text
    # What breaks by promise is no merit and no fault.
    removed = _run(
        Column.LBGUARD, Measurement(opened=2, disturbed=1, broken=1), scenario="deliberate-removal", lb=facts
    )
    assert "; lbguard broke 0 and kept every promise" in _read([TODAY, GUARDED, removed]).text
    assert "Meridio" not in _read([GUARDED]).text
    assert "nfqlb" not in _read([GUARDED]).text
