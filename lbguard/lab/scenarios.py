"""What the lab plays: each scenario as data (what happens when, to whom) and the promise lbguard makes for it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from lbguard.lab.measure import Measurement


class Do(StrEnum):
    """One thing done to the chain or to the process that guards it."""

    DELETE_LB_LINK = "delete-lb-link"
    CREATE_LB_LINK = "create-lb-link"
    DELETE_SUPERSEDED_LINK = "delete-superseded-link"
    DELETE_TARGET_LINK = "delete-target-link"
    CREATE_TARGET_LINK = "create-target-link"
    BLOCK_TARGET_IPV6 = "block-target-ipv6"
    UNBLOCK_TARGET_IPV6 = "unblock-target-ipv6"
    KILL_CONTROLLER = "kill-controller"
    START_CONTROLLER = "start-controller"


@dataclass(frozen=True, slots=True)
class Step:
    """One action, `at_s` seconds after the scenario starts. `number` is a proxy or a target (1..), by the action."""

    at_s: float
    do: Do
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What must hold in lbguard's column. `None` means nothing is promised.

    `median_over_outage_s` bounds the median gap of the disturbed connections: at most the outage plus this many
    seconds. `longest_gap_s` is a strict bound. Lost targets are those whose path never comes back.
    """

    broken_max: int = 0
    moved_max: int | None = 0
    median_over_outage_s: float | None = None
    longest_gap_s: float | None = None

    def misses(self, measured: Measurement, outage_s: float) -> list[str]:
        """Say in words what was missed; an empty list means the promise was kept."""
        missed = []
        if measured.opened == 0 or measured.disturbed == 0:
            missed.append("no connection was disturbed, so nothing was shown")
        if measured.broken > self.broken_max:
            missed.append(f"{measured.broken} connections broken, {self.broken_max} promised")
        if self.moved_max is not None and measured.moved > self.moved_max:
            missed.append(f"{measured.moved} connections moved to another target, {self.moved_max} promised")
        if self.median_over_outage_s is not None:
            limit = outage_s + self.median_over_outage_s
            if measured.median_gap_s > limit:
                missed.append(f"median gap {measured.median_gap_s:.2f} s, at most {limit:.2f} s promised")
        if self.longest_gap_s is not None and measured.longest_gap_s >= self.longest_gap_s:
            missed.append(f"longest gap {measured.longest_gap_s:.2f} s, under {self.longest_gap_s:g} s promised")
        return missed

    def sentence(self, outage_s: float) -> str:
        """Return the promise in words."""
        parts = [f"{self.broken_max} broken"]
        if self.moved_max is not None:
            parts.append(f"{self.moved_max} moved")
        if self.median_over_outage_s is not None:
            parts.append(f"median gap at most {outage_s + self.median_over_outage_s:g} s")
        if self.longest_gap_s is not None:
            parts.append(f"longest gap under {self.longest_gap_s:g} s")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One scenario.

    `proxies` and `targets` name who is disturbed; targets behind `lost_proxies` never come back. `dad` leaves IPv6
    duplicate address detection on, as the kernel has it by default.
    `steps` makes the actions from the outage (seconds) and the proxies of the chain; `observe_s` is how long traffic is
    watched after the last step.
    """

    name: str
    sentence: str
    promise: Promise
    steps: Callable[[float, tuple[int, ...]], list[Step]]
    observe_s: float
    proxies: tuple[int, ...] | None = (1,)
    targets: tuple[int, ...] = ()
    family: int | None = None
    lost_proxies: tuple[int, ...] = ()
    dad: bool = False

    def disturbed_proxies(self, proxies: tuple[int, ...]) -> tuple[int, ...]:
        """Return the proxies whose targets are disturbed (`None` in the data means every one)."""
        return proxies if self.proxies is None else self.proxies


HELD = Promise(median_over_outage_s=1.0)
FLAPS = 5
FLAP_PERIOD_S = 0.8
FLAP_DOWN_MAX_S = 0.4
FAMILY_OUTAGE_S = 6.0
"""Longer than a neighbour failure is found out plus the default grace window: a guard that does not look at the other
family would withdraw."""


def _recreate(proxy: int, at_s: float, outage_s: float) -> list[Step]:
    return [Step(at_s, Do.DELETE_LB_LINK, proxy), Step(at_s + outage_s, Do.CREATE_LB_LINK, proxy)]


def _lb_link(outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return _recreate(1, 0.0, outage_s)


def _lb_link_all(outage_s: float, proxies: tuple[int, ...]) -> list[Step]:
    steps = [step for proxy in proxies for step in _recreate(proxy, 0.0, outage_s)]
    return sorted(steps, key=lambda step: step.at_s)


def _target_link(outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.DELETE_TARGET_LINK, 1), Step(outage_s, Do.CREATE_TARGET_LINK, 1)]


def _double_link(outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.CREATE_LB_LINK, 1), Step(outage_s, Do.DELETE_SUPERSEDED_LINK, 1)]


def _flap(outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    down_s = min(outage_s, FLAP_DOWN_MAX_S)
    return [step for flap in range(FLAPS) for step in _recreate(1, flap * FLAP_PERIOD_S, down_s)]


def _link_gone(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.DELETE_LB_LINK, 1)]


def _one_family(_outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    return [Step(0.0, Do.BLOCK_TARGET_IPV6, 1), Step(FAMILY_OUTAGE_S, Do.UNBLOCK_TARGET_IPV6, 1)]


def _guard_crash(outage_s: float, _proxies: tuple[int, ...]) -> list[Step]:
    # Whoever supervises it starts it again at once.
    crash = [Step(outage_s / 10, Do.KILL_CONTROLLER), Step(outage_s / 10, Do.START_CONTROLLER)]
    return sorted(_recreate(1, 0.0, outage_s) + crash, key=lambda step: step.at_s)


def _rolling(outage_s: float, proxies: tuple[int, ...]) -> list[Step]:
    return [step for turn, proxy in enumerate(proxies) for step in _recreate(proxy, turn * (outage_s + 2.5), outage_s)]


ALL = (
    Scenario(
        name="lb-link",
        sentence="One link of the load balancer is re-created: same addresses, new MAC.",
        promise=HELD,
        steps=_lb_link,
        observe_s=9.0,
    ),
    Scenario(
        name="target-link",
        sentence="One target's link is re-created: same IPs, new MAC; the load balancer's links stay.",
        promise=Promise(moved_max=None, longest_gap_s=3.0),
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
        steps=_rolling,
        observe_s=9.0,
        proxies=None,
    ),
)
BY_NAME = {scenario.name: scenario for scenario in ALL}
DEFAULT = ("lb-link", "target-link", "link-gone")


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
