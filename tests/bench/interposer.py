"""What a call of nfqlb costs through the program that stands before it, and how long it waits for a guard in vain."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from lbguard.core.addr import format_ip
from tests.bench.results import Row, Say, Scale
from tests.bench.service import Service
from tests.bench.world import pair, target_ips
from tests.fakes.interposed import MISSING, REAL, Interposed
from tests.fakes.nfqlb import install_nfqlb

NAME = "interposer"
_CALLS = {Scale.FULL: 60, Scale.QUICK: 20, Scale.SMOKE: 2}
_LIMIT_S = 90.0
_SHM = "tshm-bench-interposer"
_CALL_MS, _REMOVAL_MS = 30.0, 50.0


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Call as Meridio does: with the guard, with one that is gone, and the real nfqlb alone for comparison."""
    if MISSING:
        raise RuntimeError(MISSING)
    shm_dir = Path("/dev/shm")
    home = directory / "real"
    home.mkdir()
    real = REAL if REAL.exists() else install_nfqlb(home, shm_dir)
    container = Interposed(directory / "container", real)
    try:
        return _measure(_CALLS[scale], say, directory, container)
    finally:
        (shm_dir / _SHM).unlink(missing_ok=True)


def _measure(calls: int, say: Say, directory: Path, container: Interposed) -> list[Row]:
    init = ("init", "--ownfw=0", f"--shm={_SHM}", "--M=10000", "--N=100")
    activate = ("activate", "--index=0", f"--shm={_SHM}", "5001")
    deactivate = ("deactivate", "--index=0", f"--shm={_SHM}")
    rows = []
    with pair("interposer", 1) as built:
        for ip in target_ips(0):
            built.lb.add_route("default", format_ip(ip), table=5001)
        settings = {
            "LBGUARD_SOURCE": "interposer",
            "LBGUARD_INTERPOSER__DIRECTORY": str(container.shared),
            "LBGUARD_DISTRIBUTOR__KIND": "auto",
        }
        with Service(built.lb, directory, "streams: []", settings=settings) as service:
            _until((container.shared / "requests").exists)
            container.run(*init)
            say(f"{calls} activations and removals, answered by the service")
            came, went = [], []
            for _ in range(calls):
                came.append(_timed(container, *activate))
                went.append(_timed(container, *deactivate))
            through = [_timed(container, "show", f"--shm={_SHM}") for _ in range(calls)]
            service.kill()
        say("the same without the service")
        vain = []
        for _ in range(max(1, calls // 10)):
            (container.shared / "missed").write_bytes(b"")
            vain.append(_timed(container, *activate))
        straight: list[float] = []
        alone: list[float] = []
        for program, took in ((container.program, straight), (container.real, alone)):
            for _ in range(calls):
                _timed(container, *deactivate, program=container.real)
                took.append(_timed(container, *activate, program=program))
    beside = {"reference": sorted(alone)[len(alone) // 2], "reference_what": "nfqlb itself"}
    rows.append(Row.of(NAME, "activate, answered when committed", "ms", came, aim=_CALL_MS, **beside))
    rows.append(Row.of(NAME, "deactivate of a sound target, out when answered", "ms", went, aim=_REMOVAL_MS, **beside))
    rows.append(Row.of(NAME, "a command that is not handed over", "ms", through, aim=_CALL_MS))
    rows.append(Row.of(NAME, "first call after the guard died", "ms", vain))
    rows.append(Row.of(NAME, "every later one", "ms", straight, aim=_CALL_MS, **beside))
    return rows


def _timed(container: Interposed, *arguments: str, program: Path | None = None) -> float:
    """Return how long a call takes, in ms, from starting the process to its end."""
    command = [str(program or container.program), *arguments]
    began = time.perf_counter()
    subprocess.run(command, env=container.environment, check=True, capture_output=True)
    return (time.perf_counter() - began) * 1000


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the service does not listen")
        time.sleep(0.01)
