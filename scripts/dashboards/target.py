"""One target: its state, losses and packets, beside those of its stream."""

from dashboards.grafana import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    STATE_COLORS,
    TARGET_PAGE,
    TARGET_STATES,
    Dashboard,
    Panel,
    Row,
    stat,
)

_TARGET = Row(
    title="Target",
    panels=[
        Panel(
            title="State",
            about="State of the target. It begins with its first admission, and with metrics.per_target active with its"
            " first loss. A hold shorter than the scrape interval is missing here, but is counted as a loss.",
            queries=[("max by (stream) (lbguard_target_state_code{@target})", "state")],
            kind="state-timeline",
            values=TARGET_STATES,
            width=16,
            height=5,
        ),
        stat(
            "State now",
            "State of the target at the last scrape. `lbguard explain STREAM/IDENTIFIER` says why, and what follows.",
            "max(lbguard_target_state_code{@target})",
            values=TARGET_STATES,
            none="no series",
            height=5,
        ),
        stat(
            "Losses in the chosen time",
            "Times that a path of the target broke while it was admitted.",
            "sum(increase(lbguard_target_losses_total{@target}[$__range]))",
            thresholds=[(1, ORANGE), (5, RED)],
            decimals=0,
            none="no series",
            height=5,
        ),
        Panel(
            title="Losses",
            about="Times that a path of the target broke while it was admitted.",
            queries=[("sum(increase(lbguard_target_losses_total{@target}[$__rate_interval]))", "losses")],
            colors={"losses": ORANGE},
            bars=True,
        ),
        Panel(
            title="Packets",
            about="Packets that the distributor gave to the target, and those of them that met its broken path.",
            queries=[
                ("sum(rate(lbguard_target_packets_total{@target}[$__rate_interval]))", "to the target"),
                ("sum(rate(lbguard_held_packets_total{@target}[$__rate_interval]))", "met a broken path"),
            ],
            colors={"to the target": GREEN, "met a broken path": RED},
            unit="pps",
        ),
        Panel(
            title="Traffic",
            about="Traffic that the distributor gave to the target, and the part of it that met its broken path.",
            queries=[
                ("8 * sum(rate(lbguard_target_bytes_total{@target}[$__rate_interval]))", "to the target"),
                ("8 * sum(rate(lbguard_held_bytes_total{@target}[$__rate_interval]))", "met a broken path"),
            ],
            colors={"to the target": GREEN, "met a broken path": RED},
            unit="bps",
        ),
    ],
)

_STREAM = Row(
    title="Its stream",
    panels=[
        Panel(
            title="Share of the stream's packets",
            about="Packets of the target among those of its stream. With N targets in the table it is about 1/N.",
            queries=[
                (
                    """sum(rate(lbguard_target_packets_total{@target}[$__rate_interval]))
                    / (sum(rate(lbguard_stream_packets_total{@stream}[$__rate_interval])) > 0)""",
                    "share",
                )
            ],
            colors={"share": BLUE},
            unit="percentunit",
            maximum=1,
        ),
        Panel(
            title="Targets of the stream by state",
            about="If other targets left their state at the same time, the fault is at a link or a proxy, not here.",
            queries=[("sum by (state) (lbguard_target_states{@stream})", "{{state}}")],
            colors=STATE_COLORS,
            stacked=True,
            decimals=0,
        ),
        Panel(
            title="Holds of the stream by cause",
            about="Holds that began, of all targets of the stream.",
            queries=[("sum by (cause) (increase(lbguard_holds_total{@stream}[$__rate_interval]))", "{{cause}}")],
            bars=True,
            stacked=True,
        ),
    ],
)

TARGET = Dashboard(
    uid=TARGET_PAGE,
    title="lbguard: one target",
    about="State, losses and packets of one target, beside its stream. Panels about targets lead here.",
    pods="lbguard_kernel_in_sync",
    one_pod=True,
    one_target=True,
    rows=[_TARGET, _STREAM],
)
