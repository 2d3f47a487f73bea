"""Row about parking: packets of held targets that are kept, given back and dropped."""

from dashboards.grafana import Panel, Row

BALANCER_PARKING = Row(
    title="Parking",
    panels=[
        Panel(
            title="Packets kept and given back",
            about="Packets of held targets that were kept, and those that their target got when its path was repaired.",
            queries=[
                ("sum(increase(lbguard_parking_packets_parked_total{@lb}[$__rate_interval]))", "kept"),
                ("sum(increase(lbguard_parking_packets_given_back_total{@lb}[$__rate_interval]))", "given back"),
                (
                    "sum(increase(lbguard_parking_unreachables_sent_total{@lb}[$__rate_interval]))",
                    "ICMP errors to targets",
                ),
            ],
            bars=True,
        ),
        Panel(
            title="Parked packets dropped by reason",
            about="newer_copy is harmless: a repeated TCP segment replaced an earlier one. The runbook explains the"
            " others.",
            queries=[
                (
                    "sum by (reason) (increase(lbguard_parking_packets_dropped_total{@lb}[$__rate_interval]))",
                    "{{reason}}",
                )
            ],
            bars=True,
            stacked=True,
        ),
        Panel(
            title="Packets kept now",
            about="Number of packets that wait for the path of their target (bound: parking.packets).",
            queries=[
                ("max(lbguard_parking_packets{@lb})", "packets"),
                ("max(lbguard_parking_packets_max{@lb})", "bound"),
            ],
            decimals=0,
        ),
        Panel(
            title="Memory of kept packets",
            about="Memory that the kept packets count for (bound: parking.bytes).",
            queries=[("max(lbguard_parking_bytes{@lb})", "memory")],
            unit="bytes",
        ),
        Panel(
            title="Time until given back",
            about="Time for which packets were kept before their target got them.",
            queries=[
                (
                    f"histogram_quantile({quantile},"
                    " sum by (le) (rate(lbguard_parking_seconds_bucket{@lb}[$__rate_interval])))",
                    name,
                )
                for quantile, name in ((0.5, "median"), (0.95, "95 %"))
            ],
            unit="s",
        ),
        Panel(
            title="Parking in force",
            about="Shows whether packets of held targets are kept; 0 also where it is off.",
            queries=[("min(lbguard_parking_in_force{@lb})", "in force")],
        ),
    ],
)
