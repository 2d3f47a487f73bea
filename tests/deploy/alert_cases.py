"""For each alert made-up series with which it fires, and series close to them with which it does not.

A sample comes every 30 seconds, in promtool's notation: `0x10` is 0 eleven times, `0+2x10` grows by 2, `_x10` is no
sample, `stale` is a scrape that failed. `{}` stands for the labels of a pod's series, `{stream="s"}` for those and
more.
"""

from dataclasses import dataclass, field

Series = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Series that fire and series that do not, both looked at after `at_min` minutes.

    `labels` are what the alert has besides severity and, unless `pod` is false, the pod's labels.
    """

    fires: Series
    quiet: tuple[Series, ...]
    severity: str
    at_min: int = 20
    labels: dict[str, str] = field(default_factory=dict)
    pod: bool = True


FULL, NONE = "1x60", "0x60"
GROWS, STANDS = "0+1x60", "7x60"
BEGINS_ANEW = "9x30 0x30"
"""A counter of a process that restarted."""
MISSED = "7x8 stale _x3 7x47"
"""A counter that stands, with scrapes that failed 15 minutes before the alert is looked at."""
STREAM = {"stream": "s"}

_ACTIVE = 'lbguard_target_states{stream="s",state="active"}'
_HELD = 'lbguard_target_states{stream="s",state="held"}'
_AVAILABLE = 'lbguard_stream_available{stream="s"}'
_DRAINED, _TAKEN_OUT, _HELD_BY_HAND = (
    f'lbguard_overrides{{stream="s",action="{action}"}}' for action in ("drain", "withdraw", "hold")
)
_LOSSES = [f'lbguard_target_losses_total{{stream="s",identifier="{identifier}"}}' for identifier in (1, 2, 3)]
_IN_FORCE, _FLOWS_MAX = "lbguard_affinity_in_force{}", "lbguard_affinity_flows_max{}"
_PARKING, _PARKING_MAX = "lbguard_parking_in_force{}", "lbguard_parking_packets_max{}"
_FLOWS = 'lbguard_affinity_flows{protocol="tcp",family="ipv4"}'
_WITHDRAWN_4, _WITHDRAWN_6 = (
    f'lbguard_target_families{{stream="s",family="{family}",state="withdrawn"}}' for family in ("ipv4", "ipv6")
)
_DIGEST = 'lbguard_stream_table_digest{stream="s"}'
_DIGEST_OF_OTHER = 'lbguard_stream_table_digest{stream="s",pod="lb-1",instance="lb-1:9464"}'
_WITHDRAWALS = 'lbguard_withdrawals_total{stream="s",cause="no_link"}'
_RECOVERIES = 'lbguard_recoveries_total{stream="s"}'
_READMISSIONS = 'lbguard_readmissions_total{stream="s"}'
_PACKETS = 'lbguard_stream_packets_total{stream="s"}'
_FALLBACK = 'lbguard_stream_held_packets_total{stream="s"}'


def _state(name: str, severity: str, labels: dict[str, str], bad: str = FULL, good: str = NONE) -> Case:
    """Return the case of an alert about a state: too short a time does not count."""
    text = ",".join(f'{label}="{value}"' for label, value in labels.items())
    series = f"{name}{{{text}}}"
    brief = f"{good.partition('x')[0]}x39 {bad.partition('x')[0]}x0 {good}"
    return Case(fires={series: bad}, quiet=({series: good}, {series: brief}), severity=severity, labels=labels)


def _count(name: str, severity: str, labels: dict[str, str], *, besides: str = "") -> Case:
    """Return the case of an alert about a counter: it fires for the first increment too, and ends when it stands."""
    text = ",".join(f'{label}="{value}"' for label, value in labels.items())
    series = f"{name}{{{text}}}"
    return Case(
        fires={series: "_x30 1x30"},
        quiet=(
            {series: STANDS},
            {series: "0x5 9x55"},
            {series: BEGINS_ANEW},
            {series: MISSED},
            *({f"{name}{{{besides}}}": GROWS} for _ in besides[:1]),
        ),
        severity=severity,
        labels=labels,
    )


CASES = {
    "LbguardStreamUnavailableEverywhere": Case(
        fires={
            _AVAILABLE: NONE,
            'lbguard_stream_available{stream="s",pod="lb-1",instance="lb-1:9464"}': NONE,
            _HELD: "4x60",
        },
        quiet=(
            {
                _AVAILABLE: NONE,
                'lbguard_stream_available{stream="s",pod="lb-1",instance="lb-1:9464"}': FULL,
                _HELD: "4x60",
            },
            {_AVAILABLE: NONE, _ACTIVE: NONE},  # a stream without targets
            {_AVAILABLE: NONE, 'lbguard_target_states{stream="other",state="active"}': "4x60"},
        ),
        severity="critical",
        labels={"namespace": "trench-a", "stream": "s"},
        pod=False,
    ),
    "LbguardOverrideBlocksStream": Case(
        fires={_AVAILABLE: NONE, _DRAINED: FULL, _TAKEN_OUT: NONE},
        quiet=(
            {_AVAILABLE: NONE, _DRAINED: NONE, _TAKEN_OUT: NONE, _HELD_BY_HAND: FULL},
            {_AVAILABLE: FULL, _DRAINED: FULL, _TAKEN_OUT: FULL},
        ),
        severity="warning",
        labels=STREAM,
    ),
    "LbguardStreamUnavailable": Case(
        fires={_AVAILABLE: NONE, _HELD: "4x60"},
        quiet=(
            {_AVAILABLE: FULL, _HELD: "4x60"},
            {_AVAILABLE: NONE, _HELD: NONE},
            {_AVAILABLE: "1x38 0x1 1x30", _HELD: "4x60"},
            {_AVAILABLE: "_x38 0x0 1x30", _ACTIVE: "_x38 4x30"},  # a pod that starts
        ),
        severity="warning",
        labels=STREAM,
    ),
    "LbguardMassFailure": _state("lbguard_stream_mass_failure", "critical", STREAM),
    "LbguardTargetsFrozen": Case(
        fires={'lbguard_freezes_total{stream="s"}': "0x35 3x30"},
        quiet=(
            {'lbguard_freezes_total{stream="s"}': STANDS},
            {'lbguard_freezes_total{stream="s"}': BEGINS_ANEW},
        ),
        severity="warning",
        labels=STREAM,
    ),
    "LbguardTargetsHeld": Case(
        fires={_HELD: "2x60", _WITHDRAWN_4: NONE, _WITHDRAWN_6: FULL},
        quiet=(
            {_HELD: NONE, _WITHDRAWN_4: NONE, _WITHDRAWN_6: NONE},
            {_HELD: "2x60", _WITHDRAWN_4: FULL, _WITHDRAWN_6: FULL},  # each serves its other family
            {_HELD: "0x39 2x0 0x20", _WITHDRAWN_4: NONE, _WITHDRAWN_6: NONE},
        ),
        severity="warning",
        labels=STREAM,
    ),
    "LbguardFamilyWithdrawn": _state(
        "lbguard_target_families", "warning", {"stream": "s", "family": "ipv6", "state": "withdrawn"}
    ),
    "LbguardTargetsWithdrawn": _state(
        "lbguard_target_states", "warning", {"stream": "s", "state": "withdrawn"}, bad="2x60"
    ),
    "LbguardTargetsPending": _state("lbguard_target_states", "warning", {"stream": "s", "state": "pending"}),
    "LbguardHeldPackets": Case(
        fires={_PACKETS: "0+100x60", _FALLBACK: "0+20x60"},
        quiet=({_PACKETS: "0+100x60", _FALLBACK: "0+5x60"}, {_PACKETS: STANDS, _FALLBACK: STANDS}),
        severity="warning",
        labels=STREAM,
    ),
    "LbguardFlapping": Case(
        # One of three is enough.
        fires=dict(zip(_LOSSES, (GROWS, STANDS, NONE), strict=True)),
        quiet=(
            dict.fromkeys(_LOSSES, "0x35 1x30"),  # everything broke once
            dict(zip(_LOSSES, ("0x35 3x30", STANDS, BEGINS_ANEW), strict=True)),
        ),
        severity="warning",
        labels=STREAM,
    ),
    "LbguardEvidenceDisbelieved": Case(
        fires={'lbguard_decisions_total{action="pardon"}': "0x35 1x30"},
        quiet=(
            {'lbguard_decisions_total{action="pardon"}': STANDS},
            {'lbguard_decisions_total{action="hold"}': GROWS},
        ),
        severity="warning",
        labels={"action": "pardon"},
    ),
    "LbguardWithdrawnInVain": Case(
        fires={_WITHDRAWALS: "0+1x60", _READMISSIONS: "0+1x60"},
        quiet=(
            {_WITHDRAWALS: "0+1x60", _READMISSIONS: "0+0.25x60"},
            {_WITHDRAWALS: "0x35 2x30", _READMISSIONS: "0x35 2x30"},  # too few to say so
        ),
        severity="info",
        labels=STREAM,
    ),
    "LbguardHeldInVain": Case(
        fires={_WITHDRAWALS: "0+1x60", _RECOVERIES: NONE, _READMISSIONS: NONE},
        quiet=(
            {_WITHDRAWALS: "0+1x60", _RECOVERIES: "0+1x60", _READMISSIONS: NONE},
            {_WITHDRAWALS: "0+1x60", _RECOVERIES: NONE, _READMISSIONS: "0+1x60"},
            {_WITHDRAWALS: "0x35 2x30", _RECOVERIES: NONE, _READMISSIONS: NONE},
        ),
        severity="info",
        labels=STREAM,
    ),
    "LbguardDown": Case(
        # It is still down after more than an hour.
        fires={"up{}": "1x5 0x300", "lbguard_kernel_in_sync{}": "1x5 stale"},
        quiet=(
            {"up{}": "1x300", "lbguard_kernel_in_sync{}": "1x300"},
            {"up{}": "1x5 0x300"},  # something else than lbguard
            {"up{}": "1x100 0x100", 'lbguard_build_info{version="1"}': "1x100 stale"},  # a probe
            {"up{}": "1x5 stale", "lbguard_kernel_in_sync{}": "1x5 stale"},  # the pod is no more
            {"up{}": "1x157 0x1 1x60", "lbguard_kernel_in_sync{}": "1x157 stale stale 1x60"},  # a restart
        ),
        severity="critical",
        at_min=80,
    ),
    "LbguardLoopHung": Case(
        fires={"lbguard_heartbeat_timestamp_seconds{}": "0+30x20 600x40"},
        quiet=({"lbguard_heartbeat_timestamp_seconds{}": "0+30x60"},),
        severity="critical",
    ),
    "LbguardNotReady": _state("lbguard_not_ready", "warning", {"reason": "tables_not_read"}),
    "LbguardRestarts": Case(
        # Between two restarts it is not there at all.
        fires={
            "process_start_time_seconds{}": "0x10 300x10 600x10 900x2 stale",
            'lbguard_build_info{version="1"}': "1x35 stale",
        },
        quiet=(
            {"process_start_time_seconds{}": "0x10 300x50", 'lbguard_build_info{version="1"}': FULL},
            {"process_start_time_seconds{}": "0x10 300x10 600x10 900x30"},  # something else than lbguard
        ),
        severity="warning",
    ),
    "LbguardVersionsDiffer": Case(
        fires={
            'lbguard_build_info{version="1"}': "1x300",
            "lbguard_kernel_in_sync{}": "1x300",
            'lbguard_build_info{version="2",pod="lb-1",instance="lb-1:9464"}': "1x300",
            'lbguard_kernel_in_sync{pod="lb-1",instance="lb-1:9464"}': "1x300",
        },
        quiet=(
            {
                'lbguard_build_info{version="1"}': "1x300",
                "lbguard_kernel_in_sync{}": "1x300",
                'lbguard_build_info{version="1",pod="lb-1",instance="lb-1:9464"}': "1x300",
                'lbguard_kernel_in_sync{pod="lb-1",instance="lb-1:9464"}': "1x300",
            },
            {  # an upgrade
                'lbguard_build_info{version="1"}': "1x300",
                "lbguard_kernel_in_sync{}": "1x300",
                'lbguard_build_info{version="2",pod="lb-1",instance="lb-1:9464"}': "_x120 1x180",
                'lbguard_kernel_in_sync{pod="lb-1",instance="lb-1:9464"}': "_x120 1x180",
            },
            {  # a probe of another version builds no table
                'lbguard_build_info{version="1"}': "1x300",
                "lbguard_kernel_in_sync{}": "1x300",
                'lbguard_build_info{version="2",pod="px-0",instance="px-0:9464"}': "1x300",
            },
        ),
        severity="info",
        labels={"namespace": "trench-a"},
        pod=False,
        at_min=80,
    ),
    "LbguardTablesDiffer": Case(
        fires={_DIGEST: "7x60", _DIGEST_OF_OTHER: "281474976710655x60"},
        quiet=(
            {_DIGEST: "281474976710654x60", _DIGEST_OF_OTHER: "281474976710654x60"},
            {_DIGEST: "7x60"},
            {_DIGEST: "7x60", _DIGEST_OF_OTHER: "7x30 8x10 7x20"},  # it held, and the other one withdrew
            {_DIGEST: "7x60", 'lbguard_stream_table_digest{stream="t",pod="lb-1",instance="lb-1:9464"}': "8x60"},
        ),
        severity="warning",
        labels={"namespace": "trench-a", "stream": "s"},
        pod=False,
    ),
    "LbguardSourceLost": _state("lbguard_source_ok", "warning", {}, bad=NONE, good=FULL),
    "LbguardSourceEntriesSkipped": _count(
        "lbguard_source_entries_skipped_total", "warning", {"reason": "no_identifier"}
    ),
    "LbguardKernelOverruns": Case(
        fires={"lbguard_kernel_overruns_total{}": GROWS},
        quiet=({"lbguard_kernel_overruns_total{}": "0x35 1x30"}, {"lbguard_kernel_overruns_total{}": BEGINS_ANEW}),
        severity="warning",
    ),
    "LbguardInboxFull": Case(
        fires={"lbguard_inbox_dropped_total{}": "0x35 500x30"},
        quiet=({"lbguard_inbox_dropped_total{}": STANDS},),
        severity="warning",
    ),
    "LbguardEventLag": Case(
        fires={
            'lbguard_event_lag_seconds_bucket{le="0.25"}': NONE,
            'lbguard_event_lag_seconds_bucket{le="0.5"}': GROWS,
            'lbguard_event_lag_seconds_bucket{le="+Inf"}': GROWS,
        },
        quiet=(
            {
                'lbguard_event_lag_seconds_bucket{le="0.25"}': GROWS,
                'lbguard_event_lag_seconds_bucket{le="0.5"}': GROWS,
                'lbguard_event_lag_seconds_bucket{le="+Inf"}': GROWS,
            },
        ),
        severity="warning",
    ),
    "LbguardCommitErrors": Case(
        fires={'lbguard_commit_errors_total{stream="s"}': GROWS},
        quiet=(
            {'lbguard_commit_errors_total{stream="s"}': STANDS},
            {'lbguard_commit_errors_total{stream="s"}': "0x34 5x30"},  # tried again, and then it took effect
            {'lbguard_commit_errors_total{stream="s"}': BEGINS_ANEW},
        ),
        severity="critical",
        labels=STREAM,
    ),
    "LbguardAffinityNotInForce": Case(
        fires={_IN_FORCE: NONE, _FLOWS_MAX: "100x60", _ACTIVE: FULL},
        quiet=(
            {_IN_FORCE: FULL, _FLOWS_MAX: "100x60", _ACTIVE: FULL},
            {_IN_FORCE: NONE, _FLOWS_MAX: NONE, _ACTIVE: FULL},  # it is not wanted
            {_IN_FORCE: NONE, _FLOWS_MAX: "100x60", _ACTIVE: NONE},  # there is no target yet
            {_IN_FORCE: "1x38 0x0 1x20", _FLOWS_MAX: "100x60", _ACTIVE: FULL},
        ),
        severity="warning",
    ),
    "LbguardParkingNotInForce": Case(
        fires={_PARKING: NONE, _PARKING_MAX: "100x60", _ACTIVE: FULL},
        quiet=(
            {_PARKING: FULL, _PARKING_MAX: "100x60", _ACTIVE: FULL},
            {_PARKING: NONE, _PARKING_MAX: NONE, _ACTIVE: FULL},  # it is not wanted
            {_PARKING: NONE, _PARKING_MAX: "100x60", _ACTIVE: NONE},  # there is no target yet
            {_PARKING: "1x38 0x0 1x20", _PARKING_MAX: "100x60", _ACTIVE: FULL},
        ),
        severity="warning",
    ),
    "LbguardParkingFull": Case(
        fires={'lbguard_parking_packets_dropped_total{reason="full"}': GROWS},
        quiet=(
            {'lbguard_parking_packets_dropped_total{reason="full"}': STANDS},
            {'lbguard_parking_packets_dropped_total{reason="newer_copy"}': GROWS},
            {'lbguard_parking_packets_dropped_total{reason="withdrawn"}': GROWS},
        ),
        severity="warning",
    ),
    "LbguardAffinityMapFull": Case(
        fires={_FLOWS: "91x60", _FLOWS_MAX: "100x60"},
        quiet=(
            {_FLOWS: "90x60", _FLOWS_MAX: "100x60"},
            {_FLOWS: "0x38 95x0 0x20", _FLOWS_MAX: "100x60"},
        ),
        severity="warning",
        labels={"protocol": "tcp", "family": "ipv4"},
    ),
    "LbguardFlowsRefused": Case(
        fires={"lbguard_affinity_refused_total{}": "0x35 9x30"},
        quiet=(
            {"lbguard_affinity_refused_total{}": STANDS},
            {"lbguard_affinity_refused_total{}": "0x5 9x55"},
            {"lbguard_affinity_refused_total{}": BEGINS_ANEW},
        ),
        severity="warning",
    ),
    "LbguardFlowsFellBack": Case(
        fires={"lbguard_affinity_orphaned_total{}": "0x35 9x30"},
        quiet=(
            {"lbguard_affinity_orphaned_total{}": STANDS},
            {"lbguard_affinity_orphaned_total{}": "0x15 9x45"},
            {"lbguard_affinity_orphaned_total{}": BEGINS_ANEW},
        ),
        severity="info",
    ),
    "LbguardAffinityChanged": Case(
        fires={"lbguard_affinity_mended_total{}": "0x35 1x30"},
        quiet=(
            {"lbguard_affinity_mended_total{}": STANDS},
            {"lbguard_affinity_mended_total{}": "0x5 1x55"},
            {"lbguard_affinity_mended_total{}": BEGINS_ANEW},
        ),
        severity="warning",
    ),
    "LbguardRouteErrors": Case(
        fires={'lbguard_route_errors_total{error="ENODEV"}': GROWS},
        quiet=(
            {'lbguard_route_errors_total{error="ENODEV"}': STANDS},
            {'lbguard_route_errors_total{error="ENODEV"}': "0x36 9x30"},  # a link went
        ),
        severity="warning",
        labels={"error": "ENODEV"},
    ),
    "LbguardNeighborErrors": Case(
        fires={'lbguard_neighbor_errors_total{error="EPERM"}': "0+5x60"},
        quiet=(
            {'lbguard_neighbor_errors_total{error="EPERM"}': "0+0.5x60"},
            {'lbguard_neighbor_errors_total{error="EPERM"}': "0x36 90x30"},
        ),
        severity="warning",
        labels={"error": "EPERM"},
    ),
    "LbguardAnnouncementErrors": Case(
        fires={'lbguard_announcement_errors_total{error="ENETDOWN"}': "0+5x60"},
        quiet=(
            {'lbguard_announcement_errors_total{error="ENETDOWN"}': "0+0.5x60"},
            {'lbguard_announcement_errors_total{error="ENETDOWN"}': "0x36 90x30"},
        ),
        severity="warning",
        labels={"error": "ENETDOWN"},
    ),
    "LbguardAnnouncementsDropped": _count(
        "lbguard_announcements_suppressed_total",
        "warning",
        {"reason": "queue_full"},
        besides='reason="superseded"',
    ),
    "LbguardCallsPassedBy": Case(
        fires={
            'lbguard_interposer_calls_total{command="deactivate",outcome="missed"}': GROWS,
            'lbguard_interposer_calls_total{command="activate",outcome="admitted"}': GROWS,
        },
        quiet=(
            {'lbguard_interposer_calls_total{command="activate",outcome="admitted"}': GROWS},
            {'lbguard_interposer_calls_total{command="deactivate",outcome="held"}': GROWS},
            {'lbguard_interposer_calls_total{command="activate",outcome="missed"}': "0x31 100x30"},  # a start
        ),
        severity="warning",
        at_min=30,
    ),
    "LbguardConfigRefused": Case(
        fires={"lbguard_config_refused{}": FULL},
        quiet=({"lbguard_config_refused{}": NONE}, {"lbguard_config_refused{}": "0x35 1x3 0x22"}),
        severity="warning",
    ),
    "LbguardConfigRestartNeeded": Case(
        fires={"lbguard_config_restart_needed{}": "2x60"},
        quiet=({"lbguard_config_restart_needed{}": NONE}, {"lbguard_config_restart_needed{}": "0x35 2x3 0x22"}),
        severity="info",
        at_min=20,
    ),
    "LbguardRecordingGaps": _count("lbguard_recording_dropped_total", "info", {"reason": "full"}),
    "LbguardReportersGone": Case(
        fires={"lbguard_verdict_streams{}": "2x5 0x55"},
        quiet=(
            {"lbguard_verdict_streams{}": NONE},  # there never were any
            {"lbguard_verdict_streams{}": "2x60"},
            {"lbguard_verdict_streams{}": "2x30 0x30"},  # not for long enough
        ),
        severity="warning",
    ),
    "LbguardVerdictsDenied": _count(
        "lbguard_verdict_requests_denied_total", "warning", {"reason": "subnet_not_allowed"}
    ),
    "LbguardVerdictsLimited": _count("lbguard_verdict_requests_limited_total", "warning", {"limit": "rate"}),
    "LbguardVerdictsLost": _count(
        "lbguard_verdicts_ignored_total", "warning", {"reason": "state_full"}, besides='reason="late"'
    ),
    "LbguardProbeDown": Case(
        fires={"up{}": "1x5 0x55", "lbguard_probe_source_ok{}": "1x5 stale"},
        quiet=(
            {"up{}": FULL, "lbguard_probe_source_ok{}": FULL},
            {"up{}": "1x5 0x55", "lbguard_kernel_in_sync{}": "1x5 stale"},  # a load balancer
            {"up{}": "1x5 stale", "lbguard_probe_source_ok{}": "1x5 stale"},  # the pod is no more
        ),
        severity="warning",
    ),
    "LbguardProbeConnectionsDown": _state("lbguard_probe_verdicts", "warning", {"state": "down"}),
    "LbguardProbeLoss": Case(
        fires={
            'lbguard_probe_pings_total{family="ipv6"}': "0+100x60",
            'lbguard_probe_replies_total{family="ipv6"}': "0+90x60",
        },
        quiet=(
            {
                'lbguard_probe_pings_total{family="ipv6"}': "0+100x60",
                'lbguard_probe_replies_total{family="ipv6"}': "0+98x60",
            },
            {'lbguard_probe_pings_total{family="ipv6"}': NONE, 'lbguard_probe_replies_total{family="ipv6"}': NONE},
        ),
        severity="warning",
        labels={"family": "ipv6"},
    ),
    "LbguardProbeLate": Case(
        fires={
            'lbguard_probe_rounds_total{outcome="untested"}': "0+2x60",
            'lbguard_probe_rounds_total{outcome="good"}': "0+8x60",
        },
        quiet=(
            {
                'lbguard_probe_rounds_total{outcome="bad"}': "0+2x60",
                'lbguard_probe_rounds_total{outcome="good"}': "0+8x60",
            },
            {
                'lbguard_probe_rounds_total{outcome="untested"}': "0+0.5x60",
                'lbguard_probe_rounds_total{outcome="good"}': "0+8x60",
            },
        ),
        severity="warning",
    ),
    "LbguardProbePacketsUnread": Case(
        fires={"lbguard_probe_overflows_total{}": "0x35 5x30"},
        quiet=({"lbguard_probe_overflows_total{}": STANDS},),
        severity="warning",
    ),
    "LbguardProbeUnheard": _state(
        "lbguard_probe_report_connected", "warning", {"to": "172.16.0.1:7443"}, bad=NONE, good=FULL
    ),
    "LbguardProbeReportsRefused": Case(
        fires={'lbguard_probe_reports_refused_total{to="172.16.0.1:7443"}': "0x35 1x30"},
        quiet=({'lbguard_probe_reports_refused_total{to="172.16.0.1:7443"}': STANDS},),
        severity="warning",
        labels={"to": "172.16.0.1:7443"},
    ),
    "LbguardProbeSourceLost": _state("lbguard_probe_source_ok", "warning", {}, bad=NONE, good=FULL),
}
