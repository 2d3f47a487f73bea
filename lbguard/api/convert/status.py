"""The status as a whole: streams, links, flow affinity and parking."""

from lbguard.api.convert.states import state_from_proto, state_to_proto
from lbguard.api.convert.targets import target_from_proto, target_to_proto
from lbguard.api.gen.v1 import lbguard_pb2 as pb
from lbguard.core.model import TargetState
from lbguard.core.status import (
    AffinityStatus,
    FamilyStatus,
    FlowMap,
    GuardStatus,
    LinkStatus,
    ParkedPackets,
    ParkingStatus,
    SettingsFileStatus,
    StreamStatus,
    WaitingSetting,
)


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
        settings_file=None if status.settings_file is None else _settings_file_to_proto(status.settings_file),
        wall_time_s=status.wall_time,
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
        settings_file=_settings_file_from_proto(message.settings_file) if message.HasField("settings_file") else None,
        wall_time=message.wall_time_s if message.HasField("wall_time_s") else None,
    )


def _settings_file_to_proto(file: SettingsFileStatus) -> pb.SettingsFile:
    return pb.SettingsFile(
        path=file.path,
        problem=file.problem,
        refused_since_s=file.refused_since,
        waiting=[
            pb.SettingDifference(name=each.name, running=each.running, wanted=each.wanted) for each in file.waiting
        ],
    )


def _settings_file_from_proto(message: pb.SettingsFile) -> SettingsFileStatus:
    return SettingsFileStatus(
        path=message.path,
        problem=message.problem,
        refused_since=message.refused_since_s if message.HasField("refused_since_s") else None,
        waiting=tuple(
            WaitingSetting(name=each.name, running=each.running, wanted=each.wanted) for each in message.waiting
        ),
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
        counts=[pb.StateCount(state=state_to_proto(state), count=count) for state, count in stream.counts.items()],
        table_committed=stream.table_committed,
        local_vips=stream.local_vips,
        families=[pb.Family(ipv4=each.ipv4, held=each.held, withdrawn=each.withdrawn) for each in stream.families],
        commit_at_s=stream.commit_at,
    )


def _stream_from_proto(message: pb.Stream) -> StreamStatus:
    counts = dict.fromkeys(TargetState, 0)
    counts |= {state_from_proto(count.state): count.count for count in message.counts}
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
