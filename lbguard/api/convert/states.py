"""States of targets, commands of operators and their overrides."""

from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.core.model import ManualAction, Override, TargetState

_TO_STATE = {
    TargetState.PENDING: pb.TARGET_STATE_PENDING,
    TargetState.ACTIVE: pb.TARGET_STATE_ACTIVE,
    TargetState.HELD: pb.TARGET_STATE_HELD,
    TargetState.FROZEN: pb.TARGET_STATE_FROZEN,
    TargetState.WITHDRAWN: pb.TARGET_STATE_WITHDRAWN,
    TargetState.DRAINING: pb.TARGET_STATE_DRAINING,
}


_FROM_STATE = {number: state for state, number in _TO_STATE.items()}


TO_MANUAL = {
    ManualAction.DRAIN: pb.MANUAL_ACTION_DRAIN,
    ManualAction.HOLD: pb.MANUAL_ACTION_HOLD,
    ManualAction.WITHDRAW: pb.MANUAL_ACTION_WITHDRAW,
    ManualAction.RELEASE: pb.MANUAL_ACTION_RELEASE,
}


FROM_MANUAL = {number: action for action, number in TO_MANUAL.items()}


def state_to_proto(state: TargetState) -> "pb.TargetState.ValueType":
    """Return the number of a state."""
    return _TO_STATE[state]


def state_from_proto(number: "pb.TargetState.ValueType") -> TargetState:
    """Return the state of a number.

    Raises:
        ValueError: this version does not know it.
    """
    state = _FROM_STATE.get(number)
    if state is None:
        raise ValueError(f"target state {number} is not known to this version")
    return state


def override_to_proto(override: Override | None) -> pb.Override | None:
    """Return the message of an override; None: there is none."""
    if override is None:
        return None
    return pb.Override(
        action=TO_MANUAL[override.action],
        since_s=override.since,
        until_s=override.until,
        who=override.who,
        reason=override.reason,
    )


def override_from_proto(message: pb.Override) -> Override | None:
    """Return the override of a message; None: it is of a newer service."""
    action = FROM_MANUAL.get(message.action)
    if action is None:
        return None
    return Override(action=action, since=message.since_s, until=message.until_s, who=message.who, reason=message.reason)
