"""Engine: takes events and the time, decides, and returns effects. It has no side effects itself.

`engine_state.py` has its state and the queries for other code.

There are two calls, so that urgent effects leave first. `observe` applies one event and returns the effects that cannot
wait (the announcement of a link that just became usable). `decide`, called once per batch of events and when
`next_deadline` has passed, evaluates every affected target and returns all other effects, in the order of their
execution.

The engine decides nothing before the first full view of the kernel, the first list of the source, and, per stream, the
read-back of the distributor: the targets found there are adopted.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from lbguard.core import events as ev
from lbguard.core.commits import Commits, availability_reason
from lbguard.core.config import EngineConfig
from lbguard.core.deadlines import Retries
from lbguard.core.effects import Announce, Effect, Ignored, PruneStreams, VerdictAnswered
from lbguard.core.engine_state import EngineState
from lbguard.core.events import Event
from lbguard.core.kernel_tables import RouteKey, RuleKey, route_key, rule_key
from lbguard.core.live_config import LiveConfig
from lbguard.core.model import NeighborState, Rule, TargetState
from lbguard.core.observation import unseen_s
from lbguard.core.state import Target


class Engine(EngineState):
    """The decisions. Neither `observe` nor `decide` raises for any content of an event."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._commits = Commits(config, self.stream_registry)
        self._kernel_retries: Retries[RouteKey | RuleKey] = Retries(config.retry_min_s, config.retry_max_s)
        self._live_config = LiveConfig(
            self.view, self.paths, self.life, self.stream_registry, self.availability, self._commits
        )
        self._prune_due = False
        self._foreign_streams_pruned = False
        self._final_availability: list[Effect] = []
        self._unjudged: dict[Target, None] = {}
        self._ignored: Counter[str] = Counter()

    def observe(self, event: Event, now: float) -> list[Effect]:
        """Apply one event; return only urgent effects. `now`: seconds of a monotonic clock."""
        answer: Effect | None = _OBSERVERS[type(event)](self, event, now)
        if answer is not None:
            return [answer]
        return self._announcements() if self.running and self.view.changes.ready else []

    def repair(self, now: float) -> list[Effect]:
        """Evaluate every affected path and return the repairs, before any decision.

        With a thousand targets behind a link that is back, the decisions take as long as the evaluation; so the runner
        may dispatch these effects first. Without this call, `decide` does both.
        """
        self._fire_retries(now)
        if not self.running:
            return []
        effects = self._announcements()
        self._adopt(now)
        self.view.changes.ips |= self.paths.verdict_fusion.expire(now) | self.paths.neighbors.expire(now)
        self._mark_changed()
        for target in self.stream_registry.take_dirty():
            self._evaluate(target, now)
            self._unjudged[target] = None
        return effects + self.paths.take_repairs(now)

    def decide(self, now: float) -> list[Effect]:
        """Decide on all affected targets and due deadlines; return the effects in order."""
        effects = self.repair(now)
        if self.running:
            for target in self._unjudged:
                self._judge(target, now)
            self._unjudged.clear()
            # Before the deadlines: one that passes as a mass failure ends still gets its last window.
            self._watch_mass_failures(now)
            self._expire(now)
            self._watch_mass_failures(now)
            effects += self._prune()
            effects += self.paths.take_repairs(now)
        # An ended stream is forgotten before one of the same name is attached.
        effects += self.stream_registry.take_forgotten()
        effects += self._commits.take_effects(now)
        effects += self.paths.take_late_work()
        if self.running and self.config.affinity:
            effects += self.affinity.take(self.stream_registry.streams, self.stream_registry.review)
        if self.running and self.config.parking:
            # Where a target has just answered, our addresses are announced before it gets its packets.
            effects += self._announcements()
            registry = self.stream_registry
            effects += self.parking.take(registry.by_mark, registry.streams, relisted=bool(registry.review))
        if self.running:
            effects += self._report_availability(now)
        effects += self.life.take_records()
        ignored = self._ignored + self.stream_registry.ignored
        effects += [Ignored(reason=reason, count=count) for reason, count in ignored.items()]
        self._ignored.clear()
        self.stream_registry.ignored.clear()
        return effects

    def next_deadline(self, now: float) -> float | None:
        """Return when `decide` has to be called next if no event arrives before."""
        moments = [self._commits.next(), self._kernel_retries.next()]
        if self.running:
            moments += [self.availability.next(), self.life.pardons.next(), self.life.drains.next()]
            moments += [self.manual.next()]
            moments += [self.paths.neighbors.next(now)]
            moments += [self.paths.verdict_fusion.opinions.next(), self.paths.verdict_fusion.rechecks.next()]
            deadline = self.life.deadlines.next()
            if self.in_sync and deadline is not None:
                moments.append(deadline)
        return min((moment for moment in moments if moment is not None), default=None)

    # Observers

    def _kernel_snapshot(self, event: ev.KernelSnapshot, now: float) -> None:
        self.view.replace(event, now)
        self.tables.replace(event.routes, event.rules)
        self.view.changes.lost_links.clear()
        self.view.changes.ips |= self.paths.verdict_fusion.down
        if self.snapshot_seen and not self.in_sync:
            self.observation.regained(now)
        self.snapshot_seen = True
        self.sync_reason = ""
        self._prune_due = True

    def _kernel_out_of_sync(self, event: ev.KernelOutOfSync, now: float) -> None:
        if self.in_sync:
            self.observation.lost(now)
        self.sync_reason = event.reason or "unknown"

    def _stalled(self, event: ev.Stalled, now: float) -> None:
        self.paths.verdict_fusion.stalled(unseen_s(event.duration_s))
        self.paths.neighbors.stalled(event.duration_s)
        # While out of sync nothing is observed either; the next full view ends that gap.
        if self.in_sync:
            self.observation.was_blind(event.duration_s, now)

    def _holds_remembered(self, event: ev.HoldsRemembered, now: float) -> None:
        self.life.holds.memory.remember(event.holds, now)
        self.view.remember_subnets(event.subnets)
        self.stream_registry.remember_drains(event.drains, now)
        self.manual.remember(event.overrides, now)
        for target in self.stream_registry.by_mark.values() if event.overrides else ():
            self.manual.listed(target)
            self.stream_registry.dirty[target] = None

    def _override_requested(self, event: ev.OverrideRequested, now: float) -> Effect:
        answer = self.manual.request(event, self.stream_registry.streams, now)
        for key in answer.changed:
            target = self.stream_registry.target(key)
            if target is not None:
                self.stream_registry.dirty[target] = None
        return answer

    def _link_seen(self, event: ev.LinkSeen, now: float) -> None:
        self.view.link_seen(event)
        self._drop_routes_of_lost_links()

    def _link_gone(self, event: ev.LinkGone, now: float) -> None:
        self.view.link_gone(event)
        self._drop_routes_of_lost_links()

    def _drop_routes_of_lost_links(self) -> None:
        """Drop the IPv4 routes of lost links: the kernel deletes them without a message."""
        for ifindex in self.view.changes.lost_links:
            self.tables.link_lost(ifindex)
        self.view.changes.lost_links.clear()

    def _address_seen(self, event: ev.AddressSeen, now: float) -> None:
        self.view.address_seen(event)

    def _address_gone(self, event: ev.AddressGone, now: float) -> None:
        self.view.address_gone(event)

    def _link_route_seen(self, event: ev.LinkRouteSeen, now: float) -> None:
        self.view.link_route_seen(event)

    def _link_route_gone(self, event: ev.LinkRouteGone, now: float) -> None:
        self.view.link_route_gone(event)

    def _neighbor_seen(self, event: ev.NeighborSeen, now: float) -> None:
        self.view.neighbor_seen(event, now)
        if event.state == NeighborState.REACHABLE and event.ip in self.paths.verdict_fusion.down:
            self.view.changes.ips[event.ip] = None

    def _neighbor_gone(self, event: ev.NeighborGone, now: float) -> None:
        self.view.neighbor_gone(event)

    def _neighbors_probed(self, event: ev.NeighborsProbed, now: float) -> None:
        self.paths.neighbors.probed(event.entries, now)

    def _route_seen(self, event: ev.RouteSeen, now: float) -> None:
        self._ignore_unless(self.tables.route_seen(event.route), "route_known_or_foreign")

    def _route_gone(self, event: ev.RouteGone, now: float) -> None:
        self._ignore_unless(self.tables.route_gone(event.route), "route_known_or_foreign")

    def _rule_seen(self, event: ev.RuleSeen, now: float) -> None:
        self._rule_changed(event.rule, self.tables.rule_seen(event.rule))

    def _rule_gone(self, event: ev.RuleGone, now: float) -> None:
        self._rule_changed(event.rule, self.tables.rule_gone(event.rule))

    def _rule_changed(self, rule: Rule, news: bool) -> None:
        if news:
            self._kernel_retries.succeeded(rule_key(rule))
        self._ignore_unless(news, "rule_known_or_foreign")

    def _ignore_unless(self, news: bool, otherwise: str) -> None:
        if not news:
            self._ignored[otherwise] += 1

    def _routes_programmed(self, event: ev.RoutesProgrammed, now: float) -> None:
        for route in event.deleted:
            self.tables.route_gone(route)
        for route in event.added:
            # A loss may have been notified before this acknowledgement, and the route may be gone too; the mirror has
            # its state.
            if not route.oif or self.paths.acknowledged(route):
                self.tables.route_seen(route)
        for route in event.added + event.deleted:
            self._kernel_retries.succeeded(route_key(route))

    def _route_failed(self, event: ev.RouteFailed, now: float) -> None:
        self.paths.acknowledged(event.route)
        self._kernel_retries.failed(route_key(event.route), now)

    def _rule_failed(self, event: ev.RuleFailed, now: float) -> None:
        self._kernel_retries.failed(rule_key(event.rule), now)

    def _link_set_down(self, event: ev.LinkSetDown, now: float) -> None:
        self.paths.link_set_down(event)

    def _source_snapshot(self, event: ev.SourceSnapshot, now: float) -> None:
        self.source_read, self.source_reason = True, ""
        self.stream_registry.replace(event.streams, now)

    def _source_lost(self, event: ev.SourceLost, now: float) -> None:
        self.source_reason = event.reason or "unknown"

    def _distributor_seen(self, event: ev.DistributorSeen, now: float) -> None:
        self._commits.seen(event)

    def _distributor_lost(self, event: ev.DistributorLost, now: float) -> None:
        self._commits.lost(event)

    def _commit_done(self, event: ev.CommitDone, now: float) -> None:
        self._commits.done(event, now)
        if event.stream not in self.stream_registry.streams:
            self._final_availability += self.availability.forget(event.stream)

    def _commit_failed(self, event: ev.CommitFailed, now: float) -> None:
        self._commits.failed(event, now)

    def _traffic_seen(self, event: ev.TrafficSeen, now: float) -> None:
        if self.view.traffic_seen(event, now):
            self.view.changes.ips |= dict.fromkeys(self.paths.verdict_fusion.down_through(event.ifindex))

    def _verdict_reported(self, event: ev.VerdictReported, now: float) -> Effect:
        taken, ips, outdated = self.paths.verdict_fusion.apply(event, now)
        if taken.reason:
            self._ignored[f"verdict_{taken.reason}"] += 1
        self.paths.neighbors.outdated(outdated)
        self.view.changes.ips |= ips
        return VerdictAnswered(ticket=event.ticket, reason=taken.reason, generation=taken.generation)

    def _neighbors_outdated(self, event: ev.NeighborsOutdated, now: float) -> None:
        entries = self.paths.neighbors.entries_of(event.ips, event.new_mac)
        self.paths.neighbors.outdated(entries)
        self._ignore_unless(bool(entries), "neighbor_not_outdated")

    def _targets_idle(self, event: ev.TargetsIdle, now: float) -> None:
        for mark in event.marks:
            target = self.stream_registry.by_mark.get(mark)
            if target is not None and target.unlisted:
                self.stream_registry.end_drain(target, now, "drain_idle")

    def _affinity_reported(self, event: ev.AffinityReported, now: float) -> None:
        self._commits.steered(event.in_force)

    def _settings_changed(self, event: ev.SettingsChanged, now: float) -> None:
        before, self.config = self.config, self.config.with_live(event.config)
        self._live_config.change(before, self.config, now, self.seen_until(now))

    # Steps of a decision

    def _announcements(self) -> list[Effect]:
        ready = self.view.changes.ready
        effects: list[Effect] = []
        for key, ips in ready.items():
            addresses = tuple(ip for ip in dict.fromkeys(ips) if self.view.holds(key, ip))
            if addresses and not self.config.observe:
                link = self.view.links[key.ifindex]
                effects.append(Announce(link=key, ifname=link.name, mac=link.mac, addresses=addresses))
        ready.clear()
        return effects

    def _fire_retries(self, now: float) -> None:
        self._commits.fire(now)
        for key in self._kernel_retries.pop_due(now):
            if isinstance(key, RouteKey):
                self.tables.routes.retry(key)
            else:
                self.tables.rules.retry(key)

    def _adopt(self, now: float) -> None:
        for stream, active in self._commits.adoptable():
            self.stream_registry.adopt(stream, active, now)
            self._prune_due = True

    def _mark_changed(self) -> None:
        """Mark exactly the targets that are affected by a change of the kernel."""
        changes = self.view.take_changes()
        self._ignored.update(changes.ignored)
        dirty = self.stream_registry.dirty
        for ip in changes.ips:
            dirty.update(self.stream_registry.by_ip.get(ip, {}))
        for mark in self.tables.changed_marks:
            target = self.stream_registry.by_mark.get(mark)
            if target is not None:
                dirty[target] = None
        self.tables.changed_marks.clear()
        self.paths.note(changes)

    def _evaluate(self, target: Target, now: float) -> None:
        self.paths.evaluate(target, now)
        if self.config.affinity:
            self.affinity.evaluated(target)
        if self.config.parking:
            self.parking.touch(target)

    def _judge(self, target: Target, now: float) -> None:
        stream = self.stream_registry.streams.get(target.key.stream)
        # Between repair and decision the target may have been removed.
        if stream is not None and stream.adopted and stream.targets.get(target.key.identifier) is target:
            self.life.judge(stream, target, now)
            self._end_drain_of_lost(target, now)

    def _end_drain_of_lost(self, target: Target, now: float) -> None:
        """Remove a target that is not listed any more and is lost: nobody will repair it."""
        if target.unlisted and (target.state is TargetState.WITHDRAWN or target.cut_off(now)):
            self.stream_registry.end_drain(target, now, target.cause.value)

    def _expire(self, now: float) -> None:
        # Before the deadlines: one that an operator's hold outlasted applies at its end.
        for released in self.manual.expire(self.stream_registry.streams, now):
            self._evaluate(released, now)
            self._judge(released, now)
        for key in self.life.pardons.pop_due(now) + self.paths.verdict_fusion.rechecks.pop_due(now):
            target = self.stream_registry.target(key)
            if target is not None:
                self._evaluate(target, now)
                self._judge(target, now)
        # While the view is not in sync, a path may have come back unobserved: no deadline withdraws.
        for key in self.life.deadlines.pop_due(now) if self.in_sync else ():
            target = self.stream_registry.target(key)
            if target is None:
                continue
            if self.observation.soon_mended(target, now):
                self.life.deadlines.set(key, self.observation.repaired_at)
            else:
                self.life.expire(self.stream_registry.streams[key.stream], target, now)
                if self.config.parking:
                    self.parking.touch(target)
                # Of a target that was pardoned, another family may be lost, or it is to be drained.
                self._judge(target, now)
        for key in self.life.drains.pop_due(now):
            target = self.stream_registry.target(key)
            if target is not None and target.unlisted:
                self.stream_registry.end_drain(target, now, "drain_window")

    def _watch_mass_failures(self, now: float) -> None:
        # A stream may have ended since its targets moved.
        self.stream_registry.review.update(
            (name, None) for name in self.life.moved if name in self.stream_registry.streams
        )
        self.life.moved.clear()
        for name in self.stream_registry.review:
            stream = self.stream_registry.streams[name]
            mass = stream.mass_failure(self.config)
            if stream.was_mass and not mass:
                self.life.holds.thaw(stream, now)
            stream.was_mass = mass

    def _prune(self) -> list[Effect]:
        """Desire the removal of an earlier run's leftovers for streams and targets that are no longer listed.

        This waits until every stream's table was read, and the tables of unlisted streams are gone: until then packets
        may still get a mark.
        """
        streams = self.stream_registry.streams.values()
        if not self._prune_due or not all(stream.adopted or stream.removed for stream in streams):
            return []
        self._prune_due = False
        unlisted = self.tables.marks() - self.stream_registry.by_mark.keys() - self.stream_registry.retiring.keys()
        if self._foreign_streams_pruned:
            for mark in sorted(unlisted):
                self.paths.retire(mark)
            return []
        return [PruneStreams(known=tuple(self.stream_registry.streams))]

    def _streams_pruned(self, event: ev.StreamsPruned, now: float) -> None:
        self._foreign_streams_pruned = True
        self._prune_due = True

    def _report_availability(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for name in self.stream_registry.review:
            stream = self.stream_registry.streams[name]
            if stream.adopted:
                usable = stream.counts[TargetState.ACTIVE]
                if usable and len(self.life.pardons):
                    # A pardon keeps the table unchanged, but availability follows the evidence.
                    usable = sum(target.usable for target in stream.targets.values())
                available = self.availability.get(name)[0]
                reason = availability_reason(stream, usable, self.config, available=available)
                effects += self.availability.update(name, reason, now)
        self.stream_registry.review.clear()
        effects += self.availability.expire(now)
        effects += self._final_availability
        self._final_availability = []
        return effects


_OBSERVERS: dict[type, Callable[[Engine, Any, float], Any]] = {
    ev.StreamsPruned: Engine._streams_pruned,
    ev.TrafficSeen: Engine._traffic_seen,
    ev.VerdictReported: Engine._verdict_reported,
    ev.NeighborsOutdated: Engine._neighbors_outdated,
    ev.KernelSnapshot: Engine._kernel_snapshot,
    ev.KernelOutOfSync: Engine._kernel_out_of_sync,
    ev.LinkSeen: Engine._link_seen,
    ev.LinkGone: Engine._link_gone,
    ev.AddressSeen: Engine._address_seen,
    ev.AddressGone: Engine._address_gone,
    ev.LinkRouteSeen: Engine._link_route_seen,
    ev.LinkRouteGone: Engine._link_route_gone,
    ev.NeighborSeen: Engine._neighbor_seen,
    ev.NeighborGone: Engine._neighbor_gone,
    ev.NeighborsProbed: Engine._neighbors_probed,
    ev.RouteSeen: Engine._route_seen,
    ev.RouteGone: Engine._route_gone,
    ev.RuleSeen: Engine._rule_seen,
    ev.RuleGone: Engine._rule_gone,
    ev.SourceSnapshot: Engine._source_snapshot,
    ev.SourceLost: Engine._source_lost,
    ev.DistributorSeen: Engine._distributor_seen,
    ev.DistributorLost: Engine._distributor_lost,
    ev.CommitDone: Engine._commit_done,
    ev.CommitFailed: Engine._commit_failed,
    ev.RoutesProgrammed: Engine._routes_programmed,
    ev.RouteFailed: Engine._route_failed,
    ev.RuleFailed: Engine._rule_failed,
    ev.LinkSetDown: Engine._link_set_down,
    ev.Stalled: Engine._stalled,
    ev.HoldsRemembered: Engine._holds_remembered,
    ev.TargetsIdle: Engine._targets_idle,
    ev.AffinityReported: Engine._affinity_reported,
    ev.OverrideRequested: Engine._override_requested,
    ev.SettingsChanged: Engine._settings_changed,
}
