"""Reporters of every kind: lying, silent, late, flapping, contradicting, and one that says anything at all.

None of them says what it does not mean for longer than `MENDED_WITHIN_S`.
"""

import functools
from dataclasses import dataclass, field

from lbguard.core.addr import Ip
from lbguard.core.events import TrafficSeen, VerdictReported
from lbguard.core.model import (
    ConnectionSubject,
    LinkSubject,
    Subject,
    TargetSubject,
    Verdict,
    VerdictState,
)
from tests.sim.world import MENDED_WITHIN_S, PROXY_HOST, World

UP, DEGRADED, DOWN, HEALING, ENDED = VerdictState
ROUND_S = 1.0


@dataclass(slots=True)
class Reporter:
    """One reporter of one life: its generation is the moment when it began, its sequence counts."""

    world: World
    name: str
    generation: int = 0
    sequence: int = 0
    said: list[Verdict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generation = int(self.world.now * 1000)

    def say(self, state: VerdictState, subjects: list[Subject], lease_s: float, heal_s: float = 0.0) -> None:
        """Say the same of every subject, unless nobody listens."""
        for subject in subjects:
            self.sequence += 1
            verdict = Verdict(
                subject=subject,
                state=state,
                generation=self.generation,
                sequence=self.sequence,
                lease_s=lease_s,
                heal_s=heal_s,
            )
            self.said.append(verdict)
            self.hand_in(verdict)

    def hand_in(self, verdict: Verdict) -> None:
        if self.world.running:
            self.world.deliver(VerdictReported(reporter=self.name, verdict=verdict))


class Reporters:
    """What reporters do to a world. `ips`: the addresses of the listed targets."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.random

    def _ips(self) -> list[Ip]:
        return sorted({ip for spec in self.world.streams.values() for target in spec.targets for ip in target.ips})

    def _ours(self) -> list[Ip]:
        links = self.world.kernel.links.values()
        return [ip for link in links if link.name != "lo" for ip, _ in link.addresses]

    def _subjects(self) -> list[Subject]:
        """Return subjects of one kind: targets, the links of all families, or a connection."""
        rng, ips, ours = self.rng, self._ips(), self._ours()
        kind = rng.random()
        if kind < 0.4 and ips:
            chosen = rng.sample(ips, min(len(ips), rng.choice((1, 2, 99))))
            return [TargetSubject(ip=ip) for ip in chosen]
        if kind < 0.8 and ours:
            return [LinkSubject(lb_ip=ip, proxy_ip=ip[:-1] + PROXY_HOST) for ip in ours]
        lb_ips, peer_ips = tuple(rng.sample(ours, min(len(ours), 3))), tuple(rng.sample(ips, min(len(ips), 3)))
        return [ConnectionSubject(id=rng.choice("cd"), lb_ips=lb_ips, peer_ips=peer_ips)]

    def _active(self) -> bool:
        return self.world.profile.verdicts and self.world.running

    def lie(self) -> None:
        """Somebody says again and again that what works is down."""
        if self._active():
            liar, subjects = Reporter(self.world, "liar"), self._subjects()
            for number in range(self.rng.randint(1, 9)):
                self.world.after(number * ROUND_S, functools.partial(liar.say, DOWN, subjects, 2 * ROUND_S))

    def fall_silent(self) -> None:
        """Somebody says that something is down or being repaired, and then nothing any more."""
        if self._active():
            state, lease_s = self.rng.choice((DOWN, HEALING)), self.rng.choice((0.5, 4.0, MENDED_WITHIN_S))
            Reporter(self.world, "silent").say(state, self._subjects(), lease_s, self.rng.choice((5.0, 50.0)))

    def come_late(self) -> None:
        """What was said comes once more, later, in any order, and after the end."""
        if not self._active():
            return
        reporter, subjects = Reporter(self.world, "late"), self._subjects()
        for state in self.rng.choices((UP, DOWN, HEALING), k=3):
            reporter.say(state, subjects, self.rng.choice((0.3, 3.0)), heal_s=2.0)
        if self.rng.random() < 0.5:
            reporter.say(ENDED, subjects, 1.0)
        for verdict in self.rng.sample(reporter.said, len(reporter.said)):
            self.world.after(self.rng.uniform(0.0, 5.0), functools.partial(reporter.hand_in, verdict))

    def flap(self) -> None:
        """Somebody changes its mind all the time."""
        if self._active():
            reporter, subjects = Reporter(self.world, "flapping"), self._subjects()
            pause_s = self.rng.choice((0.05, 0.7, 1.5))
            for number in range(self.rng.randint(2, 7)):
                state = UP if number % 2 else self.rng.choice((DOWN, DOWN, HEALING))
                self.world.after(number * pause_s, functools.partial(reporter.say, state, subjects, 3.0, 4.0))

    def contradict(self) -> None:
        """Two speak of the same, and one of them gets packets through."""
        if self._active():
            subjects = self._subjects()
            for name, state in (("pessimist", DOWN), ("optimist", self.rng.choice((UP, DEGRADED)))):
                reporter = Reporter(self.world, name)
                for number in range(self.rng.randint(1, 6)):
                    at = number * ROUND_S + self.rng.uniform(0.0, 0.5)
                    self.world.after(at, functools.partial(reporter.say, state, subjects, 1.5 * ROUND_S))

    def heal(self) -> None:
        """Somebody says that something is down, then that it is being repaired, and at last that it is up."""
        if self._active():
            reporter, subjects = Reporter(self.world, "healer"), self._subjects()
            for number in range(self.rng.randint(2, 9)):
                state = self.rng.choice((DOWN, HEALING)) if number == 0 else HEALING
                self.world.after(number * ROUND_S, functools.partial(reporter.say, state, subjects, 2.0, 6.0))
            self.world.after(9.0, functools.partial(reporter.say, UP, subjects, 2.0))

    def promise_repair(self, ours: list[Ip]) -> None:
        """Somebody says of links that are about to go that they will be back, for longer than anybody waits."""
        if self._active():
            subjects: list[Subject] = [LinkSubject(lb_ip=ip, proxy_ip=ip[:-1] + PROXY_HOST) for ip in ours]
            Reporter(self.world, "mesh").say(HEALING, subjects, MENDED_WITHIN_S, 50.0)

    def say_anything(self) -> None:
        """Reporters speak of targets or of links: now and then rightly, late, twice, and against each other."""
        world, rng = self.world, self.rng
        if not self._active():
            return
        state = rng.choice((DOWN, DOWN, *VerdictState))
        reporter = rng.choice(("proxy-a", "proxy-b"))
        subjects = self._subjects()
        for subject in subjects if rng.random() < 0.5 else subjects[:1]:
            verdict = Verdict(
                subject=subject,
                state=state,
                generation=rng.randint(int(world.now) - 2, int(world.now)),
                sequence=rng.randint(int(world.now * 10) - 5, int(world.now * 10)),
                lease_s=rng.choice((0.5, 4.0, MENDED_WITHIN_S)),
                heal_s=rng.choice((1.0, 10.0, 50.0)),
                new_mac=rng.choice((b"", b"\x02" + rng.randbytes(5))),
            )
            for _ in range(rng.randint(1, 2)):
                world.deliver(VerdictReported(reporter=reporter, verdict=verdict))
        self.count_packets()

    def count_packets(self) -> None:
        """The receive counters are read; some links have received something."""
        for link in list(self.world.kernel.links.values()):
            self.world.deliver(TrafficSeen(ifindex=link.ifindex, rx_packets=self.rng.randint(0, 1000)))
