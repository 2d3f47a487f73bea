"""Commands on their way to the engine: written before they are answered, and forgotten with their end."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from lbguard.core import effects as fx
from lbguard.core.events import Event, OverrideRequested
from lbguard.core.model import ManualAction, TargetKey, TargetState
from lbguard.service.control import OperatorControl
from lbguard.service.override_file import OverrideFile
from tests.unit.core.harness import STREAM, Guard
from tests.unit.core.test_engine_manual import CONFIG
from tests.unit.kernel.fake_kernel import eventually

KEY = TargetKey(STREAM, 2)


class Service:
    """An engine with the way of commands to it; `stuck`: the engine answers nothing."""

    def __init__(self, directory: Path) -> None:
        self.guard = Guard(CONFIG, targets=3)
        self.stuck = False
        self.file = OverrideFile(directory / "lbguard.sock")
        self.control = OperatorControl(self.guard.engine, self.post, self.file)

    def post(self, events: Sequence[Event]) -> None:
        if self.stuck:
            return
        for effect in self.guard.tell(*events):
            if isinstance(effect, fx.OverrideAnswered):
                self.control.answered(effect)

    async def give(self, action: ManualAction, key: TargetKey = KEY) -> fx.OverrideAnswered:
        outcome = await self.control.request(OverrideRequested(action=action, targets=(key,), duration_s=50.0))
        assert outcome.not_remembered == ""
        return outcome.answer


async def test_a_command_is_written_before_it_is_answered(tmp_path: Path) -> None:
    service = Service(tmp_path)
    answer = await service.give(ManualAction.WITHDRAW)
    assert answer.changed == (KEY,)
    assert service.control.state(KEY) is TargetState.WITHDRAWN
    assert '"withdraw"' in service.file.path.read_text()
    assert service.control.requests == {("withdraw", "done"): 1}
    await service.give(ManualAction.RELEASE)
    assert not service.file.path.exists()


async def test_a_refusal_is_counted_and_writes_nothing(tmp_path: Path) -> None:
    service = Service(tmp_path)
    answer = await service.give(ManualAction.HOLD, TargetKey("nowhere", 1))
    assert answer.refused == "target_unknown"
    assert service.control.requests == {("hold", "target_unknown"): 1}
    assert not service.file.path.exists()


async def test_the_file_ends_with_the_last_override(tmp_path: Path) -> None:
    service = Service(tmp_path)
    await service.give(ManualAction.HOLD)
    keeping = asyncio.create_task(service.control.keep())
    service.guard.wait(51.0)
    await eventually(lambda: not service.file.path.exists())
    keeping.cancel()


async def test_a_caller_that_goes_leaves_nothing_behind(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.stuck = True
    asking = asyncio.create_task(service.give(ManualAction.HOLD))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    service.control.answered(fx.OverrideAnswered(ticket=1))
    assert service.control._waiting == {}


async def test_overrides_that_are_not_to_go_on_are_forgotten(tmp_path: Path) -> None:
    service = Service(tmp_path)
    await service.give(ManualAction.HOLD)
    assert service.control.load(0.0, go_on=False) == ()
    assert not service.file.path.exists()
