"""Rules of `verdicts.policy` as text: the peers that may report on addresses in a subnet."""

from collections.abc import Sequence
from dataclasses import dataclass

from lbguard.core.addr import Prefix, parse_prefix
from lbguard.settings.peer_names import check_pattern

UNIX_PEER = "unix"
_KINDS = ("spiffe://", "dns:")

RULE_EXAMPLE = "spiffe://example.org/ns/*/proxy=172.16.0.0/16 fd00::/8"
"""A rule as text: PEER=SUBNET SUBNET ..."""


@dataclass(frozen=True, slots=True)
class PeerRule:
    """Rule: peers whose name matches the pattern `peer` may report on addresses in `subnets`."""

    peer: str
    subnets: tuple[Prefix, ...]

    def __str__(self) -> str:
        return f"{self.peer}={' '.join(map(str, self.subnets))}"


def parse_rule(value: object) -> PeerRule:
    """Parse a rule: text `PEER=SUBNET SUBNET`, or a mapping with `peer` and a list `subnets`.

    Raises:
        ValueError: it is not a rule; the text names the fault.
    """
    if isinstance(value, PeerRule):
        return value
    if isinstance(value, str):
        # A subnet contains no "=", a name may.
        peer, equals, subnets = value.rpartition("=")
        if not equals:
            raise ValueError(f"{value!r} is not a rule PEER=SUBNETS")
        return _rule(peer.strip(), subnets.split())
    if isinstance(value, dict) and value.keys() == {"peer", "subnets"}:
        subnets = value["subnets"]
        if isinstance(value["peer"], str) and isinstance(subnets, list | tuple):
            return _rule(value["peer"].strip(), [str(subnet) for subnet in subnets])
    raise ValueError(f"{value!r} is not a mapping of `peer` (text) and `subnets` (a list)")


def _rule(peer: str, subnets: Sequence[str]) -> PeerRule:
    if peer != UNIX_PEER and not any(peer.startswith(kind) and len(peer) > len(kind) for kind in _KINDS):
        raise ValueError(f"{peer!r} is not a peer: unix, spiffe://TRUST-DOMAIN/PATH or dns:NAME")
    check_pattern(peer)
    prefixes = []
    for subnet in subnets:
        try:
            prefixes.append(parse_prefix(subnet))
        except ValueError as error:
            raise ValueError(f"{subnet!r} is not a subnet: {error}") from None
    return PeerRule(peer, tuple(prefixes))
