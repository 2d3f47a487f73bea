"""A flood of verdicts through the real service and the real loop: what the kernel says is decided first."""

import asyncio
import contextlib
import itertools
from pathlib import Path
from typing import Any

import grpc
import pytest

from lbguard.api.feeds import DecisionLog
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.api.server import ApiServer
from lbguard.api.verdicts.policy import Policy
from lbguard.api.verdicts.server import VerdictIntake
from lbguard.core.config import EngineConfig
from lbguard.core.effects import Effect, VerdictAnswered
from lbguard.core.engine import Engine
from lbguard.core.events import Event, LinkGone, VerdictReported
from lbguard.core.model import Verdict
from lbguard.rpc.channels import REPORTER_KEY
from lbguard.service.runner import Runner
from lbguard.settings.verdicts import VerdictLimits
from tests.unit.api.core_stand_in import settled, verdict
from tests.unit.api.verdicts.test_server import View

REPORTERS, REQUESTS, PER_REQUEST = 20, 3, 256
BACKLOG, EVENTS = 1000, 10
PER_ROUND = 256


class NotingEngine(Engine):
    """The engine, which notes what it is told, in order, and (None) when a round of judging is over."""

    def __init__(self) -> None:
        super().__init__(EngineConfig())
        self.seen: list[Event | None] = []
        self.rounds = 0

    def observe(self, event: Event, now: float) -> list[Effect]:
        self.seen.append(event)
        return super().observe(event, now)

    def decide(self, now: float) -> list[Effect]:
        self.seen.append(None)
        self.rounds += 1
        return super().decide(now)


class Journal:
    """Hears everything and keeps nothing."""

    def reported(self, effect: Effect, now: float) -> None:
        pass

    def performed(self, effect: Effect) -> None:
        pass

    def stepped(self, events: int, lag_s: float, duration_s: float) -> None:
        pass

    def stalled(self, duration_s: float) -> None:
        pass


class Desk:
    """Between the service and the loop. Posts a link event whenever a long queue of verdicts has come together."""

    def __init__(self) -> None:
        nothing: Any = None
        self.engine = NotingEngine()
        self.runner = Runner(
            self.engine,
            announce=nothing,
            kernel=nothing,
            neighbors=nothing,
            distributor=nothing,
            event_reporter=Journal(),
            resync=nothing,
            answer=self.answer,
        )
        self.posted: list[tuple[int, int]] = []
        self.backlogged = asyncio.Event()
        self._tickets = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[VerdictAnswered]] = {}
        self._rounds_at_post = -1

    def submit(self, reporter: str, verdict: Verdict) -> "asyncio.Future[VerdictAnswered]":
        ticket = next(self._tickets)
        future: asyncio.Future[VerdictAnswered] = asyncio.get_running_loop().create_future()
        if not self.runner.post_verdict(VerdictReported(reporter=reporter, verdict=verdict, ticket=ticket)):
            future.set_result(VerdictAnswered(ticket=ticket, reason="overloaded"))
            return future
        self._waiting[ticket] = future
        rounds = self.engine.rounds
        if len(self._waiting) >= BACKLOG and len(self.posted) < EVENTS and self._rounds_at_post != rounds:
            self._rounds_at_post = rounds
            self.posted.append((len(self.engine.seen), len(self._waiting)))
            self.backlogged.set()
            self.runner.post_kernel((LinkGone(ifindex=len(self.posted)),), 0.0)
        return future

    async def run(self) -> None:
        """Decide, from when the first queue has come together: on a fast machine none might."""
        await self.backlogged.wait()
        await self.runner.run()

    def answer(self, effect: VerdictAnswered) -> None:
        future = self._waiting.pop(effect.ticket)
        if not future.done():
            future.set_result(effect)


async def flood(channel: grpc.aio.Channel, name: str) -> int:
    """Write all requests at once, and count what was answered."""
    report: Any = pb_grpc.VerdictServiceStub(channel).Report
    call = report(metadata=((REPORTER_KEY, name),))
    for ticket in range(REQUESTS):
        batch = [verdict(number, sequence=ticket) for number in range(1, PER_REQUEST + 1)]
        await call.write(pb.ReportRequest(ticket=ticket, verdicts=batch))
    await call.done_writing()
    return sum([answer.accepted + len(answer.ignored) async for answer in call])


@pytest.mark.slow
async def test_link_events_are_decided_before_the_backlog_of_verdicts(tmp_path: Path) -> None:
    desk, view, log = Desk(), View(), DecisionLog()
    intake = VerdictIntake(desk.submit, Policy([]), VerdictLimits())
    server = ApiServer(tmp_path / "s", view, log, verdicts=intake)
    await server.start()
    running = asyncio.create_task(desk.run())
    try:
        async with asyncio.timeout(90), grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
            answered = await asyncio.gather(*(flood(channel, f"reporter-{number}") for number in range(REPORTERS)))
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await server.stop(0)
        await settled()

    assert sum(answered) == REPORTERS * REQUESTS * PER_REQUEST
    assert desk.posted
    seen = desk.engine.seen
    for number, (position, backlog) in enumerate(desk.posted, start=1):
        event = seen.index(LinkGone(ifindex=number))
        overtaking = sum(isinstance(item, VerdictReported) for item in seen[position:event])
        # The round that was under way may finish its share; what waited beyond that comes after the link event.
        assert overtaking <= PER_ROUND < backlog
        decided = seen.index(None, event)
        assert sum(isinstance(item, VerdictReported) for item in seen[event:decided]) <= PER_ROUND
