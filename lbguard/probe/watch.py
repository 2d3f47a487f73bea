"""The state of one monitored connection: its running round, pair by pair. It knows neither clock nor socket."""

from collections.abc import Sequence
from typing import Final

from lbguard.core.model import FamilyEvidence, VerdictState
from lbguard.probe.connections import Connection
from lbguard.probe.failure_detector import FailureDetector, FamilyRound, late_limit_s
from lbguard.probe.icmp import Slot

ANSWERING: Final = (VerdictState.UP, VerdictState.DEGRADED)


class PairWatch:
    """One address pair: pings of the running round, and their replies.

    Attributes:
        place: index of the pair in its connection, from 0.
        slot: the pair's slot at the socket; None when the kernel lacks the family.
        pending: times of the unanswered pings of the running round, by sequence number.
        previous: the same of the round before; replies to it are late.
        sent: pings of the running round.
        rtts: round-trip times of the replies in time, in seconds.
        last_reply: time of the last reply, also a late one.
        last_sequence: of the latest ping.
        message: the message that the socket sends; None while there is no socket.
    """

    __slots__ = (
        "ipv4",
        "last_reply",
        "last_sequence",
        "message",
        "pending",
        "place",
        "previous",
        "rtts",
        "sent",
        "slot",
        "token",
        "watch",
    )

    def __init__(self, watch: "Watch", place: int, ipv4: bool, token: int, slot: Slot | None) -> None:
        self.watch = watch
        self.place = place
        self.ipv4 = ipv4
        self.token = token
        self.slot = slot
        self.message: bytes | None = None
        self.pending: dict[int, float] = {}
        self.previous: dict[int, float] = {}
        self.sent = 0
        self.rtts: list[float] = []
        self.last_reply: float | None = None
        self.last_sequence = -1


class Watch:
    """One generation of a connection.

    Attributes:
        state: the last verdict's state; None: none yet.
        measured: the last result of the detector; differs from `state` while the mesh heals.
        round: number of the running round; items of the wheel that name another one are out of date.
        fast: the running round is a short one, for a re-check.
        untested: a ping of the running round left late or not at all, so missing replies do not count.
        eager: a reply may end the running round early.
        may_doubt: missing replies in the running round begin a short one.
        late_limit_s: a ping of the running round that leaves later than this makes it untested.
        closed: no further verdicts are emitted.
    """

    __slots__ = (
        "closed",
        "connection",
        "deadline",
        "eager",
        "families",
        "fast",
        "generation",
        "healing_until",
        "ifindex",
        "judge",
        "late_limit_s",
        "may_doubt",
        "measured",
        "new_mac",
        "pairs",
        "round",
        "sequence",
        "spacing_s",
        "started",
        "state",
        "untested",
    )

    def __init__(self, connection: Connection, generation: int, judge: FailureDetector) -> None:
        self.connection = connection
        self.generation = generation
        self.judge = judge
        self.pairs: list[PairWatch] = []
        self.families: tuple[tuple[bool, list[PairWatch]], ...] = ()
        self.sequence = 0
        self.state: VerdictState | None = None
        self.measured: VerdictState | None = None
        self.new_mac = b""
        self.healing_until: float | None = None
        self.ifindex = 0
        self.round = 0
        self.started = self.deadline = self.spacing_s = self.late_limit_s = 0.0
        self.fast = self.untested = self.eager = self.may_doubt = self.closed = False

    def set_pairs(self, pairs: Sequence[PairWatch]) -> None:
        """Set the pairs, once."""
        self.pairs = list(pairs)
        families = dict.fromkeys(pair.ipv4 for pair in pairs)
        self.families = tuple((ipv4, [pair for pair in pairs if pair.ipv4 == ipv4]) for ipv4 in families)

    def begin_round(self, at: float, duration_s: float, pings: int) -> None:
        """Begin a round; the one before is forgotten but for its replies that are still under way."""
        self.round += 1
        self.started = at
        self.deadline = at + duration_s
        self.spacing_s = duration_s / pings
        self.late_limit_s = late_limit_s(self.spacing_s)
        self.untested = False
        for pair in self.pairs:
            pair.previous = pair.pending
            pair.pending = {}
            pair.sent = 0
            pair.rtts = []

    def silent(self) -> bool:
        """Return whether the latest ping of every pair is unanswered."""
        for pair in self.pairs:  # noqa: SIM110 - asked at every ping; a generator costs three times as much
            if pair.last_sequence not in pair.pending:
                return False
        return True

    def answered(self) -> bool:
        """Return whether the running round can end early: each pair answered, or one whole family if that is enough.

        It is enough for a connection that is down, or in doubt: DOWN is then out of the question.
        """
        any_is_enough = self.fast or self.measured is VerdictState.DOWN
        whole = (all(pair.rtts for pair in pairs) for _, pairs in self.families)
        return any(whole) if any_is_enough else all(whole)

    def family_rounds(self, *, complete: bool) -> list[FamilyRound]:
        """Return the result of the running round; `complete` is false when it ends before its time."""
        counts = complete and not self.untested
        return [
            FamilyRound(ipv4, len(pairs), sum(not pair.rtts for pair in pairs), counts) for ipv4, pairs in self.families
        ]

    def evidence(self, now: float) -> tuple[FamilyEvidence, ...]:
        """Return the numbers of the running round."""
        return tuple([_family_evidence(ipv4, pairs, now) for ipv4, pairs in self.families])


def _family_evidence(ipv4: bool, pairs: list[PairWatch], now: float) -> FamilyEvidence:
    sent = 0
    rtts: list[float] = []
    last: float | None = None
    for pair in pairs:
        sent += pair.sent
        rtts += pair.rtts
        if pair.last_reply is not None and (last is None or pair.last_reply > last):
            last = pair.last_reply
    since = None if last is None else max(0.0, now - last)
    if not rtts:
        return FamilyEvidence(ipv4=ipv4, sent=sent, received=0, since_reply_s=since)
    rtts.sort()
    middle = len(rtts) // 2
    return FamilyEvidence(
        ipv4=ipv4,
        sent=sent,
        received=len(rtts),
        rtt_min_s=rtts[0],
        rtt_median_s=rtts[middle] if len(rtts) % 2 else (rtts[middle - 1] + rtts[middle]) / 2,
        rtt_max_s=rtts[-1],
        since_reply_s=since,
    )
