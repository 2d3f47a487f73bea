"""Nothing that is started in the sandbox outlives the command, however the command ends."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lbguard.lab.sandbox import SandboxError, require_tools

BOUND_S = 30.0

STOPS = [(signal.SIGINT, 128 + signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)]
"""Signals, and the exit status after each."""

IN_BACKGROUND = [
    sys.executable,
    "-c",
    "import os, signal, sys\nsignal.signal(2, 1)\nos.execv(sys.argv[1], sys.argv[1:])",
]
"""Runs a command as a shell does in the background of a script: it ignores SIGINT."""

PROGRAM = """
import os, subprocess, sys, time
from lbguard.lab.netns import Namespace
from lbguard.lab.sandbox import run_isolated

def inside():
    marker = sys.argv[1]
    namespace = Namespace("ns-" + marker)
    open("/dev/shm/" + marker, "w").close()
    subprocess.Popen(namespace.command(sys.executable, "-c", "import time; time.sleep(600)", marker))
    print("pid", os.getpid(), flush=True)
    time.sleep(600)

sys.exit(run_isolated(inside))
"""


def _processes(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in command:
                found.append(int(entry.name))
    return found


def _eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + BOUND_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("before", [[], IN_BACKGROUND], ids=["foreground", "background"])
@pytest.mark.parametrize(("number", "status"), STOPS)
def test_a_signal_ends_the_command_and_leaves_nothing_behind(
    sandbox: None, number: signal.Signals, status: int, before: list[str]
) -> None:
    marker = f"lab-{secrets.token_hex(4)}"
    command = [*before, sys.executable, "-c", PROGRAM, marker]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "pid 1\n"
            # The supervisor, the sandbox's first process, and the one started in a namespace.
            assert _eventually(lambda: len(_processes(marker)) == 3)
            process.send_signal(number)
            assert process.wait(BOUND_S) == status
        finally:
            process.kill()
    assert _eventually(lambda: _processes(marker) == [])
    assert not Path(f"/run/netns/ns-{marker}").exists()
    assert not Path(f"/dev/shm/{marker}").exists()


@pytest.mark.parametrize(("body", "status"), [("return 3", 3), ("raise ValueError('boom')", 70)])
def test_the_status_of_the_function_becomes_the_status_of_the_command(sandbox: None, body: str, status: int) -> None:
    program = f"import sys\nfrom lbguard.lab.sandbox import run_isolated\ndef f():\n {body}\nsys.exit(run_isolated(f))"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == status
    assert ("boom" in done.stderr) == (status == 70)


def test_missing_tools_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="apt-get install some-package"):
        require_tools({"no-such-tool": "some-package"})
    assert str(tmp_path) in os.environ["PATH"]
