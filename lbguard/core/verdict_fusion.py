"""Verdicts against the kernel's evidence: decides for each path whether reporters' verdicts make it down.

A fused DOWN makes a path `verdict_down` unless passive evidence vetoes it: the target's neighbour entry was confirmed,
or (for a verdict on the link) packets arrived through the link, less than `veto_window_s` ago. A vetoed path is
evaluated again when the veto ends, and a path that is down when new evidence may veto it.

A fused HEALING sets `Path.healing_until`; `lifecycle.py` moves the deadline of a hold by it, within the bounds of
`grace.py`.
"""

from lbguard.core.addr import Ip
from lbguard.core.config import EvidenceConfig
from lbguard.core.deadlines import Deadlines
from lbguard.core.events import VerdictReported
from lbguard.core.link import Link
from lbguard.core.model import ConnectionSubject, LinkSubject, Subject, TargetKey, TargetSubject, VerdictState
from lbguard.core.netview import NetView
from lbguard.core.opinions import Opinions, Taken
from lbguard.core.state import Path, Target

_NEVER = float("-inf")


class VerdictFusion:
    """Opinions of reporters, and their effect on each path.

    `down`: the addresses to which a path is down by verdict; new evidence about one may veto that.
    """

    def __init__(self, config: EvidenceConfig, view: NetView) -> None:
        self.opinions = Opinions(config)
        self.rechecks: Deadlines[TargetKey] = Deadlines()
        self._config = config
        self._view = view
        self.down: dict[Ip, None] = {}

    def configure(self, config: EvidenceConfig) -> None:
        """Use another configuration from now on."""
        self._config = config
        self.opinions.configure(config)

    def apply(self, event: VerdictReported, now: float) -> tuple[Taken, dict[Ip, None], list[tuple[int, Ip]]]:
        """Apply a verdict.

        Returns its outcome, the target addresses whose fused opinion changed, and the neighbour entries that its new
        link-layer address makes outdated.
        """
        taken = self.opinions.apply(event, now)
        outdated = self._outdated(event.verdict.subject, taken.new_mac) if taken.new_mac else []
        return taken, self._concerned(taken.addresses), outdated

    def expire(self, now: float) -> dict[Ip, None]:
        """Forget expired opinions; return the affected target addresses."""
        return self._concerned(tuple(self.opinions.expire(now)))

    def stalled(self, duration_s: float) -> None:
        """Exclude a time in which no verdict was received and no packet counted: its silence is not evidence."""
        self.opinions.stalled(duration_s)
        for link in self._view.links.values():
            link.rx_at += duration_s
            for neighbor in link.neighbors.values():
                neighbor.confirmed_at += duration_s

    def _outdated(self, subject: Subject, mac: bytes) -> list[tuple[int, Ip]]:
        ours: tuple[Ip, ...] = ()
        theirs: tuple[Ip, ...]
        match subject:
            case LinkSubject(lb_ip=lb_ip, proxy_ip=proxy_ip):
                ours, theirs = (lb_ip,), (proxy_ip,)
            case TargetSubject(ip=ip):
                theirs = (ip,)
            case ConnectionSubject(lb_ips=lb_ips, peer_ips=peer_ips):
                ours, theirs = lb_ips, peer_ips
        entries = []
        for ip in theirs:
            if self._view.follows(ip):
                link = self._view.locate(ip)[0]
                neighbor = link.neighbors.get(ip) if link else None
                if link is not None and neighbor is not None and neighbor.mac not in (b"", mac):
                    entries.append((link.ifindex, ip))
            else:
                # A proxy's entry is not followed; flushing it costs at most one resolution.
                entries += [(link.ifindex, ip) for link in self._view.links.values() if link.reaches(ip, ours)]
        return entries

    def down_through(self, ifindex: int) -> list[Ip]:
        """Return the addresses behind a link that are down by verdict."""
        return [ip for ip in self.down if self._leads_through(ip, ifindex)]

    def _leads_through(self, ip: Ip, ifindex: int) -> bool:
        link = self._view.locate(ip)[0]
        return link is not None and link.ifindex == ifindex

    def forget(self, ip: Ip) -> None:
        """Forget an address that is no target's any more."""
        self.down.pop(ip, None)

    def weigh(self, target: Target, path: Path, ip: Ip, link: Link | None, now: float) -> bool:
        """Record the fused opinion on a path and return whether it makes the path down."""
        if not self.opinions:
            path.verdict, path.healing_until = "", _NEVER
            self.down.pop(ip, None)
            return False
        down = self._weigh(target, path, ip, link, now)
        if down:
            self.down[ip] = None
        else:
            self.down.pop(ip, None)
        return down

    def _weigh(self, target: Target, path: Path, ip: Ip, link: Link | None, now: float) -> bool:
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
            # Received packets prove one direction only; a failed neighbour shows that the other is broken.
            proof_at = max(proof_at, link.rx_at)
        vetoed_until = proof_at + self._config.veto_window_s
        if now < vetoed_until:
            path.verdict = "down_vetoed"
            known = self.rechecks.get(target.key)
            # One moment per target, the earliest of its paths. The evaluation at that moment sets the next one.
            if known is None or vetoed_until < known:
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
