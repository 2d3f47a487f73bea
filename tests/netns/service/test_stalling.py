"""The service is stopped, or held up, for longer than the window: it looks before it judges."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.service.guarded import Guarded, Process, wait_until

pytestmark = pytest.mark.netns

WINDOW = {"LBGUARD_GRACE__WINDOW": "3s"}
LONGER_S = 3.2
HEALED = ["admit"] * 4 + ["hold"] * 2 + ["recover"] * 2


@contextlib.contextmanager
def stopped(process: Process) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def lose_link(guarded: Guarded) -> None:
    guarded.delete_link("nse-a")
    guarded.wait_for(t1="held", t2="held", t3="active", t4="active")


def actions(guarded: Guarded) -> list[str]:
    return [decision.action.value for decision in guarded.decisions()]


def test_what_healed_while_the_service_was_stopped_is_not_withdrawn(guarded: Guarded) -> None:
    with guarded.service(WINDOW) as service:
        before = guarded.data_path()
        lose_link(guarded)
        with stopped(service):
            guarded.make_link("nse-a")
            time.sleep(LONGER_S)
        guarded.wait_for(t1="active", t2="active")
        assert actions(guarded) == HEALED
        assert guarded.data_path() == before
        assert service.wait_for_log("stalled: this time counts against no target")["duration_s"] >= LONGER_S
        wait_until(lambda: (guarded.metric("lbguard_stalled_seconds_total") or 0) >= LONGER_S, "the time counted")


def test_what_is_still_lost_after_a_stop_has_the_rest_of_its_window(guarded: Guarded) -> None:
    with guarded.service(WINDOW) as service:
        lose_link(guarded)
        with stopped(service):
            time.sleep(LONGER_S)
        guarded.wait_for(t1="withdrawn", t2="withdrawn", t3="active", t4="active")
        [hold, _, withdrawal, _] = guarded.decisions()[4:]
        # One look, of a quarter of a second, is what the stop may count for.
        assert withdrawal.at - hold.at >= 3.0 + LONGER_S - 0.3


def test_what_healed_while_the_loop_was_blocked_is_not_withdrawn(guarded: Guarded, tmp_path: Path) -> None:
    block = tmp_path / "block"
    process = guarded.process(WINDOW)
    process.command = (sys.executable, "-m", "tests.netns.service.faulty", f"block={block}")
    with process:
        process.wait_until_ready()
        process.wait_until_admitted(4)
        lose_link(guarded)
        block.touch()
        wait_until(block.with_name("blocked").exists, "the loop is blocked")
        guarded.make_link("nse-a")
        time.sleep(LONGER_S)
        block.unlink()
        guarded.wait_for(t1="active", t2="active")
        assert actions(guarded) == HEALED


def test_what_healed_while_the_socket_was_full_is_not_withdrawn(guarded: Guarded) -> None:
    with guarded.service({**WINDOW, "LBGUARD_KERNEL__RECEIVE_BUFFER": "65536"}) as service:
        before = guarded.data_path()
        lose_link(guarded)
        with stopped(service):
            many = [f"10.9.{n // 250}.{n % 250 + 1}/32" for n in range(1000)]
            guarded.lb.add_addresses("lo", *many)
            guarded.lb.delete_addresses("lo", *many)
            guarded.make_link("nse-a")
            time.sleep(LONGER_S)
        service.wait_for_log("kernel view lost: nothing is withdrawn", reason="overrun")
        guarded.wait_for(t1="active", t2="active")
        assert actions(guarded) == HEALED
        wait_until(lambda: guarded.data_path() == before, "rules, routes and slots as before")
