"""What a call of nfqlb costs through the program that stands before it, and how long it waits for a guard in vain."""

import subprocess
import tempfile
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
_ALONE_SHM = "tshm-bench-alone"
_CALL_MS = 30.0
_TIMES_STOCK = 2.0


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Call as Meridio does: with the guard, with one that is gone, and nfqlb alone for comparison.

    Without the real nfqlb a stand-in is called, which takes many times as long: then no aim is compared with it.
    """
    if MISSING:
        raise RuntimeError(MISSING)
    shm_dir = Path("/dev/shm")
    home = directory / "real"
    home.mkdir()
    real = REAL if REAL.exists() else install_nfqlb(home, shm_dir)
    # In a pod the shared directory is a memory volume.
    with tempfile.TemporaryDirectory(prefix="lbguard-bench-", dir=shm_dir) as shared:
        container = Interposed(Path(shared) / "container", real)
        try:
            return _measure(_CALLS[scale], say, directory, container)
        finally:
            for name in (_SHM, _ALONE_SHM):
                (shm_dir / name).unlink(missing_ok=True)


def _measure(calls: int, say: Say, directory: Path, container: Interposed) -> list[Row]:
    activate, deactivate = _commands(_SHM)
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
            container.run(*_init(_SHM))
            _timed(container, *_init(_ALONE_SHM), program=container.real)
            say(f"{calls} activations and removals, answered by the service, in turns with {_stock(container)}")
            came, went, alone, alone_went = _in_turns(calls, container)
            through = [_timed(container, "show", f"--shm={_SHM}") for _ in range(calls)]
            service.kill()
        say("the same without the service")
        vain = []
        for _ in range(max(1, calls // 10)):
            (container.shared / "missed").write_bytes(b"")
            vain.append(_timed(container, *activate))
        straight: list[float] = []
        for _ in range(calls):
            _timed(container, *deactivate, program=container.real)
            straight.append(_timed(container, *activate))

    def against(measured: list[float], stock: list[float], what: str) -> Row:
        median = sorted(stock)[len(stock) // 2]
        aim = _TIMES_STOCK * median if container.real == REAL else None
        return Row.of(NAME, what, "ms", measured, aim=aim, reference=median, reference_what=_stock(container))

    rows.append(against(came, alone, "activate, answered when committed"))
    rows.append(against(went, alone_went, "deactivate of a sound target, out when answered"))
    rows.append(Row.of(NAME, "a command that is not handed over", "ms", through, aim=_CALL_MS))
    rows.append(Row.of(NAME, "first call after the guard died", "ms", vain))
    rows.append(Row.of(NAME, "every later one", "ms", straight, aim=_CALL_MS))
    return rows


def _in_turns(calls: int, container: Interposed) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return the times of activations and removals, through the guard and by nfqlb alone."""
    came: list[float] = []
    went: list[float] = []
    alone: list[float] = []
    alone_went: list[float] = []
    for _ in range(calls):
        for shm, program, added, removed in (
            (_SHM, None, came, went),
            (_ALONE_SHM, container.real, alone, alone_went),
        ):
            activate, deactivate = _commands(shm)
            added.append(_timed(container, *activate, program=program))
            removed.append(_timed(container, *deactivate, program=program))
    return came, went, alone, alone_went


def _stock(container: Interposed) -> str:
    return "the real nfqlb" if container.real == REAL else "a stand-in for nfqlb"


def _init(shm: str) -> tuple[str, ...]:
    return ("init", "--ownfw=0", f"--shm={shm}", "--M=10000", "--N=100")


def _commands(shm: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the arguments that activate and deactivate a target."""
    return ("activate", "--index=0", f"--shm={shm}", "5001"), ("deactivate", "--index=0", f"--shm={shm}")


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
