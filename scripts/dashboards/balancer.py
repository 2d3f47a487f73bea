"""One load balancer: its targets over time, links, neighbours, announcements, table, and how fast it reacts."""

from dashboards.affinity import BALANCER_FLOWS
from dashboards.grafana import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    STATE_COLORS,
    TARGET_STATES,
    YELLOW,
    YES_NO,
    Dashboard,
    Panel,
    Row,
    stat,
)
from dashboards.parking import BALANCER_PARKING


def _count(metric: str, label: str, selector: str = "@lb") -> tuple[str, str]:
    """Return a query for how much a counter grew, by a label."""
    return f"sum by ({label}) (increase({metric}{{{selector}}}[$__rate_interval]))", f"{{{{{label}}}}}"


def _quantiles(metric: str, selector: str = "@lb") -> list[tuple[str, str]]:
    """Return queries for the quantiles of a histogram."""
    return [
        (
            f"histogram_quantile({quantile}, sum by (le) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))",
            legend,
        )
        for quantile, legend in ((0.5, "half of them"), (0.95, "95 %"), (0.99, "99 %"))
    ]


_NOW = Row(
    title="Now",
    panels=[
        stat(
            "Ready",
            "Shows whether lbguard has read all of its inputs: kernel, source and tables.",
            "1 - max(lbguard_not_ready{@lb})",
            values=YES_NO,
            width=3,
        ),
        stat(
            "Kernel in sync",
            "Shows whether lbguard's copy of the kernel's state is complete. While it is not, nothing is withdrawn.",
            "min(lbguard_kernel_in_sync{@lb})",
            values=YES_NO,
            width=3,
        ),
        stat(
            "Source",
            "Shows whether the source of targets can be read. While it cannot, the last list stays in force.",
            "min(lbguard_source_ok{@lb})",
            values=YES_NO,
            width=3,
        ),
        stat(
            "Streams without a path",
            "Streams that have targets but no forwarding path here. Routers use other load balancers.",
            """count(lbguard_stream_available{@stream} == 0
            and on (namespace, pod, instance, stream) sum by (namespace, pod, instance, stream)
            (lbguard_target_states{@stream}) > 0) or 0 * count(lbguard_stream_available{@stream})""",
            thresholds=[(1, RED)],
            width=3,
        ),
        *(
            stat(
                title,
                about,
                f'sum(lbguard_target_states{{@stream,state="{state}"}})',
                thresholds=[(1, color)] if color != GREEN else [(0, ORANGE), (1, GREEN)],
                width=3,
            )
            for title, state, color, about in (
                ("Active", "active", GREEN, "Targets that are admitted and have a good path."),
                ("Held", "held", YELLOW, "Targets with a broken path, within their grace window."),
                (
                    "Frozen",
                    "frozen",
                    BLUE,
                    "Targets that stay in the table after their window, because too many targets broke at once.",
                ),
                ("Withdrawn", "withdrawn", RED, "Targets that are removed from the table and wait for their path."),
            )
        ),
    ],
)

_TARGETS = Row(
    title="Targets",
    panels=[
        Panel(
            title="Timeline of targets",
            about="The forty targets with the worst state in the chosen time, of those that were ever admitted. A hold"
            " shorter than the scrape interval is missing here, but is counted among the losses below. A click on a"
            " target leads to its own page.",
            queries=[
                (
                    """max by (stream, identifier) (lbguard_target_state_code{@stream}) and on (stream, identifier)
                    topk(40, max by (stream, identifier)
                    (max_over_time(lbguard_target_state_code{@stream}[$__range] @ end())))""",
                    "{{stream}}/{{identifier}}",
                )
            ],
            kind="state-timeline",
            values=TARGET_STATES,
            width=24,
            height=10,
        ),
        Panel(
            title="Losses by target",
            about="The ten targets whose path broke most often. If one target is affected, the fault is at this"
            " target; if all targets of a subnet are, it is at the proxy or its link.",
            queries=[
                (
                    "topk(10, sum by (stream, identifier)"
                    " (increase(lbguard_target_losses_total{@stream}[$__rate_interval])))",
                    "{{stream}}/{{identifier}}",
                )
            ],
            bars=True,
            stacked=True,
        ),
        Panel(
            title="Targets by state",
            about="Pending targets were never admitted: their path was never good.",
            queries=[("sum by (state) (lbguard_target_states{@stream})", "{{state}}")],
            colors=STATE_COLORS,
            stacked=True,
            decimals=0,
        ),
        Panel(
            title="Decisions",
            about="Decisions by action. `lbguard events` shows each in a sentence.",
            queries=[_count("lbguard_decisions_total", "action")],
            bars=True,
            stacked=True,
        ),
        Panel(
            title="Holds and withdrawals by cause",
            about="Holds above the axis, withdrawals below it, by cause.",
            queries=[
                ("sum by (cause) (increase(lbguard_holds_total{@stream}[$__rate_interval]))", "held: {{cause}}"),
                ("sum by (cause) (increase(lbguard_withdrawals_total{@stream}[$__rate_interval]))", "lost: {{cause}}"),
                (
                    "sum by (cause) (increase(lbguard_family_withdrawals_total{@stream}[$__rate_interval]))",
                    "lost one family: {{cause}}",
                ),
            ],
            below="^lost.*",
            minimum=None,
            bars=True,
        ),
        Panel(
            title="Packets by target",
            about="The twenty targets that get the most packets. Their shares should be similar. A target without"
            " packets is not in the table.",
            queries=[
                (
                    "topk(20, sum by (stream, identifier)"
                    " (rate(lbguard_target_packets_total{@stream}[$__rate_interval])))",
                    "{{stream}}/{{identifier}}",
                )
            ],
            unit="pps",
        ),
        Panel(
            title="Packets dropped while held",
            about="Packets to targets with a broken path: the ten targets with the most dropped packets.",
            queries=[
                (
                    "topk(10, sum by (stream, identifier)"
                    " (rate(lbguard_held_packets_total{@stream}[$__rate_interval])))",
                    "{{stream}}/{{identifier}}",
                )
            ],
            unit="pps",
        ),
        Panel(
            title="Time to heal",
            about="Time from the loss of a path to its return.",
            queries=_quantiles("lbguard_heal_duration_seconds"),
            unit="s",
        ),
        Panel(
            title="Slots and commits",
            about="Slots that changed to another target, and commits that did not take effect.",
            queries=[
                ("sum(increase(lbguard_slots_changed_total{@stream}[$__rate_interval]))", "slots changed"),
                ("sum(increase(lbguard_commit_errors_total{@stream}[$__rate_interval]))", "commits failed"),
            ],
            colors={"commits failed": RED},
            bars=True,
        ),
        Panel(
            title="Duration of commits",
            about="Duration of commits to the distributor.",
            queries=_quantiles("lbguard_commit_duration_seconds"),
            unit="s",
        ),
    ],
)

_LINKS = Row(
    title="Links",
    panels=[
        Panel(
            title="Links that face targets",
            about="A link is shown while it is up and has an address in a subnet of a target. A gap is an outage. A"
            " re-created link has another MAC address, and so a line of its own.",
            queries=[
                (
                    "0 * max by (interface_name, mac_address) (lbguard_interface_rx_packets_total{@lb}) + 1",
                    "{{interface_name}} {{mac_address}}",
                )
            ],
            kind="state-timeline",
            values={1: ("up", GREEN)},
            width=12,
        ),
        Panel(
            title="Traffic by link",
            about="Received above the axis, sent below it. In some set-ups the answers of targets do not pass the"
            " load balancer, so it receives little.",
            queries=[
                (
                    "8 * sum by (interface_name) (rate(lbguard_interface_rx_bytes_total{@lb}[$__rate_interval]))",
                    "in {{interface_name}}",
                ),
                (
                    "8 * sum by (interface_name) (rate(lbguard_interface_tx_bytes_total{@lb}[$__rate_interval]))",
                    "out {{interface_name}}",
                ),
            ],
            below="^out.*",
            minimum=None,
            unit="bps",
            width=12,
        ),
        Panel(
            title="Packets by link",
            about="Received above the axis, sent below it.",
            queries=[
                (
                    "sum by (interface_name) (rate(lbguard_interface_rx_packets_total{@lb}[$__rate_interval]))",
                    "in {{interface_name}}",
                ),
                (
                    "sum by (interface_name) (rate(lbguard_interface_tx_packets_total{@lb}[$__rate_interval]))",
                    "out {{interface_name}}",
                ),
            ],
            below="^out.*",
            minimum=None,
            unit="pps",
            width=12,
        ),
        Panel(
            title="Errors and drops by link",
            about="Packets that the kernel counts as errors or drops, both directions.",
            queries=[
                (
                    "sum by (interface_name) (rate(lbguard_interface_rx_errors_total{@lb}[$__rate_interval])"
                    " + rate(lbguard_interface_tx_errors_total{@lb}[$__rate_interval]))",
                    "errors {{interface_name}}",
                ),
                (
                    "sum by (interface_name) (rate(lbguard_interface_rx_dropped_total{@lb}[$__rate_interval])"
                    " + rate(lbguard_interface_tx_dropped_total{@lb}[$__rate_interval]))",
                    "dropped {{interface_name}}",
                ),
            ],
            unit="pps",
            width=12,
        ),
    ],
)

_NEIGHBORS = Row(
    title="Neighbours and announcements",
    panels=[
        Panel(
            title="Work on neighbours",
            about="Entries verified (neighbors.probe_interval), resolved after a link is back, and flushed because"
            " they are outdated; and entries whose link-layer address changed.",
            queries=[
                (f"sum(rate(lbguard_neighbor_{name}_total{{@lb}}[$__rate_interval]))", legend)
                for name, legend in (
                    ("probes", "verified"),
                    ("resolves", "resolved"),
                    ("flushes", "flushed"),
                    ("mac_changes", "moved to another MAC"),
                )
            ],
            unit="ops",
        ),
        Panel(
            title="Refused neighbour operations",
            about="By errno. ENODEV and ENETDOWN are normal for a moment when a link is removed.",
            queries=[_count("lbguard_neighbor_errors_total", "error")],
            bars=True,
            none="Nothing was refused",
        ),
        Panel(
            title="Announcements",
            about="Gratuitous ARP and unsolicited NA frames, and solicitations of targets, by kind.",
            queries=[_count("lbguard_announcements_total", "kind")],
            bars=True,
            stacked=True,
            none="Nothing was announced",
        ),
        Panel(
            title="Announcements not sent",
            about="By reason. superseded and not_owned are harmless; with queue_full an address is not announced.",
            queries=[_count("lbguard_announcements_suppressed_total", "reason")],
            bars=True,
            none="Nothing was suppressed",
        ),
        Panel(
            title="Announcements refused",
            about="By errno. ENETDOWN is normal for a moment when a link is removed.",
            queries=[_count("lbguard_announcement_errors_total", "error")],
            bars=True,
            none="Nothing was refused",
        ),
        Panel(
            title="Refused routes and rules",
            about="By errno. lbguard tries again with growing pauses.",
            queries=[_count("lbguard_route_errors_total", "error")],
            bars=True,
            none="Nothing was refused",
        ),
    ],
)

_SPEED = Row(
    title="Reaction time",
    panels=[
        Panel(
            title="Event lag",
            about="Time from the reception of an event to the decision about it, and the time for which lbguard was"
            " stopped or held up.",
            queries=[
                *_quantiles("lbguard_event_lag_seconds"),
                ("sum(increase(lbguard_stalled_seconds_total{@lb}[$__rate_interval]))", "stalled"),
            ],
            unit="s",
            thresholds=[(0.25, ORANGE)],
        ),
        Panel(
            title="Decision time",
            about="Time to decide about one batch of events.",
            queries=_quantiles("lbguard_engine_step_seconds"),
            unit="s",
        ),
        Panel(
            title="Inbox",
            about="Waiting events (kernel.inbox_limit at most), and events that were dropped because the inbox was"
            " full.",
            queries=[
                ("max(lbguard_inbox_depth{@lb})", "waiting"),
                ("sum(increase(lbguard_inbox_dropped_total{@lb}[$__rate_interval]))", "dropped"),
            ],
            colors={"dropped": RED},
        ),
        Panel(
            title="Full reads of the kernel",
            about="By reason. Full reads are rare; overruns mean that kernel.receive_buffer is too small.",
            queries=[
                _count("lbguard_kernel_resyncs_total", "reason"),
                ("sum(increase(lbguard_kernel_overruns_total{@lb}[$__rate_interval]))", "overruns"),
            ],
            bars=True,
        ),
        Panel(
            title="Kernel messages not used",
            about="By reason. These messages do not concern lbguard and cost little; the runbook explains the reasons.",
            queries=[_count("lbguard_kernel_messages_ignored_total", "reason")],
            stacked=True,
            none="None",
        ),
        Panel(
            title="Events that changed nothing",
            about="By reason. Late deletions and known routes are normal; the runbook explains the reasons.",
            queries=[_count("lbguard_events_ignored_total", "reason")],
            stacked=True,
            none="None",
        ),
    ],
)

_SOURCE = Row(
    title="Sources, recording and process",
    panels=[
        Panel(
            title="Registry",
            about="Times that the registry or the API server began to answer and was lost (sources nsp and kubernetes),"
            " for how many seconds it is lost, and entries that it no longer lists and that lbguard keeps for now.",
            queries=[
                ("sum(increase(lbguard_source_sessions_total{@lb}[$__rate_interval]))", "began to answer"),
                ("sum(increase(lbguard_source_losses_total{@lb}[$__rate_interval]))", "lost"),
                ("sum(lbguard_source_removals_waiting{@lb})", "removals waiting"),
                ("time() - min(lbguard_source_lost_timestamp_seconds{@lb} > 0)", "lost for, seconds"),
            ],
            colors={"lost": RED},
        ),
        Panel(
            title="Entries that cannot be used",
            about="Entries of the registry, or of objects of the Kubernetes API, that were skipped, by reason.",
            queries=[_count("lbguard_source_entries_skipped_total", "reason")],
            bars=True,
            none="None",
        ),
        Panel(
            title="Mesh manager",
            about="Events of the network service manager by kind (nsm.enabled), target addresses whose entries they"
            " outdated, and times that the manager was lost.",
            queries=[
                _count("lbguard_mesh_events_total", "kind"),
                ("sum(increase(lbguard_mesh_neighbors_outdated_total{@lb}[$__rate_interval]))", "entries outdated"),
                ("sum(increase(lbguard_mesh_losses_total{@lb}[$__rate_interval]))", "manager lost"),
            ],
            colors={"manager lost": RED},
            bars=True,
        ),
        Panel(
            title="Calls of nfqlb",
            about="Calls that an unmodified load balancer made (source interposer), by command and outcome.",
            queries=[
                (
                    "sum by (command, outcome) (increase(lbguard_interposer_calls_total{@lb}[$__rate_interval]))",
                    "{{command}}: {{outcome}}",
                )
            ],
            bars=True,
            none="No calls",
            width=6,
        ),
        Panel(
            title="Targets under a command",
            about="Targets that an operator drains, holds or withdraws by hand.",
            queries=[("sum by (action) (lbguard_overrides{@stream})", "{{action}}")],
            decimals=0,
            width=6,
        ),
        Panel(
            title="Settings file",
            about="Readings of the settings file since the start, by outcome; whether it is refused now; settings in it"
            " that take effect with the next restart only; hours since it was right.",
            queries=[
                _count("lbguard_config_reload_total", "outcome"),
                ("max(lbguard_config_refused{@lb})", "refused now"),
                ("max(lbguard_config_restart_needed{@lb})", "need a restart"),
                ("max(time() - (lbguard_config_last_good_timestamp_seconds{@lb} > 0)) / 3600", "hours since right"),
            ],
            colors={"refused now": RED},
            none="No file is followed",
            width=12,
        ),
        Panel(
            title="Recording",
            about="Bytes written to recordings (recording.enabled).",
            queries=[("sum(rate(lbguard_recording_bytes_total{@lb}[$__rate_interval]))", "written")],
            unit="Bps",
            width=12,
        ),
        Panel(
            title="Gaps in the recording",
            about="Entries that are missing in the recording, by reason. A new file begins after each gap.",
            queries=[_count("lbguard_recording_dropped_total", "reason")],
            bars=True,
            none="None",
            width=12,
        ),
        Panel(
            title="Processor",
            about="Processor time of lbguard, in cores.",
            queries=[
                (
                    """sum(rate(process_cpu_seconds_total{@lb}[$__rate_interval])
                    and on (namespace, pod, instance, job) lbguard_kernel_in_sync{@lb})""",
                    "cores",
                )
            ],
            width=6,
        ),
        Panel(
            title="Memory",
            about="Resident memory of lbguard.",
            queries=[
                (
                    """sum(process_resident_memory_bytes{@lb}
                    and on (namespace, pod, instance, job) lbguard_kernel_in_sync{@lb})""",
                    "resident",
                )
            ],
            unit="bytes",
            width=6,
        ),
        Panel(
            title="Uptime",
            about="Time since the start of the process. It falls to 0 with each restart.",
            queries=[
                (
                    """time() - max(process_start_time_seconds{@lb}
                    and on (namespace, pod, instance, job) lbguard_kernel_in_sync{@lb})""",
                    "running for",
                )
            ],
            colors={"running for": GREY},
            unit="s",
            width=6,
        ),
        Panel(
            title="Heartbeat",
            about="Time since the last run of the event loop: a second, plus the time since the last scrape.",
            queries=[("time() - max(lbguard_heartbeat_timestamp_seconds{@lb})", "last heartbeat")],
            unit="s",
            # Clocks may differ a little.
            minimum=None,
            thresholds=[(15, RED)],
            width=6,
        ),
    ],
)

BALANCER = Dashboard(
    uid="lbguard-balancer",
    title="lbguard: one load balancer",
    about="Targets over time, links, neighbours, announcements and the reaction time of one load balancer pod.",
    pods="lbguard_kernel_in_sync",
    one_pod=True,
    rows=[_NOW, _TARGETS, BALANCER_FLOWS, BALANCER_PARKING, _LINKS, _NEIGHBORS, _SPEED, _SOURCE],
)
