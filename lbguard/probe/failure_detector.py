"""Failure detectors, which derive verdicts from echo replies. Pure.

Network Service Mesh reports a connection as down when any of its address pairs had no reply for one round. Packet loss,
one failed family or a monitor without CPU is enough for that. Here:

- `RoundsDetector`: a family is down when k of the last n rounds brought no reply on any of its pairs, and up again with
  the first good one. A connection is DOWN when every family is down; less is DEGRADED.
- `PhiDetector` (Hayashibara et al., The phi accrual failure detector, 2004): the suspicion of a pair is -log10 of the
  probability that a reply arrives later than now, given the times between replies so far. A connection is DOWN when all
  of its pairs are suspected. On a path without packet loss it is the faster one (docs/probe.md, row "0% loss, phi":
  0.77 intervals in place of 1.17), on a path with high loss the slower one.

Silence counts only in a round whose pings left in time: a monitor without CPU must not report untested paths.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from lbguard.core.model import VerdictState
from lbguard.settings.probe import LEASE_MAX_S

LEASE_MIN_S: Final = 1.0

_DOUBT_SHARE: Final = 0.4
_DOUBT_MIN_S: Final = 0.1
LATE_MIN_S: Final = 0.01


class Detector(StrEnum):
    """The kinds of failure detectors."""

    ROUNDS = "rounds"
    PHI = "phi"


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorSettings:
    """Settings of the pings and of the failure detector.

    Attributes:
        interval_s: interval of the rounds.
        timeout_s: how long a round lasts; its pings are spread over it. At most the interval; None: the interval.
        pings: pings of a round, for each pair.
        down_rounds: number of bad rounds among the last `window_rounds` for DOWN.
        window_rounds: see `down_rounds`.
        up_rounds: a family that was down is up after this many good rounds in a row.
        detector: kind of failure detector.
        phi_threshold: suspicion from which a pair is down for the phi detector.
        phi_pause_s: silence that adds nothing to the suspicion. None: two missing replies, 2 x interval / pings.
        lease_s: how long verdicts count. None: 3 x interval + timeout, within LEASE_MIN_S and LEASE_MAX_S.
    """

    interval_s: float = 2.0
    timeout_s: float | None = None
    pings: int = 4
    down_rounds: int = 2
    window_rounds: int = 3
    up_rounds: int = 1
    detector: Detector = Detector.ROUNDS
    phi_threshold: float = 8.0
    phi_pause_s: float | None = None
    lease_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.round_s <= self.interval_s:
            raise ValueError("the timeout must be above 0 and at most the interval")
        if self.pings < 1 or self.up_rounds < 1 or not 1 <= self.down_rounds <= self.window_rounds:
            raise ValueError("pings and rounds must be at least 1, and down_rounds at most window_rounds")
        if self.phi_threshold <= 0:
            raise ValueError("phi_threshold must be above 0")

    @property
    def round_s(self) -> float:
        """Return the length of a round, seconds."""
        return self.interval_s if self.timeout_s is None else self.timeout_s

    @property
    def doubt_round_s(self) -> float:
        """Return the length of a round while in doubt, seconds: shorter, but above any sane round-trip time."""
        return max(_DOUBT_SHARE * self.round_s, min(_DOUBT_MIN_S, self.round_s))

    @property
    def lease(self) -> float:
        """Return how long verdicts count, seconds."""
        if self.lease_s is not None:
            return self.lease_s
        return min(LEASE_MAX_S, max(LEASE_MIN_S, 3 * self.interval_s + self.round_s))


def late_limit_s(spacing_s: float) -> float:
    """Return how late a ping may leave for its round to count: half the time between two pings."""
    return max(LATE_MIN_S, spacing_s / 2)


class FamilyRound(NamedTuple):
    """Result of a round for one family: number of pairs, number without a reply, and whether their silence counts."""

    ipv4: bool
    pairs: int
    silent: int
    counts: bool


def outcome(rounds: Sequence[FamilyRound]) -> str:
    """Return the outcome of a round: good, partial, bad, or untested when its silence does not count."""
    if not any(family.silent for family in rounds):
        return "good"
    if any(family.silent < family.pairs for family in rounds):
        return "partial"
    return "bad" if any(family.counts for family in rounds) else "untested"


class FailureDetector(Protocol):
    """Failure detector of one connection.

    Attributes:
        wants_replies: it uses the times of replies, not rounds.
        tests_again: a shorter round follows a silent one at once.
    """

    wants_replies: bool
    tests_again: bool

    def replied(self, pair: int, at: float) -> None:
        """Record the time of a reply on a pair (by its index in the connection)."""

    def excuse(self, now: float) -> None:
        """Record that the monitor itself was late: the silence until now does not count."""

    def judge(self, rounds: Sequence[FamilyRound], now: float) -> VerdictState | None:
        """Return the state at the end of a round; None while there is not enough data."""

    def down_at(self) -> float | None:
        """Return the moment from which the connection is DOWN without a reply; None: the rounds decide."""


class _KOfN:
    """Failure criterion: down after k bad results of the last n, up after `up` good ones in a row."""

    __slots__ = ("_good_run", "_k", "_recent", "_up", "bad")

    def __init__(self, k: int, n: int, up: int) -> None:
        self._k, self._up = k, up
        self._recent: deque[bool] = deque(maxlen=n)
        self._good_run = 0
        self.bad: bool | None = None

    def push(self, bad: bool) -> None:
        self._recent.append(bad)
        self._good_run = 0 if bad else self._good_run + 1
        if not bad and self.bad is not False and self._good_run >= self._up:
            self._recent.clear()  # the old bad rounds must not make the first bad round after recovery DOWN again
            self.bad = False
        elif bad and sum(self._recent) >= self._k:
            self.bad = True


class RoundsDetector:
    """Detector by k of n rounds, per family."""

    wants_replies = False
    tests_again = True

    def __init__(self, settings: DetectorSettings, families: Sequence[bool]) -> None:
        k, n, up = settings.down_rounds, settings.window_rounds, settings.up_rounds
        self._deaf = {ipv4: _KOfN(k, n, up) for ipv4 in families}
        self._lame = {ipv4: _KOfN(k, n, up) for ipv4 in families}

    def replied(self, pair: int, at: float) -> None:
        """Do nothing: rounds tell."""

    def excuse(self, now: float) -> None:
        """Do nothing: rounds tell."""

    def down_at(self) -> float | None:
        """Return None: rounds tell."""
        return None

    def judge(self, rounds: Sequence[FamilyRound], now: float) -> VerdictState | None:
        """Record a round; return None when it does not count, or there is not enough data yet."""
        counted = False
        for family in rounds:
            if family.silent and not family.counts:
                if family.silent == family.pairs:
                    continue
            else:
                self._lame[family.ipv4].push(family.silent > 0)
            self._deaf[family.ipv4].push(family.silent == family.pairs)
            counted = True
        if not counted:
            return None
        deaf = [family.bad for family in self._deaf.values()]
        if all(deaf):
            return VerdictState.DOWN
        if False not in deaf:
            return None
        if True in deaf or any(family.bad for family in self._lame.values()):
            return VerdictState.DEGRADED
        return VerdictState.UP


class _Arrivals:
    """The last `_SAMPLES_MAX` times between replies of one pair, with running sums."""

    __slots__ = ("_excused", "_floor_s", "_samples", "_squares", "_sum", "last", "seen")
    _SAMPLES_MAX = 200

    def __init__(self, expected_s: float, now: float) -> None:
        # Two samples around the expected time give a first mean and deviation until there are replies.
        self._samples = deque((0.75 * expected_s, 1.25 * expected_s))
        self._sum = sum(self._samples)
        self._squares = sum(sample * sample for sample in self._samples)
        self._floor_s = 0.1 * expected_s
        self.last = now
        self.seen = False
        self._excused = True

    def add(self, at: float) -> None:
        gap = max(0.0, at - self.last)
        self.last = max(at, self.last)
        self.seen = True
        if self._excused:
            self._excused = False  # that gap was not between two replies
            return
        self._samples.append(gap)
        self._sum += gap
        self._squares += gap * gap
        if len(self._samples) > self._SAMPLES_MAX:
            old = self._samples.popleft()
            self._sum -= old
            self._squares -= old * old

    def excuse(self, now: float) -> None:
        self.last = max(self.last, now)
        self._excused = True

    def suspected_at(self, deviations: float) -> float:
        count = len(self._samples)
        mean = self._sum / count
        deviation = math.sqrt(max(0.0, self._squares / count - mean * mean))
        return self.last + mean + deviations * max(deviation, self._floor_s)


class PhiDetector:
    """Phi accrual detector, per pair.

    Args:
        settings: interval, pings, threshold and pause.
        families: the family (ipv4) of each pair, in the order of the pairs.
        now: when pinging begins.
    """

    wants_replies = True
    tests_again = False

    def __init__(self, settings: DetectorSettings, families: Sequence[bool], now: float) -> None:
        expected_s = settings.interval_s / settings.pings
        self._pause_s = 2 * expected_s if settings.phi_pause_s is None else settings.phi_pause_s
        self._deviations = deviations_of(settings.phi_threshold)
        self._arrivals = [_Arrivals(expected_s, now) for _ in families]

    def replied(self, pair: int, at: float) -> None:
        """Record that a reply on a pair came at this moment."""
        self._arrivals[pair].add(at)

    def excuse(self, now: float) -> None:
        """Restart the wait for replies."""
        for arrivals in self._arrivals:
            arrivals.excuse(now)

    def _suspected_at(self) -> list[float]:
        return [arrivals.suspected_at(self._deviations) + self._pause_s for arrivals in self._arrivals]

    def down_at(self) -> float:
        """Return the moment from which all pairs are suspected without a reply."""
        return max(self._suspected_at())

    def judge(self, rounds: Sequence[FamilyRound], now: float) -> VerdictState | None:
        """Return the state at this moment, whatever the rounds."""
        suspected = [at <= now for at in self._suspected_at()]
        if all(suspected):
            return VerdictState.DOWN
        if not any(a.seen and not bad for a, bad in zip(self._arrivals, suspected, strict=True)):
            return None
        return VerdictState.DEGRADED if any(suspected) else VerdictState.UP


def deviations_of(phi: float) -> float:
    """Return how many standard deviations above the mean the suspicion of a normal distribution is `phi`."""
    low, high = -40.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        if _phi(middle) < phi:
            low = middle
        else:
            high = middle
    return high


def _phi(deviations: float) -> float:
    if deviations < 20:
        return -math.log10(0.5 * math.erfc(deviations / math.sqrt(2)))
    # The tail is too small for a float: its asymptotic form, pdf(y) / y.
    return (deviations * deviations / 2 + math.log(deviations * math.sqrt(2 * math.pi))) / math.log(10)


def make_judge(settings: DetectorSettings, families: Sequence[bool], now: float) -> FailureDetector:
    """Make the failure detector of a connection.

    Args:
        settings: its kind and its parameters.
        families: the family (ipv4) of each pair, in the order of the pairs.
        now: when pinging begins.
    """
    match settings.detector:
        case Detector.ROUNDS:
            return RoundsDetector(settings, tuple(dict.fromkeys(families)))
        case Detector.PHI:
            return PhiDetector(settings, families, now)
