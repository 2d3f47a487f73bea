"""The service for operators, over a real socket: what a request means, what is refused, and in which words."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from lbguard.api.client import Carried, ClientError, Command, GuardClient
from lbguard.api.control_server import REASON_MAX, TARGETS_MAX, WHO_MAX, ControlService, refusal
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.api.server import ApiServer
from lbguard.core.effects import OverrideAnswered
from lbguard.core.events import OverrideRequested
from lbguard.core.manual import REFUSALS
from lbguard.core.model import ManualAction, Override, TargetKey, TargetState
from lbguard.settings.decisions import ControlSettings
from lbguard.settings.notation import unix_target
from tests.unit.api.core_stand_in import OperatorCore
from tests.unit.cli.served_guard import ServedGuard
from tests.unit.examples import guard_status, path, target

DRAIN, HOLD, WITHDRAW, RELEASE = ManualAction
SETTINGS = ControlSettings(duration=600.0, max_duration=3600.0)
HELD = Override(action=HOLD, since=90.0, until=200.0, who="anna")
STATUS = guard_status(
    target(1, paths=(path("172.16.1.10", ifname="nsm0"),)),
    target(2, paths=(path("172.16.1.11", ifname="nsm1"),)),
    replace(target(3, paths=(path("172.16.1.12", ifname="nsm1"),)), override=HELD),
    replace(target(4, TargetState.DRAINING, paths=(path("172.16.1.13", ifname="nsm1"),)), unlisted=True),
)


class Served:
    """A service with a stand-in for the core."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.core = OperatorCore()

    async def ask(self, command: Command) -> Carried:
        def call() -> Carried:
            with GuardClient(self.socket) as client:
                return client.override(command)

        return await asyncio.to_thread(call)

    async def refused(self, command: Command) -> str:
        with pytest.raises(ClientError) as caught:
            await self.ask(command)
        return str(caught.value)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    guard = ServedGuard(STATUS)
    made = Served(tmp_path / "lbguard.sock")
    control = ControlService(guard.status, made.core, SETTINGS)
    server = ApiServer(made.socket, guard, guard.log, control=control)
    await server.start()
    yield made
    await server.stop(0)


def keys(*identifiers: int) -> tuple[TargetKey, ...]:
    return tuple(TargetKey("stream-a", identifier) for identifier in identifiers)


async def test_a_command_reaches_the_core_whole(served: Served) -> None:
    command = Command(
        action=DRAIN, targets=("stream-a/1", "172.16.1.11"), duration_s=60, reason="why", who="anna", force=True
    )
    carried = await served.ask(command)
    [event] = served.core.taken
    assert event == OverrideRequested(
        action=DRAIN, targets=keys(1, 2), duration_s=60.0, who="anna", reason="why", force=True
    )
    assert [each.key for each in carried.targets] == list(keys(1, 2))
    assert [each.state for each in carried.targets] == [TargetState.ACTIVE] * 2
    assert (carried.duration_s, carried.not_remembered) == (60.0, "")


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        (Command(action=HOLD, targets=("1", "stream-a/1", "172.16.1.10")), keys(1)),
        (Command(action=HOLD, links=("nsm1",)), keys(2, 3)),
        (Command(action=HOLD, streams=("stream-a",)), keys(1, 2, 3)),
        (Command(action=HOLD, targets=("3",), links=("nsm1",)), keys(3, 2)),
        (Command(action=RELEASE, all=True), keys(3)),
        (Command(action=RELEASE, streams=("stream-a",)), keys(3)),
        (Command(action=RELEASE, targets=("1",)), keys(1)),
    ],
)
async def test_what_a_command_means(served: Served, command: Command, meant: tuple[TargetKey, ...]) -> None:
    carried = await served.ask(command)
    assert served.core.taken[0].targets == meant
    assert carried.duration_s == (0.0 if command.action is RELEASE else SETTINGS.duration)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (Command(action=HOLD, targets=("9",)), "no target '9'"),
        (Command(action=HOLD, targets=("1", "no such thing")), "write stream/identifier, an identifier or an IP"),
        (
            Command(action=HOLD, links=("nsm9",)),
            "no target is reached through link 'nsm9'; links to targets: nsm0, nsm1",
        ),
        (Command(action=HOLD, streams=("b",)), "no stream 'b'; streams: stream-a"),
        (Command(action=HOLD), "one target, stream or link at least"),
        (Command(action=HOLD, all=True), "only with release"),
        (Command(action=HOLD, targets=("1",), duration_s=3601), "at most 1h (control.max_duration)"),
        (Command(action=HOLD, targets=("1",), duration_s=-1), "duration_s = -1.0"),
        (Command(action=HOLD, targets=("1",), duration_s=float("nan")), "duration_s = nan"),
        (Command(action=RELEASE, targets=("1",), duration_s=5), "0 with release"),
        (Command(action=HOLD, targets=("1",), reason="x" * (REASON_MAX + 1)), "at most 200 characters"),
        (Command(action=HOLD, targets=("1",), who="x" * (WHO_MAX + 1)), "at most 64 characters"),
        (Command(action=HOLD, targets=("1",) * (TARGETS_MAX + 1)), "name streams or links instead"),
    ],
)
async def test_what_is_wrong_is_named_and_reaches_no_core(served: Served, command: Command, said: str) -> None:
    assert said in await served.refused(command)
    assert served.core.taken == []


@pytest.mark.parametrize("reason", REFUSALS)
async def test_every_refusal_of_the_core_has_words_and_a_remedy(served: Served, reason: str) -> None:
    served.core.refused = reason
    said = await served.refused(Command(action=WITHDRAW, streams=("stream-a",)))
    assert reason not in said
    assert ";" in said


def test_a_refusal_says_what_would_be_left() -> None:
    answer = OverrideAnswered(ticket=0, refused="would_empty_stream", concerns=("stream-a",))
    assert "(stream-a: left 2 active, 1 draining)" in refusal(answer, WITHDRAW, keys(1), STATUS)
    assert "(stream-a: left no target)" in refusal(answer, WITHDRAW, keys(1, 2, 3, 4), STATUS)


async def test_what_a_restart_would_forget_is_said(served: Served) -> None:
    served.core.not_remembered = "the directory is read-only"
    assert (await served.ask(Command(action=HOLD, targets=("1",)))).not_remembered == "the directory is read-only"


async def test_a_service_without_commands_says_how_to_turn_them_on(tmp_path: Path) -> None:
    async with ServedGuard(STATUS).serving(tmp_path) as socket:
        made = Served(Path(socket))
        assert "control.enabled" in await made.refused(Command(action=HOLD, targets=("1",)))


async def test_an_action_that_nobody_knows_is_refused(served: Served) -> None:
    async with grpc.aio.insecure_channel(unix_target(served.socket)) as channel:
        stub = pb_grpc.ControlServiceStub(channel)
        for number in (0, 9):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Override(pb.OverrideRequest(action=number, targets=["1"]))  # type: ignore[arg-type]
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
