"""Fusion of reporters' verdicts on links and targets into one opinion per address. All of it is soft evidence.

A verdict counts from one reporter for one subject until its lease ends. Late ones (an older generation or sequence),
repeated ones (a sequence already seen) and those of an ended generation are dropped by name, also when the opinion that
they would replace has run out a moment ago. Of the rest:

- k of n: a reporter's DOWN counts once `confirm_k` of its last `confirm_n` verdicts on the subject say so; until then
  it is a mere DEGRADED.
- Several reporters: one that says UP or DEGRADED gets packets through, so the others' DOWN is contradicted and counts
  as DEGRADED. DOWN stands only when nobody contradicts it.
- HEALING says nothing about the path's current state; it extends a hold, up to the bound of the grace. After
  a DOWN of the same reporter that counted, it says that this DOWN is being repaired, so the DOWN stands until then.
- Silence is no opinion: what no live verdict speaks of is judged by the kernel's state alone.

What vetoes a DOWN (a neighbour that just answered, packets that still arrive) is asked where paths are judged.

What is fused is kept for each address and brought up to date by each verdict, so that asking for it costs the same
however many speak of the address. Of an opinion that is over, only its place in the order is kept, for as long as a
message that was on its way may arrive: the rest of its lease and `REMEMBERED_S`. A reporter that begins anew with lower
generations, because its clock was set back, is accepted after that at the latest.
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
"""For so long after its lease the place of an opinion in the order of its reporter's verdicts is remembered."""

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

    `recent`: its last states, newest last. `down`: it says DOWN, and said so often enough lately, or it says that such
    a DOWN is being repaired.
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
    """Opinion on an address: a state (None: no opinion), and until when a repair is worth waiting for."""

    state: VerdictState | None = None
    healing_until: float = _NEVER


@dataclass(slots=True)
class Taken:
    """Outcome of a verdict.

    `reason`: why it was dropped. `generation`: when it came too late, the generation up to which its reporter was heard
    of its subject. `addresses`: those of which something else is held now. `new_mac`: the link-layer address that it
    tells of, if the reporter had not told of it before; renewals repeat it.
    """

    reason: str = ""
    addresses: tuple[Ip, ...] = field(default=())
    new_mac: bytes = b""
    generation: int = 0


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
    """The live opinions on one address, how many are of each kind, and what they come to.

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
        # What neither works nor is troubled is being repaired.
        return VerdictState.HEALING if len(self.opinions) > self.working else VerdictState.UP


class Opinions:
    """All live opinions, found by address. Taking a verdict costs the same however many there are."""

    def __init__(self, config: EvidenceConfig) -> None:
        self._config = config
        self._opinions: dict[Source, Opinion] = {}
        self._by_address: dict[Ip, _Address] = {}
        self._leases: Deadlines[Source] = Deadlines()
        # The generation and sequence up to which a source has been heard although no opinion is left of it.
        self._past: dict[tuple[str, bytes], tuple[int, float]] = {}
        self._past_ends: Deadlines[tuple[str, bytes]] = Deadlines()

    def __len__(self) -> int:
        return len(self._opinions)

    def take(self, event: VerdictReported, now: float) -> Taken:
        """Apply a verdict into account, or drop it for a named reason."""
        verdict = event.verdict
        source = Source(event.reporter, verdict.subject)
        known = self._opinions.get(source)
        lapsed: tuple[Ip, ...] = ()
        if known is not None and now >= known.lease_end:
            lapsed, known = self._lapse(source, known), None
        heard = (known.verdict.generation, known.verdict.sequence) if known else self._heard(_past(source), now)
        reason = _out_of_order(verdict, heard)
        if reason:
            return Taken(reason, lapsed, generation=heard[0])
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
        was_down, told_mac = (known.down, known.verdict.new_mac) if known and same_life else (False, b"")
        # What was measured is of no use here, and would take up as much memory as all the rest.
        kept = replace(verdict, evidence=()) if verdict.evidence else verdict
        opinion = Opinion(kept, now, addresses_of(verdict.subject), recent, self._is_down(recent, was_down))
        changed = lapsed + self._replace(source, known, opinion)
        self._leases.set(source, opinion.lease_end)
        return Taken("", tuple(dict.fromkeys(changed)), verdict.new_mac if verdict.new_mac != told_mac else b"")

    def _is_down(self, recent: tuple[VerdictState, ...], was_down: bool) -> bool:
        if recent[-1] is VerdictState.HEALING:
            return was_down
        return recent[-1] is VerdictState.DOWN and recent.count(VerdictState.DOWN) >= self._config.confirm_k

    def expire(self, now: float) -> list[Ip]:
        """Forget opinions whose lease has ended; return the addresses of which something else is held now.

        When very many end at once, the rest has its turn at the next call, and `next` says that it is due.
        """
        concerned: dict[Ip, None] = {}
        for source in self._leases.pop_due(now, limit=_EXPIRED_AT_ONCE):
            concerned.update(dict.fromkeys(self._lapse(source, self._opinions[source])))
        for past in self._past_ends.pop_due(now, limit=_FORGOTTEN_AT_ONCE):
            del self._past[past]
        return list(concerned)

    def stalled(self, duration_s: float) -> None:
        """Extend every lease, and every repair, by a time in which no verdict could be received."""
        for opinion in self._opinions.values():
            opinion.received_at += duration_s
        self._leases.shift(duration_s)
        for known in self._by_address.values():
            if known.heal_ends is not None:
                known.heal_ends.shift(-duration_s)
                known.fuse()
        # What waited meanwhile may be as old as the time was long.
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
        """Return the live opinions that concern an address, at most so many: those that came first."""
        known = self._by_address.get(address)
        return dict(itertools.islice(known.opinions.items(), limit)) if known else {}

    def count(self, address: Ip) -> int:
        """Return how many live opinions concern an address."""
        known = self._by_address.get(address)
        return len(known.opinions) if known else 0

    def fused(self, address: Ip) -> Fused:
        """Return what is held of an address by all who speak of it."""
        known = self._by_address.get(address)
        return known.fused if known else NO_OPINION

    def weight(self, opinion: Opinion) -> str:
        """Return in one word how an opinion counts, for explanations."""
        if opinion.verdict.state is not VerdictState.DOWN:
            return "counts"
        if not opinion.down:
            return "unconfirmed"
        contradicted = any(self._by_address[address].working for address in opinion.addresses)
        return "contradicted" if contradicted else "counts"

    def _replace(self, source: Source, old: Opinion | None, new: Opinion | None) -> tuple[Ip, ...]:
        """Put an opinion in the place of another; return the addresses of which something else is held now."""
        if old is not None and new is not None and _counts_alike(old, new):
            self._opinions[source] = new
            for address in new.addresses:
                self._by_address[address].opinions[source] = new
            return ()
        touched: dict[Ip, None] = {}
        # Taken out first: an equal key keeps the place and the addresses of its first appearance.
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

    def _remember(self, past: tuple[str, bytes], heard: tuple[int, float], lease_end: float) -> None:
        if past not in self._past and len(self._past) >= self._config.remembered_max:
            for first in self._past_ends.pop_due(_ENDED, limit=1):
                del self._past[first]
        self._past[past] = heard
        self._past_ends.set(past, max(lease_end + REMEMBERED_S, self._past_ends.get(past) or _NEVER))

    def _heard(self, past: tuple[str, bytes], now: float) -> tuple[int, float]:
        end = self._past_ends.get(past)
        return self._past[past] if end is not None and now < end else _UNHEARD

    def _forget(self, past: tuple[str, bytes]) -> None:
        if self._past.pop(past, None) is not None:
            self._past_ends.cancel(past)


def _past(source: Source) -> tuple[str, bytes]:
    return source.reporter, subject_key(source.subject)


def _counts_alike(old: Opinion, new: Opinion) -> bool:
    """Return whether an opinion only renews another one: by far the most do."""
    state = new.verdict.state
    return (
        old.verdict.state is state
        and state is not VerdictState.HEALING
        and old.down == new.down
        and old.addresses == new.addresses
    )


def _out_of_order(verdict: Verdict, heard: tuple[int, float]) -> str:
    """Return why a verdict comes too late to count, or an empty text."""
    said = (verdict.generation, verdict.sequence)
    if said > heard:
        return ""
    if heard[1] == _ENDED:
        return "ended"
    return "repeated" if said == heard else "late"
