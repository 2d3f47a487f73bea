"""Weighs verdicts against what the kernel shows, path by path.

A fused DOWN makes a path `verdict_down` unless passive evidence vetoes it: the target's neighbour entry was confirmed,
or (for a verdict on the link) packets arrived through the link, less than `veto_window_s` ago. A vetoed path is looked
at again when the veto runs out.
"""

from lbguard.core.addr import Ip, prefix_of
from lbguard.core.config import EvidenceConfig
from lbguard.core.deadlines import Deadlines
from lbguard.core.events import VerdictReported
from lbguard.core.evidence import Opinions
from lbguard.core.model import ConnectionSubject, LinkSubject, TargetKey, TargetSubject, VerdictState
from lbguard.core.netview import Link, NetView
from lbguard.core.state import Path, Target

_NEVER = float("-inf")


def _same_subnet(one: Ip, other: Ip, length: int) -> bool:
    return len(one) == len(other) and prefix_of(one, length) == prefix_of(other, length)


class Weighing:
    """Opinions of reporters, and what they come to for each path."""

    def __init__(self, config: EvidenceConfig, view: NetView) -> None:
        self.opinions = Opinions(config)
        self.rechecks: Deadlines[TargetKey] = Deadlines()
        self._config = config
        self._view = view

    def take(self, event: VerdictReported, now: float) -> tuple[str, dict[Ip, None]]:
        """Take a verdict; returns the reason if it was dropped, and the target addresses that it concerns."""
        taken = self.opinions.take(event, now)
        return taken.reason, self._concerned(taken.addresses)

    def expire(self, now: float) -> dict[Ip, None]:
        """Forget what nobody renewed; returns the target addresses that are concerned."""
        return self._concerned(tuple(self.opinions.expire(now)))

    def moved(self, event: VerdictReported) -> list[tuple[int, Ip]]:
        """Return the neighbour entries that a verdict's new link-layer address proves outdated."""
        verdict = event.verdict
        if not verdict.new_mac:
            return []
        match verdict.subject:
            case LinkSubject(lb_ip=lb_ip, proxy_ip=proxy_ip):
                # The entry of a proxy is not among those followed; flushing it costs one resolution at most.
                return [
                    (link.ifindex, proxy_ip)
                    for link in self._view.links.values()
                    if any(ip == lb_ip and _same_subnet(ip, proxy_ip, length) for ip, length in link.addresses)
                ]
            case TargetSubject(ip=ip):
                candidates: tuple[Ip, ...] = (ip,)
            case ConnectionSubject(peer_ips=peer_ips):
                candidates = peer_ips
        entries = []
        for ip in candidates:
            link = self._view.locate(ip)[0] if self._view.follows(ip) else None
            neighbor = link.neighbors.get(ip) if link else None
            if link is not None and neighbor is not None and neighbor.mac not in (b"", verdict.new_mac):
                entries.append((link.ifindex, ip))
        return entries

    def weigh(self, target: Target, path: Path, ip: Ip, link: Link | None, now: float) -> bool:
        """Note what reporters say of a path and tell whether it is down by their word."""
        if not self.opinions:
            path.verdict, path.healing_until = "", _NEVER
            return False
        of_link = self.opinions.fused(path.lb_ip)
        of_target = self.opinions.fused(ip)
        path.healing_until = max(of_link.healing_until, of_target.healing_until)
        states = [fused.state for fused in (of_link, of_target) if fused.state is not None]
        path.verdict = max(states, key=_RANK.index).value if states else ""
        if link is None or VerdictState.DOWN not in states:
            return False
        neighbor = link.neighbors.get(ip)
        proof_at = neighbor.confirmed_at if neighbor else _NEVER
        if of_target.state is not VerdictState.DOWN and not (neighbor and neighbor.failures):
            # Packets that arrive prove one direction; a neighbour that failed says that the other is broken.
            proof_at = max(proof_at, link.rx_at)
        vetoed_until = proof_at + self._config.veto_window_s
        if now < vetoed_until:
            path.verdict = "down_vetoed"
            self.rechecks.set(target.key, vetoed_until)
            return False
        return True

    def _concerned(self, addresses: tuple[Ip, ...]) -> dict[Ip, None]:
        concerned: dict[Ip, None] = {}
        for address in addresses:
            if self._view.follows(address):
                concerned[address] = None
            else:
                concerned |= self._view.near(address)
        return concerned


_RANK = [VerdictState.UP, VerdictState.HEALING, VerdictState.DEGRADED, VerdictState.DOWN]
