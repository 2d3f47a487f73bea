import io
import json
import logging
import os
import threading
import time

import pytest

from lbguard.core.model import Action
from lbguard.telemetry.log import fields, log_decision, set_level, setup_logging
from tests.unit.examples import decision
from tests.unit.hostile import HOSTILE, assert_harmless, in_every_text

log = logging.getLogger("lbguard.test")


def json_lines(write: object, level: str = "info") -> list[dict[str, object]]:
    stream = io.StringIO()
    logging_ = setup_logging("json", level, stream)
    write()  # type: ignore[operator]
    logging_.close()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def text_lines(write: object) -> list[str]:
    stream = io.StringIO()
    logging_ = setup_logging("text", "info", stream)
    write()  # type: ignore[operator]
    logging_.close()
    return stream.getvalue().splitlines()


def test_the_level_of_before_is_restored() -> None:
    before = logging.getLogger().level
    logging_ = setup_logging("json", "debug", io.StringIO())
    assert logging.getLogger().level == logging.DEBUG
    set_level("error")
    logging_.close()
    assert logging.getLogger().level == before
    logging.getLogger().setLevel(logging.CRITICAL)
    logging_.close()
    assert logging.getLogger().level == logging.CRITICAL, "a second end changes nothing"
    logging.getLogger().setLevel(before)


def test_a_record_is_one_json_line_with_its_fields() -> None:
    (line,) = json_lines(lambda: log.info("link seen\nagain", extra=fields(ifname="lb-a", up=True, level="x")))
    assert line["event"] == "link seen\nagain"
    assert (line["ifname"], line["up"], line["level"], line["level_"]) == ("lb-a", True, "info", "x")
    assert line["logger"] == "lbguard.test"
    assert isinstance(line["ts"], float)


def test_a_decision_is_one_line_with_everything_it_knows() -> None:
    (line,) = json_lines(lambda: log_decision(decision(deadline=103.0, duration_s=12.5), 1_700_000_000.25))
    assert line == {
        "ts": 1_700_000_000.25,
        "time": "2023-11-14T22:13:20.250000+00:00",
        "level": "warning",
        "logger": "lbguard.decision",
        "event": "decision",
        "sequence": 1,
        "action": "hold",
        "stream": "stream-a",
        "identifier": 1,
        "state_from": "active",
        "state_to": "held",
        "cause": "no_link",
        "deadline_in_s": 3.0,
        "duration_s": 12.5,
        "evidence": [
            {
                "ip": "172.16.1.10",
                "condition": "no_link",
                "ifname": "",
                "neighbor": "",
                "detail": "",
                "verdict": "",
                "withdrawn": False,
            }
        ],
    }


def test_a_decision_on_a_terminal_is_one_sentence() -> None:
    (line,) = text_lines(lambda: log_decision(decision(deadline=103.0), 1_700_000_000.25, observe=True))
    assert line.endswith(
        "20.250 WARNING (observing) hold stream-a/1: no_link (172.16.1.10), the grace window ends in 3.0 s"
    )


def test_text_shows_fields_and_cannot_be_forged() -> None:
    (line,) = text_lines(lambda: log.warning("broken\nfile\x1b[2J", extra=fields(path="/a b", n=3)))
    assert line.endswith('WARNING broken\\nfile\\x1b[2J path="/a b" n=3')


def test_exceptions_are_in_the_record() -> None:
    def write() -> None:
        try:
            raise OSError("no such link")
        except OSError:
            log.exception("failed")

    (line,) = json_lines(write)
    assert "OSError: no such link" in str(line["exception"])
    assert "OSError: no such link" in "\n".join(text_lines(write))


def test_neither_texts_nor_exceptions_drive_the_terminal_or_forge_lines() -> None:
    def write() -> None:
        try:
            raise OSError(HOSTILE)
        except OSError:
            log.exception(HOSTILE, extra=fields(link=HOSTILE))
        log_decision(in_every_text(decision()), 1_700_000_000.25)

    assert_harmless("\n".join(text_lines(write)))
    for line in json_lines(write):
        assert HOSTILE in (line["event"], line.get("cause"))
    stream = io.StringIO()
    logging_ = setup_logging("json", "info", stream)
    write()
    logging_.close()
    assert stream.getvalue().isascii()
    assert_harmless(stream.getvalue())


def test_the_level_is_kept() -> None:
    def write() -> None:
        log_decision(decision(Action.ADMIT), 0.0)
        log_decision(decision(Action.WITHDRAW), 0.0)

    assert [line["action"] for line in json_lines(write, "warning")] == ["withdraw"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "first"), [(io.StringIO(), "{"), (Terminal(), "0123456789")])
def test_auto_is_text_on_a_terminal_and_json_elsewhere(stream: io.StringIO, first: str) -> None:
    logging_ = setup_logging("auto", "info", stream)
    log.info("hello")
    logging_.close()
    assert stream.getvalue()[0] in first
    assert ("\x1b[" in stream.getvalue()) == isinstance(stream, Terminal)


class StuckPipe(io.StringIO):
    """A stream whose reader does not read until told to."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.released = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.released.wait(60)
        return super().write(text)


def test_a_stuck_reader_stops_nobody_and_the_loss_is_counted() -> None:
    pipe = StuckPipe()
    logging_ = setup_logging("json", "info", pipe, queue_limit=4)
    log.info("first")
    assert pipe.entered.wait(60)
    for number in range(10):
        log.info("more", extra=fields(number=number))
    pipe.released.set()
    logging_._handler.records.join()
    log.info("last")
    logging_.close()
    lines = [json.loads(line) for line in pipe.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["first", *["more"] * 4, "log records were dropped", "last"]
    assert lines[5]["dropped"] == 6


def test_nothing_is_written_after_close() -> None:
    stream = io.StringIO()
    logging_ = setup_logging("json", "info", stream)
    logging_.close()
    logging_.close()
    log.warning("late")
    assert stream.getvalue() == ""


class FullDisk(io.StringIO):
    """A stream that takes nothing while it is full."""

    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_what_cannot_be_written_is_counted_and_the_next_lines_are_written() -> None:
    disk = FullDisk()
    logging_ = setup_logging("json", "info", disk)
    for _ in range(3):
        log.info("lost")
        logging_._handler.records.join()
    disk.full = False
    log.info("kept")
    logging_.close()
    lines = [json.loads(line) for line in disk.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["log records were dropped", "kept"]
    assert lines[0]["dropped"] == 3


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_record_that_cannot_be_shown_does_not_end_the_log() -> None:
    stream = io.StringIO()
    logging_ = setup_logging("json", "info", stream)
    log.info("a", extra=fields(what=Unprintable()))
    log.info("b")
    logging_.close()
    first, second = stream.getvalue().splitlines()
    assert "cannot be shown" in first
    assert json.loads(second)["event"] == "b"


def test_a_pipe_that_does_not_block_loses_no_line() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "w") as stream:
        logging_ = setup_logging("json", "info", stream)
        count = 2000  # more than a pipe takes at once
        for number in range(count):
            log.info("line", extra=fields(number=number))
        with os.fdopen(reader) as lines:
            assert [json.loads(lines.readline())["number"] for _ in range(count)] == list(range(count))
        logging_.close()


def test_closing_waits_for_nobody_who_does_not_read() -> None:
    pipe = StuckPipe()
    logging_ = setup_logging("json", "info", pipe)
    log.info("first")
    assert pipe.entered.wait(60)
    began = time.monotonic()
    logging_.close()
    assert time.monotonic() - began < 30, "the pipe is let go after 60 s"
    pipe.released.set()
