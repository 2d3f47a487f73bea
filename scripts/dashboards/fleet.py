"""All load balancers at a glance: what is held, what was lost, what it was worth, and whether streams are available."""

from dashboards.affinity import FLEET_FLOWS
from dashboards.grafana import (
    ALARM,
    GREEN,
    ORANGE,
    RED,
    STATE_COLORS,
    YELLOW,
    YES_NO,
    Dashboard,
    Panel,
    Row,
    stat,
)

_NOW = Row(
    title="Now",
    panels=[
        stat(
            "Load balancers",
            "Load balancer pods that run lbguard and can be scraped.",
            "count(lbguard_kernel_in_sync{@lb})",
            width=3,
        ),
        stat(
            "Not ready",
            "Pods whose lbguard is not ready and makes no decisions. The runbook explains the reasons.",
            "sum(max by (namespace, pod) (lbguard_not_ready{@lb}))",
            width=3,
            thresholds=[(1, RED)],
        ),
        stat(
            "Streams without a path",
            "Pairs of pod and stream that have targets but no forwarding path: routers use other load balancers.",
            """count(lbguard_stream_available{@stream} == 0
            and on (namespace, pod, instance, stream) sum by (namespace, pod, instance, stream)
            (lbguard_target_states{@stream}) > 0) or 0 * count(lbguard_stream_available{@stream})""",
            width=3,
            thresholds=[(1, RED)],
        ),
        stat(
            "Active",
            "Share of the listed targets that are active: admitted, with a good path.",
            """sum(lbguard_target_states{@stream,state="active"}) / (sum(lbguard_target_states{@stream}) > 0)""",
            width=3,
            unit="percentunit",
            decimals=1,
            maximum=1,
            thresholds=[(0, RED), (0.5, ORANGE), (0.9, YELLOW), (0.999, GREEN)],
            none="No targets",
        ),
        stat(
            "Held",
            "Targets with a broken path, kept in the table within their grace window.",
            """sum(lbguard_target_states{@stream,state="held"})""",
            width=3,
            thresholds=[(1, YELLOW)],
        ),
        stat(
            "Frozen",
            "Targets that stay in the table after their window, because too many broke at once. Check the node.",
            """sum(lbguard_target_states{@stream,state="frozen"})""",
            width=3,
            thresholds=[(1, ORANGE)],
        ),
        stat(
            "Withdrawn",
            "Targets removed from the table because their path did not come back in time.",
            """sum(lbguard_target_states{@stream,state="withdrawn"})""",
            width=3,
            thresholds=[(1, RED)],
        ),
        stat(
            "Saved",
            "Share of the ended holds of the time range whose path came back in time.",
            """sum(increase(lbguard_recoveries_total{@stream}[$__range]))
            / (sum(increase(lbguard_recoveries_total{@stream}[$__range]))
            + sum(increase(lbguard_withdrawals_total{@stream}[$__range])) > 0)""",
            width=3,
            unit="percentunit",
            decimals=1,
            maximum=1,
            thresholds=[(0, RED), (0.5, YELLOW), (0.9, GREEN)],
            none="No hold ended",
        ),
    ],
)

_AVAILABILITY = Row(
    title="Availability",
    panels=[
        Panel(
            title="Availability by load balancer",
            about="Shows whether each load balancer has a forwarding path for each stream. A loss is reported to"
            " routers a second (availability.grace) after the last path broke, while the table does not change.",
            queries=[
                (
                    "min by (namespace, pod, stream) (lbguard_stream_available{@stream})",
                    "{{namespace}}/{{pod}} {{stream}}",
                )
            ],
            kind="state-timeline",
            values=YES_NO,
            width=12,
        ),
        Panel(
            title="Load balancers that can forward",
            about="Number of load balancers with a forwarding path, for each stream. 0 is an outage.",
            queries=[("sum by (namespace, stream) (lbguard_stream_available{@stream})", "{{namespace}} {{stream}}")],
            decimals=0,
            width=12,
        ),
        Panel(
            title="Different tables of a stream",
            about="Number of different tables that the load balancers of a stream have. With more than 1, a connection"
            " that routers move to another load balancer may reach another target.",
            queries=[
                (
                    "count by (namespace, stream) (count_values by (namespace, stream)"
                    ' ("digest", lbguard_stream_table_digest{@stream}))',
                    "{{namespace}} {{stream}}",
                )
            ],
            decimals=0,
            width=24,
        ),
        Panel(
            title="Targets by state",
            about="The targets of the selected load balancers and streams, by state. A target is counted once for"
            " each load balancer that serves it.",
            queries=[("sum by (state) (lbguard_target_states{@stream})", "{{state}}")],
            colors=STATE_COLORS,
            stacked=True,
            decimals=0,
            width=12,
        ),
        Panel(
            title="Mass failure",
            about="Load balancers on which so many targets of a stream are broken at once that withdrawals are"
            " suppressed (freeze.threshold). The fault is probably on that node, not in the targets.",
            queries=[
                (
                    "max by (namespace, pod, stream) (lbguard_stream_mass_failure{@stream})",
                    "{{namespace}}/{{pod}} {{stream}}",
                )
            ],
            kind="state-timeline",
            values=ALARM,
            width=12,
        ),
    ],
)

_EVENTS = Row(
    title="Holds and withdrawals",
    panels=[
        Panel(
            title="Holds by cause",
            about="Holds begun, by cause.",
            queries=[("sum by (cause) (increase(lbguard_holds_total{@stream}[$__rate_interval]))", "{{cause}}")],
            bars=True,
            stacked=True,
            width=12,
        ),
        Panel(
            title="Withdrawals by cause",
            about="Targets withdrawn because their path did not come back, by cause. Each withdrawal moves"
            " connections of the target to other targets, which answer them with a reset.",
            queries=[("sum by (cause) (increase(lbguard_withdrawals_total{@stream}[$__rate_interval]))", "{{cause}}")],
            bars=True,
            stacked=True,
            width=12,
        ),
        Panel(
            title="Holds by load balancer",
            about="Holds begun, by load balancer. If one load balancer is affected, the fault is on its node; if"
            " all are, it is at the targets.",
            queries=[("sum by (pod) (increase(lbguard_holds_total{@stream}[$__rate_interval]))", "{{pod}}")],
            bars=True,
            stacked=True,
        ),
        Panel(
            title="Withdrawals by load balancer",
            about="Targets withdrawn, by load balancer.",
            queries=[("sum by (pod) (increase(lbguard_withdrawals_total{@stream}[$__rate_interval]))", "{{pod}}")],
            bars=True,
            stacked=True,
        ),
        Panel(
            title="Suppressed withdrawals",
            about="Withdrawals that were due but suppressed: freezes in a mass failure, and pardons where soft"
            " evidence would have withdrawn too much of a stream (evidence.soft_budget).",
            queries=[
                ("sum(increase(lbguard_freezes_total{@stream}[$__rate_interval]))", "frozen"),
                ('sum(increase(lbguard_decisions_total{@lb,action="pardon"}[$__rate_interval]))', "pardoned"),
            ],
            bars=True,
            stacked=True,
        ),
    ],
)

_WORTH = Row(
    title="Benefit and cost",
    panels=[
        Panel(
            title="Recoveries and withdrawals",
            about="Holds that ended in recovery above the axis, withdrawals below it. Without lbguard every hold"
            " would have been a withdrawal.",
            queries=[
                ("sum(increase(lbguard_recoveries_total{@stream}[$__rate_interval]))", "saved"),
                ("sum(increase(lbguard_withdrawals_total{@stream}[$__rate_interval]))", "lost"),
            ],
            colors={"saved": GREEN, "lost": RED},
            below="lost",
            bars=True,
            minimum=None,
        ),
        Panel(
            title="Time to heal",
            about="Time from the loss of a path to its return. grace.window should be just above most of these times;"
            " heals longer than grace.max cannot be covered.",
            queries=[
                (
                    f"histogram_quantile({quantile},"
                    " sum by (le) (rate(lbguard_heal_duration_seconds_bucket{@lb}[$__rate_interval])))",
                    legend,
                )
                for quantile, legend in ((0.5, "half of them"), (0.95, "95 %"), (0.99, "99 %"))
            ],
            unit="s",
        ),
        Panel(
            title="Time to heal by cause",
            about="Time within which 95 % of the paths came back, by cause: for the windows grace.neighbor_window"
            " and grace.verdict_window.",
            queries=[
                (
                    "histogram_quantile(0.95, sum by (le, cause)"
                    " (rate(lbguard_heal_duration_seconds_bucket{@lb}[$__rate_interval])))",
                    "{{cause}}",
                )
            ],
            unit="s",
        ),
        Panel(
            title="Duration of holds",
            about="Duration of holds, whether they ended in recovery or in withdrawal.",
            queries=[
                (
                    f"histogram_quantile({quantile},"
                    " sum by (le) (rate(lbguard_hold_duration_seconds_bucket{@lb}[$__rate_interval])))",
                    legend,
                )
                for quantile, legend in ((0.5, "half of them"), (0.95, "95 %"))
            ],
            unit="s",
        ),
        Panel(
            title="Packets delivered and dropped while held",
            about="Packets that the distributors gave to targets, and packets dropped because the path was broken."
            " TCP sends these again.",
            queries=[
                ("sum(rate(lbguard_stream_packets_total{@stream}[$__rate_interval]))", "to targets"),
                ("sum(rate(lbguard_stream_held_packets_total{@stream}[$__rate_interval]))", "dropped while held"),
            ],
            colors={"to targets": GREEN, "dropped while held": RED},
            unit="pps",
        ),
        Panel(
            title="Share of packets dropped while held",
            about="By load balancer. A persistent share means that targets are held for too long.",
            queries=[
                (
                    """sum by (pod) (rate(lbguard_stream_held_packets_total{@stream}[$__rate_interval]))
                    / (sum by (pod) (rate(lbguard_stream_packets_total{@stream}[$__rate_interval])) > 0)""",
                    "{{pod}}",
                )
            ],
            unit="percentunit",
            maximum=1,
            thresholds=[(0.1, ORANGE)],
            none="No packets",
        ),
        Panel(
            title="Slots given to another target",
            about="Slots of the tables that changed to another target. Each moves its share of the connections.",
            queries=[
                ("sum by (stream) (increase(lbguard_slots_changed_total{@stream}[$__rate_interval]))", "{{stream}}")
            ],
            bars=True,
            stacked=True,
            width=12,
        ),
        Panel(
            title="Re-admissions",
            about="Withdrawn targets that were admitted again. If many are admitted again soon after their"
            " withdrawals, the grace window is too short.",
            queries=[
                ("sum by (stream) (increase(lbguard_readmissions_total{@stream}[$__rate_interval]))", "{{stream}}")
            ],
            bars=True,
            stacked=True,
            width=12,
        ),
    ],
)

_HEALTH = Row(
    title="lbguard itself",
    panels=[
        Panel(
            title="Event lag",
            about="Time from the reception of an event to the decision about it, 99 %, by load balancer. Repairs"
            " are as late.",
            queries=[
                (
                    "histogram_quantile(0.99, sum by (le, pod)"
                    " (rate(lbguard_event_lag_seconds_bucket{@lb}[$__rate_interval])))",
                    "{{pod}}",
                )
            ],
            unit="s",
            thresholds=[(0.25, ORANGE)],
        ),
        Panel(
            title="Operations refused by kernel or distributor",
            about="Refused changes per second, all load balancers: commits, routes and rules, neighbours,"
            " announcements.",
            queries=[
                ("sum(rate(lbguard_commit_errors_total{@stream}[$__rate_interval]))", "commits"),
                ("sum(rate(lbguard_route_errors_total{@lb}[$__rate_interval]))", "routes"),
                ("sum(rate(lbguard_neighbor_errors_total{@lb}[$__rate_interval]))", "neighbours"),
                ("sum(rate(lbguard_announcement_errors_total{@lb}[$__rate_interval]))", "announcements"),
            ],
            unit="ops",
        ),
        Panel(
            title="Source of targets",
            about="Shows whether each load balancer can read its source. While it cannot, the last list stays in"
            " force.",
            queries=[("min by (namespace, pod) (lbguard_source_ok{@lb})", "{{namespace}}/{{pod}}")],
            kind="state-timeline",
            values=YES_NO,
        ),
        Panel(
            title="Processor",
            about="Processor time of lbguard, in cores.",
            queries=[
                (
                    """sum by (pod) (rate(process_cpu_seconds_total{@lb}[$__rate_interval])
                    and on (namespace, pod, instance, job) lbguard_kernel_in_sync{@lb})""",
                    "{{pod}}",
                )
            ],
        ),
        Panel(
            title="Memory",
            about="Resident memory of lbguard.",
            queries=[
                (
                    """sum by (pod) (process_resident_memory_bytes{@lb}
                    and on (namespace, pod, instance, job) lbguard_kernel_in_sync{@lb})""",
                    "{{pod}}",
                )
            ],
            unit="bytes",
        ),
        Panel(
            title="Versions",
            about="Processes by version of lbguard, probes included. With more than one version outside of an"
            " upgrade, load balancers may build different tables.",
            queries=[("count by (version) (lbguard_build_info{@lb})", "{{version}}")],
            stacked=True,
            decimals=0,
        ),
    ],
)

FLEET = Dashboard(
    uid="lbguard-fleet",
    title="lbguard: all load balancers",
    about="Holds, withdrawals, saved and lost targets, and availability of every load balancer pod.",
    pods="lbguard_kernel_in_sync",
    rows=[_NOW, _AVAILABILITY, _EVENTS, FLEET_FLOWS, _WORTH, _HEALTH],
)
