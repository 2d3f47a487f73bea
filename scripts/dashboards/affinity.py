"""Rows about flow affinity: new connections, remembered flows, families."""

from dashboards.grafana import ORANGE, RED, Panel, Row

BALANCER_FLOWS = Row(
    title="Flow affinity",
    panels=[
        Panel(
            title="Connections given to another target",
            about="New connections whose target was cut off, withdrawn, draining or under suspicion, and that got a"
            " healthy target instead.",
            queries=[("sum(increase(lbguard_affinity_steered_total{@lb}[$__rate_interval]))", "steered")],
            bars=True,
        ),
        Panel(
            title="Flows remembered by reason",
            about="steered: with the healthy target that they got; new: with the table's target, during an incident or"
            " with affinity.mode all; observed: seen during affinity.learn, before a change of the list.",
            queries=[
                ("sum(increase(lbguard_affinity_steered_total{@lb}[$__rate_interval]))", "steered"),
                (
                    "sum by (reason) (increase(lbguard_affinity_remembered_total{@lb}[$__rate_interval]))",
                    "{{reason}}",
                ),
            ],
            bars=True,
            stacked=True,
        ),
        Panel(
            title="Flows that fell back",
            about="Packets of connections whose target was withdrawn, removed or lost one family: another target resets"
            " them.",
            queries=[("sum(increase(lbguard_affinity_orphaned_total{@lb}[$__rate_interval]))", "fell back")],
            colors={"fell back": ORANGE},
            bars=True,
        ),
        Panel(
            title="Remembered flows",
            about="Flows that stay with the target that answered them.",
            queries=[("sum by (protocol, family) (lbguard_affinity_flows{@lb})", "{{protocol}} {{family}}")],
        ),
        Panel(
            title="Map fill",
            about="Share of the room of each map (affinity.max_flows) that is in use. When a map is full, new flows are"
            " not remembered.",
            queries=[
                (
                    """max by (protocol, family) (lbguard_affinity_flows{@lb}
                    / on (namespace, pod, instance) group_left () (lbguard_affinity_flows_max{@lb} > 0))""",
                    "{{protocol}} {{family}}",
                )
            ],
            unit="percentunit",
            maximum=1,
            thresholds=[(0.9, RED)],
        ),
        Panel(
            title="Flows not remembered",
            about="Packets whose flow was not remembered because the map was full.",
            queries=[("sum(increase(lbguard_affinity_refused_total{@lb}[$__rate_interval]))", "no room")],
            colors={"no room": RED},
            bars=True,
        ),
        Panel(
            title="Flow affinity in force",
            about="Shows whether the kernel has the rules of flow affinity; 0 also where it is off.",
            queries=[("min(lbguard_affinity_in_force{@lb})", "in force")],
        ),
        Panel(
            title="Corrections and refusals",
            about="Corrections after another program changed the table of flow affinity, and times that nftables"
            " refused its rules.",
            queries=[
                ("sum(increase(lbguard_affinity_mended_total{@lb}[$__rate_interval]))", "corrected"),
                ("sum(increase(lbguard_affinity_errors_total{@lb}[$__rate_interval]))", "refused"),
            ],
            colors={"corrected": ORANGE, "refused": RED},
            bars=True,
        ),
        Panel(
            title="Families lost",
            about="Targets in the table of which a family is held, or was withdrawn alone while they serve the other.",
            queries=[
                (
                    "sum by (family, state) (lbguard_target_families{@stream})",
                    "{{family}} {{state}}",
                )
            ],
            decimals=0,
        ),
    ],
)


FLEET_FLOWS = Row(
    title="Flow affinity",
    panels=[
        Panel(
            title="Connections given to other targets",
            about="New connections that got a healthy target instead of their own, by load balancer.",
            queries=[("sum by (pod) (increase(lbguard_affinity_steered_total{@lb}[$__rate_interval]))", "{{pod}}")],
            bars=True,
            stacked=True,
        ),
        Panel(
            title="Connections that fell back",
            about="Packets of remembered connections whose target was withdrawn or removed, by load balancer.",
            queries=[("sum by (pod) (increase(lbguard_affinity_orphaned_total{@lb}[$__rate_interval]))", "{{pod}}")],
            bars=True,
            stacked=True,
        ),
        Panel(
            title="Fullest map of flows",
            about="Share of the room of the fullest map that is in use, by load balancer. When a map is full, new flows"
            " are not remembered.",
            queries=[
                (
                    """max by (pod) (lbguard_affinity_flows{@lb}
                    / on (namespace, pod, instance) group_left () (lbguard_affinity_flows_max{@lb} > 0))""",
                    "{{pod}}",
                )
            ],
            unit="percentunit",
            maximum=1,
            thresholds=[(0.9, RED)],
            none="Flow affinity is off",
        ),
    ],
)
