"""Decisions and states that several tests tell about."""

from ipaddress import ip_address

from lbguard.core.model import Action, Condition, Decision, Evidence, TargetKey, TargetState
from lbguard.core.status import (
    AffinityStatus,
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
)

IPV4 = ip_address("172.16.1.10").packed
IPV6 = ip_address("fd00:1::10").packed


def decision(
    action: Action = Action.HOLD,
    *,
    sequence: int = 1,
    identifier: int = 1,
    cause: str = "no_link",
    at: float = 100.0,
    deadline: float | None = None,
    duration_s: float | None = None,
    evidence: tuple[Evidence, ...] = (Evidence(ip=IPV4, condition=Condition.NO_LINK),),
) -> Decision:
    """Return a decision about target stream-a/IDENTIFIER."""
    return Decision(
        sequence=sequence,
        at=at,
        target=TargetKey("stream-a", identifier),
        action=action,
        state_from=TargetState.ACTIVE,
        state_to=TargetState.HELD,
        cause=cause,
        deadline=deadline,
        duration_s=duration_s,
        evidence=evidence,
    )


def path(
    ip: str = "172.16.1.10",
    condition: str = "ok",
    ifname: str = "lb-a",
    *,
    withdrawn: bool = False,
    steered: bool = False,
) -> PathStatus:
    """Return one path."""
    return PathStatus(
        ip=ip,
        condition=condition,
        ifname=ifname,
        ifindex=7,
        neighbor="reachable",
        mac="02:00:00:00:00:01" if condition == "ok" else "-",
        withdrawn=withdrawn,
        steered=steered,
    )


def affinity(*, in_force: bool = True, problem: str = "", tcp4: int = 12) -> AffinityStatus:
    """Return the status of flow affinity, with maps of 100 flows."""
    maps = (FlowMap(protocol="tcp", ipv4=True, flows=tcp4), FlowMap(protocol="tcp", ipv4=False, flows=3))
    return AffinityStatus(mode="incident", in_force=in_force, problem=problem, flows_max=100, maps=maps)


def parking(*, in_force: bool = True, problem: str = "", packets: int = 12, given_back: bool = False) -> ParkingStatus:
    """Return the status of parking, with packets of one family of target 2, and room for 100."""
    return ParkingStatus(
        in_force=in_force,
        problem=problem,
        packets=packets,
        memory_bytes=packets * 1024,
        packets_max=100,
        bytes_max=2**20,
        max_age_s=15.0,
        parked=(
            ParkedPackets(
                mark=5002, ipv4=True, packets=packets, memory_bytes=packets * 1024, since=97.5, given_back=given_back
            ),
        )
        if packets
        else (),
    )


def target(
    identifier: int = 1,
    state: TargetState = TargetState.ACTIVE,
    *,
    cause: str = "",
    deadline: float | None = None,
    penalty: float = 0.0,
    paths: tuple[PathStatus, ...] = (path(),),
    prediction: Prediction | None = None,
    draining: bool = False,
    unlisted: bool = False,
    commit_at: float | None = None,
) -> TargetStatus:
    """Return the status of target stream-a/IDENTIFIER."""
    return TargetStatus(
        stream="stream-a",
        identifier=identifier,
        mark=5000 + identifier,
        state=state,
        cause=cause,
        since=90.0,
        deadline=deadline,
        penalty=penalty,
        paths=paths,
        prediction=prediction,
        draining=draining,
        unlisted=unlisted,
        commit_at=commit_at,
    )


def guard_status(
    *targets: TargetStatus,
    now: float = 100.0,
    available: bool = True,
    affinity: AffinityStatus | None = None,
    parking: ParkingStatus | None = None,
    settings_file: SettingsFileStatus | None = None,
    wall_time: float | None = None,
) -> GuardStatus:
    """Return a status of one stream with these targets."""
    counts = {state: sum(item.state is state for item in targets) for state in TargetState}
    return GuardStatus(
        now=now,
        observe=False,
        in_sync=True,
        sync_reason="",
        source_ok=True,
        source_reason="",
        streams=(
            StreamStatus(
                name="stream-a",
                max_targets=100,
                identifier_offset=5000,
                available=available,
                availability_reason="" if available else "no usable path",
                mass_failure=False,
                counts=counts,
                table_committed=True,
            ),
        ),
        targets=targets,
        links=(
            LinkStatus(
                name="lb-a",
                ifindex=7,
                generation=2,
                up=True,
                mac="02:00:00:00:00:07",
                addresses=("172.16.1.1/24", "fd00:1::1/64"),
                role="owner",
            ),
        ),
        affinity=affinity,
        parking=parking,
        settings_file=settings_file,
        wall_time=wall_time,
    )
