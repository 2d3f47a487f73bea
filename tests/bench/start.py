"""From the start of the process to ready (every stream read back, adopted, the kernel in sync), and from SIGTERM to its
end."""

from pathlib import Path

from tests.bench.results import Row, Say, Scale
from tests.bench.service import Service
from tests.bench.world import pair, targets_yaml

NAME = "start"
READY_AIM_S, READY_AGAIN_AIM_S = 1.0, 0.6
STOP_AIM_S = 1.0
_SIZES = {Scale.FULL: {1: 3, 1000: 3}, Scale.QUICK: {1: 3, 1000: 1}, Scale.SMOKE: {2: 1}}


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Start in a namespace where nothing of lbguard's stands, again after a kill, and end it as a pod is ended."""
    rows = []
    for targets, repetitions in _SIZES[scale].items():
        say(f"{targets} targets, {repetitions} times, and again after kill -9")
        first, again, ends = [], [], []
        for number in range(repetitions):
            with pair(f"start{targets}-{number}", targets) as built:
                service = Service(built.lb, directory, targets_yaml(targets), wait=False)
                with service:
                    first.append(service.wait_until_ready())
                    service.wait_until_admitted(targets)
                    service.kill()
                    service.start()
                    again.append(service.wait_until_ready())
                    service.wait_until_admitted(targets)
                    ends.append(service.terminate())
        what = f"{targets} dual-stack target{'s' if targets > 1 else ''}"
        rows.append(Row.of(NAME, f"start to ready, {what}, nothing there yet", "s", first, aim=READY_AIM_S))
        rows.append(Row.of(NAME, f"start to ready, {what}, after kill -9", "s", again, aim=READY_AGAIN_AIM_S))
        rows.append(Row.of(NAME, f"SIGTERM to the end of the process, {what}", "s", ends, aim=STOP_AIM_S))
    return rows
