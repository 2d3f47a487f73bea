"""Monitored connections, each with the address pairs that are pinged and the subject that is judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lbguard.core.addr import Ip, is_ipv4
from lbguard.core.model import Subject


class Pair(NamedTuple):
    """One direction that is pinged: from one of our addresses to one of the other end's, both of one family."""

    source: Ip
    destination: Ip


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One connection to monitor, as a source lists it.

    A change of `subject`, `ifname`, `pairs` or `mac` begins a new generation: earlier results do not apply to it.
    A change of `healing_s` alone does not.

    Attributes:
        id: name of the connection, unique within one monitor.
        subject: subject of the verdicts. The addresses of a ConnectionSubject should be those of `pairs`.
        pairs: address pairs to ping; at least one, no pair twice.
        ifname: the link of the pings; empty: the routing table chooses.
        mac: link-layer address of the subject, if the source knows it. When it changes the link was re-created, and the
            verdicts of the new generation carry it as `new_mac`.
        healing_s: expected duration of a repair by the mesh, above 0 while the mesh reports one. Verdicts are then
            HEALING instead of DOWN.
    """

    id: str
    subject: Subject
    pairs: tuple[Pair, ...]
    ifname: str = ""
    mac: bytes = b""
    healing_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError(f"connection {self.id!r} has no address pair to ping")
        if len(set(self.pairs)) != len(self.pairs):
            raise ValueError(f"connection {self.id!r} lists an address pair twice")
        for pair in self.pairs:
            if len(pair.source) not in (4, 16) or len(pair.source) != len(pair.destination):
                raise ValueError(f"connection {self.id!r}: the addresses of a pair must be of one family")


def pairs_of(sources: Sequence[Ip], destinations: Sequence[Ip]) -> tuple[Pair, ...]:
    """Return each source with each destination of its family, in order, without repetitions."""
    pairs = (Pair(source, dst) for source in sources for dst in destinations if is_ipv4(source) == is_ipv4(dst))
    return tuple(dict.fromkeys(pairs))
