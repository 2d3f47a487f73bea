"""Authorization of reporters: rules from peers to subnets. Pure.

A peer is known by what its transport proved: `unix` for any process that can open the service's socket (its file mode
decides that; gRPC does not know the process behind it), `spiffe://...` and `dns:NAME` for what its certificate says.

In a rule's pattern `*` stands for any text within one part: it does not cross `/` in a SPIFFE ID nor `.` in a DNS
name, so that `spiffe://example.org/ns/*/proxy` does not let `ns/red/sa/evil/proxy` in. `**` crosses both. What a peer
may report on is the union of all rules that match one of its names; the first name that a rule matches is its identity.
Without any rule for `unix`, peers on the socket may report on anything; all others need a rule.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum

from lbguard.core.addr import Ip, Prefix, format_ip
from lbguard.core.model import ConnectionSubject, LinkSubject, Subject
from lbguard.settings.peers import UNIX_PEER, PeerRule, compile_pattern, is_printable, plain_host

_EVERYTHING = (Prefix(bytes(4), 0), Prefix(bytes(16), 0))
_SHOWN = 4


class DenyReason(StrEnum):
    """Reason why a peer may not report; a bounded set, used as a metric label."""

    NO_IDENTITY = "no_identity"
    PEER_NOT_ALLOWED = "peer_not_allowed"
    SUBNET_NOT_ALLOWED = "subnet_not_allowed"


class Denied(Exception):  # noqa: N818 (it names the answer)
    """A peer may not report on this subject; the text says why."""

    def __init__(self, reason: DenyReason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Subnets:
    """Set of subnets, searchable by address."""

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        self.prefixes = tuple(dict.fromkeys(prefixes))
        self._networks: dict[int, list[tuple[int, int]]] = {4: [], 16: []}
        for prefix in self.prefixes:
            length = len(prefix.network)
            shift = 8 * length - prefix.length
            self._networks[length].append((shift, int.from_bytes(prefix.network) >> shift))

    def __contains__(self, ip: Ip) -> bool:
        value = int.from_bytes(ip)
        return any(value >> shift == network for shift, network in self._networks[len(ip)])

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.prefixes[:_SHOWN])) or "none"
        return shown + (", ..." if len(self.prefixes) > _SHOWN else "")


class Policy:
    """Rules in searchable form."""

    def __init__(self, rules: Sequence[PeerRule]) -> None:
        if not any(rule.peer == UNIX_PEER for rule in rules):
            rules = (*rules, PeerRule(UNIX_PEER, _EVERYTHING))
        self._rules = [(compile_pattern(*_comparable(rule.peer)), rule.subnets) for rule in rules]

    def admit(self, names: Sequence[str]) -> tuple[str, Subnets]:
        """Return the identity of a peer with these names, and the subnets on which it may report.

        Raises:
            Denied: the peer has no name, or no rule is for it.
        """
        names = [name for name in names if is_printable(name)]
        if not names:
            raise Denied(
                DenyReason.NO_IDENTITY, "the certificate has no usable name: it needs a SPIFFE ID or a DNS name"
            )
        identity = ""
        prefixes: list[Prefix] = []
        for name in names:
            text, _ = _comparable(name)
            found = [subnets for pattern, subnets in self._rules if pattern.fullmatch(text) is not None]
            if any(found):
                identity = identity or text
                prefixes += (prefix for subnets in found for prefix in subnets)
        if not identity:
            raise Denied(DenyReason.PEER_NOT_ALLOWED, f"no rule of verdicts.policy lets {names[0]} report on anything")
        return identity, Subnets(prefixes)


def check_subject(subject: Subject, subnets: Subnets, where: str) -> None:
    """Check that every address of a subject is in the subnets.

    Raises:
        Denied: one does not; the text names it and `where` it stands.
    """
    for ip in addresses(subject):
        if ip not in subnets:
            raise Denied(
                DenyReason.SUBNET_NOT_ALLOWED,
                f"{where}: verdicts.policy does not let this peer report on {format_ip(ip)}; allowed: {subnets}",
            )


def addresses(subject: Subject) -> tuple[Ip, ...]:
    """Return every address that a subject names, of both ends."""
    match subject:
        case LinkSubject(lb_ip=lb_ip, proxy_ip=proxy_ip):
            return lb_ip, proxy_ip
        case ConnectionSubject(lb_ips=lb_ips, peer_ips=peer_ips):
            return lb_ips + peer_ips
        case _:
            return (subject.ip,)


def reporter_of(identity: str, name: str, host: str) -> str:
    """Return the name of a reporter: its identity, and a suffix that separates it from others with the same identity.

    No identity holds `#` or `@`, so that no name makes one identity's reporter look like another's.
    """
    return f"{identity}#{name}" if name else f"{identity}@{host}" if host else identity


def identity_of(reporter: str) -> str:
    """Return the identity of a reporter."""
    return reporter.partition("#")[0].partition("@")[0]


def _comparable(peer: str) -> tuple[str, str]:
    """Return a name, or a pattern of names, as it is compared, and what sets its parts apart."""
    return (plain_host(peer), ".") if peer.startswith("dns:") else (peer, "/")
