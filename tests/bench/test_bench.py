"""Each benchmark runs, at its smallest, and tells what the table and the file promise. No number is judged here."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.results import Row, Summary

ROOT = Path(__file__).parents[2]
ROWS = {
    "repair": {"ms"},
    "commit": {"ms"},
    "loss": {"packets"},
    "storm": {"events/s", ""},
    "verdicts": {"ms", "verdicts/s", "MiB"},
    "probing": {"% of a core", "", "s"},
    "idle": {"% of a core", "MiB"},
    "growth": {"us", "ms"},
    "addresses": {"us", "ms"},
    "start": {"s"},
    "interposer": {"ms"},
    "recording": {"us", "bytes", "ms", "1/s"},
}


@pytest.mark.netns
@pytest.mark.parametrize("name", ROWS)
def test_each_benchmark_runs(name: str, tmp_path: Path) -> None:
    if shutil.which("ip") is None:
        pytest.fail("iproute2 is missing: apt-get install iproute2")
    output = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--smoke", "--only", name, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    if "refuses" in done.stderr and "namespaces" in done.stderr:
        pytest.skip(f"network namespaces cannot be made here: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(output.read_text())
    assert document["scale"] == "smoke"
    assert document["machine"].keys() >= {"cores", "kernel", "python"}
    assert document["failures"] == {}
    assert {row["benchmark"] for row in document["rows"]} == {name}
    assert {row["unit"] for row in document["rows"]} == ROWS[name]
    for row in document["rows"]:
        assert row["what"]
        assert row["measured"] >= 0
        assert row["repetitions"] >= 1
        assert (row["aim"] is None) == (row["met"] is None)
    assert "lbguard in numbers" in done.stdout


def test_an_unknown_benchmark_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--smoke", "--only", "nothing-of-that-name"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "nothing-of-that-name" in done.stderr


def test_summary_of_samples() -> None:
    summary = Summary.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (summary.count, summary.median, summary.low, summary.high) == (5, 3.0, 1.0, 5.0)
    assert Summary.of([float(n) for n in range(1, 101)]).p95 == 95.0
    assert Summary.of([7.0]).p95 == 7.0


@pytest.mark.parametrize(
    ("measured", "aim", "at_least", "met"),
    [(1.0, 2.0, False, True), (3.0, 2.0, False, False), (1.0, 2.0, True, False), (2.0, 2.0, True, True)],
)
def test_an_aim_is_a_limit(measured: float, aim: float, at_least: bool, met: bool) -> None:
    row = Row(benchmark="b", what="w", unit="ms", measured=measured, aim=aim, at_least=at_least, reference=0.5)
    assert row.met is met
    assert row.ratio == measured / 0.5


def test_without_an_aim_nothing_is_met_or_missed() -> None:
    assert Row(benchmark="b", what="w", unit="ms", measured=1.0).met is None
