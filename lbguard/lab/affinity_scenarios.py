"""Scenarios of flow affinity: new connections are opened during an outage or a change of the list, and live on."""

from lbguard.lab.promise import Promise
from lbguard.lab.scenario_model import Do, Scenario, Step, recreate

LONG_OUTAGE_S = 4.0
"""Longer than a client waits before it repeats a SYN twice."""
PATIENT_S, HASTY_S = 10.0, 1.0
"""Grace windows: longer and shorter than the long outage."""
FEW_FLOWS = 20
DRAIN_S = 5.0
LEARN_S = 5.0
"""Default of `affinity.learn`: the table follows a change of the list so much later."""
AFTER_S = 3.0
"""Time for which connections are watched after the last change of the table; longer than that of a silent one."""
DECIDED_WITHIN_S = 2.0
"""Delay of a decision after its deadline on a busy machine."""
JOINS = 4
"""Target that joins the others."""


def _long_outage(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return recreate(1, 0.0, LONG_OUTAGE_S)


def _second_incident(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return sorted(recreate(1, 0.0, LONG_OUTAGE_S) + recreate(2, 2.0, LONG_OUTAGE_S), key=lambda step: step.at_s)


def _guard_stopped(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [
        Step(0.0, Do.STOP_CONTROLLER),
        Step(0.2, Do.DELETE_LB_LINK, 1),
        Step(0.2 + LONG_OUTAGE_S, Do.CREATE_LB_LINK, 1),
        Step(1.2 + LONG_OUTAGE_S, Do.CONTINUE_CONTROLLER),
    ]


def _affinity_restart(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    # After the withdrawal, so that the flows of the meantime are held by the map alone when the targets are taken back.
    crash = [Step(LONG_OUTAGE_S / 2, Do.KILL_CONTROLLER), Step(LONG_OUTAGE_S * 0.7, Do.START_CONTROLLER)]
    return sorted(recreate(1, 0.0, LONG_OUTAGE_S) + crash, key=lambda step: step.at_s)


def _one_family_gone(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.DISABLE_LB_IPV6, 1)]


def _removed(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.REMOVE_TARGET, 1)]


def _added(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.ADD_TARGET, JOINS)]


def _with_affinity(window_s: float, **others: str) -> dict[str, str]:
    """Return the settings of lbguard with flow affinity and a grace window."""
    return {"LBGUARD_AFFINITY__MODE": "incident", "LBGUARD_GRACE__WINDOW": f"{window_s:g}s", **others}


AFFINITY = (
    Scenario(
        name="newcomers",
        sentence="One link is away for four seconds, less than the grace window; new connections are opened meanwhile.",
        promise=Promise(new_waited_max=0, new_broken_max=0),
        steps=_long_outage,
        observe_s=6.0,
        newcomers=True,
        settings=_with_affinity(PATIENT_S),
    ),
    Scenario(
        name="readmit",
        sentence="One link is away for four seconds with a window of one: its targets are withdrawn and taken back.",
        promise=Promise(new_waited_max=0, new_broken_max=0),
        steps=_long_outage,
        observe_s=6.0,
        lost_proxies=(1,),
        newcomers=True,
        settings=_with_affinity(HASTY_S),
    ),
    Scenario(
        name="second-incident",
        sentence="One link is away for four seconds; two seconds later, so is that of targets that took over for it.",
        promise=Promise(new_waited_max=0, new_broken_max=0),
        steps=_second_incident,
        observe_s=6.0,
        proxies=(1, 2),
        newcomers=True,
        settings=_with_affinity(PATIENT_S),
        proxies_min=3,
    ),
    Scenario(
        name="affinity-full",
        sentence="As newcomers, but lbguard may remember twenty flows only; the others are no worse off than without.",
        promise=Promise(new_broken_max=0),
        steps=_long_outage,
        observe_s=6.0,
        newcomers=True,
        settings=_with_affinity(PATIENT_S, LBGUARD_AFFINITY__MAX_FLOWS=str(FEW_FLOWS)),
    ),
    Scenario(
        name="guard-stopped",
        sentence="As newcomers; the controlling process is stopped (SIGSTOP) from before the outage until after it.",
        promise=Promise(new_waited_max=0, new_broken_max=0),
        steps=_guard_stopped,
        observe_s=6.0,
        newcomers=True,
        settings=_with_affinity(PATIENT_S),
        proxies_min=3,
    ),
    Scenario(
        name="affinity-restart",
        sentence="As readmit, and the controlling process is killed (kill -9) after the withdrawal and started again.",
        promise=Promise(new_waited_max=0, new_broken_max=0),
        steps=_affinity_restart,
        observe_s=6.0,
        lost_proxies=(1,),
        newcomers=True,
        settings=_with_affinity(HASTY_S),
    ),
    Scenario(
        name="one-family-gone",
        sentence="One link of the load balancer loses its IPv6 for good while its IPv4 works.",
        promise=Promise(
            new_waited_max=0, new_broken_max=0, lost_within_s=HASTY_S + DECIDED_WITHIN_S, lost_silent_max=0
        ),
        steps=_one_family_gone,
        observe_s=9.0,
        family=6,
        lost_proxies=(1,),
        newcomers=True,
        settings=_with_affinity(HASTY_S),
    ),
    Scenario(
        name="removed",
        sentence="One target leaves the list; it keeps its connections for five seconds.",
        promise=Promise(
            new_waited_max=0,
            new_broken_max=0,
            new_on_removed_max=0,
            lost_within_s=DRAIN_S + DECIDED_WITHIN_S,
            lost_silent_max=0,
        ),
        steps=_removed,
        observe_s=DRAIN_S + LEARN_S + AFTER_S,
        proxies=(),
        targets=(1,),
        lost_targets=(1,),
        drain_s=DRAIN_S,
        newcomers=True,
        settings=_with_affinity(PATIENT_S, LBGUARD_DRAIN__WINDOW=f"{DRAIN_S:g}s"),
    ),
    Scenario(
        name="added",
        sentence="A target joins the list.",
        promise=Promise(new_waited_max=0, new_broken_max=0, new_on_added_min=1),
        steps=_added,
        observe_s=LEARN_S + AFTER_S + 1.0,
        proxies=(),
        unlisted=(JOINS,),
        newcomers=True,
        settings=_with_affinity(PATIENT_S),
    ),
)
