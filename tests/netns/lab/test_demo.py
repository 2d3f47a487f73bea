"""The command as a whole: what it prints for machines, and that Ctrl-C in the middle leaves no process behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from lbguard.lab import meridio

BOUND_S = 60.0

PROGRAM = """
import sys
from lbguard.lab.demo import DemoOptions, run_demo
sys.exit(run_demo(DemoOptions(
    topology="TOPOLOGY", scenarios=["lb-link"], columns=["withdraw"], distributors=["DISTRIBUTOR"], connections=12,
    json_output=JSON,
)))
"""
TOPOLOGIES = [
    ("chain", "nftables"),
    ("chain", "nfqlb"),
    pytest.param(
        "meridio", "nfqlb", marks=pytest.mark.skipif(bool(meridio.missing()), reason=meridio.missing()), id="meridio"
    ),
]


def _command(topology: str, distributor: str, *, json_output: bool) -> list[str]:
    program = PROGRAM.replace("TOPOLOGY", topology).replace("DISTRIBUTOR", distributor)
    return [sys.executable, "-c", program.replace("JSON", str(json_output))]


def _without_real_nfqlb() -> Mapping[str, str]:
    """Return the environment without what holds a real nfqlb."""
    path = os.environ["PATH"].split(os.pathsep)
    left = [directory for directory in path if shutil.which("nfqlb", path=directory) is None]
    return {**os.environ, "PATH": os.pathsep.join(left)}


def _process_namespaces() -> set[str]:
    """Return the process namespaces that some process lives in, as `/proc` shows them."""
    seen = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                seen.add(str((entry / "ns/pid").readlink()))
            except OSError:
                continue  # it ended meanwhile
    return seen


@pytest.mark.parametrize(("topology", "distributor"), TOPOLOGIES)
def test_json_stands_alone_on_standard_output(sandbox: None, topology: str, distributor: str) -> None:
    done = subprocess.run(
        _command(topology, distributor, json_output=True),
        check=False,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        env=_without_real_nfqlb(),
    )
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert (run["scenario"], run["column"], run["distributor"]) == ("lb-link", "withdraw", distributor)
    assert (run["promise"], run["error"], run["opened"]) == ("none", "", 12)
    assert run["nfqlb"] == ("stand-in" if distributor == "nfqlb" else None)
    assert "lb-link" in done.stderr
    assert ("nfqlb: stand-in." in done.stderr) == (distributor == "nfqlb")


@pytest.mark.parametrize(("topology", "distributor"), TOPOLOGIES)
def test_an_interrupted_demo_leaves_no_process_behind(sandbox: None, topology: str, distributor: str) -> None:
    before = _process_namespaces()
    with subprocess.Popen(
        _command(topology, distributor, json_output=False),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_without_real_nfqlb(),
    ) as process:
        assert process.stdout is not None
        while "playing" not in (line := process.stdout.readline()):
            assert line, "it ended before it played"
        made = _process_namespaces() - before
        assert made
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=BOUND_S)
    assert process.returncode == 128 + signal.SIGINT
    assert "interrupted" in errors
    end = time.monotonic() + BOUND_S
    while made & _process_namespaces():
        assert time.monotonic() < end, "processes of the sandbox are still there"
        time.sleep(0.02)
