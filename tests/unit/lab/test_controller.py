import sys
from pathlib import Path

import pytest

from lbguard.lab.controller import Column, Controller, Distribution, LabError


class HereNamespace:
    """Stands for a namespace: commands run where the test runs, and another program takes the controller's place."""

    def __init__(self, program: str) -> None:
        self.program = program

    def command(self, *_argv: str) -> list[str]:
        return [sys.executable, "-c", self.program]


def _controller(program: str) -> Controller:
    namespace = HereNamespace("import json, sys, time\ndef say(**r): print(json.dumps(r), file=sys.stderr)\n" + program)
    return Controller(Column.LBGUARD, Distribution.NFTABLES, namespace, Path("targets.yaml"))  # type: ignore[arg-type]


ACTIVE = "for i in (1, 2): say(event='decision', identifier=i, state_to='active')\n"


async def test_it_waits_for_ready_and_for_every_target() -> None:
    controller = _controller(f"{ACTIVE}say(event='ready')\nsys.stderr.flush()\ntime.sleep(600)")
    await controller.start()
    try:
        await controller.wait_active(frozenset({1, 2}))
        controller.check_alive()
    finally:
        await controller.stop()
    assert [record["event"] for record in controller.records] == ["decision", "decision", "ready"]


async def test_a_process_that_ends_is_an_error_with_what_it_said_last() -> None:
    controller = _controller(
        "print('plain words', file=sys.stderr)\n"
        "say(event='failed', level='critical', exception='Traceback\\n  File\\nNameError: nonsense')\nsys.exit(3)"
    )
    await controller.start()
    with pytest.raises(LabError, match=r"(?s)status 3.*plain words.*critical failed NameError: nonsense"):
        await controller.wait_active(frozenset({1}))
    await controller.stop()


async def test_a_killed_process_can_be_started_again_and_its_log_goes_on() -> None:
    controller = _controller(f"{ACTIVE}say(event='ready')\nsys.stderr.flush()\ntime.sleep(600)")
    await controller.start()
    await controller.wait_active(frozenset({1, 2}))
    await controller.kill()
    with pytest.raises(LabError, match="ended with status -9"):
        controller.check_alive()
    await controller.start()
    controller.check_alive()
    await controller.stop()
