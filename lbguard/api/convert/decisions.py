"""Decisions and their evidence."""

import math

from lbguard.api.convert.states import override_from_proto, override_to_proto, state_from_proto, state_to_proto
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.core.addr import format_ip, parse_ip
from lbguard.core.model import Action, Condition, Decision, Evidence, TargetKey


def decision_to_proto(decision: Decision, wall_time: float) -> pb.Decision:
    """Return the message of a decision.

    Args:
        decision: the decision.
        wall_time: when it was taken, seconds since the epoch.
    """
    message = pb.Decision(
        sequence=decision.sequence,
        at_s=decision.at,
        stream=decision.target.stream,
        identifier=decision.target.identifier,
        action=decision.action,
        state_from=pb.TARGET_STATE_UNSPECIFIED if decision.state_from is None else state_to_proto(decision.state_from),
        state_to=pb.TARGET_STATE_UNSPECIFIED if decision.state_to is None else state_to_proto(decision.state_to),
        cause=decision.cause,
        deadline_s=decision.deadline,
        duration_s=decision.duration_s,
        evidence=[
            pb.Evidence(
                ip=format_ip(item.ip),
                condition=item.condition,
                ifname=item.ifname,
                ifindex=item.ifindex,
                neighbor=item.neighbor,
                detail=item.detail,
                verdict=item.verdict,
                withdrawn=item.withdrawn,
            )
            for item in decision.evidence
        ],
        override=override_to_proto(decision.override),
    )
    nanos = round(wall_time * 1e9)
    message.time.seconds, message.time.nanos = math.floor(nanos // 10**9), nanos % 10**9
    return message


def decision_from_proto(message: pb.Decision) -> tuple[Decision, float]:
    """Return the decision of a message and when it was taken (seconds since the epoch).

    Raises:
        ValueError: it holds an action, state, condition or address that this version does not know.
    """
    unspecified = pb.TARGET_STATE_UNSPECIFIED
    decision = Decision(
        sequence=message.sequence,
        at=message.at_s,
        target=TargetKey(message.stream, message.identifier),
        action=Action(message.action),
        state_from=None if message.state_from == unspecified else state_from_proto(message.state_from),
        state_to=None if message.state_to == unspecified else state_from_proto(message.state_to),
        cause=message.cause,
        deadline=message.deadline_s if message.HasField("deadline_s") else None,
        duration_s=message.duration_s if message.HasField("duration_s") else None,
        evidence=tuple(
            Evidence(
                ip=parse_ip(item.ip),
                condition=Condition(item.condition),
                ifname=item.ifname,
                ifindex=item.ifindex,
                neighbor=item.neighbor,
                detail=item.detail,
                verdict=item.verdict,
                withdrawn=item.withdrawn,
            )
            for item in message.evidence
        ),
        override=override_from_proto(message.override) if message.HasField("override") else None,
    )
    return decision, message.time.seconds + message.time.nanos / 1e9
