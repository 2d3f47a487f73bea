"""Targets: paths, verdicts and the next decision."""

from lbguard.api.convert.states import override_from_proto, override_to_proto, state_from_proto, state_to_proto
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.core.model import Action, VerdictState
from lbguard.core.status import PathStatus, Prediction, TargetStatus, VerdictStatus


def target_to_proto(target: TargetStatus) -> pb.Target:
    """Return the message of a target."""
    return pb.Target(
        stream=target.stream,
        identifier=target.identifier,
        mark=target.mark,
        state=state_to_proto(target.state),
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
        override=override_to_proto(target.override),
    )


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
        state=state_from_proto(message.state),
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
        override=override_from_proto(message.override) if message.HasField("override") else None,
    )
