"""Scenarios of each topology, and the promises that compare lbguard's run with today's."""

from dataclasses import dataclass, replace
from statistics import median

from lbguard.lab.controller import Topology
from lbguard.lab.measure import Decided, Measurement
from lbguard.lab.meridio import LbFacts
from lbguard.lab.promise import Promise
from lbguard.lab.scenario_model import Do, Scenario, Step
from lbguard.lab.scenarios import ALL, UnknownScenarioError
from lbguard.lab.scenarios import BY_NAME as CHAIN_BY_NAME
from lbguard.lab.scenarios import select as select_of_chain

REMOVALS = 5
REMOVAL_PERIOD_S = 2.0
SECOND_OUTAGE_AFTER_S = 4.0
"""Long enough for the load balancer to have taken its targets back after the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstToday(Promise):
    """A promise to be no worse than today, for what grace is not meant to change.

    `removal_over_s` bounds how much longer than today a removed target stays in the table (medians, seconds).
    `broken_over_share` bounds how much more than today may break, as a share of the disturbed connections: how many are
    disturbed, and which others the table moves, is chance, so two runs are never equal. Every call of nfqlb succeeds,
    and with `all_serve` every target serves at the end.
    """

    removal_over_s: float | None = None
    broken_over_share: float = 0.15
    all_serve: bool = True

    def misses(self, measured: Measurement, outage_s: float, decided: Decided | None = None) -> list[str]:
        """Return what is missed in one run alone; the rest is `misses_beside`."""
        if measured.opened == 0 or measured.disturbed == 0:
            return ["no connection was disturbed, so nothing was shown"]
        return []

    def misses_of(self, facts: LbFacts) -> list[str]:
        """Return what the load balancer's process missed."""
        missed = []
        if facts.refused:
            missed.append(f"{facts.refused} calls of nfqlb failed")
        if facts.stayed:
            missed.append(f"{facts.stayed} removed targets stayed in the table")
        if facts.silent and self.all_serve:
            missed.append(f"targets that serve nobody at the end: {', '.join(map(str, facts.silent))}")
        if self.removal_over_s is not None and not facts.removals_s:
            missed.append("no target was removed, so nothing was shown")
        return missed

    def misses_beside(self, measured: Measurement, facts: LbFacts, today: Measurement, stock: LbFacts) -> list[str]:
        """Return in what lbguard's run was worse than today's (`today`, `stock`)."""
        missed = []
        share, share_today = (run.broken / max(run.disturbed, 1) for run in (measured, today))
        if share > share_today + self.broken_over_share:
            missed.append(
                f"{measured.broken} connections broken and {measured.disturbed} disturbed, "
                f"{today.broken} and {today.disturbed} today"
            )
        if self.removal_over_s is not None and facts.removals_s and stock.removals_s:
            longer_s = median(facts.removals_s) - median(stock.removals_s)
            if longer_s > self.removal_over_s:
                missed.append(
                    f"a removed target stayed {longer_s * 1000:.0f} ms longer than today, "
                    f"{self.removal_over_s * 1000:.0f} ms promised"
                )
        return missed

    def sentence(self, outage_s: float) -> str:
        """Return the promise in words."""
        parts = ["no more broken than today", *(["every target serves at the end"] if self.all_serve else [])]
        if self.removal_over_s is not None:
            parts.append(f"out of the table at most {self.removal_over_s * 1000:.0f} ms later than today")
        return ", ".join(parts)


def _deliberate_removal(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [
        step
        for turn in range(REMOVALS)
        for step in (
            Step(turn * REMOVAL_PERIOD_S, Do.REMOVE_TARGET, 1),
            Step((turn + 0.5) * REMOVAL_PERIOD_S, Do.ADD_TARGET, 1),
        )
    ]


def _pod_not_ready(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.REMOVE_TARGET, 1), Step(3.0, Do.ADD_TARGET, 1)]


def _guard_dies(outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    second_s = outage_s + SECOND_OUTAGE_AFTER_S
    return [
        Step(0.0, Do.DELETE_LB_LINK, 1),
        Step(outage_s / 2, Do.KILL_CONTROLLER),
        Step(outage_s, Do.CREATE_LB_LINK, 1),
        Step(second_s, Do.DELETE_LB_LINK, 1),
        Step(second_s + outage_s, Do.CREATE_LB_LINK, 1),
    ]


MERIDIO = (
    CHAIN_BY_NAME["lb-link"],
    CHAIN_BY_NAME["lb-link-all"],
    CHAIN_BY_NAME["double-link"],
    CHAIN_BY_NAME["target-link"],
    Scenario(
        name="deliberate-removal",
        sentence="The registry removes a target whose path is fine, and registers it again, five times.",
        promise=AgainstToday(removal_over_s=0.05),
        steps=_deliberate_removal,
        observe_s=4.0,
        proxies=(),
        targets=(1,),
    ),
    Scenario(
        name="guard-dies",
        sentence="lbguard is killed (kill -9) in the middle of an outage and stays away; then comes another outage.",
        promise=AgainstToday(),
        steps=_guard_dies,
        observe_s=9.0,
    ),
)
MERIDIO_2 = (
    CHAIN_BY_NAME["lb-link"],
    CHAIN_BY_NAME["target-link"],
    CHAIN_BY_NAME["link-gone"],
    Scenario(
        name="lb-restart",
        sentence="The load balancer's process and nfqlb's are killed and started again: it deletes all rules of marks.",
        promise=Promise(),
        steps=lambda _outage_s, _proxies: [Step(0.0, Do.RESTART_LB)],
        observe_s=14.0,
        proxies=None,
    ),
    Scenario(
        name="pod-not-ready",
        sentence="One pod is not ready for three seconds, less than drain.window, while its path is fine.",
        promise=Promise(new_waited_max=0, new_broken_max=0),
        steps=_pod_not_ready,
        observe_s=9.0,
        proxies=(),
        targets=(1,),
        newcomers=True,
        settings={"LBGUARD_AFFINITY__MODE": "incident", "LBGUARD_DRAIN__WINDOW": "10s"},
    ),
    Scenario(
        name="address-change",
        sentence="One target gets a new link with other addresses, and its load balancer other routes.",
        promise=Promise(moved_max=None, longest_gap_s=3.0),
        steps=lambda _outage_s, _proxies: [Step(0.0, Do.MOVE_TARGET, 1)],
        observe_s=9.0,
        proxies=(),
        targets=(1,),
    ),
    replace(MERIDIO[-1], promise=AgainstToday(all_serve=False)),
    CHAIN_BY_NAME["newcomers"],
)
SCENARIOS = {Topology.CHAIN: ALL, Topology.MERIDIO: MERIDIO, Topology.MERIDIO_2: MERIDIO_2}
BY_NAME = {scenario.name: scenario for scenarios in (MERIDIO_2, ALL, MERIDIO) for scenario in scenarios}


def select(topology: Topology, names: list[str]) -> list[Scenario]:
    """Return the scenarios of these names, in their order of definition; `all` means every one of the topology.

    No names mean the default ones of `chain`, and every one of another topology.

    Raises:
        UnknownScenarioError: the topology has no scenario of a name.
    """
    if topology is Topology.CHAIN:
        return select_of_chain(names)
    wanted = set(names or ["all"])
    if "all" in wanted:
        return list(SCENARIOS[topology])
    there = [scenario.name for scenario in SCENARIOS[topology]]
    unknown = sorted(wanted.difference(there))
    if unknown:
        raise UnknownScenarioError(
            f"topology {topology} has no scenario {', '.join(unknown)}; there are: {', '.join(there)}, all"
        )
    return [scenario for scenario in SCENARIOS[topology] if scenario.name in wanted]
