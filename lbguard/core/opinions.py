"""Fusion of reporters' verdicts on links and targets into one opinion per address. All of it is soft evidence.

A verdict of a reporter on a subject counts until its lease ends. Late verdicts (an older generation or sequence),
repeated ones (a sequence already seen) and those of an ended generation are dropped with a named reason, also when the
opinion that they would replace has just expired. The others are fused as follows:

- k of n: a reporter's DOWN counts once `confirm_k` of its last `confirm_n` verdicts on the subject are DOWN; until then
  it counts as DEGRADED.
- Several reporters: a reporter of UP or DEGRADED gets packets through, so it contradicts the others' DOWN, which then
  counts as DEGRADED. DOWN counts only when no reporter contradicts it.
- HEALING says nothing about the path's current state; it extends a hold, up to the bound of the grace window. After a
  counted DOWN of the same reporter, it means that this DOWN is being repaired, so the DOWN counts until then.
- Silence is not an opinion: an address without a live verdict is evaluated by the kernel's state alone.

`verdict_fusion.py` applies the vetoes of a DOWN (a neighbour that just answered, packets that still arrive).

The fused opinion of each address is stored and updated by each verdict, so that reading it costs the same for any
number of reporters. Of an expired opinion only its generation and sequence are kept, for as long as a delayed message
may arrive: the rest of its lease and `REMEMBERED_S`. A reporter that restarts with lower generations, because its clock
was set back, is accepted after that at the latest.
"""

import itertools
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import NamedTuple

from lbguard.core.addr import Ip
from lbguard.core.config import EvidenceConfig
from lbguard.core.deadlines import Deadlines
from lbguard.core.events import VerdictReported
from lbguard.core.model import ConnectionSubject, LinkSubject, Subject, Verdict, VerdictState

REMEMBERED_S = 2.0
"""Time after the end of a lease for which the opinion's generation and sequence are remembered."""

_ENDED = float("inf")
_NEVER = float("-inf")
_UNHEARD = (-1, -1.0)
_KEY_BYTES = 24
_WORKING = frozenset({VerdictState.UP, VerdictState.DEGRADED})
_TROUBLED = frozenset({VerdictState.DOWN, VerdictState.DEGRADED})
_EXPIRED_AT_ONCE = 256
_FORGOTTEN_AT_ONCE = 2048


class Source(NamedTuple):
    """Reporter and subject of an opinion."""

    reporter: str
    subject: Subject


@dataclass(slots=True)
class Opinion:
    """One reporter's live opinion on one subject.

    `recent`: its last states, newest last. `down`: it reports a confirmed DOWN, or that such a DOWN is being repaired.
    """

    verdict: Verdict
    received_at: float
    addresses: tuple[Ip, ...]
    recent: tuple[VerdictState, ...]
    down: bool

    @property
    def lease_end(self) -> float:
        """Return the end of the lease unless it is renewed."""
        return self.received_at + self.verdict.lease_s


@dataclass(frozen=True, slots=True)
class Fused:
    """Fused opinion on an address: a state (None: no opinion), and until when to wait for a reported repair."""

    state: VerdictState | None = None
    healing_until: float = _NEVER


@dataclass(slots=True)
class Taken:
    """Outcome of a verdict.

    `reason`: why it was dropped. `generation`: for a late verdict, the latest generation received from its reporter on
    its subject. `addresses`: those whose fused opinion changed. `new_mac`: the link-layer address in it, if the
    reporter had not reported it before; renewals repeat it.
    """

    reason: str = ""
    addresses: tuple[Ip, ...] = field(default=())
    new_mac: bytes = b""
    generation: int = 0


NO_OPINION = Fused()


def addresses_of(subject: Subject) -> tuple[Ip, ...]:
    """Return the addresses, each once, that connect a subject with paths: our end of its link, or the target's own."""
    match subject:
        case LinkSubject():
            return (subject.lb_ip,)
        case ConnectionSubject():
            return tuple(dict.fromkeys((*subject.lb_ips, *subject.peer_ips)))
        case _:
            return (subject.ip,)


def subject_key(subject: Subject) -> bytes:
    """Return a unique key of a subject of at most 33 bytes: it may be kept long after the subject."""
    match subject:
        case LinkSubject():
            return b"l" + subject.lb_ip + subject.proxy_ip
        case ConnectionSubject():
            return b"c" + blake2b(subject.id.encode(errors="surrogatepass"), digest_size=_KEY_BYTES).digest()
        case _:
            return b"t" + subject.ip


@dataclass(slots=True)
class _Address:
    """The live opinions on one address, their number by kind, and the fused opinion.

    `heal_ends`: negative, so that the latest end comes first; None: no repair is reported.
    """

    opinions: dict[Source, Opinion] = field(default_factory=dict)
    downs: int = 0
    troubled: int = 0
    working: int = 0
    heal_ends: Deadlines[Source] | None = None
    fused: Fused = NO_OPINION

    def add(self, source: Source, opinion: Opinion) -> None:
        self.opinions[source] = opinion
        self._count(opinion, 1)
        if opinion.verdict.state is VerdictState.HEALING:
            self.heal_ends = self.heal_ends or Deadlines()
            self.heal_ends.set(source, -(opinion.received_at + opinion.verdict.heal_s))

    def remove(self, source: Source, opinion: Opinion) -> None:
        del self.opinions[source]
        self._count(opinion, -1)
        if self.heal_ends is not None:
            self.heal_ends.cancel(source)

    def _count(self, opinion: Opinion, one: int) -> None:
        state = opinion.verdict.state
        self.downs += one * opinion.down
        self.troubled += one * (state in _TROUBLED)
        self.working += one * (state in _WORKING)

    def fuse(self) -> bool:
        """Compute the current opinion; return whether it differs from the one before."""
        before, latest = self.fused, self.heal_ends.next() if self.heal_ends is not None else None
        if latest is None:
            self.heal_ends = None
        self.fused = Fused(self._state(), _NEVER if latest is None else -latest) if self.opinions else NO_OPINION
        return self.fused != before

    def _state(self) -> VerdictState:
        if self.downs and not self.working:
            return VerdictState.DOWN
        if self.troubled:
            return VerdictState.DEGRADED
        # Opinions that neither work nor report trouble are repairs.
        return VerdictState.HEALING if len(self.opinions) > self.working else VerdictState.UP


class Opinions:
    """All live opinions, found by address. Applying a verdict costs the same for any number of opinions."""

    def __init__(self, config: EvidenceConfig) -> None:
        self._config = config
        self._opinions: dict[Source, Opinion] = {}
        self._by_address: dict[Ip, _Address] = {}
        self._leases: Deadlines[Source] = Deadlines()
        # Latest generation and sequence of a source without a live opinion.
        self._past: dict[tuple[str, bytes], tuple[int, float]] = {}
        self._past_ends: Deadlines[tuple[str, bytes]] = Deadlines()

    def __len__(self) -> int:
        return len(self._opinions)

    def configure(self, config: EvidenceConfig) -> None:
        """Use another configuration for the verdicts from now on; live opinions stay as they are."""
        self._config = config

    def apply(self, event: VerdictReported, now: float) -> Taken:
        """Apply a verdict, or drop it for a named reason."""
        verdict = event.verdict
        source = Source(event.reporter, verdict.subject)
        known = self._opinions.get(source)
        lapsed: tuple[Ip, ...] = ()
        if known is not None and now >= known.lease_end:
            lapsed, known = self._lapse(source, known), None
        latest = (known.verdict.generation, known.verdict.sequence) if known else self._latest(_past(source), now)
        reason = _out_of_order(verdict, latest)
        if reason:
            return Taken(reason, lapsed, generation=latest[0])
        if verdict.state is VerdictState.ENDED:
            until = max(now + verdict.lease_s, known.lease_end if known else _NEVER)
            self._remember(_past(source), (verdict.generation, _ENDED), until)
            self._leases.cancel(source)
            return Taken("", lapsed + self._replace(source, known, None))
        if known is None:
            if len(self._opinions) >= self._config.opinions_max:
                return Taken("state_full", lapsed)
            self._forget(_past(source))
        same_life = known is not None and known.verdict.generation == verdict.generation
        recent = (*(known.recent if known and same_life else ()), verdict.state)[-self._config.confirm_n :]
        was_down, known_mac = (known.down, known.verdict.new_mac) if known and same_life else (False, b"")
        # The measurements are not used here, and would double the memory.
        kept = replace(verdict, evidence=()) if verdict.evidence else verdict
        opinion = Opinion(kept, now, addresses_of(verdict.subject), recent, self._is_down(recent, was_down))
        changed = lapsed + self._replace(source, known, opinion)
        self._leases.set(source, opinion.lease_end)
        return Taken("", tuple(dict.fromkeys(changed)), verdict.new_mac if verdict.new_mac != known_mac else b"")

    def _is_down(self, recent: tuple[VerdictState, ...], was_down: bool) -> bool:
        if recent[-1] is VerdictState.HEALING:
            return was_down
        return recent[-1] is VerdictState.DOWN and recent.count(VerdictState.DOWN) >= self._config.confirm_k

    def expire(self, now: float) -> list[Ip]:
        """Forget opinions whose lease has ended; return the addresses whose fused opinion changed.

        When very many end at once, the rest is left to the next call, and `next` returns that it is due.
        """
        concerned: dict[Ip, None] = {}
        for source in self._leases.pop_due(now, limit=_EXPIRED_AT_ONCE):
            concerned.update(dict.fromkeys(self._lapse(source, self._opinions[source])))
        for past in self._past_ends.pop_due(now, limit=_FORGOTTEN_AT_ONCE):
            del self._past[past]
        return list(concerned)

    def stalled(self, duration_s: float) -> None:
        """Extend every lease and every repair by a time in which no verdict could be received."""
        for opinion in self._opinions.values():
            opinion.received_at += duration_s
        self._leases.shift(duration_s)
        for known in self._by_address.values():
            if known.heal_ends is not None:
                known.heal_ends.shift(-duration_s)
                known.fuse()
        # A message that waited meanwhile may be as old as the stall.
        self._past_ends.shift(duration_s)

    def _lapse(self, source: Source, opinion: Opinion) -> tuple[Ip, ...]:
        last = opinion.verdict
        self._remember(_past(source), (last.generation, last.sequence), opinion.lease_end)
        self._leases.cancel(source)
        return self._replace(source, opinion, None)

    def next(self) -> float | None:
        """Return when the next lease ends."""
        return self._leases.next()

    def of(self, address: Ip, limit: int | None = None) -> dict[Source, Opinion]:
        """Return the live opinions on an address, at most `limit`: the first received."""
        known = self._by_address.get(address)
        return dict(itertools.islice(known.opinions.items(), limit)) if known else {}

    def count(self, address: Ip) -> int:
        """Return the number of live opinions on an address."""
        known = self._by_address.get(address)
        return len(known.opinions) if known else 0

    def fused(self, address: Ip) -> Fused:
        """Return the fused opinion on an address."""
        known = self._by_address.get(address)
        return known.fused if known else NO_OPINION

    def weight(self, opinion: Opinion) -> str:
        """Return how an opinion counts, as one word for explanations."""
        if opinion.verdict.state is not VerdictState.DOWN:
            return "counts"
        if not opinion.down:
            return "unconfirmed"
        contradicted = any(self._by_address[address].working for address in opinion.addresses)
        return "contradicted" if contradicted else "counts"

    def _replace(self, source: Source, old: Opinion | None, new: Opinion | None) -> tuple[Ip, ...]:
        """Replace an opinion by another; return the addresses whose fused opinion changed."""
        if old is not None and new is not None and _counts_alike(old, new):
            self._opinions[source] = new
            for address in new.addresses:
                self._by_address[address].opinions[source] = new
            return ()
        touched: dict[Ip, None] = {}
        # Removed first: in a dict an equal key keeps its old position and its old addresses.
        if old is not None:
            del self._opinions[source]
            for address in old.addresses:
                self._by_address[address].remove(source, old)
                touched[address] = None
        if new is not None:
            self._opinions[source] = new
            for address in new.addresses:
                self._by_address.setdefault(address, _Address()).add(source, new)
                touched[address] = None
        return tuple(address for address in touched if self._fuse(address))

    def _fuse(self, address: Ip) -> bool:
        known = self._by_address[address]
        if not known.opinions:
            del self._by_address[address]
        return known.fuse()

    def _remember(self, past: tuple[str, bytes], latest: tuple[int, float], lease_end: float) -> None:
        if past not in self._past and len(self._past) >= self._config.remembered_max:
            for first in self._past_ends.pop_due(_ENDED, limit=1):
                del self._past[first]
        self._past[past] = latest
        self._past_ends.set(past, max(lease_end + REMEMBERED_S, self._past_ends.get(past) or _NEVER))

    def _latest(self, past: tuple[str, bytes], now: float) -> tuple[int, float]:
        end = self._past_ends.get(past)
        return self._past[past] if end is not None and now < end else _UNHEARD

    def _forget(self, past: tuple[str, bytes]) -> None:
        if self._past.pop(past, None) is not None:
            self._past_ends.cancel(past)


def _past(source: Source) -> tuple[str, bytes]:
    return source.reporter, subject_key(source.subject)


def _counts_alike(old: Opinion, new: Opinion) -> bool:
    """Return whether an opinion only renews another one, the most frequent case."""
    state = new.verdict.state
    return (
        old.verdict.state is state
        and state is not VerdictState.HEALING
        and old.down == new.down
        and old.addresses == new.addresses
    )


def _out_of_order(verdict: Verdict, latest: tuple[int, float]) -> str:
    """Return why a verdict is late, repeated or ended; empty when it is in order."""
    said = (verdict.generation, verdict.sequence)
    if said > latest:
        return ""
    if latest[1] == _ENDED:
        return "ended"
    return "repeated" if said == latest else "late"
