"""What the service costs while nothing happens, with 1,000 dual-stack targets that answer.

Default settings: every target's two neighbour entries are verified each second, the kernel's state is read again every
10 s, tables and counters are looked after. A second run without the probes tells what they take.
"""

import time
from pathlib import Path

from tests.bench.results import Row, Say, Scale
from tests.bench.service import Service
from tests.bench.world import pair, targets_yaml

NAME = "idle"
_CPU_AIM = 3.0
_MEMORY_AIM_MIB = 80.0
_SIZES = {Scale.FULL: (1000, 22.0, 8.0), Scale.QUICK: (1000, 10.0, 4.0), Scale.SMOKE: (10, 0.5, 0.5)}
_DEFAULTS = {"LBGUARD_METRICS__LISTEN": "127.0.0.1:9464"}


def run(scale: Scale, say: Say, directory: Path) -> list[Row]:
    """Watch one service with default settings, and one without probes."""
    targets, watch_s, settle_s = _SIZES[scale]
    say(f"{targets} targets, default settings, {watch_s:.0f} s after {settle_s:.0f} s to settle")
    user, system, memory, split = _watch(targets, watch_s, settle_s, directory, {})
    say(f"{targets} targets, no neighbour probes, {watch_s / 2:.0f} s")
    quiet_user, quiet_system, _, quiet_split = _watch(
        targets, watch_s / 2, settle_s, directory, {"LBGUARD_NEIGHBORS__PROBE_INTERVAL": "0"}
    )
    return [
        Row(
            benchmark=NAME,
            what=f"idle processor use, {targets} dual-stack targets",
            unit="% of a core",
            measured=user + system,
            aim=_CPU_AIM,
            reference=quiet_user + quiet_system,
            reference_what="without probes",
            details={
                "watched_s": watch_s,
                "user_percent": user,
                "system_percent": system,
                "threads_percent": split,
                "without_probes_threads_percent": quiet_split,
            },
        ),
        Row(
            benchmark=NAME,
            what=f"resident memory, {targets} dual-stack targets",
            unit="MiB",
            measured=memory,
            aim=_MEMORY_AIM_MIB,
        ),
    ]


def _watch(
    targets: int, watch_s: float, settle_s: float, directory: Path, settings: dict[str, str]
) -> tuple[float, float, float, dict[str, float]]:
    """Return user and system time in percent of a core, resident MiB, and percent by thread."""
    with (
        pair("idle", targets) as built,
        Service(built.lb, directory, targets_yaml(targets), settings=_DEFAULTS | settings) as service,
    ):
        time.sleep(settle_s)
        began, (user, system), threads = time.monotonic(), service.user_and_system_s(), service.cpu_by_thread_s()
        time.sleep(watch_s)
        took_s = time.monotonic() - began
        user_after, system_after = service.user_and_system_s()
        after = service.cpu_by_thread_s()
        split = {name: round(100 * (spent - threads.get(name, 0.0)) / took_s, 2) for name, spent in after.items()}
        percent = 100 / took_s
        return (
            (user_after - user) * percent,
            (system_after - system) * percent,
            service.resident_mib(),
            {name: share for name, share in split.items() if share},
        )
