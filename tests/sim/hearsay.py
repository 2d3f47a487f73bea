"""An oracle for verdicts: what whoever heard the same reports has to make of them, computed the slow and obvious way.

It keeps every report and answers every question by going through all of them again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lbguard.core.addr import Ip
from lbguard.core.config import EvidenceConfig
from lbguard.core.events import VerdictReported
from lbguard.core.model import ConnectionSubject, LinkSubject, Subject, TargetSubject, Verdict, VerdictState
from lbguard.core.opinions import REMEMBERED_S

UP, DEGRADED, DOWN, HEALING, ENDED = VerdictState
_NEVER = float("-inf")
_UNHEARD = (-1, -1.0)


@dataclass(slots=True)
class Word:
    """What one reporter says of one subject now. `down`: it counts as DOWN."""

    verdict: Verdict
    at: float
    down: bool


def speaks_of(subject: Subject, ip: Ip) -> bool:
    match subject:
        case LinkSubject():
            return subject.lb_ip == ip
        case TargetSubject():
            return subject.ip == ip
        case ConnectionSubject():
            return ip in subject.lb_ips or ip in subject.peer_ips


class Hearsay:
    """Everything that was reported, in order, by whom and of what."""

    def __init__(self, config: EvidenceConfig) -> None:
        self._config = config
        self._heard: dict[tuple[str, Subject], list[tuple[float, Verdict]]] = {}
        # What was worked out for one moment; it is asked for again and again.
        self._now = _NEVER
        self._words: list[Word] = []

    def told(self, event: VerdictReported, now: float) -> bool:
        """Take a report; tells whether it came in its order."""
        reports = self._heard.setdefault((event.reporter, event.verdict.subject), [])
        self._now = _NEVER
        before = len(list(_in_order(reports)))
        reports.append((now, event.verdict))
        return len(list(_in_order(reports))) > before

    def stalled(self, duration_s: float) -> None:
        """Nobody could be heard for a while: whatever was said counts so much longer."""
        self._now = _NEVER
        self._heard = {
            source: [(at + duration_s, verdict) for at, verdict in reports] for source, reports in self._heard.items()
        }

    def words(self, ip: Ip, now: float) -> list[Word]:
        """Return what is said of an address now, a word from each reporter and subject."""
        if now != self._now:
            words = (self._word(reports, now) for reports in self._heard.values())
            self._now, self._words = now, [word for word in words if word is not None]
        return [word for word in self._words if speaks_of(word.verdict.subject, ip)]

    def down(self, ip: Ip, now: float) -> bool:
        """Tell whether an address is down by somebody's word that nobody contradicts."""
        words = self.words(ip, now)
        return any(word.down for word in words) and not any(word.verdict.state in (UP, DEGRADED) for word in words)

    def healing_until(self, ip: Ip, now: float) -> float:
        ends = [w.at + w.verdict.heal_s for w in self.words(ip, now) if w.verdict.state is HEALING]
        return max(ends, default=_NEVER)

    def _word(self, reports: list[tuple[float, Verdict]], now: float) -> Word | None:
        life = list(_in_order(reports))
        if not life or life[-1][1].state is ENDED or now >= life[-1][0] + life[-1][1].lease_s:
            return None
        generation = life[-1][1].generation
        recent: list[VerdictState] = []
        down, runs_out = False, _NEVER
        for at, verdict in life:
            if verdict.generation != generation:
                continue
            if at >= runs_out:
                recent, down = [], False
            recent = [*recent, verdict.state][-self._config.confirm_n :]
            if verdict.state is not HEALING:
                down = verdict.state is DOWN and recent.count(DOWN) >= self._config.confirm_k
            runs_out = at + verdict.lease_s
        return Word(life[-1][1], life[-1][0], down)


def _in_order(reports: list[tuple[float, Verdict]]) -> Iterator[tuple[float, Verdict]]:
    """Go through the reports that came in their order: nothing late, nothing twice, nothing after its end.

    The order begins anew when the lease of what was said last, or of what it ended, is over for long enough.
    """
    last: tuple[int, float] = _UNHEARD
    lease_end, forgotten_at = _NEVER, _NEVER
    for at, verdict in reports:
        if at >= forgotten_at:
            last, forgotten_at = _UNHEARD, _NEVER
        if (verdict.generation, verdict.sequence) <= last:
            continue
        last = (verdict.generation, float("inf") if verdict.state is ENDED else verdict.sequence)
        mine = at + verdict.lease_s
        if verdict.state is not ENDED:
            lease_end, forgotten_at = mine, mine + REMEMBERED_S
        elif at < lease_end:
            lease_end, forgotten_at = _NEVER, max(mine, lease_end) + REMEMBERED_S
        else:
            lease_end, forgotten_at = _NEVER, max(mine + REMEMBERED_S, forgotten_at)
        yield at, verdict
