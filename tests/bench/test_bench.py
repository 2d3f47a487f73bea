"""Each benchmark runs, at its smallest, and tells what the table and the file promise. No number is judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.results import Row, Summary
from tests.bench.soak import Sample, own_ms, soak_rows

ROOT = Path(__file__).parents[2]
ROWS = {
    "repair": {"ms"},
    "commit": {"ms"},
    "loss": {"packets"},
    "affinity": {"ns", "packets", "bytes", "ms"},
    "counting": {"ns"},
    "storm": {"events/s", ""},
    "verdicts": {"ms", "verdicts/s", "MiB"},
    "probing": {"% of a core", "", "s", "us"},
    "idle": {"% of a core", "MiB"},
    "growth": {"us", "ms"},
    "addresses": {"us", "ms"},
    "start": {"s"},
    "interposer": {"ms"},
    "recording": {"us", "bytes", "ms", "1/s"},
    "codec": {"us"},
    "parking": {"ms", "% of a core"},
}


@pytest.mark.netns
@pytest.mark.parametrize("name", ROWS)
def test_each_benchmark_runs(name: str, tmp_path: Path) -> None:
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


@pytest.mark.netns
def test_a_short_soak_tells_memory_steps_and_decisions(tmp_path: Path) -> None:
    output = tmp_path / "soak.json"
    command = [sys.executable, "-m", "tests.bench.soak", "--minutes", "0.1", "--targets", "8", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    if "refuses" in done.stderr and "namespaces" in done.stderr:
        pytest.skip(f"network namespaces cannot be made here: {done.stderr}")
    # Whether the aims are met is no question of so short a time.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    document = json.loads(output.read_text())
    assert document["samples"][-1]["resident_mib"] > 10
    assert document["steps"] > 10
    assert document["load"]["verdicts accepted"] > 0
    assert document["load"]["scrape"] > 0
    assert "longest step of the loop" in done.stdout


def soaked(minutes: int, *, mib_a_minute: float = 0.0) -> list[Sample]:
    """Samples of every ten seconds: memory that settles in five minutes, and then grows or not."""
    return [
        Sample(
            at_s=at_s,
            resident_mib=100 + min(at_s, 300) / 10 + max(0, at_s - 300) / 60 * mib_a_minute,
            cpu_s=at_s / 10,
            decisions=at_s,
            overruns=0,
            in_sync=True,
        )
        for at_s in range(10, minutes * 60 + 1, 10)
    ]


def step(took_ms: float, ran_ms: float, waited_ms: float = 0.0, others_waited_ms: float = 0.0) -> dict[str, float]:
    return {"took_ms": took_ms, "ran_ms": ran_ms, "waited_ms": waited_ms, "others_waited_ms": others_waited_ms}


def missed(samples: list[Sample], *steps: dict[str, float], ended_as: int | None = None) -> list[str]:
    return [row.what for row in soak_rows(samples, steps, ended_as) if row.met is False]


def test_what_misses_the_aims_of_a_soak() -> None:
    assert missed(soaked(20)) == []
    assert missed(soaked(20, mib_a_minute=0.5)) == ["growth of resident memory after 5 min"]
    assert missed(soaked(4)) == [], "what has not settled is not judged"
    assert missed(soaked(20), step(51.0, 51.0)) == ["longest step of the loop", "steps over 50 ms"]
    assert missed(soaked(20), ended_as=1) == ["the service ended by itself"]


def test_a_busy_machine_fails_no_soak_and_the_services_own_threads_do() -> None:
    assert own_ms(step(300.0, 10.0, waited_ms=290.0)) == 10.0
    assert own_ms(step(300.0, 10.0, others_waited_ms=400.0)) == 10.0
    assert own_ms(step(300.0, 10.0, others_waited_ms=40.0)) == 260.0


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


@pytest.mark.netns
def test_windows_are_played_with_real_connections(tmp_path: Path) -> None:
    output = tmp_path / "windows.json"
    arguments = ["--affinity", "incident", "--window", "20s", "--away", "500ms", "--connections", "20"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.windows", *arguments, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    if "refuses" in done.stderr and "namespaces" in done.stderr:
        pytest.skip(f"network namespaces cannot be made here: {done.stderr}")
    assert done.returncode == 0, done.stdout + done.stderr
    [outcome] = json.loads(output.read_text())
    assert outcome["own"] + outcome["others"] == 20
    assert outcome["own_broken"] == outcome["others_broken"] == outcome["new_broken"] == 0
    assert outcome["own_longest_s"] >= 0.4
    assert outcome["new"] > 0
