"""Form of a scenario: as data, what happens when and to whom, and the promise lbguard makes for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from lbguard.lab.promise import Promise


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
    STOP_CONTROLLER = "stop-controller"
    CONTINUE_CONTROLLER = "continue-controller"
    REMOVE_TARGET = "remove-target"
    ADD_TARGET = "add-target"
    CUT_DATAPATH = "cut-datapath"
    CUT_DATAPATH_IPV6 = "cut-datapath-ipv6"
    LOSE_PACKETS = "lose-packets"
    MEND_DATAPATH = "mend-datapath"
    CHANGE_ADDRESSES = "change-addresses"
    MOVE_TARGET = "move-target"
    RESTART_LB = "restart-lb"
    DISABLE_LB_IPV6 = "disable-lb-ipv6"
    TELL_MESH_HEALS = "tell-mesh-heals"
    TELL_MESH_HEALED = "tell-mesh-healed"
    CLOSE_CONNECTION = "close-connection"
    REPORT_LATE = "report-late"
    STARVE_MONITORS = "starve-monitors"
    FEED_MONITORS = "feed-monitors"
    LIE = "lie"
    STOP_LYING = "stop-lying"
    DRAIN_LINK = "drain-link"
    RELEASE_ALL = "release-all"


@dataclass(frozen=True, slots=True)
class Step:
    """One action, `at_s` seconds after the scenario starts. `number` is a proxy or a target (1..), by the action."""

    at_s: float
    do: Do
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One scenario.

    `proxies` and `targets` name who is disturbed. Targets behind `lost_proxies` and `lost_targets` never come back in
    the disturbed `family`, or only after the grace window; `drain_s` is how long the latter keep their connections.
    `unlisted` targets are not in the list at the start. `dad` leaves IPv6 duplicate address detection on, as the
    kernel has it by default.
    `monitored`: real monitors run in the proxies' namespaces, and report to lbguard.
    `newcomers`: a new connection is opened every 20 ms, beside the long-lived ones. `settings` are environment
    variables for lbguard. `proxies_min`: the chain has so many proxies at least. `parked`: the promise with parking.
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
    lost_targets: tuple[int, ...] = ()
    drain_s: float = 0.0
    unlisted: tuple[int, ...] = ()
    dad: bool = False
    monitored: bool = False
    newcomers: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    proxies_min: int = 0
    parked: Promise | None = None

    def with_parking(self) -> "Scenario":
        """Return the scenario with parking, and with the promise for that."""
        settings = {**self.settings, "LBGUARD_PARKING__ENABLED": "true"}
        return replace(self, settings=settings, promise=self.parked or self.promise)

    def disturbed_proxies(self, proxies: tuple[int, ...]) -> tuple[int, ...]:
        """Return the proxies whose targets are disturbed (`None` in the data means every one)."""
        return proxies if self.proxies is None else self.proxies

    def relisted(self, outage_s: float, proxies: tuple[int, ...]) -> frozenset[int]:
        """Return the targets that leave the list or join it."""
        changes = (Do.REMOVE_TARGET, Do.ADD_TARGET)
        return frozenset(step.number for step in self.steps(outage_s, proxies) if step.do in changes)


def recreate(proxy: int, at_s: float, outage_s: float) -> list[Step]:
    """Return the steps that delete a link of the load balancer and make it anew after the outage (seconds)."""
    return [Step(at_s, Do.DELETE_LB_LINK, proxy), Step(at_s + outage_s, Do.CREATE_LB_LINK, proxy)]
