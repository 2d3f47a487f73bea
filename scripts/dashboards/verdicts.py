"""Verdicts: what proxies and probes say, what the load balancers make of it, and how the probes measure."""

from dashboards.grafana import GREEN, GREY, ORANGE, RED, YELLOW, YES_NO, Dashboard, Panel, Row, stat

_VERDICT_COLORS = {"up": GREEN, "degraded": YELLOW, "down": RED, "healing": ORANGE, "ended": GREY}


def _count(metric: str, label: str) -> tuple[str, str]:
    """Return a query for how much a counter grew, by a label."""
    return f"sum by ({label}) (increase({metric}{{@lb}}[$__rate_interval]))", f"{{{{{label}}}}}"


_NOW = Row(
    title="Now",
    panels=[
        stat(
            "Streams of reports",
            "Reporters with an open stream to a load balancer, all load balancers together.",
            "sum(lbguard_verdict_streams{@lb})",
        ),
        stat(
            "Subjects",
            "Subjects with current verdicts at a load balancer.",
            "sum(lbguard_verdict_subjects{@lb})",
        ),
        stat("Monitored", "Connections that probes monitor.", "sum(lbguard_probe_connections{@lb})"),
        stat(
            "Down",
            "Connections with the verdict DOWN.",
            'sum(lbguard_probe_verdicts{@lb,state="down"})',
            thresholds=[(1, RED)],
        ),
        stat(
            "Cannot be monitored",
            "Connections in the probes' source that cannot be monitored.",
            "sum(lbguard_probe_connections_left_out{@lb})",
            thresholds=[(1, YELLOW)],
        ),
        stat(
            "Unanswered reports",
            "Pairs of probe and load balancer whose load balancer does not answer.",
            "count(lbguard_probe_report_connected{@lb} == 0) or 0 * count(lbguard_probe_report_connected{@lb})",
            thresholds=[(1, RED)],
        ),
    ],
)

_TAKEN = Row(
    title="Verdicts at load balancers",
    panels=[
        Panel(
            title="Verdicts received",
            about="Accepted verdicts, by state. Most are renewals of UP.",
            queries=[("sum by (state) (rate(lbguard_verdicts_received_total{@lb}[$__rate_interval]))", "{{state}}")],
            colors=_VERDICT_COLORS,
            unit="ops",
            stacked=True,
        ),
        Panel(
            title="Verdicts that changed nothing",
            about="By reason. late and ended come from closed connections; state_full and overloaded mean that"
            " there are too many verdicts.",
            queries=[_count("lbguard_verdicts_ignored_total", "reason")],
            bars=True,
            none="None",
        ),
        Panel(
            title="Requests refused",
            about="Refused by the policy (verdicts.policy), by a limit, or because a field was wrong.",
            queries=[
                (
                    "sum by (reason) (increase(lbguard_verdict_requests_denied_total{@lb}[$__rate_interval]))",
                    "policy: {{reason}}",
                ),
                (
                    "sum by (limit) (increase(lbguard_verdict_requests_limited_total{@lb}[$__rate_interval]))",
                    "limit: {{limit}}",
                ),
                ("sum(increase(lbguard_verdict_requests_invalid_total{@lb}[$__rate_interval]))", "invalid"),
            ],
            bars=True,
        ),
        Panel(
            title="Reporters by load balancer",
            about="Reporters and their open streams. A load balancer with fewer streams than the others is not"
            " reached by every reporter.",
            queries=[
                ("sum by (pod) (lbguard_verdict_streams{@lb})", "streams {{pod}}"),
                ("sum by (pod) (lbguard_verdict_reporters{@lb})", "reporters {{pod}}"),
            ],
            decimals=0,
        ),
        Panel(
            title="Subjects by load balancer",
            about="Subjects of current verdicts, and the number of times that a reporter replaced its stream by a"
            " new one.",
            queries=[
                ("sum by (pod) (lbguard_verdict_subjects{@lb})", "subjects {{pod}}"),
                (
                    "sum by (pod) (increase(lbguard_verdict_streams_replaced_total{@lb}[$__rate_interval]))",
                    "replaced {{pod}}",
                ),
            ],
        ),
        Panel(
            title="Effects of verdicts",
            about="Holds and withdrawals because of verdicts, and pardons: evidence that was ignored because it"
            " would have withdrawn too much of a stream (evidence.soft_budget).",
            queries=[
                ('sum(increase(lbguard_holds_total{@lb,cause="verdict_down"}[$__rate_interval]))', "holds"),
                ('sum(increase(lbguard_withdrawals_total{@lb,cause="verdict_down"}[$__rate_interval]))', "withdrawals"),
                ('sum(increase(lbguard_decisions_total{@lb,action="pardon"}[$__rate_interval]))', "pardons"),
            ],
            colors={"withdrawals": RED},
            bars=True,
        ),
    ],
)

_MEASURED = Row(
    title="Probe measurements",
    panels=[
        Panel(
            title="Connections by verdict",
            about="Connections of the probes, by current verdict.",
            queries=[("sum by (state) (lbguard_probe_verdicts{@lb})", "{{state}}")],
            colors=_VERDICT_COLORS,
            stacked=True,
            decimals=0,
        ),
        Panel(
            title="Changes of verdicts",
            about="Verdicts that changed the state of a connection, by the new state.",
            queries=[_count("lbguard_probe_verdict_changes_total", "state")],
            colors=_VERDICT_COLORS,
            bars=True,
            stacked=True,
        ),
        Panel(
            title="Loss",
            about="Share of the pings without a reply in time, by family. Replies at the end of a round arrive"
            " after the last ping, so the value varies by a few percent.",
            queries=[
                (
                    """1 - sum by (family) (rate(lbguard_probe_replies_total{@lb}[$__rate_interval]))
                    / (sum by (family) (rate(lbguard_probe_pings_total{@lb}[$__rate_interval])) > 0)""",
                    "{{family}}",
                )
            ],
            unit="percentunit",
            minimum=None,
            maximum=1,
            thresholds=[(0.05, ORANGE)],
        ),
        Panel(
            title="Round-trip times",
            about="By family: median and 99 %.",
            queries=[
                (
                    f"histogram_quantile({quantile}, sum by (le, family)"
                    " (rate(lbguard_probe_round_trip_seconds_bucket{@lb}[$__rate_interval])))",
                    f"{{{{family}}}} {words}",
                )
                for quantile, words in ((0.5, "half"), (0.99, "99 %"))
            ],
            unit="s",
        ),
        Panel(
            title="Rounds",
            about="Judged rounds by outcome. untested: the probe sent its pings late, so missing replies do not count.",
            queries=[_count("lbguard_probe_rounds_total", "outcome")],
            stacked=True,
        ),
        Panel(
            title="Re-checks",
            about="Rounds shortened to re-check a connection that stopped answering, by probe.",
            queries=[("sum by (pod) (increase(lbguard_probe_doubts_total{@lb}[$__rate_interval]))", "{{pod}}")],
            bars=True,
        ),
    ],
)

_PROBE = Row(
    title="State of the probes",
    panels=[
        Panel(
            title="Reports received",
            about="Shows whether each load balancer answers each probe.",
            queries=[
                (
                    "min by (namespace, pod, to) (lbguard_probe_report_connected{@lb})",
                    "{{namespace}}/{{pod}} to {{to}}",
                )
            ],
            kind="state-timeline",
            values=YES_NO,
        ),
        Panel(
            title="Reports",
            about="Verdicts that load balancers answered, renewals included, by load balancer.",
            queries=[("sum by (to) (rate(lbguard_probe_reports_total{@lb}[$__rate_interval]))", "{{to}}")],
            unit="ops",
        ),
        Panel(
            title="Reports that failed",
            about="Streams that could not be opened or broke; verdicts that were refused, or dropped for lack of room.",
            queries=[
                (f"sum(increase(lbguard_probe_{name}_total{{@lb}}[$__rate_interval]))", legend)
                for name, legend in (
                    ("report_failures", "streams"),
                    ("reports_refused", "refused"),
                    ("reports_dropped", "dropped"),
                )
            ],
            bars=True,
        ),
        Panel(
            title="Reports that changed nothing",
            about="By the load balancer's answer.",
            queries=[_count("lbguard_probe_reports_ignored_total", "reason")],
            bars=True,
            none="None",
        ),
        Panel(
            title="Source of connections",
            about="Shows whether each probe can read its source of connections. While it cannot, the last list stays.",
            queries=[("min by (namespace, pod) (lbguard_probe_source_ok{@lb})", "{{namespace}}/{{pod}}")],
            kind="state-timeline",
            values=YES_NO,
        ),
        Panel(
            title="How late pings left",
            about="Delay within which 99 % of the pings left, by probe. Late pings make rounds untested.",
            queries=[
                (
                    "histogram_quantile(0.99, sum by (le, pod)"
                    " (rate(lbguard_probe_send_lag_seconds_bucket{@lb}[$__rate_interval])))",
                    "{{pod}}",
                )
            ],
            unit="s",
        ),
        Panel(
            title="Replies that did not count",
            about="Late replies, replies to pings of closed connections, and packets that the kernel dropped unread.",
            queries=[
                (f"sum(increase(lbguard_probe_{name}_total{{@lb}}[$__rate_interval]))", legend)
                for name, legend in (("late_replies", "late"), ("stray_replies", "stray"), ("overflows", "unread"))
            ],
            bars=True,
            width=12,
        ),
        Panel(
            title="Pings that did not leave",
            about="By errno.",
            queries=[_count("lbguard_probe_send_errors_total", "error")],
            bars=True,
            width=12,
            none="All left",
        ),
    ],
)

VERDICTS = Dashboard(
    uid="lbguard-verdicts",
    title="lbguard: verdicts",
    about="Reports of proxies and probes, their effect on load balancers, and the measurements of the probes.",
    pods="lbguard_build_info",
    streams=False,
    rows=[_NOW, _TAKEN, _MEASURED, _PROBE],
)
