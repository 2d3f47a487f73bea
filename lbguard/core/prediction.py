"""Predictions: the next action on each target if nothing changes, from its deadlines and a copy of the streams' counts.

`Lifecycle.due` gives the input of each deadline, as in the real decision, and `Stream.move` keeps the counts. So a
prediction holds as long as no path and no list changes.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from lbguard.core.addr import is_ipv4
from lbguard.core.config import EngineConfig
from lbguard.core.fsm import TRANSITIONS, Input
from lbguard.core.lifecycle import Lifecycle
from lbguard.core.model import SOFT, Action, Condition, TargetKey, TargetState
from lbguard.core.state import Stream, Target
from lbguard.core.status import Prediction


def predict(
    config: EngineConfig,
    life: Lifecycle,
    streams: Iterable[Stream],
    now: float,
    held_up: str,
    acts_at: Callable[[Target, float], float],
) -> dict[TargetKey, Prediction]:
    """Return the next action for every target with a pending deadline. Changes nothing.

    Args:
        config: the engine's.
        life: keeps the deadlines and gives their inputs.
        streams: all streams.
        now: the engine's clock, seconds.
        held_up: why no deadline takes effect at present; empty: they do.
        acts_at: returns when a target's deadline takes effect, at or after a moment.
    """
    by_name = {stream.spec.name: stream for stream in streams}
    found = {
        target.key: prediction
        for stream in by_name.values()
        for target in stream.targets.values()
        if (prediction := _without_deadline(config, target, now))
    }
    copies = {name: replace(stream, counts=Counter(stream.counts)) for name, stream in by_name.items()}
    for at, key, pardon in _moments(life):
        stream = by_name.get(key.stream)
        target = stream.targets.get(key.identifier) if stream else None
        if target is None:
            continue
        if pardon:
            if target.state is TargetState.ACTIVE and target.judge(math.inf) is not Condition.OK:
                found[key] = Prediction(action=Action.HOLD, at=at)
                copies[key.stream].move(copy.copy(target), TargetState.HELD, at)
        elif target.partial and target.state is TargetState.HELD:
            continue  # its deadline will be dropped
        elif held_up:
            found[key] = Prediction(action=Action.STAY, why=held_up)
        else:
            found[key] = _at_deadline(config, life, copies[key.stream], target, acts_at(target, max(at, now)))
    return found


def _moments(life: Lifecycle) -> list[tuple[float, TargetKey, bool]]:
    """Return all deadlines and ends of pardons in the order in which they take effect."""
    pardons = [(at, key, True) for at, key in life.pardons.in_order()]
    return sorted(pardons + [(at, key, False) for at, key in life.deadlines.in_order()], key=lambda moment: moment[0])


def _at_deadline(config: EngineConfig, life: Lifecycle, stream: Stream, target: Target, at: float) -> Prediction:
    """Return the action of a deadline, and apply it to the copy of the stream."""
    what = life.due(stream, target, at)
    state, action = TRANSITIONS[target.state, what]
    why = ""
    until = None
    if action in (Action.FREEZE, Action.PARDON):
        # A freeze that an earlier run began continues.
        until = (min(at, target.frozen_at) if action is Action.FREEZE else at) + config.freeze.limit_s
    if what is Input.DEADLINE_MASS or (target.state is TargetState.FROZEN and stream.mass_failure(config)):
        why = f"{stream.broken} of {stream.admitted} targets are broken"
        if action is Action.STAY:
            until = target.frozen_at + config.freeze.limit_s
    elif what is Input.DEADLINE_VETOED:
        why = "soft evidence would withdraw too much of the stream"
    if state is not target.state:
        stream.move(copy.copy(target), state, at)
    return Prediction(action=action, at=at, until=until, why=why)


def _without_deadline(config: EngineConfig, target: Target, now: float) -> Prediction | None:
    match target.state:
        case TargetState.PENDING:
            return Prediction(action=Action.ADMIT)
        case TargetState.HELD if target.partial:
            return Prediction(action=Action.HOLD, why=_families(target))
        case TargetState.WITHDRAWN if not target.waiting:
            return Prediction(action=Action.READMIT, wait_s=target.penalty.wait_s(config.damping, now))
    return None


def _families(target: Target) -> str:
    """Name the lost and the working family of a target."""
    hard = {
        ip for ip, path in target.paths.items() if path.condition is not Condition.OK and path.condition not in SOFT
    }
    lost, well = (
        " and ".join("IPv4" if is_ipv4(ip) else "IPv6" for ip in target.paths if (ip in hard) is wanted)
        for wanted in (True, False)
    )
    return f"{lost} is lost, {well} is ok"
