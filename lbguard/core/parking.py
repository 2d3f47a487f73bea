"""Parking, decisions: whose packets are kept, given back or dropped. Pure.

Packets of a target without a path reach lbguard through a link of its own (`lbguard/parking`). This module computes,
for each target and family, what happens to them, and reports the lanes whose treatment changed since the last effect.

Packets are given back only to the target for which they were meant: a lane begins a new term when its target is
withdrawn, removed or gets another address, and the packets of earlier terms are dropped.
"""

from collections.abc import Mapping

from lbguard.core.addr import Ip, is_ipv4
from lbguard.core.effects import ParkPackets
from lbguard.core.model import ADMITTED, Condition, ParkingLane, ParkingMode
from lbguard.core.state import Path, Stream, Target

WITHDRAWN = "withdrawn"
REMOVED = "removed"
ADDRESS_CHANGED = "address_changed"

_ROUTE_LEADS_NOWHERE = frozenset({Condition.LINK_DOWN, Condition.NEIGHBOR_FAILED})
"""Conditions in which the target's route may still be there while each packet on it is lost for sure."""

_Key = tuple[int, bool]


class Parking:
    """Tracks the targets, and reports the lanes that changed."""

    def __init__(self) -> None:
        self._touched: dict[Target, None] = {}
        self._lanes: dict[_Key, ParkingLane] = {}
        self._meant_for: dict[_Key, tuple[Target, Ip]] = {}
        self._term = 0

    def touch(self, target: Target) -> None:
        """Look at a target again: its paths or its state may have changed."""
        self._touched[target] = None

    def take(
        self, by_mark: Mapping[int, Target], streams: Mapping[str, Stream], *, relisted: bool
    ) -> list[ParkPackets]:
        """Return the changes since the last call, in one effect.

        Args:
            by_mark: the registered targets.
            streams: all streams by name.
            relisted: a target may have been removed.
        """
        changed: dict[_Key, ParkingLane] = {}
        if relisted:
            for key in [key for key, (target, _) in self._meant_for.items() if by_mark.get(key[0]) is not target]:
                changed[key] = self._drop(key, REMOVED)
        for target in self._touched:
            if by_mark.get(target.mark) is target:
                self._compare(target, changed, adopted=streams[target.key.stream].adopted)
        self._touched.clear()
        return [ParkPackets(lanes=tuple(changed.values()))] if changed else []

    def _compare(self, target: Target, changed: dict[_Key, ParkingLane], *, adopted: bool) -> None:
        paths = {is_ipv4(ip): (ip, path) for ip, path in target.paths.items()}
        for ipv4 in (True, False):
            key = (target.mark, ipv4)
            ip, path = paths.get(ipv4, (b"", None))
            known = self._meant_for.get(key)
            if known is not None and known != (target, ip):
                changed[key] = self._drop(key, ADDRESS_CHANGED)
            if path is None:
                continue
            if not adopted or target.state not in ADMITTED or path.withdrawn:
                if key in self._meant_for:
                    changed[key] = self._drop(key, WITHDRAWN)
                continue
            self._meant_for[key] = (target, ip)
            before = self._lanes.get(key)
            if before is None:
                self._term += 1
            lane = self._lane(key, path, before or changed.get(key))
            if before != lane:
                changed[key] = self._lanes[key] = lane

    def _lane(self, key: _Key, path: Path, before: ParkingLane | None) -> ParkingLane:
        good = path.condition is Condition.OK and not path.unresolved
        return ParkingLane(
            mark=key[0],
            ipv4=key[1],
            mode=ParkingMode.GIVE_BACK if good else ParkingMode.KEEP,
            term=before.term if before is not None and before.mode is not ParkingMode.DROP else self._term,
            reason=before.reason if before is not None else "",
            divert=path.condition in _ROUTE_LEADS_NOWHERE or (path.condition is Condition.OK and path.silent),
        )

    def _drop(self, key: _Key, reason: str) -> ParkingLane:
        """End the term of a lane."""
        del self._meant_for[key]
        before = self._lanes.pop(key)
        return ParkingLane(mark=key[0], ipv4=key[1], mode=ParkingMode.DROP, term=before.term, reason=reason)
