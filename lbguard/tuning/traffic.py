"""Traffic rate of each target, from the packet counters in a recording."""

from dataclasses import dataclass

from lbguard.core.model import Action, Decision, TargetKey

_ENDS_TROUBLE = frozenset({Action.RECOVER, Action.READMIT, Action.ADMIT, Action.ADOPT, Action.PARDON})


@dataclass(slots=True)
class _Counted:
    at: float
    packets: int
    held: int
    rate: float | None = None
    clean: bool = True


class Traffic:
    """Packet rates of targets while nothing was wrong with them, and the measured packets dropped while held."""

    def __init__(self) -> None:
        self.held_packets = 0
        self.counted = False
        self._targets: dict[TargetKey, _Counted] = {}
        self._troubled: dict[TargetKey, None] = {}

    def decided(self, decision: Decision) -> None:
        """Record a decision of the recording: the interval around it does not show the usual traffic."""
        if decision.action in _ENDS_TROUBLE:
            self._troubled.pop(decision.target, None)
        elif decision.action is Action.HOLD:
            self._troubled[decision.target] = None
        counted = self._targets.get(decision.target)
        if counted is not None:
            counted.clean = False

    def read(self, key: TargetKey, packets: int, held: int, at: float) -> None:
        """Record a reading of a target: packets so far, and those dropped while held."""
        self.counted = True
        before = self._targets.get(key)
        if before is None or packets < before.packets or held < before.held or at <= before.at:
            self._targets[key] = _Counted(at, packets, held, before.rate if before else None)
            return
        self.held_packets += held - before.held
        if before.clean and key not in self._troubled:
            before.rate = (packets - before.packets) / (at - before.at)
        before.at, before.packets, before.held, before.clean = at, packets, held, True

    def forget(self) -> None:
        """Begin a new count: the following counts come from another host, with another clock."""
        self._targets.clear()
        self._troubled.clear()

    def rate(self, key: TargetKey) -> float | None:
        """Return the rate (packets a second) of a target when it was last well; None when that was never counted."""
        counted = self._targets.get(key)
        return counted.rate if counted else None
