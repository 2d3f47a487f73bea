"""Names in the affinity table, and the options by which it is made."""

import hashlib
from dataclasses import dataclass
from typing import Final

from lbguard.distributor.nftables.ruleset import encode_name

FAMILY: Final = "inet"
TABLE: Final = "lbguard-affinity"
IN_TABLE: Final = f"{FAMILY} {TABLE}"
VERSION: Final = 4
"""A table of another version is created again."""
CLOSING_S: Final = 10
"""Seconds that an ended flow is remembered for, so that its last packets still find its target."""
COUNTERS: Final = ("steered", "learned", "observed", "orphaned", "refused")
PROTOCOLS: Final = {"tcp": 6, "sctp": 132, "udp": 17}

_NAME_LEN_MAX: Final = 200
"""The kernel's own limit is 255, and prefixes need some of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AffinityOptions:
    """Bounds of the flow maps.

    Attributes:
        every_flow: remember every new flow, not only those around an incident.
        max_flows: entries of each map; one stands for a protocol in a family.
        idle_s: seconds without a packet after which a flow is forgotten.
        udp: remember and steer UDP flows too.
    """

    every_flow: bool = False
    max_flows: int = 65_536
    idle_s: int = 900
    udp: bool = False

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols whose flows are remembered."""
        return tuple(name for name in PROTOCOLS if self.udp or name != "udp")


def flow_map(protocol: str, family: int) -> str:
    """Return the name of the map of a protocol's flows in a family (4 or 6)."""
    return f"flows_{protocol}_{family}"


def closed_set(family: int) -> str:
    """Return the name of the set of TCP flows that one side has ended."""
    return f"closed_{family}"


def layout_chain(options: AffinityOptions) -> str:
    """Return the name of an empty chain that says by which version and bounds the table was made."""
    extent = "all" if options.every_flow else "incident"
    return f"layout-{VERSION}-{options.max_flows}-{options.idle_s}-{extent}-{'-'.join(options.protocols)}"


def steer_chain(stream: str, family: int) -> str:
    """Return the name of the chain that chooses a healthy target of a stream."""
    return f"steer_{family}_{_identifier(stream)}"


def is_of_stream(chain: str) -> bool:
    """Return whether a chain has the name of a stream's chain."""
    return chain.startswith(tuple(f"steer_{family}_" for family in (4, 6)))


def healthy_map(stream: str, family: int) -> str:
    """Return the name of the map from a slot to a healthy target of a stream."""
    return f"healthy_{family}_{_identifier(stream)}"


def _identifier(stream: str) -> str:
    """Return a stream's name as part of an identifier; of a long name, its digest, which no other name is encoded to.

    nfqlb takes names that nftables does not.
    """
    try:
        encoded = encode_name(stream)
    except ValueError:
        encoded = ""
    if encoded and len(encoded) <= _NAME_LEN_MAX:
        return encoded
    return f"__{hashlib.sha256(stream.encode()).hexdigest()}"
