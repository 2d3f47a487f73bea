"""Queue of verdicts to the core, and the limits of what a reporter may send and keep.

A refused request changes nothing: a request is accepted whole or refused whole. Numbers come from the settings
(`verdicts.*`), and a refusal names its setting.

Shared bounds are divided among identities, which the transport proves. Names that a peer gives itself do not increase
its share.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lbguard.api.verdicts.policy import identity_of
from lbguard.core.effects import VerdictAnswered
from lbguard.core.events import VerdictReported
from lbguard.core.model import ConnectionSubject, Subject, Verdict
from lbguard.core.opinions import REMEMBERED_S, subject_key
from lbguard.settings.verdicts import VerdictLimits

_PURGE_EVERY_S = 1.0
_ROUNDING = 1e-6
_ADDRESSES_PER_SUBJECT = 4


class Limit(StrEnum):
    """The limits by the names of their settings, `verdicts.NAME`; a bounded set, used as a metric label."""

    MESSAGE = "max_message"
    REQUEST = "max_per_request"
    RATE = "rate"
    REPORTERS = "max_reporters"
    CALLS = "max_calls"
    SUBJECTS = "max_subjects"
    SUBJECTS_TOTAL = "max_subjects_total"


class LimitExceeded(Exception):  # noqa: N818 (it names the answer)
    """A request exceeds a limit; the text names the setting and its value."""

    def __init__(self, limit: Limit, text: str) -> None:
        super().__init__(f"verdicts.{limit}: {text}")
        self.limit = limit


class Shares:
    """Bound that several owners share.

    An owner gets at most four fifths of what the others leave free, and at least one. So a single owner can use most of
    it, and a new owner still finds room.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0
        self._owners: dict[str, int] = {}

    def of(self, owner: str) -> int:
        """Return how much an owner has."""
        return self._owners.get(owner, 0)

    def allows(self, owner: str, more: int = 1) -> bool:
        """Return whether an owner may have more."""
        own = self.of(owner)
        left = self.total - (self.taken - own)
        return own + more <= min(left, max(1, left * 4 // 5))

    def add(self, owner: str, more: int = 1) -> None:
        """Take room, whether or not it is allowed."""
        self.taken += more
        self._owners[owner] = self.of(owner) + more

    def remove(self, owner: str, less: int = 1) -> None:
        """Give room back."""
        self.taken -= less
        self._owners[owner] -= less
        if not self._owners[owner]:
            del self._owners[owner]


class TokenBucket:
    """Holds up to `burst` tokens and gains `rate` of them a second; it begins full."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = now

    def take(self, tokens: int, now: float) -> float:
        """Take tokens and return 0, or take none and return for how many seconds too few will be there.

        More than `burst` are never there: infinity.
        """
        self._fill(now)
        if tokens <= self._tokens + _ROUNDING:  # a client that retries at the advertised time is accepted
            self._tokens -= tokens
            return 0.0
        return (tokens - self._tokens) / self._rate if tokens <= self._burst else float("inf")

    def full(self, now: float) -> bool:
        """Return whether the bucket is full again."""
        self._fill(now)
        return self._tokens >= self._burst

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now


def size_of(subject: Subject) -> int:
    """Return for how many subjects one counts: a connection counts as one for every four of its addresses."""
    if not isinstance(subject, ConnectionSubject):
        return 1
    return max(1, -(-(len(subject.lb_ips) + len(subject.peer_ips)) // _ADDRESSES_PER_SUBJECT))


@dataclass(slots=True)
class _Account:
    """`held`: until when each subject takes up room, and how much."""

    identity: str
    bucket: TokenBucket
    calls: int = 0
    held: dict[bytes, tuple[float, int]] = field(default_factory=dict)
    size: int = 0
    purged_at: float = float("-inf")


class Accounts:
    """Usage of the limits by each reporter.

    A reporter's entry is removed when it equals a new one: no call is open, no subject is held, its bucket is full. So
    a change of name gains nothing: all reporters of an identity together get its share of `reporters_max` times `rate`
    verdicts a second, under any names.
    """

    def __init__(self, limits: VerdictLimits) -> None:
        self._limits = limits
        self._accounts: dict[str, _Account] = {}
        self._reporters = Shares(limits.reporters_max)
        self._subjects = Shares(limits.subjects_total_max)
        self._purged_at = float("-inf")

    @property
    def reporters(self) -> int:
        """Return the number of known reporters."""
        return len(self._accounts)

    @property
    def subjects(self) -> int:
        """Return the number of subjects of all reporters; ones that just expired may still be among them."""
        return self._subjects.taken

    def enter(self, identity: str, reporter: str, now: float) -> None:
        """Begin a call; each one needs its `leave`.

        Raises:
            LimitExceeded: too many reporters, or too many calls of this one.
        """
        account = self._accounts.get(reporter)
        if account is None:
            if not self._reporters.allows(identity):
                self._purge(now)
            if not self._reporters.allows(identity):
                text = (
                    f"{self._reporters.taken} of {self._reporters.total} reporters are there,"
                    f" {self._reporters.of(identity)} of them by this identity: it gets no more"
                )
                raise LimitExceeded(Limit.REPORTERS, text)
            account = _Account(identity, TokenBucket(self._limits.rate, self._limits.burst, now))
            self._accounts[reporter] = account
            self._reporters.add(identity)
        if account.calls >= self._limits.calls_max:
            raise LimitExceeded(Limit.CALLS, f"{account.calls} calls of this reporter are open already")
        account.calls += 1

    def leave(self, reporter: str) -> None:
        """End a call."""
        self._accounts[reporter].calls -= 1

    def charge(self, reporter: str, verdicts: int, now: float) -> None:
        """Count a request. An empty one counts as one verdict: it costs as much to answer.

        Raises:
            LimitExceeded: too many verdicts in the request, or too many a second.
        """
        limits = self._limits
        if verdicts > limits.per_request_max:
            raise LimitExceeded(Limit.REQUEST, f"{verdicts} verdicts in one request; at most {limits.per_request_max}")
        wait_s = self._accounts[reporter].bucket.take(max(1, verdicts), now)
        if wait_s:
            text = f"{limits.rate:g} verdicts a second, {limits.burst} at once"
            raise LimitExceeded(Limit.RATE, f"{text}; try again in {wait_s:.3f} s")

    def hold(self, reporter: str, verdicts: Sequence[Verdict], now: float) -> None:
        """Take the subjects of a request into account until nothing is remembered of them any more.

        That is a moment after the lease ends, for what ended too: its end is remembered. No verdict shortens the time,
        for whether it counts at all is decided later.

        Raises:
            LimitExceeded: too many subjects of this reporter, of its identity, or of all of them.
        """
        limits, account = self._limits, self._accounts[reporter]
        wanted: dict[bytes, tuple[float, int]] = {}
        for verdict in verdicts:
            key, until = subject_key(verdict.subject), now + verdict.lease_s + REMEMBERED_S
            before = wanted.get(key, (until, 0))
            wanted[key] = (max(until, before[0]), max(size_of(verdict.subject), before[1]))
        if account.size + _growth(account, wanted) > limits.subjects_max:
            self._purge_account(account, now)
            if account.size + _growth(account, wanted) > limits.subjects_max:
                raise LimitExceeded(Limit.SUBJECTS, f"at most {limits.subjects_max} subjects of one reporter")
        more = _growth(account, wanted)
        if more and not self._subjects.allows(account.identity, more):
            self._purge(now)
            more = _growth(account, wanted)
            if more and not self._subjects.allows(account.identity, more):
                text = (
                    f"at most {limits.subjects_total_max} subjects of all reporters,"
                    f" {self._subjects.of(account.identity)} of them are this identity's: it gets no {more} more"
                )
                raise LimitExceeded(Limit.SUBJECTS_TOTAL, text)
        for key, (until, size) in wanted.items():
            known_until, known_size = account.held.get(key, (until, 0))
            account.held[key] = (max(until, known_until), max(size, known_size))
        account.size += more
        if more:
            self._subjects.add(account.identity, more)

    def _purge_account(self, account: _Account, now: float) -> None:
        """Remove subjects whose time has ended. A check of all is expensive, so it runs at most once a second."""
        if now - account.purged_at < _PURGE_EVERY_S:
            return
        account.purged_at = now
        account.held = {key: (until, size) for key, (until, size) in account.held.items() if until > now}
        size = sum(size for _, size in account.held.values())
        if size != account.size:
            self._subjects.remove(account.identity, account.size - size)
        account.size = size

    def _purge(self, now: float) -> None:
        if now - self._purged_at < _PURGE_EVERY_S:
            return
        self._purged_at = now
        for reporter, account in list(self._accounts.items()):
            self._purge_account(account, now)
            if not account.calls and not account.held and account.bucket.full(now):
                del self._accounts[reporter]
                self._reporters.remove(account.identity)


def _growth(account: _Account, wanted: dict[bytes, tuple[float, int]]) -> int:
    """Return the growth of an account for the requested subjects."""
    return sum(max(0, size - account.held.get(key, (0.0, 0))[1]) for key, (_, size) in wanted.items())


VERDICTS_WAITING_MAX = 8_192
"""So many verdicts wait for the core at most; more are answered `overloaded`."""

OVERLOADED = "overloaded"
"""The reason given when too many verdicts wait already; the reporter may send the same again."""

IGNORED_REASONS = ("late", "repeated", "ended", "state_full", OVERLOADED)
"""Reasons for which a verdict changes nothing (`core.evidence`, and here)."""


class VerdictQueue:
    """Queue that passes verdicts to the runner and waits for the core's answer to each.

    Args:
        post: the runner's inbox.
        waiting_max: how many may wait there; each identity has its share of it.
    """

    def __init__(self, post: Callable[[VerdictReported], bool], waiting_max: int = VERDICTS_WAITING_MAX) -> None:
        self._post = post
        self._tickets = itertools.count(1)
        # A verdict without a waiting caller keeps its place until the core has processed it.
        self._waiting: dict[int, tuple[str, asyncio.Future[VerdictAnswered]]] = {}
        self._shares = Shares(waiting_max)

    def submit(self, reporter: str, verdict: Verdict) -> asyncio.Future[VerdictAnswered]:
        """Submit a verdict; resolves to the core's answer. May be cancelled."""
        ticket, identity = next(self._tickets), identity_of(reporter)
        answer: asyncio.Future[VerdictAnswered] = asyncio.get_running_loop().create_future()
        event = VerdictReported(reporter=reporter, verdict=verdict, ticket=ticket)
        if self._shares.allows(identity) and self._post(event):
            self._shares.add(identity)
            self._waiting[ticket] = (identity, answer)
        else:
            answer.set_result(VerdictAnswered(ticket=ticket, reason=OVERLOADED))
        return answer

    def answered(self, effect: VerdictAnswered) -> None:
        """Apply the core's answer; its request may have ended already."""
        waiting = self._waiting.pop(effect.ticket, None)
        if waiting is None:
            return
        identity, answer = waiting
        self._shares.remove(identity)
        if not answer.done():
            answer.set_result(effect)
