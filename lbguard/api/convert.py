"""Between the core's values and the messages of the API. Pure; going there and back loses nothing."""

import math

from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.core.addr import format_ip, parse_ip
from lbguard.core.model import (
    Action,
    Condition,
    Decision,
    Evidence,
    ManualAction,
    Override,
    TargetKey,
    TargetState,
    VerdictState,
)
from lbguard.core.status import (
    AffinityStatus,
    FamilyStatus,
    FlowMap,
    GuardStatus,
    LinkStatus,
    ParkedPackets,
    ParkingStatus,
    PathStatus,
    Prediction,
    StreamStatus,
    TargetStatus,
    VerdictStatus,
)

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


def status_to_proto(status: GuardStatus) -> pb.Status:
    """Return the message of a status."""
    return pb.Status(
        now_s=status.now,
        observe=status.observe,
        in_sync=status.in_sync,
        sync_reason=status.sync_reason,
        source_ok=status.source_ok,
        source_reason=status.source_reason,
        streams=[_stream_to_proto(stream) for stream in status.streams],
        targets=[target_to_proto(target) for target in status.targets],
        links=[
            pb.Link(
                name=link.name,
                ifindex=link.ifindex,
                generation=link.generation,
                up=link.up,
                mac=link.mac,
                addresses=link.addresses,
                role=link.role,
            )
            for link in status.links
        ],
        affinity=None if status.affinity is None else _affinity_to_proto(status.affinity),
        parking=None if status.parking is None else _parking_to_proto(status.parking),
    )


def status_from_proto(message: pb.Status) -> GuardStatus:
    """Return the status of a message.

    Raises:
        ValueError: it holds a state that this version does not know.
    """
    return GuardStatus(
        now=message.now_s,
        observe=message.observe,
        in_sync=message.in_sync,
        sync_reason=message.sync_reason,
        source_ok=message.source_ok,
        source_reason=message.source_reason,
        streams=tuple(_stream_from_proto(stream) for stream in message.streams),
        targets=tuple(target_from_proto(target) for target in message.targets),
        links=tuple(
            LinkStatus(
                name=link.name,
                ifindex=link.ifindex,
                generation=link.generation,
                up=link.up,
                mac=link.mac,
                addresses=tuple(link.addresses),
                role=link.role,
            )
            for link in message.links
        ),
        affinity=_affinity_from_proto(message.affinity) if message.HasField("affinity") else None,
        parking=_parking_from_proto(message.parking) if message.HasField("parking") else None,
    )


def _affinity_to_proto(affinity: AffinityStatus) -> pb.Affinity:
    return pb.Affinity(
        mode=affinity.mode,
        in_force=affinity.in_force,
        problem=affinity.problem,
        flows_max=affinity.flows_max,
        maps=[pb.FlowMap(protocol=each.protocol, ipv4=each.ipv4, flows=each.flows) for each in affinity.maps],
    )


def _affinity_from_proto(message: pb.Affinity) -> AffinityStatus:
    return AffinityStatus(
        mode=message.mode,
        in_force=message.in_force,
        problem=message.problem,
        flows_max=message.flows_max,
        maps=tuple(FlowMap(protocol=each.protocol, ipv4=each.ipv4, flows=each.flows) for each in message.maps),
    )


def _parking_to_proto(parking: ParkingStatus) -> pb.Parking:
    return pb.Parking(
        in_force=parking.in_force,
        problem=parking.problem,
        packets=parking.packets,
        bytes=parking.memory_bytes,
        packets_max=parking.packets_max,
        bytes_max=parking.bytes_max,
        max_age_s=parking.max_age_s,
        parked=[
            pb.ParkedPackets(
                mark=each.mark,
                ipv4=each.ipv4,
                packets=each.packets,
                bytes=each.memory_bytes,
                since_s=each.since,
                given_back=each.given_back,
            )
            for each in parking.parked
        ],
    )


def _parking_from_proto(message: pb.Parking) -> ParkingStatus:
    return ParkingStatus(
        in_force=message.in_force,
        problem=message.problem,
        packets=message.packets,
        memory_bytes=message.bytes,
        packets_max=message.packets_max,
        bytes_max=message.bytes_max,
        max_age_s=message.max_age_s,
        parked=tuple(
            ParkedPackets(
                mark=each.mark,
                ipv4=each.ipv4,
                packets=each.packets,
                memory_bytes=each.bytes,
                since=each.since_s,
                given_back=each.given_back,
            )
            for each in message.parked
        ),
    )


def _stream_to_proto(stream: StreamStatus) -> pb.Stream:
    return pb.Stream(
        name=stream.name,
        max_targets=stream.max_targets,
        identifier_offset=stream.identifier_offset,
        available=stream.available,
        availability_reason=stream.availability_reason,
        mass_failure=stream.mass_failure,
        counts=[pb.StateCount(state=_TO_STATE[state], count=count) for state, count in stream.counts.items()],
        table_committed=stream.table_committed,
        local_vips=stream.local_vips,
        families=[pb.Family(ipv4=each.ipv4, held=each.held, withdrawn=each.withdrawn) for each in stream.families],
        commit_at_s=stream.commit_at,
    )


def _stream_from_proto(message: pb.Stream) -> StreamStatus:
    counts = dict.fromkeys(TargetState, 0)
    counts |= {_state(count.state): count.count for count in message.counts}
    return StreamStatus(
        name=message.name,
        max_targets=message.max_targets,
        identifier_offset=message.identifier_offset,
        available=message.available,
        availability_reason=message.availability_reason,
        mass_failure=message.mass_failure,
        counts=counts,
        table_committed=message.table_committed,
        local_vips=tuple(message.local_vips),
        families=tuple(
            FamilyStatus(ipv4=each.ipv4, held=each.held, withdrawn=each.withdrawn) for each in message.families
        ),
        commit_at=message.commit_at_s if message.HasField("commit_at_s") else None,
    )


def target_to_proto(target: TargetStatus) -> pb.Target:
    """Return the message of a target."""
    return pb.Target(
        stream=target.stream,
        identifier=target.identifier,
        mark=target.mark,
        state=_TO_STATE[target.state],
        cause=target.cause,
        since_s=target.since,
        deadline_s=target.deadline,
        penalty=target.penalty,
        paths=[
            pb.Path(
                ip=path.ip,
                condition=path.condition,
                ifname=path.ifname,
                ifindex=path.ifindex,
                neighbor=path.neighbor,
                mac=path.mac,
                verdict=path.verdict,
                verdicts=[_verdict_to_proto(verdict) for verdict in path.verdicts],
                verdicts_left_out=path.verdicts_left_out,
                withdrawn=path.withdrawn,
                steered=path.steered,
            )
            for path in target.paths
        ],
        prediction=_prediction_to_proto(target.prediction),
        draining=target.draining,
        unlisted=target.unlisted,
        commit_at_s=target.commit_at,
        override=_override_to_proto(target.override),
    )


def _override_to_proto(override: Override | None) -> pb.Override | None:
    if override is None:
        return None
    return pb.Override(
        action=TO_MANUAL[override.action],
        since_s=override.since,
        until_s=override.until,
        who=override.who,
        reason=override.reason,
    )


def _override_from_proto(message: pb.Override) -> Override | None:
    action = FROM_MANUAL.get(message.action)
    if action is None:
        return None  # of a newer service
    return Override(action=action, since=message.since_s, until=message.until_s, who=message.who, reason=message.reason)


def _prediction_to_proto(prediction: Prediction | None) -> pb.Prediction | None:
    if prediction is None:
        return None
    return pb.Prediction(
        action=prediction.action,
        at_s=prediction.at,
        until_s=prediction.until,
        wait_s=prediction.wait_s,
        why=prediction.why,
    )


def _prediction_from_proto(message: pb.Prediction) -> Prediction | None:
    if message.action not in set(Action):
        return None  # of a newer service: the state suffices
    return Prediction(
        action=Action(message.action),
        at=message.at_s if message.HasField("at_s") else None,
        until=message.until_s if message.HasField("until_s") else None,
        wait_s=message.wait_s,
        why=message.why,
    )


def _verdict_to_proto(verdict: VerdictStatus) -> pb.PathVerdict:
    return pb.PathVerdict(
        reporter=verdict.reporter,
        subject=verdict.subject,
        state=pb.VerdictState.Value(f"VERDICT_STATE_{verdict.state.name}"),
        weight=verdict.weight,
        at_s=verdict.at,
        expires_at_s=verdict.expires_at,
    )


def _verdict_from_proto(message: pb.PathVerdict) -> VerdictStatus:
    return VerdictStatus(
        reporter=message.reporter,
        subject=message.subject,
        state=VerdictState(pb.VerdictState.Name(message.state).removeprefix("VERDICT_STATE_").lower()),
        weight=message.weight,
        at=message.at_s,
        expires_at=message.expires_at_s,
    )


def target_from_proto(message: pb.Target) -> TargetStatus:
    """Return the target of a message.

    Raises:
        ValueError: it holds a state that this version does not know.
    """
    return TargetStatus(
        stream=message.stream,
        identifier=message.identifier,
        mark=message.mark,
        state=_state(message.state),
        cause=message.cause,
        since=message.since_s,
        deadline=message.deadline_s if message.HasField("deadline_s") else None,
        penalty=message.penalty,
        paths=tuple(
            PathStatus(
                ip=path.ip,
                condition=path.condition,
                ifname=path.ifname,
                ifindex=path.ifindex,
                neighbor=path.neighbor,
                mac=path.mac,
                verdict=path.verdict,
                verdicts=tuple(_verdict_from_proto(verdict) for verdict in path.verdicts),
                verdicts_left_out=path.verdicts_left_out,
                withdrawn=path.withdrawn,
                steered=path.steered,
            )
            for path in message.paths
        ),
        prediction=_prediction_from_proto(message.prediction) if message.HasField("prediction") else None,
        draining=message.draining,
        unlisted=message.unlisted,
        commit_at=message.commit_at_s if message.HasField("commit_at_s") else None,
        override=_override_from_proto(message.override) if message.HasField("override") else None,
    )


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
        state_from=pb.TARGET_STATE_UNSPECIFIED if decision.state_from is None else _TO_STATE[decision.state_from],
        state_to=pb.TARGET_STATE_UNSPECIFIED if decision.state_to is None else _TO_STATE[decision.state_to],
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
        override=_override_to_proto(decision.override),
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
        state_from=None if message.state_from == unspecified else _state(message.state_from),
        state_to=None if message.state_to == unspecified else _state(message.state_to),
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
        override=_override_from_proto(message.override) if message.HasField("override") else None,
    )
    return decision, message.time.seconds + message.time.nanos / 1e9


def state_to_proto(state: TargetState) -> "pb.TargetState.ValueType":
    """Return the number of a state."""
    return _TO_STATE[state]


def state_from_proto(number: "pb.TargetState.ValueType") -> TargetState:
    """Return the state of a number.

    Raises:
        ValueError: this version does not know it.
    """
    return _state(number)


def _state(number: "pb.TargetState.ValueType") -> TargetState:
    state = _FROM_STATE.get(number)
    if state is None:
        raise ValueError(f"target state {number} is not known to this version")
    return state
