"""The real service as a process of its own, and what it costs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from lbguard.lab.netns import Namespace

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_LIMIT_S = 90.0
_ROOT = Path(__file__).parents[2]


class Service:
    """`lbguard run` in a namespace, with settings given by environment; ready when the block begins (with `wait`).

    `cpus` confines it to these processors.
    """

    command: tuple[str, ...] = (sys.executable, "-m", "lbguard", "run")

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        targets: str,
        *,
        settings: dict[str, str] | None = None,
        cpus: set[int] | None = None,
        wait: bool = True,
    ) -> None:
        self._namespace = namespace
        self._cpus = cpus
        self._wait = wait
        self._log_path = directory / f"{namespace.name}.log"
        self._read_from = 0
        targets_path = directory / f"{namespace.name}.yaml"
        targets_path.write_text(targets)
        self._environment = {
            **{
                name: value
                for name, value in os.environ.items()
                # Compiled code is kept, as in every installation; or each start would compile everything anew.
                if not name.startswith("LBGUARD_") and name != "PYTHONDONTWRITEBYTECODE"
            },
            "LBGUARD_TARGETS_FILE": str(targets_path),
            "LBGUARD_DISTRIBUTOR__KIND": "nftables",
            "LBGUARD_SOCKET": str(directory / f"{namespace.name}.sock"),
            "LBGUARD_METRICS__LISTEN": "",
            "LBGUARD_LOG__FORMAT": "json",
            **(settings or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0

    def __enter__(self) -> Self:
        self.start()
        if self._wait:
            self.wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process; `ip netns exec` has become the service itself."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start the process."""
        self._read_from = self._log_path.stat().st_size if self._log_path.exists() else 0
        command = self._namespace.command(*self.command)
        if self._cpus is not None:
            command = ["taskset", "--cpu-list", ",".join(map(str, sorted(self._cpus))), *command]
        with self._log_path.open("ab") as log:
            self.started_at = time.monotonic()
            self.process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=_ROOT
            )

    def wait_until_ready(self) -> float:
        """Wait for the log line that says so; return the seconds since the start."""
        deadline = self.started_at + _LIMIT_S
        while time.monotonic() < deadline:
            if self.log("ready"):
                return time.monotonic() - self.started_at
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"the service ended:\n{self._tail()}")
            time.sleep(0.005)
        raise TimeoutError(f"the service was not ready in time:\n{self._tail()}")

    def wait_until_admitted(self, targets: int) -> None:
        """Wait until so many targets were admitted or adopted since the start."""
        deadline = time.monotonic() + _LIMIT_S
        while len({(line["stream"], line["identifier"]) for e in ("admit", "adopt") for line in self.log(e)}) < targets:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all targets were admitted:\n{self._tail()}")
            time.sleep(0.05)

    def wait_until_quiet(self, share: float = 0.1, over_s: float = 0.5) -> None:
        """Wait until it takes less than this share of a core, or as long as anything may take."""
        deadline = time.monotonic() + _LIMIT_S
        while time.monotonic() < deadline:
            before = self.cpu_s()
            time.sleep(over_s)
            if self.cpu_s() - before < share * over_s:
                return

    def log(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of this event since the start."""
        wanted = json.dumps(event).encode()
        with self._log_path.open("rb") as log:
            log.seek(self._read_from)
            lines = log.read().splitlines()
        return [json.loads(line) for line in lines if wanted in line and line.endswith(b"}")]

    def cpu_s(self) -> float:
        """Return the processor time of all its threads so far, in seconds, as the scheduler counts it."""
        return sum(self.cpu_by_thread_s().values())

    def cpu_by_thread_s(self) -> dict[str, float]:
        """Return the processor time of each thread so far, in seconds, by the thread's number and name."""
        spent: dict[str, float] = {}
        for task in sorted(Path(f"/proc/{self.pid}/task").iterdir(), key=lambda task: int(task.name)):
            name = "main" if task.name == str(self.pid) else (task / "comm").read_text().strip()
            spent[f"{name}-{len(spent)}"] = int((task / "schedstat").read_text().split()[0]) / 1e9
        return spent

    def user_and_system_s(self) -> tuple[float, float]:
        """Return its processor time in user and in kernel mode so far, in seconds (of a clock tick's precision)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) / _CLOCK_TICKS, int(fields[12]) / _CLOCK_TICKS

    def resident_mib(self) -> float:
        """Return its resident memory in MiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("the kernel does not tell the resident memory")

    def stop(self) -> None:
        """End the process as an operator would, and make sure that it is gone."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    def terminate(self) -> float:
        """End the process as a pod is ended, and return how long that took, in seconds."""
        process, self.process = self.process, None
        assert process is not None
        began = time.monotonic()
        process.terminate()
        try:
            process.communicate(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise TimeoutError(f"SIGTERM did not end the service:\n{self._tail()}") from None
        took_s = time.monotonic() - began
        if process.returncode != 0:
            raise RuntimeError(f"the service ended with {process.returncode}:\n{self._tail()}")
        return took_s

    def kill(self) -> None:
        """End the process without a word."""
        process, self.process = self.process, None
        assert process is not None
        process.kill()
        process.communicate()

    def _tail(self) -> str:
        """Return the end of the log, short enough to be read."""
        lines = self._log_path.read_text(errors="replace").splitlines()
        return "\n".join(line[:600] for line in lines[-2:])
