"""Threads of the service share one arena of the C library. In its own process, because it cannot be undone there."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import contextlib, ctypes, sys, threading
from lbguard.cli.main import main

if "run" in sys.argv:
    with contextlib.suppress(SystemExit):
        main(["run", "--set", "no-such-setting=1"])  # refused after the first step of each start
both = threading.Barrier(9)

def allocate():
    kept = bytearray(50_000)
    both.wait()
    both.wait()

for _ in range(8):
    threading.Thread(target=allocate).start()
both.wait()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
both.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas")
@pytest.mark.parametrize(
    ("arguments", "environment", "arenas"), [(["run"], {}, 1), (["run"], {"MALLOC_ARENA_MAX": "3"}, 3), ([], {}, None)]
)
def test_a_start_leaves_one_arena_for_all_threads(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], arenas: int | None
) -> None:
    report = tmp_path / "malloc.xml"
    command = [sys.executable, "-c", PROGRAM, str(report), *arguments]
    done = subprocess.run(command, env={"LC_ALL": "C.UTF-8", **environment}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = report.read_text().count("<heap nr=")
    assert found == arenas if arenas else found > 1, "without it there are more"
