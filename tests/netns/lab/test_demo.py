"""The command as a whole: what it prints for machines, and that Ctrl-C in the middle leaves no process behind."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

BOUND_S = 60.0

PROGRAM = """
import sys
from lbguard.lab.demo import DemoOptions, run_demo
sys.exit(run_demo(DemoOptions(
    scenarios=["lb-link"], columns=["withdraw"], distributors=["nftables"], connections=12, json_output=JSON
)))
"""


def _command(*, json_output: bool) -> list[str]:
    return [sys.executable, "-c", PROGRAM.replace("JSON", str(json_output))]


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


def test_json_stands_alone_on_standard_output(sandbox: None) -> None:
    done = subprocess.run(_command(json_output=True), check=False, capture_output=True, text=True, timeout=BOUND_S)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert (run["scenario"], run["column"], run["distributor"]) == ("lb-link", "withdraw", "nftables")
    assert (run["verdict"], run["error"], run["opened"]) == ("today", "", 12)
    assert "lb-link" in done.stderr


def test_an_interrupted_demo_leaves_no_process_behind(sandbox: None) -> None:
    before = _process_namespaces()
    with subprocess.Popen(
        _command(json_output=False), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
