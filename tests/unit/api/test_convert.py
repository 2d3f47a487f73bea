import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbguard.api.convert.decisions import decision_from_proto, decision_to_proto
from lbguard.api.convert.status import status_from_proto, status_to_proto
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.core.model import Action, Condition, Decision, Evidence, TargetKey, TargetState
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
    SettingsFileStatus,
    StreamStatus,
    TargetStatus,
    WaitingSetting,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
number = st.integers(0, 2**31 - 1)
moment = st.floats(0, 1e9)
state = st.sampled_from(TargetState)
ips = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))

decisions = st.builds(
    Decision,
    sequence=st.integers(0, 2**63),
    at=moment,
    target=st.builds(TargetKey, text, number),
    action=st.sampled_from(Action),
    state_from=st.none() | state,
    state_to=st.none() | state,
    cause=text,
    deadline=st.none() | moment,
    duration_s=st.none() | moment,
    evidence=st.lists(
        st.builds(
            Evidence,
            ip=ips,
            condition=st.sampled_from(Condition),
            ifname=text,
            ifindex=number,
            neighbor=text,
            detail=text,
            withdrawn=st.booleans(),
        ),
        max_size=3,
    ).map(tuple),
)

paths = st.builds(
    PathStatus,
    ip=text,
    condition=text,
    ifname=text,
    ifindex=number,
    neighbor=text,
    mac=text,
    withdrawn=st.booleans(),
    steered=st.booleans(),
)
families = st.builds(FamilyStatus, ipv4=st.booleans(), held=number, withdrawn=number)
affinities = st.builds(
    AffinityStatus,
    mode=text,
    in_force=st.booleans(),
    problem=text,
    flows_max=number,
    maps=st.lists(st.builds(FlowMap, protocol=text, ipv4=st.booleans(), flows=number), max_size=2).map(tuple),
)
parkings = st.builds(
    ParkingStatus,
    in_force=st.booleans(),
    problem=text,
    packets=number,
    memory_bytes=number,
    packets_max=number,
    bytes_max=number,
    max_age_s=moment,
    parked=st.lists(
        st.builds(
            ParkedPackets,
            mark=number,
            ipv4=st.booleans(),
            packets=number,
            memory_bytes=number,
            since=moment,
            given_back=st.booleans(),
        ),
        max_size=2,
    ).map(tuple),
)
statuses = st.builds(
    GuardStatus,
    now=moment,
    observe=st.booleans(),
    in_sync=st.booleans(),
    sync_reason=text,
    source_ok=st.booleans(),
    source_reason=text,
    streams=st.lists(
        st.builds(
            StreamStatus,
            name=text,
            max_targets=number,
            identifier_offset=number,
            available=st.booleans(),
            availability_reason=text,
            mass_failure=st.booleans(),
            counts=st.fixed_dictionaries(dict.fromkeys(TargetState, number)),
            table_committed=st.booleans(),
            local_vips=st.lists(text, max_size=2).map(tuple),
            families=st.lists(families, max_size=2).map(tuple),
            commit_at=st.none() | moment,
        ),
        max_size=2,
    ).map(tuple),
    targets=st.lists(
        st.builds(
            TargetStatus,
            stream=text,
            identifier=number,
            mark=st.integers(0, 2**32 - 1),
            state=state,
            cause=text,
            since=moment,
            deadline=st.none() | moment,
            commit_at=st.none() | moment,
            penalty=moment,
            paths=st.lists(paths, max_size=2).map(tuple),
            prediction=st.none()
            | st.builds(
                Prediction,
                action=st.sampled_from(Action),
                at=st.none() | moment,
                until=st.none() | moment,
                wait_s=moment,
                why=text,
            ),
            draining=st.booleans(),
            unlisted=st.booleans(),
        ),
        max_size=2,
    ).map(tuple),
    links=st.lists(
        st.builds(
            LinkStatus,
            name=text,
            ifindex=number,
            generation=number,
            up=st.booleans(),
            mac=text,
            addresses=st.lists(text, max_size=2).map(tuple),
            role=text,
        ),
        max_size=2,
    ).map(tuple),
    affinity=st.none() | affinities,
    parking=st.none() | parkings,
    settings_file=st.none()
    | st.builds(
        SettingsFileStatus,
        path=text,
        problem=text,
        refused_since=st.none() | moment,
        waiting=st.lists(st.builds(WaitingSetting, name=text, running=text, wanted=text), max_size=2).map(tuple),
    ),
    wall_time=st.none() | moment,
)


@given(statuses)
def test_a_status_survives_the_wire(status: GuardStatus) -> None:
    message = pb.Status.FromString(status_to_proto(status).SerializeToString())
    assert status_from_proto(message) == status


@given(decisions, st.floats(0, 4e9))
def test_a_decision_survives_the_wire(decision: Decision, wall_time: float) -> None:
    message = pb.Decision.FromString(decision_to_proto(decision, wall_time).SerializeToString())
    back, when = decision_from_proto(message)
    assert back == decision
    assert when == pytest.approx(wall_time, abs=1e-6)


def test_a_prediction_of_a_newer_service_is_none() -> None:
    target = pb.Target(state=pb.TARGET_STATE_HELD, prediction=pb.Prediction(action="park"))
    assert status_from_proto(pb.Status(targets=[target])).targets[0].prediction is None


def test_a_state_of_a_newer_service_is_refused_by_number() -> None:
    message = pb.Status(targets=[pb.Target(state=99)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="99"):
        status_from_proto(message)


def test_draining_has_a_number_of_its_own_after_the_others() -> None:
    message = pb.Target.FromString(bytes([4 << 3, 6]))  # field `state`, number 6
    assert status_from_proto(pb.Status(targets=[message])).targets[0].state is TargetState.DRAINING
