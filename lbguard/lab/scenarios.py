"""Scenarios of the chain, those of flow affinity included, and how they are selected."""

from dataclasses import replace

from lbguard.lab.affinity_scenarios import AFFINITY
from lbguard.lab.promise import Promise
from lbguard.lab.scenario_model import Do, Scenario, Step, recreate

HELD = Promise(median_over_outage_s=1.0)
UDP_IN_FLIGHT = 10
"""Replies that a link loses when it is cut never reach the load balancer, which therefore cannot keep them."""
PARKED = Promise(median_over_outage_s=0.1, longest_over_outage_s=0.3, udp_lost_max=UDP_IN_FLIGHT)
PARKED_SILENT = Promise(moved_max=None, median_over_outage_s=0.2, longest_over_outage_s=0.5)
"""A silent target is noticed after 0.25 s at most; a connection that sent nothing between that and the end of a short
outage goes on with its next retransmission."""
FLAPS = 5
FLAP_PERIOD_S = 0.8
FLAP_DOWN_MAX_S = 0.4
FAMILY_OUTAGE_S = 6.0
"""Longer than a neighbour failure is found out plus the default grace window: a guard that does not look at the other
family would withdraw."""


TROUBLE_S = 10.0
LATE_REPORTS = 6
SLOW_HEAL_S = 5.0
"""Longer than the default grace window (3 s), shorter than the mesh is said to need (15 s)."""
CUT_NOTICED_S = 9.0
"""Two silent rounds, a neighbour that answered just before, the grace window, and what a busy machine adds."""


def _lb_link(outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return recreate(1, 0.0, outage_s)


def _lb_link_all(outage_s: float, proxies: tuple[int, ...]) -> list[Step]:
    steps = [step for proxy in proxies for step in recreate(proxy, 0.0, outage_s)]
    return sorted(steps, key=lambda step: step.at_s)


def _target_link(outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.DELETE_TARGET_LINK, 1), Step(outage_s, Do.CREATE_TARGET_LINK, 1)]


def _double_link(outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.CREATE_LB_LINK, 1), Step(outage_s, Do.DELETE_SUPERSEDED_LINK, 1)]


def _flap(outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    down_s = min(outage_s, FLAP_DOWN_MAX_S)
    return [step for flap in range(FLAPS) for step in recreate(1, flap * FLAP_PERIOD_S, down_s)]


def _link_gone(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.DELETE_LB_LINK, 1)]


def _one_family(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.BLOCK_TARGET_IPV6, 1), Step(FAMILY_OUTAGE_S, Do.UNBLOCK_TARGET_IPV6, 1)]


def _guard_crash(outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    # Whoever supervises it starts it again at once.
    crash = [Step(outage_s / 10, Do.KILL_CONTROLLER), Step(outage_s / 10, Do.START_CONTROLLER)]
    return sorted(recreate(1, 0.0, outage_s) + crash, key=lambda step: step.at_s)


def _datapath_cut(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.CUT_DATAPATH, 1)]


def _one_family_cut(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.CUT_DATAPATH_IPV6, 1), Step(FAMILY_OUTAGE_S, Do.MEND_DATAPATH, 1)]


def _lossy(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.LOSE_PACKETS, 1), Step(TROUBLE_S, Do.MEND_DATAPATH, 1)]


def _starved(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.STARVE_MONITORS), Step(TROUBLE_S, Do.FEED_MONITORS)]


def _late_verdict(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.CLOSE_CONNECTION, 1), *(Step(1.0 + n / 2, Do.REPORT_LATE, 1) for n in range(LATE_REPORTS))]


def _ip_change(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.CHANGE_ADDRESSES, 1)]


def _heal_slow(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [
        Step(0.0, Do.DELETE_LB_LINK, 1),
        Step(0.1, Do.TELL_MESH_HEALS, 1),
        Step(SLOW_HEAL_S, Do.CREATE_LB_LINK, 1),
        Step(SLOW_HEAL_S + 0.1, Do.TELL_MESH_HEALED, 1),
    ]


def _lying_proxy(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.LIE), Step(TROUBLE_S, Do.STOP_LYING)]


def _rolling(outage_s: float, proxies: tuple[int, ...]) -> list[Step]:
    return [step for turn, proxy in enumerate(proxies) for step in recreate(proxy, turn * (outage_s + 2.5), outage_s)]


ALL = (
    Scenario(
        name="lb-link",
        sentence="One link of the load balancer is re-created: same addresses, new MAC.",
        promise=HELD,
        parked=PARKED,
        steps=_lb_link,
        observe_s=9.0,
    ),
    Scenario(
        name="target-link",
        sentence="One target's link is re-created: same IPs, new MAC; the load balancer's links stay.",
        promise=Promise(moved_max=None, longest_gap_s=3.0),
        parked=PARKED_SILENT,
        steps=_target_link,
        observe_s=9.0,
        proxies=(),
        targets=(1,),
    ),
    Scenario(
        name="link-gone",
        sentence="One link of the load balancer goes and never comes back.",
        promise=Promise(),
        steps=_link_gone,
        observe_s=9.0,
        lost_proxies=(1,),
    ),
    Scenario(
        name="lb-link-all",
        sentence="Every link of the load balancer is re-created at once.",
        promise=HELD,
        parked=PARKED,
        steps=_lb_link_all,
        observe_s=9.0,
        proxies=None,
    ),
    Scenario(
        name="lb-link-dad",
        sentence="As lb-link, with IPv6 duplicate address detection, which keeps the new link silent for seconds.",
        promise=Promise(),
        steps=_lb_link,
        observe_s=9.0,
        dad=True,
    ),
    Scenario(
        name="double-link",
        sentence="A new link of the same subnet appears before the old one goes; the old one's delete comes late.",
        promise=HELD,
        steps=_double_link,
        observe_s=9.0,
    ),
    Scenario(
        name="flap",
        sentence="One link of the load balancer goes and comes back five times in four seconds.",
        promise=HELD,
        parked=replace(PARKED, udp_lost_max=FLAPS * UDP_IN_FLIGHT),
        steps=_flap,
        observe_s=9.0,
    ),
    Scenario(
        name="one-family",
        sentence="One target hears no IPv6 for six seconds while its IPv4 works.",
        promise=Promise(),
        steps=_one_family,
        observe_s=9.0,
        proxies=(),
        targets=(1,),
        family=6,
    ),
    Scenario(
        name="guard-crash",
        sentence="The controlling process is killed (kill -9) in the middle of an outage and started again.",
        promise=HELD,
        steps=_guard_crash,
        observe_s=9.0,
    ),
    Scenario(
        name="rolling",
        sentence="The links to the proxies are re-created one after another, as in an upgrade of the mesh.",
        promise=HELD,
        parked=PARKED,
        steps=_rolling,
        observe_s=9.0,
        proxies=None,
    ),
    Scenario(
        name="datapath-cut",
        sentence="One link of the load balancer stays up but drops everything, for good.",
        promise=Promise(lost_within_s=CUT_NOTICED_S, withdrawals_max=0),
        steps=_datapath_cut,
        observe_s=12.0,
        lost_proxies=(1,),
        monitored=True,
    ),
    Scenario(
        name="one-family-cut",
        sentence="One link of the load balancer drops all IPv6 for six seconds while its IPv4 works.",
        promise=Promise(withdrawals_max=0, holds_max=0),
        steps=_one_family_cut,
        observe_s=9.0,
        family=6,
        monitored=True,
    ),
    Scenario(
        name="lossy",
        sentence="One link of the load balancer loses 5 % of the packets each way for ten seconds.",
        promise=Promise(withdrawals_max=0, holds_max=0),
        steps=_lossy,
        observe_s=4.0,
        monitored=True,
    ),
    Scenario(
        name="starved",
        sentence="The monitors get CPU for moments only, for ten seconds, while every path works.",
        promise=Promise(withdrawals_max=0, holds_max=0),
        steps=_starved,
        observe_s=4.0,
        proxies=None,
        monitored=True,
    ),
    Scenario(
        name="late-verdict",
        sentence="A connection of the mesh is closed, and DOWN verdicts on it arrive afterwards.",
        promise=Promise(withdrawals_max=0, holds_max=0, dropped_min=LATE_REPORTS),
        steps=_late_verdict,
        observe_s=5.0,
        monitored=True,
    ),
    Scenario(
        name="ip-change",
        sentence="The mesh gives one link new addresses while traffic flows; the old ones go.",
        promise=Promise(withdrawals_max=0, holds_max=0),
        steps=_ip_change,
        observe_s=8.0,
        monitored=True,
    ),
    Scenario(
        name="heal-slow",
        sentence="One link goes and is back after five seconds; the mesh says meanwhile that it heals.",
        promise=Promise(withdrawals_max=0),
        steps=_heal_slow,
        observe_s=9.0,
        monitored=True,
    ),
    Scenario(
        name="lying-proxy",
        sentence="A reporter says for ten seconds that every link and target is down, while every path works.",
        promise=Promise(withdrawals_max=0, holds_max=0),
        steps=_lying_proxy,
        observe_s=4.0,
        proxies=None,
    ),
    *AFFINITY,
)
BY_NAME = {scenario.name: scenario for scenario in ALL}
DEFAULT = (
    *("lb-link", "target-link", "link-gone"),
    *("newcomers", "readmit", "one-family-gone", "removed", "added"),
)
"""Scenarios of a plain `lbguard demo`: losses of links, then new connections and changes of the list."""


class UnknownScenarioError(Exception):
    """A scenario was asked for that does not exist; the message lists those that do."""


def select(names: list[str]) -> list[Scenario]:
    """Return the scenarios of these names, in their order of definition; none means the default ones, `all` every one.

    Raises:
        UnknownScenarioError: a name is unknown.
    """
    wanted = set(names or DEFAULT)
    if "all" in wanted:
        return list(ALL)
    unknown = sorted(wanted - BY_NAME.keys())
    if unknown:
        raise UnknownScenarioError(f"no scenario {', '.join(unknown)}; there are: {', '.join(BY_NAME)}, all")
    return [scenario for scenario in ALL if scenario.name in wanted]
