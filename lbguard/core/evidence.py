"""What reporters say of links and targets, fused into one opinion per address. Soft evidence, all of it.

A verdict counts from one reporter for one subject until its lease ends. Late ones (an older generation), repeated ones
(a sequence already seen) and those of an ended generation are dropped by name. Of the rest:

- k of n: a reporter's DOWN counts once `confirm_k` of its last `confirm_n` verdicts on the subject say so; until then
  it is a mere DEGRADED.
- Several reporters: one that says UP or DEGRADED gets packets through, so the others' DOWN is contradicted and counts
  as DEGRADED. DOWN stands only when nobody contradicts it.
- HEALING is no word on the path of the moment; it makes whoever waits wait longer, up to the bound of the grace.
- Silence is no opinion: what no live verdict speaks of is judged by the kernel's word alone.

What vetoes a DOWN (a neighbour that just answered, packets that still arrive) is asked where paths are judged.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from lbguard.core.addr import Ip
from lbguard.core.config import EvidenceConfig
from lbguard.core.deadlines import Deadlines
from lbguard.core.events import VerdictReported
from lbguard.core.model import ConnectionSubject, LinkSubject, Subject, Verdict, VerdictState

_ENDED_KEPT = 16_384
_WORKING = frozenset({VerdictState.UP, VerdictState.DEGRADED})


class Source(NamedTuple):
    """Whose opinion on what."""

    reporter: str
    subject: Subject


@dataclass(slots=True)
class Opinion:
    """One reporter's live opinion on one subject. `recent`: its last states, newest last."""

    verdict: Verdict
    received_at: float
    addresses: tuple[Ip, ...]
    recent: deque[VerdictState]

    def confirmed_down(self, confirm_k: int) -> bool:
        """Tell whether the reporter says DOWN, and said so often enough lately."""
        return self.verdict.state is VerdictState.DOWN and self.recent.count(VerdictState.DOWN) >= confirm_k


@dataclass(frozen=True, slots=True)
class Fused:
    """What is held of an address now: a state (None: no opinion), and until when a repair is worth waiting for."""

    state: VerdictState | None = None
    healing_until: float = float("-inf")


@dataclass(slots=True)
class Taken:
    """What became of a verdict: the named reason when it was dropped, and the addresses it concerns."""

    reason: str = ""
    addresses: tuple[Ip, ...] = field(default=())


NO_OPINION = Fused()


def addresses_of(subject: Subject) -> tuple[Ip, ...]:
    """Return the addresses, each once, by which a subject touches a path: of our end of its link, or the target's."""
    match subject:
        case LinkSubject():
            return (subject.lb_ip,)
        case ConnectionSubject():
            return tuple(dict.fromkeys((*subject.lb_ips, *subject.peer_ips)))
        case _:
            return (subject.ip,)


class Opinions:
    """All live opinions, found by address."""

    def __init__(self, config: EvidenceConfig) -> None:
        self._config = config
        self._opinions: dict[Source, Opinion] = {}
        self._by_address: dict[Ip, dict[Source, Opinion]] = {}
        self._leases: Deadlines[Source] = Deadlines()
        self._ended: OrderedDict[Source, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._opinions)

    def take(self, event: VerdictReported, now: float) -> Taken:
        """Take a verdict into account, or drop it for a named reason."""
        verdict = event.verdict
        source = Source(event.reporter, verdict.subject)
        if verdict.generation <= self._ended.get(source, -1):
            return Taken("ended")
        known = self._opinions.get(source)
        if known is not None and verdict.generation < known.verdict.generation:
            return Taken("late")
        same_life = known is not None and verdict.generation == known.verdict.generation
        if same_life and known is not None and verdict.sequence <= known.verdict.sequence:
            return Taken("repeated" if verdict.sequence == known.verdict.sequence else "late")
        if verdict.state is VerdictState.ENDED:
            return self._end(source, verdict, known)
        if known is None and len(self._opinions) >= self._config.opinions_max:
            return Taken("state_full")
        recent = known.recent if same_life and known else deque[VerdictState](maxlen=self._config.confirm_n)
        recent.append(verdict.state)
        before = known.addresses if known else ()
        self._drop(source)
        opinion = Opinion(verdict, now, addresses_of(verdict.subject), recent)
        self._opinions[source] = opinion
        for address in opinion.addresses:
            self._by_address.setdefault(address, {})[source] = opinion
        self._leases.set(source, now + verdict.lease_s)
        return Taken("", tuple(dict.fromkeys(before + opinion.addresses)))

    def expire(self, now: float) -> list[Ip]:
        """Forget opinions whose lease has ended; returns the addresses that they concerned."""
        concerned: dict[Ip, None] = {}
        for source in self._leases.pop_due(now):
            concerned.update(dict.fromkeys(self._drop(source)))
        return list(concerned)

    def next(self) -> float | None:
        """Return when the next lease ends."""
        return self._leases.next()

    def of(self, address: Ip) -> dict[Source, Opinion]:
        """Return the live opinions that concern an address."""
        return self._by_address.get(address, {})

    def fused(self, address: Ip) -> Fused:
        """Return what is held of an address by all who speak of it."""
        opinions = list(self.of(address).values())
        if not opinions:
            return NO_OPINION
        ends = [o.received_at + o.verdict.heal_s for o in opinions if o.verdict.state is VerdictState.HEALING]
        return Fused(self._fuse(opinions), max(ends, default=float("-inf")))

    def weight(self, source: Source, opinion: Opinion) -> str:
        """Say in one word what an opinion counts for, for those who ask for an explanation."""
        if opinion.verdict.state is not VerdictState.DOWN:
            return "counts"
        if not opinion.confirmed_down(self._config.confirm_k):
            return "unconfirmed"
        others = [o for address in opinion.addresses for s, o in self.of(address).items() if s != source]
        return "contradicted" if any(o.verdict.state in _WORKING for o in others) else "counts"

    def _fuse(self, opinions: list[Opinion]) -> VerdictState:
        states = [opinion.verdict.state for opinion in opinions]
        down = any(opinion.confirmed_down(self._config.confirm_k) for opinion in opinions)
        if down and not any(state in _WORKING for state in states):
            return VerdictState.DOWN
        if VerdictState.DOWN in states or VerdictState.DEGRADED in states:
            return VerdictState.DEGRADED
        return VerdictState.HEALING if VerdictState.HEALING in states else VerdictState.UP

    def _end(self, source: Source, verdict: Verdict, known: Opinion | None) -> Taken:
        self._ended[source] = verdict.generation
        self._ended.move_to_end(source)
        if len(self._ended) > _ENDED_KEPT:
            self._ended.popitem(last=False)
        self._leases.cancel(source)
        return Taken("", tuple(self._drop(source)))

    def _drop(self, source: Source) -> tuple[Ip, ...]:
        opinion = self._opinions.pop(source, None)
        if opinion is None:
            return ()
        for address in opinion.addresses:
            sources = self._by_address[address]
            sources.pop(source, None)
            if not sources:
                del self._by_address[address]
        return opinion.addresses
