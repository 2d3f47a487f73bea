"""How much a reporter of verdicts may ask for: rates, counts and state. Pure: the time is an argument.

What a limit refuses changes nothing: a request is taken whole or not at all. Numbers come from the settings
(`verdicts.*`), and a refusal names the setting that stands in the way.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lbguard.core.model import Subject, Verdict

_PURGE_EVERY_S = 1.0
_ROUNDING = 1e-6


class Limit(StrEnum):
    """The limits by the names of their settings, `verdicts.NAME`; a bounded set, used as a metric label."""

    MESSAGE = "max_message"
    REQUEST = "max_per_request"
    RATE = "rate"
    REPORTERS = "max_reporters"
    CALLS = "max_calls"
    SUBJECTS = "max_subjects"
    SUBJECTS_TOTAL = "max_subjects_total"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictLimits:
    """The numbers. `rate` is verdicts per second of one reporter, `burst` how many of them may come at once."""

    message_bytes_max: int = 256 * 1024
    per_request_max: int = 256
    rate: float = 1000.0
    burst: int = 5000
    reporters_max: int = 256
    calls_max: int = 8
    subjects_max: int = 10_000
    subjects_total_max: int = 50_000


class LimitExceeded(Exception):  # noqa: N818 (it names the answer)
    """A request asks for more than a limit allows; the text names the setting and its value."""

    def __init__(self, limit: Limit, text: str) -> None:
        super().__init__(f"verdicts.{limit}: {text}")
        self.limit = limit


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
        if tokens <= self._tokens + _ROUNDING:  # whoever comes exactly when told is not sent away again
            self._tokens -= tokens
            return 0.0
        return (tokens - self._tokens) / self._rate if tokens <= self._burst else float("inf")

    def full(self, now: float) -> bool:
        """Tell whether the bucket is as good as new."""
        self._fill(now)
        return self._tokens >= self._burst

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now


@dataclass(slots=True)
class _Account:
    bucket: TokenBucket
    calls: int = 0
    lease_ends: dict[Subject, float] = field(default_factory=dict)
    purged_at: float = float("-inf")

    def purge(self, now: float) -> None:
        """Forget subjects whose lease has ended. Looking at all of them is dear, so at most once a second."""
        if now - self.purged_at >= _PURGE_EVERY_S:
            self.purged_at = now
            self.lease_ends = {subject: end for subject, end in self.lease_ends.items() if end > now}


class Accounts:
    """What each reporter has used of its limits.

    A reporter is forgotten once it cannot be told from a new one: no call is open, no lease runs, its bucket is full.
    So taking another name again and again gains nothing: all reporters together get `reporters_max * rate` verdicts a
    second, whatever they call themselves.
    """

    def __init__(self, limits: VerdictLimits) -> None:
        self._limits = limits
        self._accounts: dict[str, _Account] = {}
        self._purged_at = float("-inf")

    @property
    def reporters(self) -> int:
        """How many reporters are known."""
        return len(self._accounts)

    @property
    def subjects(self) -> int:
        """How many subjects all reporters hold; ones whose lease ended a moment ago may still be among them."""
        return sum(len(account.lease_ends) for account in self._accounts.values())

    def enter(self, reporter: str, now: float) -> None:
        """Begin a call; each one needs its `leave`.

        Raises:
            LimitExceeded: too many reporters, or too many calls of this one.
        """
        account = self._accounts.get(reporter)
        if account is None:
            if len(self._accounts) >= self._limits.reporters_max:
                self._purge(now)
            if len(self._accounts) >= self._limits.reporters_max:
                raise LimitExceeded(Limit.REPORTERS, f"{self._limits.reporters_max} reporters are there already")
            account = _Account(TokenBucket(self._limits.rate, self._limits.burst, now))
            self._accounts[reporter] = account
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
        """Take the subjects of a request into account until their leases end.

        Raises:
            LimitExceeded: too many subjects of this reporter, or of all of them.
        """
        account = self._accounts[reporter]
        new = self._new(account, verdicts)
        if len(account.lease_ends) + new > self._limits.subjects_max:
            account.purge(now)
            new = self._new(account, verdicts)
            if len(account.lease_ends) + new > self._limits.subjects_max:
                raise LimitExceeded(Limit.SUBJECTS, f"at most {self._limits.subjects_max} subjects of one reporter")
        if new and self.subjects + new > self._limits.subjects_total_max:
            self._purge(now)
            new = self._new(account, verdicts)
            if self.subjects + new > self._limits.subjects_total_max:
                text = f"at most {self._limits.subjects_total_max} subjects of all reporters"
                raise LimitExceeded(Limit.SUBJECTS_TOTAL, text)
        for verdict in verdicts:
            account.lease_ends[verdict.subject] = now + verdict.lease_s

    @staticmethod
    def _new(account: _Account, verdicts: Iterable[Verdict]) -> int:
        return len({verdict.subject for verdict in verdicts if verdict.subject not in account.lease_ends})

    def _purge(self, now: float) -> None:
        if now - self._purged_at < _PURGE_EVERY_S:
            return
        self._purged_at = now
        for reporter, account in list(self._accounts.items()):
            account.purge(now)
            if not account.calls and not account.lease_ends and account.bucket.full(now):
                del self._accounts[reporter]
