import contextlib
import sys
from pathlib import Path

import pytest

from lbguard.lab.controller import Column, Controller, Distribution, LabError, naming_what_ended


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
        await controller.check_alive()
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


async def test_the_reason_is_told_though_more_was_said_after_it() -> None:
    controller = _controller(
        "print('lbguard: grace.window: too long', file=sys.stderr)\n"
        "say(event='host', level='error', id='caps', what='no CAP_NET_ADMIN\x1b[2J', remedy='run as root')\n"
        "for i in range(50): say(event='stopping', level='info', part=i)\n"
        "say(event='long', text='x' * 200_000)\nsys.exit(1)"
    )
    await controller.start()
    with pytest.raises(LabError) as ended:
        await controller.wait_active(frozenset({1}))
    lines = str(ended.value).splitlines()
    assert lines[:2] == [
        "lbguard ended with status 1; it said:",
        "  error host id=caps what=no CAP_NET_ADMIN\\x1b[2J remedy=run as root",
    ]
    assert lines[-2] == "  info stopping part=49"
    assert len(lines[-1]) < 400
    await controller.stop()


async def test_a_process_that_is_not_ready_can_be_quoted() -> None:
    controller = _controller(
        "say(event='waiting', level='warning', what='no file')\nsys.stderr.flush()\ntime.sleep(600)"
    )
    await controller.start()
    try:
        await controller.wait_until(lambda: bool(controller.records), "speak")
        assert controller.last_words() == "; it said:\n  warning waiting what=no file"
    finally:
        await controller.stop()


async def test_an_error_that_follows_from_an_end_names_the_end_and_its_reason() -> None:
    controller = _controller("say(event='cannot start', level='critical', reason='no memory')\nsys.exit(1)")
    await controller.start()
    ended = r"traffic gone\nlbguard ended with status 1; it said:\n  critical cannot start reason=no memory$"
    with contextlib.suppress(LabError):
        await controller.wait_active(frozenset({1}))

    async def fail(error: LabError) -> None:
        async with naming_what_ended(controller):
            await controller.check_alive()
            raise error

    async def follow(error: LabError) -> None:
        async with naming_what_ended(controller):
            raise error

    with pytest.raises(LabError, match=ended):
        await follow(LabError("traffic gone"))
    with pytest.raises(LabError, match=r"^lbguard ended[^\n]*\n[^\n]*$"):
        await fail(LabError("not raised"))
    await controller.stop()


async def test_a_killed_process_can_be_started_again_and_its_log_goes_on() -> None:
    controller = _controller(f"{ACTIVE}say(event='ready')\nsys.stderr.flush()\ntime.sleep(600)")
    await controller.start()
    await controller.wait_active(frozenset({1, 2}))
    await controller.kill()
    with pytest.raises(LabError, match="ended with status -9"):
        await controller.check_alive()
    await controller.start()
    await controller.check_alive()
    await controller.stop()


async def test_a_process_that_stands_still_is_alive_and_goes_on() -> None:
    # It says how often it was let go on, so the line comes only after both signals.
    controller = _controller(
        "import signal\nsignal.signal(signal.SIGCONT, lambda *_: (say(event='continued'), sys.stderr.flush()))\n"
        f"{ACTIVE}say(event='ready')\nsys.stderr.flush()\nwhile True: time.sleep(600)"
    )
    await controller.start()
    try:
        await controller.wait_active(frozenset({1, 2}))
        await controller.suspend()
        await controller.check_alive()
        await controller.resume()
        await controller.wait_until(lambda: controller.records[-1]["event"] == "continued", "go on")
    finally:
        await controller.stop()


async def test_todays_process_finds_nfqlb_on_the_path_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shown:
        def command(self, *argv: str) -> list[str]:
            assert "lbguard.lab.baseline" in argv
            program = "import json, os, sys; print(json.dumps({'path': os.environ['PATH']}), file=sys.stderr)"
            return [sys.executable, "-c", program]

    monkeypatch.setenv("PATH", "/ours")
    for search, path in ((None, "/ours"), ("/theirs", "/theirs")):
        controller = Controller(Column.WITHDRAW, Distribution.NFQLB, Shown(), Path("t"), search=search)  # type: ignore[arg-type]
        await controller.start()
        with pytest.raises(LabError, match="ended with status 0"):
            await controller.wait_active(frozenset({1}))
        assert controller.records == [{"path": path}]
