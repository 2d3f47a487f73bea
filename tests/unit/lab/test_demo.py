import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lbguard.cli.main import app
from lbguard.lab.controller import Column, Distribution
from lbguard.lab.demo import REFUSED, DemoOptions, compare, run_demo
from lbguard.lab.measure import Measurement
from lbguard.lab.meridio import LbFacts
from lbguard.lab.meridio_scenarios import BY_NAME
from lbguard.lab.play import Run
from tests.unit.hostile import HOSTILE, SHOWN


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (DemoOptions(scenarios=["nonsense"]), "no scenario nonsense; there are: lb-link"),
        (DemoOptions(distributors=["magic"]), "'magic' is not a valid Distribution; there are: nftables, nfqlb"),
        (DemoOptions(topology="magic"), "'magic' is not a valid Topology; there are: chain, meridio"),
        (DemoOptions(topology="meridio", scenarios=["flap"]), "topology meridio has no scenario flap"),
        (DemoOptions(columns=["magic"]), "there are: withdraw, lbguard"),
        (DemoOptions(outage_s=0), "outage 0 s: 0.05 to 60 s are allowed"),
        (DemoOptions(connections=0), "connections 0: 1 to 5000 are allowed"),
        (DemoOptions(proxies=1), "proxies 1: 2 to 9 are allowed"),
        (DemoOptions(report=Path("/no/such/directory/r.html")), "its directory does not exist"),
        (DemoOptions(report=Path("/tmp")), "it is a directory; name a file"),
        (
            DemoOptions(svg=Path("/no/such/directory/p.svg")),
            "svg /no/such/directory/p.svg: its directory does not exist",
        ),
        (DemoOptions(svg=Path("/tmp")), "it is a directory; name a file"),
        (DemoOptions(report=Path("/run/demo.html")), "/run is the lab's own and vanishes at the end"),
        (DemoOptions(record=Path("/dev/shm/demo")), "/dev/shm is the lab's own and vanishes at the end"),
        (DemoOptions(scenarios=[HOSTILE]), SHOWN),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(
    options: DemoOptions, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_demo(options) == REFUSED
    assert words in capsys.readouterr().err


def test_the_topology_of_an_unmodified_load_balancer_needs_a_shell_that_can_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_demo(DemoOptions(topology="meridio")) == REFUSED
    assert "topology meridio is not played here: no shell runs deploy/meridio/nfqlb" in capsys.readouterr().err


def test_the_topology_of_an_unmodified_load_balancer_has_no_other_distributor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "busybox").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "busybox").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert run_demo(DemoOptions(topology="meridio", distributors=["nftables"])) == REFUSED
    assert "its load balancer calls nfqlb" in capsys.readouterr().err


def test_only_runs_of_the_same_scenario_are_compared() -> None:
    scenario = BY_NAME["guard-dies"]

    def run(column: Column, name: str, broken: int) -> Run:
        made = Run(scenario=name, column=column, distribution=Distribution.NFQLB, lb=LbFacts())
        made.measured = Measurement(opened=100, disturbed=50, broken=broken)
        return made

    guarded = run(Column.LBGUARD, "guard-dies", 30)
    compare(guarded, scenario, [run(Column.WITHDRAW, "lb-link", 0), run(Column.WITHDRAW, "guard-dies", 28)])
    assert guarded.misses == []
    compare(guarded, scenario, [run(Column.WITHDRAW, "guard-dies", 20)])
    assert guarded.misses == ["30 connections broken and 50 disturbed, 20 and 50 today"]


def test_the_scenarios_of_each_topology_are_listed() -> None:
    runner = CliRunner()
    chain, meridio = (runner.invoke(app, ["demo", "--list", "--topology", name]) for name in ("chain", "meridio"))
    assert runner.invoke(app, ["demo", "--list"]).stdout == chain.stdout
    assert "link-gone" in chain.stdout
    assert "guard-dies" not in chain.stdout
    assert [line.split()[0] for line in meridio.stdout.splitlines()] == [
        "lb-link",
        "lb-link-all",
        "double-link",
        "target-link",
        "deliberate-removal",
        "guard-dies",
    ]
    assert runner.invoke(app, ["demo", "--list", "--topology", "magic"]).exit_code == REFUSED
