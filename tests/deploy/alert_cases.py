"""For each alert made-up series with which it fires, and series close to them with which it does not.

A sample comes every 30 seconds, in promtool's notation: `0x10` is 0 eleven times, `0+2x10` grows by 2, `_x10` is no
sample. `{}` stands for the labels of a pod's series, `{stream="s"}` for those and more.
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
STREAM = {"stream": "s"}

_ACTIVE = 'lbguard_target_states{stream="s",state="active"}'
_HELD = 'lbguard_target_states{stream="s",state="held"}'
_AVAILABLE = 'lbguard_stream_available{stream="s"}'
_HOLDS = 'lbguard_holds_total{stream="s",cause="no_link"}'
_WITHDRAWALS = 'lbguard_withdrawals_total{stream="s",cause="no_link"}'
_RECOVERIES = 'lbguard_recoveries_total{stream="s"}'
_READMISSIONS = 'lbguard_readmissions_total{stream="s"}'
_PACKETS = 'lbguard_target_packets_total{stream="s",identifier="1"}'
_FALLBACK = 'lbguard_held_packets_total{stream="s",identifier="1"}'


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
        quiet=({series: STANDS}, {series: "0x5 9x55"}, *({f"{name}{{{besides}}}": GROWS} for _ in besides[:1])),
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
        ),
        severity="critical",
        labels={"namespace": "trench-a", "stream": "s"},
        pod=False,
    ),
    "LbguardStreamUnavailable": Case(
        fires={_AVAILABLE: NONE, _HELD: "4x60"},
        quiet=(
            {_AVAILABLE: FULL, _HELD: "4x60"},
            {_AVAILABLE: NONE, _HELD: NONE},
            {_AVAILABLE: "1x38 0x1 1x30", _HELD: "4x60"},
        ),
        severity="critical",
        labels=STREAM,
    ),
    "LbguardMassFailure": _state("lbguard_stream_mass_failure", "critical", STREAM),
    "LbguardTargetsFrozen": Case(
        fires={'lbguard_freezes_total{stream="s"}': "0x35 3x30"},
        quiet=({'lbguard_freezes_total{stream="s"}': STANDS},),
        severity="warning",
        labels=STREAM,
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
        fires={_HOLDS: "0+1x60", _ACTIVE: "2x60"},
        quiet=({_HOLDS: "0+1x60", _ACTIVE: "100x60"}, {_HOLDS: STANDS, _ACTIVE: "2x60"}),
        severity="warning",
        labels={"stream": "s", "cause": "no_link"},
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
        fires={"up{}": "1x5 0x55", 'lbguard_build_info{version="1"}': "1x5 _x55"},
        quiet=(
            {"up{}": FULL, 'lbguard_build_info{version="1"}': FULL},
            {"up{}": "1x5 0x55"},  # something else than lbguard
            {"up{}": "1x5 _x55", 'lbguard_build_info{version="1"}': "1x5 _x55"},  # the pod is no more
        ),
        severity="critical",
    ),
    "LbguardLoopHung": Case(
        fires={"lbguard_heartbeat_timestamp_seconds{}": "0+30x20 600x40"},
        quiet=({"lbguard_heartbeat_timestamp_seconds{}": "0+30x60"},),
        severity="critical",
    ),
    "LbguardNotReady": _state("lbguard_not_ready", "warning", {"reason": "tables_not_read"}),
    "LbguardRestarts": Case(
        fires={
            "process_start_time_seconds{}": "0x10 300x10 600x10 900x30",
            'lbguard_build_info{version="1"}': FULL,
        },
        quiet=(
            {"process_start_time_seconds{}": "0x10 300x50", 'lbguard_build_info{version="1"}': FULL},
            {"process_start_time_seconds{}": "0x10 300x10 600x10 900x30"},
        ),
        severity="warning",
    ),
    "LbguardVersionsDiffer": Case(
        fires={
            'lbguard_build_info{version="1"}': "1x300",
            'lbguard_build_info{version="2",pod="lb-1",instance="lb-1:9464"}': "1x300",
        },
        quiet=(
            {
                'lbguard_build_info{version="1"}': "1x300",
                'lbguard_build_info{version="1",pod="lb-1",instance="lb-1:9464"}': "1x300",
            },
            {  # an upgrade
                'lbguard_build_info{version="1"}': "1x300",
                'lbguard_build_info{version="2",pod="lb-1",instance="lb-1:9464"}': "_x120 1x180",
            },
        ),
        severity="info",
        labels={"namespace": "trench-a"},
        pod=False,
        at_min=80,
    ),
    "LbguardSourceLost": _state("lbguard_source_ok", "warning", {}, bad=NONE, good=FULL),
    "LbguardSourceEntriesSkipped": _count(
        "lbguard_source_entries_skipped_total", "warning", {"reason": "no_identifier"}
    ),
    "LbguardKernelOverruns": Case(
        fires={"lbguard_kernel_overruns_total{}": GROWS},
        quiet=({"lbguard_kernel_overruns_total{}": "0x35 1x30"},),
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
        quiet=({'lbguard_commit_errors_total{stream="s"}': STANDS},),
        severity="critical",
        labels=STREAM,
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
