"""Flow affinity of a stream: which targets keep their flows, and which new connections may be given to. Pure.

The kernel carries it out packet by packet (`lbguard/affinity`); here is what it needs to know of each stream.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from lbguard.core.addr import is_ipv4
from lbguard.core.model import ADMITTED, Condition, TargetState
from lbguard.core.state import Stream, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySteering:
    """Targets of a stream in one family, by their fwmarks in ascending order.

    `healthy`: new flows may be given to them in place of a target that is cut off. `avoid`: get no new flow.
    """

    healthy: tuple[int, ...] = ()
    avoid: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSteering:
    """Affinity of one stream.

    `marks`: every registered target. `served`: those whose flows stay with them; a flow of any other falls back to the
    table. `learning`: new flows are remembered, since a registered target is not active.
    """

    stream: str
    marks: tuple[int, ...]
    served: tuple[int, ...]
    ipv4: FamilySteering
    ipv6: FamilySteering
    learning: bool


def steering(stream: Stream) -> StreamSteering:
    """Return the affinity of a stream as it stands."""
    targets = [stream.targets[identifier] for identifier in sorted(stream.targets)]
    return StreamSteering(
        stream=stream.spec.name,
        marks=tuple(target.mark for target in targets),
        served=tuple(target.mark for target in targets if target.state in ADMITTED),
        ipv4=_family(targets, ipv4=True),
        ipv6=_family(targets, ipv4=False),
        learning=any(target.state is not TargetState.ACTIVE for target in targets),
    )


def _family(targets: Iterable[Target], *, ipv4: bool) -> FamilySteering:
    healthy, avoid = [], []
    for target in targets:
        conditions = [path.condition for ip, path in target.paths.items() if is_ipv4(ip) is ipv4]
        if target.state not in ADMITTED or not conditions:
            continue
        well = all(condition is Condition.OK for condition in conditions)
        (healthy if well else avoid).append(target.mark)
    # With no other target to go to, a new flow is best off where the table sends it.
    return FamilySteering(healthy=tuple(healthy), avoid=tuple(avoid) if healthy else ())
