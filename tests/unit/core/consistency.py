"""Checks of what the parts of an engine keep about each other, for the tests of the core and for the simulator."""

from collections import Counter

from lbguard.core.addr import Ip, prefix_of
from lbguard.core.engine import Engine
from lbguard.core.model import TargetKey, TargetState
from lbguard.core.state import Stream, Target


def check_consistency(engine: Engine) -> None:
    """Check counts and indexes against a recount. Raises AssertionError."""
    streams = engine.stream_registry.streams.values()
    targets = [target for stream in streams for target in stream.targets.values()]
    for stream in streams:
        _check_counts(stream)
    by_ip: dict[Ip, set[TargetKey]] = {}
    for target in targets:
        for ip in target.paths:
            by_ip.setdefault(ip, set()).add(target.key)
    _check_indexes(engine, targets, by_ip)
    _check_timers(engine, targets)
    ownership = engine.view._ownership
    kept, computed = set(ownership.to_remember()), set(ownership._find_to_remember())
    assert kept == computed, f"subnets to remember: {kept}, not {computed}"
    if engine.running:
        _check_members(engine, set(by_ip))


def at_rest(engine: Engine) -> bool:
    """Return whether nothing is left to be done: no retry waits, no mark retires, every table is what it should be."""
    registry = engine.stream_registry
    return (
        engine._kernel_retries.next() is None
        and all(stream.adopted and stream.committed == stream.desired_pair() for stream in registry.streams.values())
        and not registry.retiring
        and engine.tables.marks() <= registry.by_mark.keys()
    )


def opinion_count(engine: Engine) -> int:
    """Return how many opinions of reporters are kept."""
    return len(engine.paths.verdict_fusion.opinions)


def _check_counts(stream: Stream) -> None:
    name, counts = stream.spec.name, Counter(target.state for target in stream.targets.values())
    assert +stream.counts == counts, f"{name}: counts {stream.counts}, recounted {counts}"
    assert min(stream.counts.values(), default=0) >= 0, f"{name}: counts {stream.counts}"
    halved = [t for t in stream.targets.values() if t.halved]
    assert stream.halved == len(halved), f"{name}: halved {stream.halved}, not {len(halved)}"
    assert all(t.state is TargetState.HELD and t.partial for t in halved), f"{name}: {halved}"
    soft = sum(target.state is TargetState.WITHDRAWN and target.soft for target in stream.targets.values())
    assert stream.soft_withdrawn == soft, f"{name}: soft budget {stream.soft_withdrawn}, not {soft}"


def _check_indexes(engine: Engine, targets: list[Target], by_ip: dict[Ip, set[TargetKey]]) -> None:
    registry = engine.stream_registry
    assert registry.by_mark == {target.mark: target for target in targets}, "by_mark leaks"
    assert {ip: {target.key for target in users} for ip, users in registry.by_ip.items()} == by_ip, "by_ip leaks"
    assert set(engine.paths.neighbors._wheel._slice_of) == set(by_ip), "the probe wheel leaks"
    uses = {ip: len(users) for ip, users in by_ip.items()}
    assert engine.view._ownership._uses == uses, "the view leaks addresses"
    assert not registry.retiring.keys() & registry.by_mark.keys(), "a mark is retiring and in use"


def _check_timers(engine: Engine, targets: list[Target]) -> None:
    life, keys = engine.life, {target.key for target in targets}
    for kept in (life.deadlines, life.pardons, life.drains):
        assert set(kept._at) <= keys, "a timer of a target that is gone"
    for target in targets:
        deadline = life.deadlines.get(target.key)
        held = target.state is TargetState.HELD and not target.open_ended
        due = held or target.state is TargetState.FROZEN or target.waiting
        assert (deadline is not None) == due, f"{target.key} is {target.state} and has deadline {deadline}"
        assert not target.waiting or target.state is TargetState.WITHDRAWN
        assert (target.key in life.drains._at) is target.unlisted, f"{target.key} is unlisted, and no end is set"
        assert target.draining or target.state is not TargetState.DRAINING


def _check_members(engine: Engine, ips: set[Ip]) -> None:
    ownership = engine.view._ownership
    wanted: dict[object, dict[Ip, None]] = {}
    for ip in ips:
        for length in ownership._prefix_lengths[len(ip)]:
            wanted.setdefault(prefix_of(ip, length), {})[ip] = None
    assert ownership._members == wanted, "the index of addresses by prefix is wrong"
