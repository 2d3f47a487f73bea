"""Events of a source of connections, and the conversion of addresses and a kind of subject into connections."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lbguard.core.addr import Ip, format_ip, is_ipv4
from lbguard.core.model import ConnectionSubject, LinkSubject, TargetSubject
from lbguard.probe.connection import Connection, Pair, pairs_of
from lbguard.settings.probe import SubjectKind


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
