"""Connections that the probe monitors, events of a source of them, and their making from addresses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from lbguard.core.addr import Ip, format_ip, is_ipv4
from lbguard.core.model import ConnectionSubject, LinkSubject, Subject, TargetSubject
from lbguard.settings.probe import SubjectKind


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionList:
    """List of all connections, with unique ids; it also ends an earlier ConnectionsLost.

    `left_out` lists the connections that are not monitored, with reasons for a log.
    """

    connections: tuple[Connection, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsLost:
    """The source cannot be read: the last list stays in force."""

    reason: str


Emit = Callable[[ConnectionList | ConnectionsLost], None]
"""Receiver of a source's events, in the thread of the event loop. It must not block."""


class ConnectionSource(Protocol):
    """Source of connections."""

    async def run(self) -> None:
        """Report the list and every change of it until cancelled."""

    def reload(self) -> None:
        """Report the list again, changed or not (SIGHUP)."""


def connections_of(
    *,
    id: str,
    kind: SubjectKind,
    local: Sequence[Ip],
    remote: Sequence[Ip],
    ifname: str = "",
    mac: bytes = b"",
    healing_s: float = 0.0,
) -> tuple[Connection, ...]:
    """Return the connections between two ends; none when no family has an address at both.

    Args:
        id: the only connection's id, and the beginning of the ids of several.
        kind: what the verdicts speak of.
        local: our addresses.
        remote: addresses of the far end.
        ifname: see Connection.
        mac: see Connection.
        healing_s: see Connection.
    """
    return connections_between(
        id=id, kind=kind, pairs=pairs_of(local, remote), ifname=ifname, mac=mac, healing_s=healing_s
    )


def connections_between(
    *,
    id: str,
    kind: SubjectKind,
    pairs: Sequence[Pair],
    ifname: str = "",
    mac: bytes = b"",
    healing_s: float = 0.0,
) -> tuple[Connection, ...]:
    """Return the connections that consist of these pairs of addresses; none without any. See `connections_of`."""
    pairs = tuple(dict.fromkeys(pairs))
    if not pairs:
        return ()
    if kind == "connection":
        whole = ConnectionSubject(
            id=id,
            lb_ips=tuple(dict.fromkeys(pair.destination for pair in pairs)),
            peer_ips=tuple(dict.fromkeys(pair.source for pair in pairs)),
        )
        return (Connection(id=id, subject=whole, pairs=pairs, ifname=ifname, mac=mac, healing_s=healing_s),)
    groups: dict[LinkSubject | TargetSubject, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(_subject(kind, pair), []).append(pair)
    return tuple(
        Connection(
            id=f"{id}/{_name(subject)}",
            subject=subject,
            pairs=tuple(members),
            ifname=ifname,
            mac=mac,
            healing_s=healing_s,
        )
        for subject, members in groups.items()
    )


def far_ends(connection: Connection) -> tuple[Ip, ...]:
    """Return the load balancer's addresses at the far end, IPv4 first; none when the far end is not a load balancer."""
    match connection.subject:
        case ConnectionSubject(lb_ips=ips):
            return tuple(sorted(ips, key=lambda ip: (not is_ipv4(ip), ip)))
        case LinkSubject(lb_ip=ip):
            return (ip,)
    return ()


def _subject(kind: SubjectKind, pair: Pair) -> LinkSubject | TargetSubject:
    if kind == "link":
        return LinkSubject(lb_ip=pair.destination, proxy_ip=pair.source)
    return TargetSubject(ip=pair.destination if kind == "target" else pair.source)


def _name(subject: LinkSubject | TargetSubject) -> str:
    if isinstance(subject, TargetSubject):
        return format_ip(subject.ip)
    return f"{format_ip(subject.proxy_ip)}-{format_ip(subject.lb_ip)}"
