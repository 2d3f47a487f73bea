import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lbguard.cli.main import app, main
from lbguard.recording.replay import parse_moment
from tests.unit.tuning.incidents import WALL, Outage, record


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return record(tmp_path_factory.mktemp("recording"), [Outage(1, 0.5), Outage(2, 2.0), Outage(3, None)])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a recording of as many losses as values are recommended from."""
    outages = [Outage(1 + number % 3, 0.5 + number / 10) for number in range(10)]
    return record(tmp_path_factory.mktemp("many"), [*outages, Outage(4, None)])


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def ends(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int | str | None, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code, capsys.readouterr().err


def test_a_replay_of_a_directory_says_that_all_is_the_same(files: list[Path]) -> None:
    status, text = run("replay", files[0].parent)
    assert status == 0
    assert "every decision is the same, bit for bit" in text
    status, text = run("replay", "--json", *files)
    values = json.loads(text)
    assert status == 0
    assert values["same"] is True
    assert values["decisions"] > 10
    assert values["began"] == WALL


def tampered(files: list[Path], directory: Path) -> Path:
    """Copy a recording, with another deadline in the first hold."""
    lines = gzip.decompress(files[0].read_bytes()).decode().splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith('["="') and '"hold"' in line)
    row = json.loads(lines[place])
    row[1][8] += 0.25
    lines[place] = json.dumps(row)
    path = directory / "tampered.jsonl.gz"
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return path


def test_the_first_difference_is_shown_and_ends_with_1(files: list[Path], tmp_path: Path) -> None:
    path = tampered(files, tmp_path)
    status, text = run("replay", path)
    assert status == 1
    assert "DIFFERENT at" in text
    assert str(path) in text
    assert re.search(r"deadline: recorded \d+\.\d+, replayed \d+\.\d+", text)
    assert text.count("hold stream-a/1") == 2
    status, text = run("replay", "--json", path)
    assert status == 1
    difference = json.loads(text)["difference"]
    assert difference["recorded"]["decision"]["action"] == "hold"


@pytest.mark.parametrize(
    ("moment", "states"),
    [
        ("+30s", {1: "active", 2: "active", 3: "active", 4: "active"}),
        ("+60.2s", {1: "held", 2: "active", 3: "active", 4: "active"}),
        (f"{WALL + 121.5}", {1: "active", 2: "held", 3: "active", 4: "active"}),
        ("+200s", {1: "active", 2: "active", 3: "withdrawn", 4: "active"}),
    ],
)
def test_the_state_at_a_moment_is_shown(files: list[Path], moment: str, states: dict[int, str]) -> None:
    status, text = run("replay", "--at", moment, "--json", *files)
    assert status == 0
    assert {t["identifier"]: t["state"] for t in json.loads(text)["targets"]} == states
    status, text = run("replay", "--at", moment, *files)
    assert status == 0
    assert "stream-a/1" in text


def test_ages_are_those_of_that_moment(files: list[Path]) -> None:
    _, text = run("replay", "--at", "+60.25s", "--json", *files)
    held = json.loads(text)["targets"][0]
    assert (held["age_s"], held["deadline_in_s"]) == (0.25, 2.75)


@pytest.mark.parametrize(
    ("moment", "words"), [("+9h", "after the end"), (f"{WALL - 100:.0f}", "before the beginning"), ("noon", "12:03:04")]
)
def test_moments_that_cannot_be_shown(
    files: list[Path], moment: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, errors = ends("replay", "--at", moment, *files, capsys=capsys)
    assert status == 2
    assert words in errors


def test_a_moment_out_of_range_is_named_with_what_there_is(
    files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a_minute_before = time.strftime("%H:%M", time.localtime(WALL - 60))
    status, errors = ends("replay", "--at", a_minute_before, *files, capsys=capsys)
    assert status == 2
    # A time of day before the beginning is that of the next day: say so.
    for moment in (WALL - 60 + 86_400 - WALL % 60, WALL):
        assert time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) in errors
    status, errors = ends("replay", "--at", "9" * 17, *files, capsys=capsys)
    assert status == 2
    assert "not a moment" in errors


def test_between_two_runs_there_is_no_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, [Outage(1, 0.5)])
    record(tmp_path, [Outage(2, 0.5)], began=WALL + 1000)
    refused, errors = ends("replay", "--at", "+900s", tmp_path, capsys=capsys)
    assert refused == 2
    assert "nothing was recorded from" in errors
    status, text = run("replay", "--at", "+1061s", "--json", tmp_path)
    assert status == 0
    assert {t["identifier"]: t["state"] for t in json.loads(text)["targets"]}[2] == "active"
    status, text = run("replay", tmp_path)
    assert "the service began anew once in between" in text


def test_what_several_hosts_recorded_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, [Outage(1, 0.5)], host="lb-0")
    (other,) = record(tmp_path / "b", [Outage(2, 30.0)], host="lb-1", began=WALL + 50)
    both = (tmp_path, other)
    status, text = run("replay", *both)
    assert status == 0
    assert "recorded on lb-0, lb-1" in text
    assert "anew" not in text
    refused, errors = ends("replay", "--at", "+100s", *both, capsys=capsys)
    assert refused == 2
    assert "several hosts: lb-0, lb-1" in errors
    # At either end only one of them was there.
    for moment, host, state in (("+10s", "lb-0", "active"), ("+185s", "lb-1", "active")):
        status, text = run("replay", "--at", moment, "--json", *both)
        assert status == 0
        assert json.loads(text)["host"] == host
        assert json.loads(text)["targets"][0]["state"] == state
    _, text = run("replay", "--at", "+185s", *both)
    assert text.splitlines()[0].endswith(" on lb-1")


def test_a_file_in_which_nothing_was_decided_is_not_called_the_same(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = gzip.decompress(files[0].read_bytes()).splitlines(keepends=True)
    path = tmp_path / "short.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(lines[:2])))
    for command in ("replay", "tune"):
        status, errors = ends(command, path, capsys=capsys)
        assert status == 2
        assert "longer" in errors
    path.write_bytes(gzip.compress(b"".join(lines[:4])))
    done, text = run("replay", path)
    assert done == 0
    assert "nothing was decided in it" in text
    assert "same" not in text


def test_a_picture_that_cannot_be_written_costs_nothing_of_the_result(many: list[Path]) -> None:
    status, text = run("tune", "--set", "grace.window=2.5s", "--report", "/proc/none/x.html", *many)
    assert status == 2
    assert "    window: 2.5s" in text


def unread(*arguments: object, unbuffered: bool = False) -> tuple[int, bytes]:
    """Run a command whose output nobody reads any more before it has written anything."""
    ours, its = os.pipe()
    os.close(ours)
    argv = [sys.executable, *(["-u"] if unbuffered else []), "-m", "lbguard", *map(str, arguments)]
    process = subprocess.run(argv, stdout=its, stderr=subprocess.PIPE, check=False)
    os.close(its)
    return process.returncode, process.stderr


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_reader_that_goes_away_is_no_failure(files: list[Path], unbuffered: bool) -> None:
    for command in ("tune", "replay"):
        assert unread(command, files[0], unbuffered=unbuffered) == (0, b"")


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_difference_is_told_by_the_status_though_nobody_reads(
    files: list[Path], tmp_path: Path, unbuffered: bool
) -> None:
    # Unbuffered, the pipe is met while it prints, as by an output larger than the buffer.
    path = tampered(files, tmp_path)
    assert unread("replay", path, unbuffered=unbuffered) == (1, b"")
    assert unread("replay", "--json", path, unbuffered=unbuffered) == (1, b"")


def test_a_damaged_file_is_not_taken_for_another_decision(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tampered(files, tmp_path)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # the check sum of the text
    path.write_bytes(data)
    status, errors = ends("replay", path, capsys=capsys)
    assert status == 2
    assert "damaged" in errors


def test_moments_are_read_in_every_form() -> None:
    midnight = parse_moment("2024-03-05 00:00:00", 0.0)
    began = midnight + 3600.5
    assert parse_moment("+2m", began) == began + 120
    assert parse_moment(f"{began:.1f}", 0.0) == began
    assert parse_moment("01:00:02.5", began) == midnight + 3602.5
    assert parse_moment("1:30", began) == midnight + 5400
    # Before the time of day at which it begins: the next day's.
    assert parse_moment("00:30:00", began) == midnight + 86_400 + 1800


def test_a_file_that_is_no_recording_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    for command in ("replay", "tune"):
        status, errors = ends(command, path, capsys=capsys)
        assert status == 2
        assert str(path) in errors
        assert "recording.enabled" in errors


def test_tune_prints_table_reasons_and_values(many: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "tune.html"
    status, text = run("tune", "--set", "grace.window=0s,1s,2.5s,9s", "--report", page, *many)
    assert status == 0
    line = next(line for line in text.splitlines() if "recommended" in line)
    assert line.startswith("2.5s")
    assert "    window: 2.5s" in text
    assert page.read_text().startswith("<!DOCTYPE html>")
    status, text = run("tune", "--json", *many)
    assert status == 0
    assert json.loads(text)["recommended"] == {"grace.window": "1.9s"}


def test_tune_prints_no_values_from_a_few_losses(files: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "tune.html"
    status, text = run("tune", "--report", page, *files)
    assert status == 0
    assert "record at least 10 losses" in text
    for shown in (text, page.read_text()):
        assert "window:" not in shown
        assert "Helm" not in shown
        assert "recommended)" not in shown
    status, text = run("tune", "--json", *files)
    assert (json.loads(text)["recommended"], json.loads(text)["helm_values"]) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "grace.windo=1s"), "did you mean grace.window?"),
        (("--set", "grace.window"), "NAME=VALUE"),
        (("--set", "grace.window=soon"), "500ms"),
        (("--broken-cost", "much"), "500ms"),
        (("--report", "/proc/none/x.html"), "/proc/none"),
    ],
)
def test_wrong_usage_of_tune_names_the_remedy(
    files: list[Path], arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, errors = ends("tune", *arguments, *files, capsys=capsys)
    assert status == 2
    assert words in " ".join(errors.split())
