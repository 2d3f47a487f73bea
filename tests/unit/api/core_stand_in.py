"""Stand-ins for the core: they take verdicts or commands, and answer when and as the test says."""

import asyncio
from ipaddress import ip_address

from lbguard.api.commands import Outcome
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.core.effects import OverrideAnswered, VerdictAnswered
from lbguard.core.events import OverrideRequested
from lbguard.core.model import Subject, TargetKey, TargetState, TargetSubject, Verdict


class Core:
    """Takes every verdict. `reasons` says which subjects are ignored; while `held`, answers wait for `release`."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, Verdict]] = []
        self.reasons: dict[Subject, str] = {}
        self.held = False
        self._waiting: list[tuple[asyncio.Future[VerdictAnswered], VerdictAnswered]] = []

    def submit(self, reporter: str, verdict: Verdict) -> "asyncio.Future[VerdictAnswered]":
        """Take a verdict."""
        self.taken.append((reporter, verdict))
        answer = asyncio.get_running_loop().create_future()
        reason = self.reasons.get(verdict.subject, "")
        answered = VerdictAnswered(ticket=0, reason=reason, generation=77 if reason else 0)
        if self.held:
            self._waiting.append((answer, answered))
        else:
            answer.set_result(answered)
        return answer

    def release(self) -> None:
        """Answer what waits, the last first, and what comes from now on."""
        self.held = False
        for answer, answered in reversed(self._waiting):
            if not answer.done():
                answer.set_result(answered)
        self._waiting.clear()

    @property
    def reporters(self) -> list[str]:
        """The reporters of all verdicts, in order."""
        return [reporter for reporter, _ in self.taken]


class OperatorCore:
    """A core that takes every request of an operator, and answers as the test says."""

    def __init__(self) -> None:
        self.taken: list[OverrideRequested] = []
        self.refused = ""
        self.not_remembered = ""

    async def request(self, event: OverrideRequested) -> Outcome:
        self.taken.append(event)
        answer = OverrideAnswered(ticket=0, refused=self.refused, concerns=("stream-a",), changed=event.targets)
        return Outcome(answer=answer, not_remembered=self.not_remembered)

    def state(self, key: TargetKey) -> TargetState | None:
        return TargetState.ACTIVE


async def settled() -> None:
    """Let calls that were ended come to their end: gRPC would bring their news to the loop of the next test."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=5)


def target(number: int = 1) -> str:
    """Return the address of a target as text."""
    return str(ip_address("172.16.0.0") + number)


def subject(number: int = 1) -> TargetSubject:
    """Return the same target as the core knows it."""
    return TargetSubject(ip=ip_address(target(number)).packed)


def verdict(number: int = 1, *, sequence: int = 1, lease_s: float = 10.0) -> pb.Verdict:
    """Return a verdict on a target."""
    return pb.Verdict(
        subject=pb.Subject(target_ip=target(number)),
        state=pb.VERDICT_STATE_DOWN,
        generation=1,
        sequence=sequence,
        lease_s=lease_s,
    )
