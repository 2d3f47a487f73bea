"""Stream of reports to one load balancer, with the latest state of each subject and no queue of old states.

A stream sends a batch and waits for its answer before it sends the next. A change in between replaces the unsent state,
so a slow or absent load balancer costs a bounded amount of memory and delays no other. After a reconnect every state is
sent again, because the load balancer may have restarted. A verdict is renewed long before its lease ends, while the
monitor confirms it: a verdict without a confirmation for a whole lease runs out.

Sequence numbers are assigned when a verdict is sent: a renewal is a new statement, and the numbers of one subject grow
in the order of sending. Generations are the monitor's, raised if needed: they begin with the time of day, so after a
restart with a clock that was set back they are lower than those that the load balancer remembers. Its answer contains
the last known generation, and the stream sends the same state again above that.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import grpc

from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.api.gen.v1 import lbguard_pb2_grpc as pb_grpc
from lbguard.core.model import Subject, Verdict, VerdictState
from lbguard.probe.metrics import ProbeMetrics
from lbguard.probe.verdict_message import subject_name, verdict_message
from lbguard.rpc.backoff import Backoff
from lbguard.rpc.channels import REPORTER_KEY, ChannelError, Dialer
from lbguard.settings.notation import Endpoint
from lbguard.settings.probe import LEASE_MAX_S
from lbguard.telemetry.log import fields

_log = logging.getLogger("lbguard.probe.report_lane")

_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.ReportRequest, pb.ReportResponse]"

BATCH_VERDICTS = 200
"""At most this many verdicts go into one request; the verdict service takes 256 by default."""

VERDICTS_PER_S = 1000
"""Rate limit of renewals and repetitions, half of the verdict service's limit; changes are not limited."""

ANSWER_TIMEOUT_S = 2.0
"""Time without an answer after which a load balancer is dialled again."""

LOOK_INTERVAL_S = 1.0
"""Interval at which an idle stream checks for rotated certificates."""


GENERATION_MAX = 2**64 - 1

_OUT_OF_ORDER = frozenset({"late", "repeated", "ended"})
_REFUSALS = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReporterSettings:
    """Settings of the reporting of verdicts.

    Attributes:
        name: name of this reporter at load balancers; empty: they use its address.
        backoff_max_s: the longest wait before dialling again.
        renew_s: interval of the renewals of an unchanged verdict, well below the lease; with thousands of verdicts it
            is longer, and so is the lease.
        subjects_max: the most subjects; verdicts on more subjects are dropped and counted.
    """

    name: str = ""
    backoff_max_s: float = 1.0
    renew_s: float = 3.0
    subjects_max: int = 20_000


class ReportStream:
    """Stream of reports to one load balancer.

    A load balancer refuses a request as a whole when it refuses one of its verdicts. The stream then halves its
    requests until that verdict is alone, and does not send it again until it changes, so that one subject does not
    block the others.

    `quiet` is set while every change has been sent and answered.

    Args:
        name: what the load balancer is called in metrics.
        endpoints: addresses of the load balancer; after a failure the next one is tried.
        dialer: makes channels.
        settings: how to report.
        metrics: counts.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        endpoints: tuple[Endpoint, ...],
        dialer: Dialer,
        settings: ReporterSettings,
        metrics: ProbeMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.connected = False
        self._endpoints = itertools.cycle(endpoints)
        self._dialer = dialer
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._latest: dict[Subject, Verdict] = {}
        self._submitted_at: dict[Subject, float] = {}
        self._lapsed: set[Subject] = set()
        self._news: dict[Subject, None] = {}
        self._repeats: dict[Subject, None] = {}
        self._sent_at: OrderedDict[Subject, float] = OrderedDict()
        self._refused: dict[Subject, Verdict] = {}
        self._batch_limit = BATCH_VERDICTS
        self._repeat_from = 0.0
        self.quiet = asyncio.Event()
        self.quiet.set()
        self._wake = asyncio.Event()
        self._backoff = Backoff(settings.backoff_max_s)
        self._sequence = 0
        self._raised_by = 0
        self._reason = ""

    def submit(self, verdict: Verdict) -> None:
        """Queue a verdict: at once if its state changed, else for the next renewal."""
        subject, before = verdict.subject, self._latest.get(verdict.subject)
        if before is None and verdict.state is VerdictState.ENDED:
            return
        if before is None and not self._has_room():
            self._metrics.report_dropped(self.name)
            return
        if before is not None and before.new_mac and not verdict.new_mac and before.generation == verdict.generation:
            # That a link was re-created must not get lost under a later verdict of the same life.
            verdict = replace(verdict, new_mac=before.new_mac)
        self._latest[subject] = verdict
        self._submitted_at[subject] = self._clock()
        if before is None or subject in self._lapsed or _is_news(before, verdict):
            self._lapsed.discard(subject)
            self._refused.pop(subject, None)
            self._repeats.pop(subject, None)
            self._news[subject] = None
            self.quiet.clear()
            self._wake.set()

    def knows(self, subject: Subject) -> bool:
        """Return whether a subject has an unsent verdict, or one that was sent and has not ended."""
        return subject in self._latest

    def _has_room(self) -> bool:
        if len(self._latest) < self._settings.subjects_max:
            return True
        # Without a connection ENDED verdicts wait. They are dropped first: the lease ends the subject too.
        ended = next((subject for subject, held in self._latest.items() if held.state is VerdictState.ENDED), None)
        if ended is not None:
            self._drop(ended)
        return ended is not None

    async def run(self) -> None:
        """Report until cancelled."""
        self._metrics.report_stream(self.name, connected=False)
        try:
            while True:
                endpoint = next(self._endpoints)
                try:
                    reason = await self._session(endpoint)
                except TimeoutError:
                    reason = f"no answer for {ANSWER_TIMEOUT_S:g} s"
                except ChannelError as error:
                    reason = str(error)
                self._set_connected(False)
                if reason:
                    self._metrics.report_failed(self.name)
                    if reason != self._reason:
                        self._reason = reason
                        _log.warning("cannot report", extra=fields(to=str(endpoint), reason=reason))
                    await asyncio.sleep(self._backoff.next_s())
        finally:
            self._metrics.forget_report_stream(self.name)

    async def _session(self, endpoint: Endpoint) -> str:
        """Report over one stream; return why it ended, empty when it is to be begun again at once."""
        stamp = self._dialer.stamp()
        async with self._dialer.dial(endpoint) as session:
            stub: pb_grpc.VerdictServiceAsyncStub = pb_grpc.VerdictServiceStub(session.channel)
            metadata = ((REPORTER_KEY, self._settings.name),) if self._settings.name else ()
            call = stub.Report(metadata=metadata)  # type: ignore[call-arg]  # without an iterator it is written to
            try:
                # An empty request comes first: its answer shows whether the connection works, without any verdict.
                batch: list[Verdict] = []
                for ticket in itertools.count(1):
                    answer = await self._exchange(call, ticket, batch)
                    if answer is None:
                        reason = await self._refusal(call, batch)
                        return session.problem or reason
                    self._answered(endpoint, batch, answer)
                    if ticket == 1:
                        self._say_everything()
                    await self._wait_for_work()
                    if self._dialer.stamp() != stamp:
                        _log.info("new certificates: dialling again", extra=fields(to=str(endpoint)))
                        return ""
                    batch = self._next_batch()
            finally:
                call.cancel()
        raise AssertionError("tickets never end")

    async def _exchange(self, call: _Call, ticket: int, batch: list[Verdict]) -> pb.ReportResponse | None:
        """Send a request and return its answer; None when the other side ended the stream."""
        request = pb.ReportRequest(ticket=ticket)
        for verdict in batch:
            self._sequence += 1
            said = replace(verdict, generation=self._generation(verdict))
            request.verdicts.append(verdict_message(said, self._sequence, self._lease_s(verdict)))
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            try:
                await call.write(request)
                answer = await call.read()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return None
        return answer if isinstance(answer, pb.ReportResponse) else None

    async def _refusal(self, call: _Call, batch: list[Verdict]) -> str:
        """Return why a stream ended, and look for the verdict that is to blame."""
        code, details = await call.code(), await call.details()
        if code in _REFUSALS and batch:
            if len(batch) == 1:
                verdict = batch[0]
                self._refused[verdict.subject] = verdict
                self._metrics.report_refused(self.name)
                _log.warning("verdict refused", extra=fields(about=subject_name(verdict.subject), reason=str(details)))
                self._batch_limit = BATCH_VERDICTS
            else:
                self._batch_limit = max(1, len(batch) // 2)
            self._backoff.reset()
        return f"{code.name}: {details}" if code is not grpc.StatusCode.OK else "the load balancer ended the stream"

    def _say_everything(self) -> None:
        """Mark every verdict as due, refused ones excepted: after a reconnect the load balancer may have no state."""
        self._sent_at.clear()
        # Trouble first: it must not wait behind thousands that are well.
        now = self._clock()
        for subject, _ in sorted(self._latest.items(), key=lambda item: item[1].state is VerdictState.UP):
            if subject in self._news or subject in self._refused:
                continue
            if self._stands(subject, now):
                self._repeats[subject] = None
            else:
                self._lapsed.add(subject)

    def _next_batch(self) -> list[Verdict]:
        """Take the due verdicts, changes first; repetitions only within the rate limit."""
        subjects = list(itertools.islice(self._news, self._batch_limit))
        now = self._clock()
        if now >= self._repeat_from:
            repeats = list(itertools.islice(self._repeats, self._batch_limit - len(subjects)))
            self._repeat_from = now + len(repeats) / VERDICTS_PER_S
            subjects += repeats
        for subject in subjects:
            self._news.pop(subject, None)
            self._repeats.pop(subject, None)
        return [self._latest[subject] for subject in subjects]

    def _answered(self, endpoint: Endpoint, batch: list[Verdict], answer: pb.ReportResponse) -> None:
        now = self._clock()
        self._set_connected(True)
        self._backoff.reset()
        if self._reason and (batch or not self._latest):
            _log.info("reporting again", extra=fields(to=str(endpoint)))
            self._reason = ""
        again = self._raise_generations(endpoint, batch, answer)
        for verdict in batch:
            subject = verdict.subject
            if subject in again:
                if subject not in self._news:
                    self._repeats[subject] = None
                continue
            if verdict.state is VerdictState.ENDED and self._latest.get(subject) is verdict:
                self._drop(subject)
                continue
            self._sent_at[subject] = now
            self._sent_at.move_to_end(subject)
        if not self._news and not self._repeats and (batch or not self._latest):
            # Requests stay small until everything is sent: a large request would hide the refused verdict.
            self._batch_limit = BATCH_VERDICTS
            self.quiet.set()
        self._metrics.report_answered(self.name, len(batch), [ignored.reason for ignored in answer.ignored])
        for ignored in answer.ignored:
            about = subject_name(batch[ignored.index].subject) if ignored.index < len(batch) else "?"
            _log.info("verdict ignored", extra=fields(to=str(endpoint), about=about, reason=ignored.reason))

    def _generation(self, verdict: Verdict) -> int:
        return min(GENERATION_MAX, verdict.generation + self._raised_by)

    def _raise_generations(self, endpoint: Endpoint, batch: list[Verdict], answer: pb.ReportResponse) -> set[Subject]:
        """Continue above the generations that the load balancer knows; return the verdicts to send again."""
        raised_by, again = self._raised_by, set()
        for ignored in answer.ignored:
            if ignored.reason not in _OUT_OF_ORDER or ignored.index >= len(batch):
                continue
            verdict = batch[ignored.index]
            if self._generation(verdict) <= ignored.generation < GENERATION_MAX and verdict.subject in self._latest:
                raised_by = max(raised_by, ignored.generation + 1 - verdict.generation)
                again.add(verdict.subject)
        if raised_by != self._raised_by:
            self._raised_by = raised_by
            _log.info("newer generations were heard already; going on above them", extra=fields(to=str(endpoint)))
        return again

    async def _wait_for_work(self) -> None:
        """Return when there is something to send, or it is time to look at the certificates.

        In the latter case an empty request goes out: its answer shows that the load balancer is still there.
        """
        self._wake.clear()
        self._renew(self._clock())
        if self._news:
            return
        if self._repeats:
            wait_s = max(0.0, self._repeat_from - self._clock())
        elif self._sent_at:
            first = self._sent_at[next(iter(self._sent_at))]
            wait_s = min(LOOK_INTERVAL_S, max(0.0, first + self._renew_s - self._clock()))
        else:
            wait_s = LOOK_INTERVAL_S
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), wait_s)
        self._renew(self._clock())

    def _renew(self, now: float) -> None:
        lapsed: list[Subject] = []
        renew_s = self._renew_s
        for subject, sent_at in self._sent_at.items():
            if now - sent_at < renew_s:
                break
            if not self._stands(subject, now):
                lapsed.append(subject)
            elif subject not in self._news:
                self._repeats[subject] = None
        for subject in lapsed:
            del self._sent_at[subject]
            self._lapsed.add(subject)

    @property
    def _renew_s(self) -> float:
        """Return the interval of renewals, seconds: as configured, but not faster than the pace allows for all."""
        return max(self._settings.renew_s, len(self._latest) / VERDICTS_PER_S)

    def _lease_s(self, verdict: Verdict) -> float:
        """Return how long a verdict counts: long enough for three renewals, however many subjects there are."""
        return min(LEASE_MAX_S, max(verdict.lease_s, 3 * len(self._latest) / VERDICTS_PER_S))

    def _stands(self, subject: Subject, now: float) -> bool:
        """Return whether the monitor has confirmed a verdict within its lease; an end needs no confirming."""
        verdict = self._latest[subject]
        return verdict.state is VerdictState.ENDED or now - self._submitted_at[subject] <= verdict.lease_s

    def _drop(self, subject: Subject) -> None:
        for place in (self._latest, self._submitted_at, self._news, self._repeats, self._sent_at, self._refused):
            place.pop(subject, None)
        self._lapsed.discard(subject)

    def _set_connected(self, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            self._metrics.report_stream(self.name, connected=connected)


def _is_news(before: Verdict, now: Verdict) -> bool:
    """Return whether a verdict differs from the previous one in more than newer evidence."""
    return (
        before.state is not now.state
        or before.generation != now.generation
        or before.heal_s < now.heal_s
        or before.new_mac != now.new_mac
    )
