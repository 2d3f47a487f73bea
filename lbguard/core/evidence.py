"""What reporters say of links and targets, fused into one opinion per address. Soft evidence, all of it.

A verdict counts from one reporter for one subject until its lease ends. Late ones (an older generation or sequence),
repeated ones (a sequence already seen) and those of an ended generation are dropped by name, also when the opinion that
they would replace has run out meanwhile. Of the rest:

- k of n: a reporter's DOWN counts once `confirm_k` of its last `confirm_n` verdicts on the subject say so; until then
  it is a mere DEGRADED.
- Several reporters: one that says UP or DEGRADED gets packets through, so the others' DOWN is contradicted and counts
  as DEGRADED. DOWN stands only when nobody contradicts it.
- HEALING is no word on the path of the moment; it makes whoever waits wait longer, up to the bound of the grace. After
  a DOWN of the same reporter that counted, it says that this DOWN is being repaired, so the DOWN stands until then.
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

_PAST_KEPT = 20_000
_REPORTERS_KEPT = 1024
_NO_PAST: OrderedDict["Source", tuple[int, float]] = OrderedDict()
_ENDED = float("inf")
_WORKING = frozenset({VerdictState.UP, VerdictState.DEGRADED})


class Source(NamedTuple):
    """Whose opinion on what."""

    reporter: str
    subject: Subject


@dataclass(slots=True)
class Opinion:
    """One reporter's live opinion on one subject.

    `recent`: its last states, newest last. `down`: it says DOWN, and said so often enough lately, or it says that such
    a DOWN is being repaired.
    """

    verdict: Verdict
    received_at: float
    addresses: tuple[Ip, ...]
    recent: deque[VerdictState]
    down: bool


@dataclass(frozen=True, slots=True)
class Fused:
    """What is held of an address now: a state (None: no opinion), and until when a repair is worth waiting for."""

    state: VerdictState | None = None
    healing_until: float = float("-inf")


@dataclass(slots=True)
class Taken:
    """What became of a verdict.

    `reason`: why it was dropped. `addresses`: what it concerns. `new_mac`: the link-layer address that it tells of, if
    the reporter had not told of it before; renewals repeat it.
    """

    reason: str = ""
    addresses: tuple[Ip, ...] = field(default=())
    new_mac: bytes = b""


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
        # The generation and sequence up to which a source has been heard although no opinion is left of it.
        self._past: OrderedDict[str, OrderedDict[Source, tuple[int, float]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._opinions)

    def take(self, event: VerdictReported, now: float) -> Taken:
        """Take a verdict into account, or drop it for a named reason."""
        verdict = event.verdict
        source = Source(event.reporter, verdict.subject)
        known = self._opinions.get(source)
        reason = self._out_of_order(source, verdict, known)
        if reason:
            return Taken(reason)
        if verdict.state is VerdictState.ENDED:
            return self._end(source, verdict)
        if known is None and len(self._opinions) >= self._config.opinions_max:
            return Taken("state_full")
        if known is not None and known.verdict.generation == verdict.generation:
            recent, was_down, told_mac = known.recent, known.down, known.verdict.new_mac
        else:
            recent, was_down, told_mac = deque(maxlen=self._config.confirm_n), False, b""
        recent.append(verdict.state)
        before = self._drop(source)
        opinion = Opinion(verdict, now, addresses_of(verdict.subject), recent, self._is_down(recent, was_down))
        self._opinions[source] = opinion
        for address in opinion.addresses:
            self._by_address.setdefault(address, {})[source] = opinion
        self._leases.set(source, now + verdict.lease_s)
        new_mac = verdict.new_mac if verdict.new_mac != told_mac else b""
        return Taken("", tuple(dict.fromkeys(before + opinion.addresses)), new_mac)

    def _out_of_order(self, source: Source, verdict: Verdict, known: Opinion | None) -> str:
        """Return why a verdict comes too late to count, or an empty text."""
        generation, sequence = self._past.get(source.reporter, _NO_PAST).get(source, (-1, -1.0))
        if known is not None and (known.verdict.generation, known.verdict.sequence) > (generation, sequence):
            generation, sequence = known.verdict.generation, known.verdict.sequence
        if (verdict.generation, verdict.sequence) > (generation, sequence):
            return ""
        if sequence == _ENDED:
            return "ended"
        return "repeated" if (verdict.generation, verdict.sequence) == (generation, sequence) else "late"

    def _is_down(self, recent: deque[VerdictState], was_down: bool) -> bool:
        if recent[-1] is VerdictState.HEALING:
            return was_down
        return recent[-1] is VerdictState.DOWN and recent.count(VerdictState.DOWN) >= self._config.confirm_k

    def expire(self, now: float) -> list[Ip]:
        """Forget opinions whose lease has ended; returns the addresses that they concerned."""
        concerned: dict[Ip, None] = {}
        for source in self._leases.pop_due(now):
            last = self._opinions[source].verdict
            self._remember(source, last.generation, last.sequence)
            concerned.update(dict.fromkeys(self._drop(source)))
        return list(concerned)

    def stalled(self, duration_s: float) -> None:
        """Leave out a time in which nobody could be heard: every lease, and every repair, lasts so much longer."""
        for source, opinion in self._opinions.items():
            opinion.received_at += duration_s
            self._leases.set(source, opinion.received_at + opinion.verdict.lease_s)

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
        if not opinion.down:
            return "unconfirmed"
        others = [o for address in opinion.addresses for s, o in self.of(address).items() if s != source]
        return "contradicted" if any(o.verdict.state in _WORKING for o in others) else "counts"

    def _fuse(self, opinions: list[Opinion]) -> VerdictState:
        states = [opinion.verdict.state for opinion in opinions]
        if any(opinion.down for opinion in opinions) and not any(state in _WORKING for state in states):
            return VerdictState.DOWN
        if VerdictState.DOWN in states or VerdictState.DEGRADED in states:
            return VerdictState.DEGRADED
        return VerdictState.HEALING if VerdictState.HEALING in states else VerdictState.UP

    def _end(self, source: Source, verdict: Verdict) -> Taken:
        self._remember(source, verdict.generation, _ENDED)
        self._leases.cancel(source)
        return Taken("", self._drop(source))

    def _remember(self, source: Source, generation: int, sequence: float) -> None:
        # Per reporter: what one says in masses makes nothing of another's forgotten.
        past = self._past.setdefault(source.reporter, OrderedDict())
        self._past.move_to_end(source.reporter)
        if len(self._past) > _REPORTERS_KEPT:
            self._past.popitem(last=False)
        past[source] = (generation, sequence)
        past.move_to_end(source)
        if len(past) > _PAST_KEPT:
            past.popitem(last=False)

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
