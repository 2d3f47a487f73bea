"""Flow affinity, decisions: the targets that keep their flows, and the targets that get new flows. Pure.

The kernel steers the packets (`lbguard/affinity`). This module computes the steering of each stream, and the streams
whose steering changed since the last effect.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from lbguard.core.addr import IPV4_LEN, IPV6_LEN
from lbguard.core.effects import SteerFlows
from lbguard.core.model import ADMITTED, Condition, FamilySteering, StreamSteering, TargetKey, TargetState
from lbguard.core.state import Stream, Target


class Affinity:
    """Tracks targets and streams, and reports the streams whose affinity changed."""

    def __init__(self) -> None:
        self._conditions: dict[TargetKey, tuple[tuple[Condition, bool], ...]] = {}
        self._reported: dict[str, StreamSteering] = {}
        self._changed: dict[str, None] = {}

    def evaluated(self, target: Target) -> None:
        """Record the condition of a target's paths."""
        conditions = tuple([(path.condition, path.unanswered) for path in target.paths.values()])
        if self._conditions.get(target.key) != conditions:
            self._conditions[target.key] = conditions
            self._changed[target.key.stream] = None

    def avoids(self, target: Target, *, ipv4: bool) -> bool:
        """Return whether new flows of a family are given to another target, by what was reported last."""
        steering = self._reported.get(target.key.stream)
        if steering is None:
            return False
        avoid = (steering.ipv4 if ipv4 else steering.ipv6).avoid
        place = bisect_left(avoid, target.mark)
        return place < len(avoid) and avoid[place] == target.mark

    def take(self, streams: Mapping[str, Stream], moved: Iterable[str]) -> list[SteerFlows]:
        """Return the changes since the last call, in one effect. `moved`: streams with targets that changed state."""
        self._changed.update(dict.fromkeys(moved))
        changed = []
        for name in self._changed:
            stream = streams.get(name)
            if stream is None:
                continue
            steering = steering_of(stream)
            if self._reported.get(name) != steering:
                self._reported[name] = steering
                changed.append(steering)
        self._changed.clear()
        gone = [name for name in self._reported if name not in streams]
        for name in gone:
            del self._reported[name]
        if gone or len(self._conditions) > 2 * sum(len(stream.targets) for stream in streams.values()):
            known = {target.key for stream in streams.values() for target in stream.targets.values()}
            self._conditions = {key: value for key, value in self._conditions.items() if key in known}
        return [SteerFlows(streams=tuple(changed), gone=tuple(gone))] if changed or gone else []


def steering_of(stream: Stream) -> StreamSteering:
    """Return the current affinity of a stream.

    Before the stream is adopted, the targets in its table are unknown, and flows that an earlier run remembered must
    not move: every target counts as admitted. A removed target counts as withdrawn until the table has no slot of it.
    """
    targets = [stream.targets[identifier] for identifier in sorted(stream.targets)]
    admitted = [target for target in targets if target.state in ADMITTED or not stream.adopted]
    return StreamSteering(
        stream=stream.spec.name,
        marks=tuple(sorted({target.mark for target in targets} | _still_in_table(stream))),
        ipv4=_family(admitted, ipv4=True),
        ipv6=_family(admitted, ipv4=False),
        # Until the commit is confirmed, a flow may begin by the old table and continue by the new one.
        learning=any(target.state is not TargetState.ACTIVE for target in targets)
        or stream.committed != stream.desired_pair(),
        observing=stream.learn_until is not None,
        draining=tuple([target.mark for target in targets if target.unlisted]),
    )


def _still_in_table(stream: Stream) -> set[int]:
    """Return the marks that packets may get by a table which is confirmed or being committed."""
    pairs = (stream.committed, stream.in_flight)
    return {stream.spec.mark(identifier) for pair in pairs if pair for identifier in pair[1]}


def _family(targets: Sequence[Target], *, ipv4: bool) -> FamilySteering:
    """Return the affinity in one family. A target without an address of the family counts as cut off in it.

    To avoid a target costs nothing. So one that may not answer is avoided at once, as long as another one answers.
    """
    length, ok = IPV4_LEN if ipv4 else IPV6_LEN, Condition.OK
    well: list[int] = []
    answering: list[int] = []
    served: list[int] = []
    # One pass: this is computed for each stream whose targets changed, while others wait for a decision.
    for target in targets:
        good, answers, serves = False, True, True
        for ip, path in target.paths.items():
            if len(ip) == length:
                good = path.condition is ok
                answers = not path.unanswered
                serves = not path.withdrawn
        if good and not target.draining:
            well.append(target.mark)
            if answers:
                answering.append(target.mark)
        if serves:
            served.append(target.mark)
    healthy = answering or well
    spared = set(healthy)
    return FamilySteering(
        healthy=tuple(healthy),
        # Without another target, the table's choice stays.
        avoid=tuple([target.mark for target in targets if target.mark not in spared]) if healthy else (),
        served=tuple(served),
    )
