"""The world around an engine, in simulated time: kernel, mirror, shell, distributor and source, all from one seed.

`faults.py` says what goes wrong in it, `invariants.py` what has to hold all the same.
"""

import functools
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import assert_never

from lbguard.core import effects as fx
from lbguard.core import events as ev
from lbguard.core.addr import Ip, is_ipv4, is_link_local
from lbguard.core.config import Amount, DampingConfig, EngineConfig, EvidenceConfig, FreezeConfig, GraceConfig
from lbguard.core.engine import Engine
from lbguard.core.model import Action, Condition, LinkKey, NeighborState, Route, RouteKind, StreamSpec, TargetSpec
from lbguard.core.observation import LOOK_S
from tests.sim.belief import Belief
from tests.sim.hearsay import Hearsay
from tests.sim.invariants import Watch
from tests.sim.kernel import SimKernel, SimLink
from tests.sim.tables import SimDistributor

RECONCILE_S = 10.0
MENDED_WITHIN_S = 12.0
"""No scenario leaves anything to be mended for longer than this."""
READING_S = 0.003
"""After a stop the guard has read what waits within this time."""
HOLDS_KEPT_S = 60.0
PROXY_HOST = b"\xfa"
"""The last byte of the proxies' own addresses."""
TRIED_AGAIN = 0.3
"""Share of the failed resolutions that the kernel notifies as INCOMPLETE."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What may go wrong in one run.

    `lossy`: the mirror loses, repeats and delays. `soft`: targets fall silent. `verdicts`: reporters say anything.
    `stalls`: the guard is stopped for a while, and finds what happened meanwhile when it goes on.
    """

    lossy: bool
    soft: bool
    crashes: bool
    refusals: bool
    verdicts: bool
    stalls: bool = False


def random_config(rng: random.Random, profile: Profile) -> EngineConfig:
    """Return a configuration with short times, so that a run sees every limit."""
    by_cause = {
        cause: rng.choice((0.5, 2.0, 5.0, 20.0))
        for cause in (
            Condition.NO_LINK,
            Condition.LINK_DOWN,
            Condition.NEIGHBOR_FAILED,
            Condition.NO_ADDRESS,
            Condition.VERDICT_DOWN,
        )
        if rng.random() < 0.3
    }
    return EngineConfig(
        grace=GraceConfig(window_s=rng.choice((1.0, 3.0)), max_s=8.0, by_cause_s=by_cause, adaptive=rng.random() < 0.3),
        freeze=FreezeConfig(threshold=rng.choice((0.3, 0.5, 1.0)), limit_s=rng.choice((6.0, 12.0))),
        damping=DampingConfig(half_life_s=10.0, step_s=1.0, max_s=4.0),
        soft_budget=rng.choice((0.25, 0.5, 1.0, 1.0)),
        superseded_link_down=rng.random() < 0.8,
        evidence=EvidenceConfig(confirm_k=rng.choice((1, 1, 2)), opinions_max=rng.choice((10_000, 10_000, 6))),
        neighbor_probe_interval_s=2.0 if profile.soft or (profile.verdicts and rng.random() < 0.5) else 0.0,
        neighbor_failures_needed=rng.choice((1, 2, 3)),
        retry_max_s=2.0,
        availability_quorum=rng.choice((Amount(count=1), Amount(count=1), Amount(count=2), Amount(share=0.5))),
        availability_hysteresis=rng.choice((Amount(), Amount(count=1))),
    )


class World:
    """Everything of one run. `history` keeps the last things that happened, for whoever reads a failure."""

    def __init__(self, seed: int, profile: Profile | None = None) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.profile = profile or Profile(
            lossy=self.random.random() < 0.5,
            soft=self.random.random() < 0.4,
            crashes=self.random.random() < 0.5,
            refusals=self.random.random() < 0.4,
            verdicts=self.random.random() < 0.3,
            stalls=self.random.random() < 0.4,
        )
        self.config = random_config(self.random, self.profile)
        self.now = 1000.0
        self.steps = 0
        self.calm = False
        self.quiet_restarts = 0
        self.foreseen: Counter[Action] = Counter()
        self.history: deque[tuple[float, object]] = deque(maxlen=60)
        self.kernel = SimKernel(self._notify)
        self.distributor = SimDistributor()
        self.silent: set[Ip] = set()
        self.macs: dict[Ip, bytes] = {}
        self.streams: dict[str, StreamSpec] = {}
        self._queue: list[tuple[float, int, bool, Callable[[], None]]] = []
        self._sequence = 0
        self._life = 0
        self._told_at = 0.0
        self.mirror_in_sync = False
        self._lane_free_at = {"kernel": 0.0, "tables": 0.0}
        self._decision_due = False
        self._timer_version = 0
        self._stalled_since: float | None = None
        self._held_back: list[tuple[float, int, bool, Callable[[], None]]] = []
        self._reading_until = 0.0
        self._went_on_at = float("-inf")
        self._left: tuple[tuple[ev.OpenHold, ...], float] = ((), 0.0)
        self.running = False
        self.start_guard()
        self.after(RECONCILE_S, self._reconcile)
        self.after(0.5, self._traffic)

    # Time

    def after(self, delay_s: float, action: Callable[[], None], *, guards: bool = False) -> None:
        """Do something later in the world."""
        self._sequence += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._sequence, guards, action))

    def guards(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later on behalf of the guard, unless it crashes before."""
        life = self._life
        self.after(delay_s, lambda: action() if self._life == life else None, guards=True)

    def run(self, duration_s: float) -> None:
        """Let time pass."""
        end = self.now + duration_s
        while self._queue and self._queue[0][0] <= end:
            self.now, sequence, guards, action = heapq.heappop(self._queue)
            self.steps += 1
            if guards and self._stalled_since is not None:
                self._held_back.append((self.now, sequence, guards, action))
            else:
                action()
        self.now = end

    def restart_in_standing_world(self, duration_s: float) -> None:
        """Kill the guard, start it again and let it work, while nothing else happens."""
        waiting = [entry for entry in self._queue if not entry[2]]
        self._queue = [entry for entry in self._queue if entry[2]]
        heapq.heapify(self._queue)
        self.say("restart in a standing world")
        self.start_guard()
        self.run(duration_s)
        for at, sequence, guards, action in waiting:
            heapq.heappush(self._queue, (at + duration_s, sequence, guards, action))

    def say(self, what: object) -> None:
        """Remember what happened; it becomes text only when a run fails."""
        self.history.append((self.now, what))

    # The guard's process

    def start_guard(self) -> None:
        """Start a new engine that knows nothing."""
        self._life += 1
        self.running = True
        self._decision_due = False
        self._stalled_since, self._held_back, self._reading_until = None, [], 0.0
        self.mirror_in_sync = False
        self._told_at = self.now
        self._lane_free_at = {"kernel": self.now, "tables": self.now}
        self.belief = Belief(self.config.neighbor_failures_needed, self.followed)
        self.hearsay = Hearsay(self.config.evidence)
        self.engine = Engine(self.config)
        self.watch = Watch(self)
        self._told_streams: set[Ip] = set()
        self._ever_told: set[Ip] = set()
        holds, left_at = self._left
        self._left = ((), 0.0)
        holds = holds if self.now < left_at + HOLDS_KEPT_S else ()
        overrides = self.overrides_left()
        if holds or overrides:
            self.guards(0.0, lambda: self.deliver(ev.HoldsRemembered(holds=holds, overrides=overrides)))
        self.guards(self.random.uniform(0.0, 0.3), self._full_view)
        self.guards(self.random.uniform(0.0, 0.3), self.tell_source)

    def overrides_left(self) -> tuple[ev.OpenOverride, ...]:
        """Return the overrides of operators that an earlier guard left open: here are no operators."""
        return ()

    def crash(self, downtime_s: float) -> None:
        """Kill the guard: what it had not carried out yet is lost."""
        self.say(f"crash, back in {downtime_s:.2f}s")
        if self.engine.running and self.random.random() < 0.7:
            seen_until = self.now if self._stalled_since is None else self._stalled_since
            self._left = self.engine.open_holds(seen_until), seen_until
        self._life += 1
        self.running = False
        self.after(downtime_s, self.start_guard)

    def stop(self, duration_s: float) -> None:
        """Stop the guard's process for a while: what happens meanwhile waits for it."""
        if not self.running or self._stalled_since is not None:
            return
        self.say(f"stopped for {duration_s:.2f}s")
        self._stalled_since = self.now
        life = self._life
        self.after(duration_s, lambda: self._go_on() if self._life == life else None)

    def _go_on(self) -> None:
        """Let the guard find out how long it was stopped, and read what waits before it judges anything."""
        since, self._stalled_since = self._stalled_since, None
        assert since is not None
        self._went_on_at = self.now
        self._reading_until = self.now + READING_S
        held_back, self._held_back = self._held_back, []
        if self.now - since > LOOK_S:
            self.deliver(ev.Stalled(duration_s=self.now - since))
        for _, sequence, guards, action in held_back:
            heapq.heappush(self._queue, (self.now, sequence, guards, action))

    def followed(self) -> set[Ip]:
        """Return the target addresses that the engine was told to follow."""
        return self._told_streams

    def may_touch(self, ip: Ip) -> bool:
        """Tell whether an address is or was a target's, or a proxy's that a verdict may name."""
        return ip in self._ever_told or (self.profile.verdicts and ip.endswith(PROXY_HOST))

    def idle(self) -> bool:
        """Tell whether nothing is under way between guard and world, and nothing is about to fail."""
        return (
            self.running
            and self._stalled_since is None
            and self.mirror_in_sync
            and not self._decision_due
            and not self.distributor.fail_next
            and not self.kernel.refusing
            and max(self._told_at, *self._lane_free_at.values()) <= self.now
            and (self.calm or not self.profile.lossy)
        )

    def deliver(self, event: ev.Event) -> None:
        """Hand an event to the guard, now or when it goes on; one that has crashed gets none."""
        if not self.running:
            return
        if self._stalled_since is None:
            self.take_in(event)
        else:
            self.guards(0.0, lambda: self.take_in(event))

    def change_settings(self) -> None:
        """The guard gets other settings while it runs, or finds them when it starts.

        The oracle for verdicts counts old reports by the rule of the moment, so that rule stays.
        """
        wanted, kept = random_config(self.random, self.profile), self.config.evidence
        evidence = replace(
            kept, veto_window_s=self.random.choice((0.5, 2.5, 5.0)), opinions_max=wanted.evidence.opinions_max
        )
        # Drawn in every run, so that it goes on as that of its seed with other features.
        learn_s, drain_window_s = self.random.choice((0.0, 1.0, 5.0)), self.random.choice((2.0, 6.0))
        limits = replace(wanted.grace, max_s=self.random.choice((4.0, 8.0)))
        wanted = replace(
            wanted,
            grace=replace(limits, by_cause_s={cause: min(s, 4.0) for cause, s in limits.by_cause_s.items()}),
            damping=DampingConfig(half_life_s=10.0, step_s=self.random.choice((0.0, 1.0, 3.0)), max_s=4.0),
            evidence=evidence,
            learn_s=learn_s if self.config.learn_s else 0.0,
            drain_window_s=drain_window_s if self.config.drain_window_s else 0.0,
        )
        if self.running:
            self.deliver(ev.SettingsChanged(config=wanted))
        else:
            self.config = self.config.with_live(wanted)

    def take_in(self, event: ev.Event) -> None:
        """The guard observes an event; it decides a moment later, once for all that came until then."""
        if isinstance(event, ev.SettingsChanged):
            self.config = self.config.with_live(event.config)
            self.belief.failures_needed = self.config.neighbor_failures_needed
        if isinstance(event, ev.SourceSnapshot):
            self._told_streams = {ip for s in event.streams for t in s.targets for ip in t.ips}
            self._ever_told |= self._told_streams
        self.say(event if not isinstance(event, ev.KernelSnapshot) else "KernelSnapshot")
        if isinstance(event, ev.Stalled):
            self.hearsay.stalled(event.duration_s - LOOK_S)
        self.belief.told(event, self.now)
        self.watch.told(event)
        effects = self.engine.observe(event, self.now)
        if isinstance(event, ev.VerdictReported):
            self.watch.reported(event, effects)
        self._carry_out(effects)
        if not self._decision_due:
            self._decision_due = True
            self.guards(self.random.choice((0.0, 0.001, 0.005)), self._decide)

    def _decide(self) -> None:
        if self.now < self._reading_until:
            self.guards(self._reading_until - self.now, self._decide)
            return
        self._decision_due = False
        effects = self.engine.decide(self.now)
        for effect in effects:
            if isinstance(effect, fx.Record):
                self.say(effect.decision)
        self.watch.after_decision(effects)
        self._carry_out(effects)
        self._arm()

    def _arm(self) -> None:
        self._timer_version += 1
        version = self._timer_version
        at = self.engine.next_deadline(self.now)
        self.watch.after_timer(at)
        if at is not None:
            self.guards(max(0.0, at - self.now), lambda: self._wake(version))

    def _wake(self, version: int) -> None:
        if version == self._timer_version:
            if not self._decision_due:
                # Nothing was told since the last decision: what is done now is what was predicted.
                self.watch.foresee()
            self._decide()

    # The source

    def tell_source(self) -> None:
        """The source tells its whole list; it does not overtake the lists that waited for a stopped guard."""
        event = ev.SourceSnapshot(streams=tuple(self.streams.values()))
        if self.running and self.now == self._went_on_at:
            self.guards(0.0, lambda: self.take_in(event))
        else:
            self.deliver(event)

    def list_targets(self, name: str, targets: dict[int, tuple[Ip, ...]]) -> None:
        """Change the targets of a stream at the source."""
        spec = self.streams[name]
        listed = tuple(TargetSpec(identifier=i, ips=ips) for i, ips in sorted(targets.items()))
        self.streams[name] = StreamSpec(
            name=name, max_targets=8, identifier_offset=spec.identifier_offset, vips=spec.vips, targets=listed
        )

    # The mirror

    def _notify(self, change: ev.KernelChange) -> None:
        if not self.mirror_in_sync:
            return
        rng = self.random
        lossy = self.profile.lossy and not self.calm
        if lossy and rng.random() < 0.01:
            self.say(("lost", change))
            return
        if lossy and rng.random() < 0.01:
            self.guards(rng.uniform(0.005, 0.2), lambda: self._tell(change))
            return
        self._in_order(lambda: self._tell(change), rng.choice((0.0, 0.0005, 0.002)))
        if lossy and rng.random() < 0.02:
            self._in_order(lambda: self._tell(change), 0.0)

    def _in_order(self, action: Callable[[], None], delay_s: float) -> None:
        self._told_at = max(self._told_at, self.now + delay_s)
        self.guards(self._told_at - self.now, action)

    def _tell(self, change: ev.KernelChange) -> None:
        if self.mirror_in_sync:
            self.deliver(change)

    def overrun(self, blind_s: float) -> None:
        """The mirror loses its place and finds it again after a while."""
        if self.running and self.mirror_in_sync:
            self.mirror_in_sync = False
            self.deliver(ev.KernelOutOfSync(reason="overrun"))
            self.guards(blind_s, self._full_view)

    def _full_view(self) -> None:
        self.mirror_in_sync = True
        snapshot = self.kernel.snapshot()
        self._in_order(lambda: self._tell_snapshot(snapshot), 0.001)

    def _tell_snapshot(self, snapshot: ev.KernelSnapshot) -> None:
        if self.mirror_in_sync:
            self.deliver(snapshot)

    def _look_again(self) -> None:
        if self.mirror_in_sync:
            self._full_view()

    def _reconcile(self) -> None:
        self.after(RECONCILE_S, self._reconcile)
        if self.running and self.mirror_in_sync:
            self._full_view()

    # Neighbours

    def _traffic(self) -> None:
        """Packets to the targets make the kernel resolve their addresses, and fail for those that are silent."""
        self.after(1.0, self._traffic)
        if self.profile.soft:
            for route in list(self.kernel.routes.values()):
                if route.kind is RouteKind.UNICAST and route.protocol != 4:
                    self.resolve(route.oif, route.gateway)

    def resolve(self, ifindex: int, ip: Ip, *, verify: bool = False) -> None:
        """The kernel resolves an address on a link, or verifies what it knows and says so."""
        link = self.kernel.links.get(ifindex)
        if link is None or not link.up or not link.covers(ip, usable=True):
            return
        known = link.neighbors.get(ip, (NeighborState.NONE, b""))
        if known[0] is NeighborState.PERMANENT:
            return
        if ip in self.silent:
            if known[0] is not NeighborState.INCOMPLETE:
                self.kernel.begin_to_resolve(ifindex, ip)
                self.after(1.0, lambda: self._resolution_failed(link, ip))
        elif verify or known != (NeighborState.REACHABLE, self._mac_of(ip)):
            self.kernel.set_neighbor(ifindex, ip, NeighborState.REACHABLE, self._mac_of(ip))

    def _mac_of(self, ip: Ip) -> bytes:
        return self.macs.get(ip, PROXY_HOST * 6)

    def _resolution_failed(self, link: SimLink, ip: Ip) -> None:
        incomplete = link.neighbors.get(ip, (None, b""))[0] is NeighborState.INCOMPLETE
        if self.kernel.links.get(link.ifindex) is link and incomplete:
            # A packet may make the kernel try again before the notification is written.
            tried_again = self.random.random() < TRIED_AGAIN
            state = NeighborState.INCOMPLETE if tried_again else NeighborState.FAILED
            self.kernel.set_neighbor(link.ifindex, ip, state, b"")
            if tried_again:
                self.after(1.0, lambda: self._resolution_failed(link, ip))

    # The shell

    def _carry_out(self, effects: list[fx.Effect]) -> None:
        for effect in effects:
            match effect:
                case fx.Announce():
                    self.watch.announced(effect)
                case fx.SolicitNeighbors():
                    # A question tells the segment who we are, just as an announcement does.
                    sources = tuple(source for source, _ in effect.pairs)
                    self.watch.announced(fx.Announce(link=effect.link, ifname="", mac=effect.mac, addresses=sources))
                case fx.SetLinkDown() | fx.SetLinkUp() | fx.ProgramRoutes() | fx.ProgramRules():
                    self._change_kernel(effect)
                case fx.FlushNeighbors():
                    self.watch.touched(effect.entries)
                    self._lane("kernel", functools.partial(self._flush, effect))
                case fx.ResolveNeighbors() | fx.ProbeNeighbors():
                    self.watch.touched(effect.entries)
                    self._lane("kernel", functools.partial(self._resolve, effect))
                case fx.AttachStream():
                    self._lane("tables", functools.partial(self._attach, effect.stream))
                case fx.CommitTables():
                    self.watch.committing(effect)
                    self._lane("tables", functools.partial(self._twice, functools.partial(self._commit, effect)))
                case fx.ForgetStream():
                    self._lane("tables", functools.partial(self.distributor.forget, effect.stream.name))
                case fx.PruneStreams():
                    self._lane("tables", functools.partial(self._prune, effect.known))
                case (
                    fx.TuneLink()
                    | fx.Record()
                    | fx.SetAvailability()
                    | fx.SteerFlows()
                    | fx.ParkPackets()
                    | fx.NeighborMoved()
                    | fx.VerdictAnswered()
                    | fx.OverrideAnswered()
                    | fx.Ignored()
                ):
                    pass  # changes nothing in this world
                case _:
                    assert_never(effect)

    def _change_kernel(self, effect: fx.SetLinkDown | fx.SetLinkUp | fx.ProgramRoutes | fx.ProgramRules) -> None:
        match effect:
            case fx.SetLinkDown():
                self.watch.set_down(effect)
                self._lane("kernel", functools.partial(self._set_down, effect.link, effect.ifname))
            case fx.SetLinkUp():
                self.watch.set_up(effect)
                self._lane("kernel", functools.partial(self._set_up, effect.link, effect.ifname))
            case fx.ProgramRoutes():
                self.watch.asking_for_routes(effect)
                self._lane("kernel", functools.partial(self._twice, functools.partial(self._program_routes, effect)))
            case fx.ProgramRules():
                self._lane("kernel", functools.partial(self._twice, functools.partial(self._program_rules, effect)))
            case _:
                assert_never(effect)

    def _lane(self, name: str, action: Callable[[], None]) -> None:
        """Work of one adapter is done in order, each a moment after the other."""
        delay_s = self.random.choice((0.0, 0.0005, 0.002) if name == "kernel" else (0.0, 0.001, 0.02))
        self._lane_free_at[name] = max(self._lane_free_at[name], self.now) + delay_s
        self.guards(self._lane_free_at[name] - self.now, action)

    def stall(self, name: str, duration_s: float) -> None:
        """An adapter (`kernel` or `tables`) does nothing for a while; then it works off what has piled up."""
        self._lane_free_at[name] = max(self._lane_free_at[name], self.now) + duration_s

    def _twice(self, operation: Callable[[], list[ev.Event]]) -> None:
        """Carry an effect out, sometimes twice: the second time must change nothing."""
        results = operation()
        if self.random.random() < 0.05:
            before = (self.kernel.ours(), self.kernel.foreign(), self.distributor.state())
            failed = any(isinstance(e, ev.CommitFailed | ev.RouteFailed | ev.RuleFailed) for e in results)
            if not failed:
                again = operation()
                if not any(isinstance(e, ev.RouteFailed) for e in again):
                    results = again
                after = (self.kernel.ours(), self.kernel.foreign(), self.distributor.state())
                assert before == after, "carrying an effect out twice changed something"
        for result in results:
            self.guards(0.0, functools.partial(self.deliver, result))

    def _program_routes(self, effect: fx.ProgramRoutes) -> list[ev.Event]:
        results: list[ev.Event] = []
        added: list[Route] = []
        for route in effect.put:
            put = self.kernel.add_route if route in effect.add else self.kernel.replace_route
            reason = put(route)
            if reason.startswith("EEXIST"):
                # What stands there was not told, or not yet: the shell has the kernel dumped again.
                self.guards(0.001, self._look_again)
            if reason:
                results.append(ev.RouteFailed(route=route, reason=reason))
            else:
                added.append(route)
        for route in effect.delete:
            self.watch.deleting_route(route)
            self.kernel.delete_route(route)
        return [ev.RoutesProgrammed(added=tuple(added), deleted=effect.delete), *results]

    def _program_rules(self, effect: fx.ProgramRules) -> list[ev.Event]:
        results: list[ev.Event] = []
        for rule in effect.add:
            if rule.table in self.kernel.refusing:
                results.append(ev.RuleFailed(rule=rule, reason="no buffer space"))
            else:
                self.kernel.add_rule(rule)
                results.append(ev.RuleSeen(rule=rule))
        for rule in effect.delete:
            self.watch.deleting_rule(rule)
            self.kernel.delete_rule(rule)
            results.append(ev.RuleGone(rule=rule))
        return results

    def _flush(self, effect: fx.FlushNeighbors) -> None:
        for ifindex, ip in effect.entries:
            # The shell asks once more, because an entry of others may have been reported since the decision.
            if not self.engine.foreign_neighbor(ifindex, ip):
                self.watch.flushing(ifindex, ip)
                self.kernel.delete_neighbor(ifindex, ip)

    def _resolve(self, effect: fx.ResolveNeighbors | fx.ProbeNeighbors) -> None:
        for ifindex, ip in effect.entries:
            self.resolve(ifindex, ip, verify=isinstance(effect, fx.ProbeNeighbors))

    def _set_down(self, key: LinkKey, ifname: str) -> None:
        link = self.kernel.links.get(key.ifindex)
        if link is None or link.name != ifname:
            self.guards(0.0, lambda: self.deliver(ev.LinkSetDown(link=key, reason="no such link")))
            return
        if self.random.random() < 0.1:
            self.guards(0.0, lambda: self.deliver(ev.LinkSetDown(link=key, reason="something rides on it")))
            return
        link.lost = [held for held in link.addresses if not is_ipv4(held[0]) and not is_link_local(held[0])]
        self.kernel.set_admin(key.ifindex, up=False)
        self.guards(0.0, lambda: self.deliver(ev.LinkSetDown(link=key)))

    def _set_up(self, key: LinkKey, ifname: str) -> None:
        link = self.kernel.links.get(key.ifindex)
        if link is not None and link.name == ifname:
            self.kernel.set_admin(key.ifindex, up=True)
            for ip, length in link.lost:
                self.kernel.set_address(key.ifindex, ip, length, usable=True)
            link.lost = []

    def _attach(self, spec: StreamSpec) -> None:
        active = self.distributor.attach(spec)
        if active is None:
            self.deliver(ev.CommitFailed(stream=spec.name, reason="attach failed"))
        else:
            self.deliver(ev.DistributorSeen(stream=spec.name, active=active))

    def _prune(self, known: tuple[str, ...]) -> None:
        for name in [name for name in self.distributor.tables if name not in known]:
            self.distributor.forget(name)
        self.deliver(ev.StreamsPruned())

    def _commit(self, effect: fx.CommitTables) -> list[ev.Event]:
        results: list[ev.Event] = []
        for table in effect.tables:
            if self.distributor.commit(table):
                done = ev.CommitDone(stream=table.stream.name, registered=table.registered, active=table.active)
                results.append(done)
            else:
                results.append(ev.CommitFailed(stream=table.stream.name, reason="commit failed"))
        return results

    def lose_table(self, name: str) -> None:
        """Somebody re-creates a stream's table."""
        if name in self.distributor.tables and self.running:
            self.distributor.lose(name)
            self.guards(0.0, lambda: self.deliver(ev.DistributorLost(stream=name, reason="replaced")))
